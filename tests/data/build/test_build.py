"""`mmjax build`, from the command line to the stored records."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from mmjax.data.build import runners
from mmjax.data.storage import dataset, schema
from mmjax.tools import cli
from tests.data import films
from tests.data.importers.importing import assert_line_mentions
from tests.messages import assert_mentions

SMALL = ["--fps", "5", "--size", "24", "--sample-rate", "8000", "--workers", "1", "--quiet"]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A directory with two videos of 4 s, an audio file, an image, and an unreadable .mp4."""
    directory = tmp_path_factory.mktemp("media")
    frames, waveform = films.flash_and_beep(seconds=4, instant=1.0, channels=1)
    films.write_film(directory / "a.mp4", frames=frames, waveform=waveform)
    frames = [films.coded_frame(k) for k in range(80)]
    films.write_film(directory / "b.mkv", frames=frames)
    audio = films.tone(300, seconds=2, sample_rate=16_000)[None]
    films.write_film(directory / "c.wav", waveform=audio, audio_codec="pcm_s16le")
    Image.new("RGB", (60, 40), "red").save(directory / "d.png")
    (directory / "bad.mp4").write_text("not a video")
    return directory


def write_table(directory, rows, name="clips.csv"):
    with open(directory / name, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(directory / name)


def run(*arguments):
    return cli.main(["build", *map(str, arguments)])


def read(path, split="train"):
    records = dataset.DatasetDir(path).split(split)
    return [schema.decode(records.read(k)) for k in range(len(records))]


def contents(directory):
    """{file name: bytes} of a dataset, without working files and the name of the directory."""
    names = [name for name in os.listdir(directory) if not name.startswith(".")]
    data = {name: (directory / name).read_bytes() for name in names}
    info = json.loads(data.pop("dataset.json"))
    return data | {"info": info | {"name": ""}}


def test_table_with_all_media_types_becomes_a_dataset(media, tmp_path):
    table = write_table(
        media,
        [
            ["path", "start", "end", "caption", "caption", "label", "split"],
            ["a.mp4", "0.5", "2.5", "a flash", "white, then black|and a beep", "flash", ""],
            ["b.mkv", "", "", "stripes", "", "stripes", ""],
            ["c.wav", "0:01", "0:02", "a tone", "", "tone", "test"],
            ["d.png", "", "", "red", "", "stripes|flash", "test"],
        ],
    )
    assert run("--csv", table, "--out", tmp_path / "ds", *SMALL) == 0
    info = dataset.DatasetDir(tmp_path / "ds").info
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 2,
        "test": 2,
    }
    assert info.modalities == ("video", "audio", "text", "label")
    assert info.class_names == ["flash", "stripes", "tone"] and info.multi_label
    assert (info.fps, info.sample_rate, info.vocabulary) == (5, 8000, "vocab.txt")
    assert info.statistics["examples_with"]["audio"] == 2
    assert info.statistics["seconds"] == pytest.approx(2 + 4 + 1 + 0)

    a, b = read(tmp_path / "ds")
    assert a.captions == ["a flash", "white, then black", "and a beep"]
    assert (a.labels, a.label_texts, a.filename) == ([0], ["flash"], "a.mp4")
    assert (a.start_us, a.end_us, a.frame_rate, a.sample_rate) == (500_000, 2_500_000, 5, 8000)
    assert len(a.frames) == 10 and a.waveform.shape == (16_000,)
    assert np.argmax(np.abs(a.waveform) > 0.3) / 8000 == pytest.approx(0.5, abs=0.003)
    assert len(b.frames) == 20 and b.waveform is None and b.labels == [1]
    c, d = read(tmp_path / "ds", "test")
    assert c.frames == [] and c.waveform.shape == (8000,) and c.labels == [2]
    assert len(d.frames) == 1 and d.waveform is None and d.labels == [1, 0]

    vocabulary = set((tmp_path / "ds" / "vocab.txt").read_text().split())
    assert {"flash", "stripes"} <= vocabulary
    assert "tone" not in vocabulary  # occurs only in the split test


def test_clip_in_several_splits_is_stored_once(media, tmp_path, capsys):
    splits = ["train1+test2", "train1+train2", "test1+train2", "train2+train1", "test2+train1", "x"]
    rows = [["b.mkv", k / 2, k / 2 + 0.5, split] for k, split in enumerate(splits)]
    table = write_table(media, [["path", "start", "end", "split"], *rows])
    out = tmp_path / "ds"
    assert run("--csv", table, "--out", out, *SMALL, "--clips-per-shard", "1") == 0
    counts = ("train1 4", "train2 3", "test1 1", "test2 2", "x 1", "6")
    assert_line_mentions(capsys.readouterr().out, "ds", *counts)
    assert len(list(out.glob("train1+test2-0000?-of-00002.tfrecord"))) == 2
    assert len(list(out.glob("train1+train2-0000?-of-00002.tfrecord"))) == 2
    expected = {
        "train1": [0, 4, 1, 3],  # shards of train1+test2 come before those of train1+train2
        "train2": [2, 1, 3],
        "test1": [2],
        "test2": [0, 4],
        "x": [5],
    }
    for split, clips in expected.items():
        assert [clip.start_us / 5e5 for clip in read(out, split)] == clips
    (out / "dataset.json").unlink()  # splits are then read from the names of the shards
    for split, clips in expected.items():
        assert [clip.start_us / 5e5 for clip in read(out, split)] == clips
    table = write_table(media, [["path", "split"], ["b.mkv", "train1++test"]])
    assert run("--csv", table, "--out", tmp_path / "bad") == 2
    assert_mentions(capsys.readouterr().err, table, "line 2", "split ''")


def test_bytes_do_not_depend_on_workers_or_parts(media, tmp_path):
    rows = [[f, k / 2, k / 2 + 1] for f in ("a.mp4", "b.mkv") for k in range(6)]
    table = write_table(media, [["path", "start", "end"], *rows])
    common = ["--csv", table, *SMALL, "--clips-per-shard", "3"]
    assert run(*common, "--out", tmp_path / "one") == 0
    assert run(*common, "--out", tmp_path / "two", "--workers", "2") == 0
    assert run(*common, "--out", tmp_path / "parts", "--shard", "1/2") == 0
    assert run("--finalize", "--out", tmp_path / "parts") == 2  # a part is missing
    assert not (tmp_path / "parts" / "dataset.json").exists()
    assert run(*common, "--out", tmp_path / "parts", "--shard", "0/2") == 0
    assert run("--finalize", "--out", tmp_path / "parts") == 0
    one = contents(tmp_path / "one")
    assert sum(name.endswith(".tfrecord") for name in one) == 4
    assert one == contents(tmp_path / "two") == contents(tmp_path / "parts")


def test_beam_builds_the_same_bytes(media, tmp_path):
    pytest.importorskip("apache_beam")
    table = write_table(media, [["path", "start", "end"], ["a.mp4", 0, 1], ["b.mkv", 1, 2]])
    common = ["--csv", table, *SMALL, "--clips-per-shard", "1"]
    assert run(*common, "--out", tmp_path / "local") == 0
    beam = ["--runner", "beam", "--direct_num_workers=1"]
    assert run(*common, "--out", tmp_path / "beam", *beam) == 0
    assert contents(tmp_path / "local") == contents(tmp_path / "beam")


def test_second_run_builds_only_missing_shards(media, tmp_path, monkeypatch, capsys):
    table = write_table(media, [["path", "start"], *[["b.mkv", k / 2] for k in range(6)]])
    common = ["--csv", table, "--out", tmp_path / "ds", *SMALL, "--clips-per-shard", "2"]
    assert run(*common) == 0
    before = contents(tmp_path / "ds")
    os.remove(tmp_path / "ds" / "train-00001-of-00003.tfrecord")
    built = []
    monkeypatch.setattr(
        runners, "run_local", lambda builder, shards, **_: built.extend(map(builder, shards))
    )
    assert run(*common) == 0
    assert len(built) == 1
    assert_line_mentions(capsys.readouterr().out, 2, 3, "shards")
    assert contents(tmp_path / "ds") == before

    assert run(*common, "--fps", "4") == 2  # different options
    assert_mentions(capsys.readouterr().err, tmp_path / "ds", "--overwrite")
    assert contents(tmp_path / "ds") == before
    assert run(*common, "--fps", "4", "--overwrite") == 0
    assert dataset.DatasetDir(tmp_path / "ds").info.fps == 4


def test_unreadable_clips_are_reported_skipped_and_retried(media, tmp_path, capsys):
    shutil.copytree(media, tmp_path / "media")
    rows = [["path", "start", "end"], ["b.mkv", 0, 1], ["bad.mp4", 0, 1], ["b.mkv", 7, 8]]
    table = write_table(tmp_path / "media", rows)
    common = ["--csv", table, "--out", tmp_path / "ds", *SMALL]
    assert run(*common) == 1  # two of three exceed the default limit of 5 %
    out = capsys.readouterr().out
    assert_line_mentions(out, 2, 3, "bad_rows.csv")
    assert_line_mentions(out, 3, 1, "FFmpeg", "bad.mp4")  # line of the table, clips, problem
    assert_line_mentions(out, 4, 1, "b.mkv", "7 s", "4.00 s")
    assert_mentions(out, "--retry-bad")
    with open(tmp_path / "ds" / "bad_rows.csv") as file:
        assert [row["line"] for row in csv.DictReader(file)] == ["3", "4"]
    assert len(read(tmp_path / "ds")) == 1

    assert run(*common, "--max-bad-fraction", "0.7") == 0
    shutil.copy(media / "a.mp4", tmp_path / "media" / "bad.mp4")
    assert run(*common, "--retry-bad", "--max-bad-fraction", "0.5") == 0
    assert [example.filename for example in read(tmp_path / "ds")] == ["b.mkv", "bad.mp4"]

    assert run(*common[:2], "--out", tmp_path / "strict", *SMALL, "--on-error", "fail") == 2
    facts = (f"{table}, line 4", "b.mkv", "7 s", "4.00 s")
    assert_line_mentions(capsys.readouterr().err, *facts)
    assert not list((tmp_path / "strict").glob("*.tfrecord*"))


def test_videos_are_cut_and_split_by_time(media, tmp_path):
    table = write_table(media, [["path"], ["a.mp4"], ["b.mkv"]])
    cut = ["--clip-seconds", "1", "--split-by-time", "train:0.5,test:0.5"]
    assert run("--csv", table, "--out", tmp_path / "ds", *cut, *SMALL) == 0
    for split, starts in (("train", [0, 1]), ("test", [2, 3])):
        clips = read(tmp_path / "ds", split)
        assert [clip.filename for clip in clips] == ["a.mp4", "a.mp4", "b.mkv", "b.mkv"]
        actual = [clip.start_us / 1e6 for clip in clips]
        assert actual == pytest.approx(starts * 2, abs=0.05)  # AAC makes a.mp4 a little longer
        assert {len(clip.frames) for clip in clips} == {5}


@pytest.mark.parametrize("option", ["--split-by-time", "--split-by-file"])
def test_a_split_without_clips_is_reported(media, tmp_path, capsys, option):
    table = write_table(media, [["path"], ["a.mp4"]])
    options = ["--clip-seconds", "2", option, "rest:0.1,train:0.9"]  # 0.4 of 4 s; one file
    assert run("--csv", table, "--out", tmp_path / "ds", *options, *SMALL) == 0
    assert_line_mentions(capsys.readouterr().out, "Warning", "rest")


def test_image_directory_gives_splits_classes_and_captions(tmp_path):
    for split in ("train", "test"):
        for color in ("red", "blue"):
            directory = tmp_path / "images" / split / color
            directory.mkdir(parents=True)
            for k in range(2):
                Image.new("RGB", (32, 48), color).save(directory / f"{k}.jpg")
            (directory / "0.txt").write_text(f"all {color}\nno other color\n")
    assert run("--images", tmp_path / "images", "--out", tmp_path / "ds", *SMALL) == 0
    info = dataset.DatasetDir(tmp_path / "ds").info
    assert info.class_names == ["blue", "red"] and info.frame_size == (36, 24)
    clips = read(tmp_path / "ds")
    assert [clip.labels for clip in clips] == [[0], [0], [1], [1]]
    assert clips[0].captions == ["all blue", "no other color"] and clips[1].captions == []
    assert len(read(tmp_path / "ds", "test")) == 4


def test_split_options_are_refused_for_a_table_with_splits(media, tmp_path, capsys):
    rows = [["path", "split"], ["d.png", "train"], ["c.wav", "test"]]
    table = write_table(media, rows, "with_splits.csv")
    for option in ("--split-by-file", "--split-by-time"):
        assert run("--csv", table, "--out", tmp_path / "ds", option, "train:0.5,test:0.5") == 2
        assert_mentions(
            capsys.readouterr().err, "test, train", "--split-by-file", "--split-by-time"
        )
    assert not (tmp_path / "ds").exists()


@pytest.mark.parametrize(
    ("lines", "facts"),
    [
        ("file,caption\na,b", ("'path'", "file, caption")),
        ("path,captoin\na,b", ("'captoin'", "'caption'")),
        ("path,start,end\na,5,4", ("line 2", "4 s", "5 s")),
        ("path,start\na,soon", ("line 2", "'soon'", "12.5")),
        ("path,split\na,tr/ain", ("line 2", "'tr/ain'")),
        ("path,caption\na,b,c", ("line 2", " 3 ", " 2 ")),
        ("path,start\n,3", ("line 2", "path")),
        ("path", ("no rows",)),
    ],
)
def test_malformed_tables_are_named(tmp_path, capsys, lines, facts):
    (tmp_path / "t.csv").write_text(lines + "\n")
    assert run("--csv", tmp_path / "t.csv", "--out", tmp_path / "ds") == 2
    assert_mentions(capsys.readouterr().err, tmp_path / "t.csv", *facts)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--csv", "nowhere.csv"], ("--csv nowhere.csv",)),
        (["--images", "nowhere"], ("--images nowhere",)),
        ([], ("--csv", "--images")),
        (["--csv", "TABLE", "--media-root", "nowhere"], ("nowhere/b.mkv", "--media-root")),
        (
            ["--csv", "TABLE", "--split-by-time", "train:0.8,test:0.1"],
            ("--split-by-time", "'train:0.8,test:0.1'", "0.9"),
        ),
        (
            ["--csv", "TABLE", "--split-by-time", "train:0.8,test:0.2"],
            ("labeled.csv, line 2", "b.mkv", "--clip-seconds", "--split-by-file"),
        ),
        (["--csv", "TABLE", "--shard", "3/3"], ("--shard", "3/3")),
        (["--csv", "TABLE", "--fps", "-1"], ("--fps", "-1")),
        (
            ["--csv", "TABLE", "--classes", "CLASSES"],
            ("labeled.csv, line 2", "'stripe'", "'stripes'"),
        ),
    ],
)
def test_wrong_arguments_are_named(media, tmp_path, capsys, arguments, facts):
    table = write_table(media, [["path", "label"], ["b.mkv", "stripe"]], "labeled.csv")
    (tmp_path / "classes.txt").write_text("stripes\ndots\n")
    paths = {"TABLE": table, "CLASSES": str(tmp_path / "classes.txt")}
    arguments = [paths.get(argument, argument) for argument in arguments]
    assert run(*arguments, "--out", tmp_path / "ds", "--quiet") == 2
    assert_line_mentions(capsys.readouterr().err, *facts)


def test_unknown_arguments_are_refused_without_beam(capsys):
    with pytest.raises(SystemExit):
        run("--csv", "t.csv", "--out", "ds", "--nonsense")
    assert_mentions(capsys.readouterr().err, "--nonsense")


def test_relative_paths_cannot_leave_the_media_root(media, tmp_path):
    rows = [["../x.mp4"], ["y/../../x.mp4"], ["y/../d.png"], [media / "d.png"]]
    table = write_table(media, [["path"], *rows], "paths.csv")
    (media / "y").mkdir()
    (media.parent / "x.mp4").write_bytes((media / "a.mp4").read_bytes())
    out = tmp_path / "ds"
    assert run("--csv", table, "--out", out, *SMALL, "--max-bad-fraction", "1") == 0
    assert len(read(out)) == 2
    bad = (out / "bad_rows.csv").read_text()
    assert_line_mentions(bad, "2,../x.mp4", "--media-root")
    assert_line_mentions(bad, "3,y/../../x.mp4", "--media-root")


def test_files_are_recognized_by_content(media, tmp_path):
    names = {"d.png": "image.mp4", "a.mp4": "film.jpg", "c.wav": "audio"}
    for name, copy in names.items():
        shutil.copy(media / name, media / copy)
    table = write_table(media, [["path"], *([name] for name in names.values())], "content.csv")
    assert run("--csv", table, "--out", tmp_path / "ds", *SMALL) == 0
    image, film, audio = read(tmp_path / "ds")
    assert (len(image.frames), len(film.frames)) == (1, 20)
    assert audio.modalities == ("audio",) and image.modalities == ("video",)


def test_frames_and_audio_of_one_clip_may_be_in_different_files(media, tmp_path):
    rows = [
        ("path", "video", "image", "audio", "start", "end", "caption"),
        ("", "a.mp4", "", "c.wav", "", "", "video with separate audio"),
        ("", "b.mkv", "", "c.wav", "1", "3", "audio extended by silence"),
        ("", "", "d.png", "c.wav", "0.5", "1.5", "image with audio"),
        ("c.wav", "", "d.png", "", "", "", "image with the audio of path"),
        ("", "", "", "a.mp4", "", "", "audio of a film"),
    ]
    table = write_table(tmp_path, rows)
    options = ("--csv", table, "--media-root", media, "--fps", 10, "--sample-rate", 16_000)
    assert run(*options, "--workers", 1, "--quiet", "--out", tmp_path / "ds") == 0
    separate, silent, image, path, film = read(tmp_path / "ds")
    tone = films.tone(300, seconds=2, sample_rate=16_000)
    assert len(separate.frames) == 40 and len(separate.waveform) == 4 * 16_000
    np.testing.assert_allclose(separate.waveform[: 2 * 16_000], tone, atol=0.02)
    assert not separate.waveform[2 * 16_000 :].any()
    assert len(silent.frames) == 20 and len(silent.waveform) == 2 * 16_000
    np.testing.assert_allclose(silent.waveform[:16_000], tone[16_000:], atol=0.02)
    assert len(image.frames) == len(path.frames) == 1
    np.testing.assert_allclose(image.waveform, tone[8_000:24_000], atol=0.02)
    np.testing.assert_allclose(path.waveform, tone, atol=0.02)
    assert film.frames == [] and len(film.waveform) >= 4 * 16_000  # AAC pads it
    assert run(*options, "--clip-seconds", 1, "--quiet", "--out", tmp_path / "cut") == 0
    lengths = [clip.waveform is not None and len(clip.waveform) for clip in read(tmp_path / "cut")]
    assert lengths[:4] == [16_000, 16_000, False, False]  # the audio is shorter than the video


def test_a_row_of_which_options_leave_nothing_is_rejected(media, tmp_path, capsys):
    table = write_table(tmp_path, [("path",), ("d.png",)])
    options = ("--csv", table, "--media-root", media, "--quiet", "--out", tmp_path / "ds")
    assert run(*options, "--no-video") == 2
    assert_mentions(capsys.readouterr().err, "d.png", "--no-video")
