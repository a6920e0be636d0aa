"""`mmjax import`: what all datasets share, and one of them from official files to batches."""

import json
import shutil

import numpy as np
import pytest

from mmjax.data import dataset, schema
from mmjax.data.loader import make_eval_data
from mmjax.errors import UserError
from mmjax.tools import cli
from mmjax.tools.importers import IMPORTERS, annotations
from mmjax.tools.importers.media_folder import MediaFolder
from tests.data import films
from tests.tools.importing import Folder


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def kinetics(folder, *, val="", media=("a_000001_000011.mp4",)):
    folder.annotate("train.csv", "label,youtube_id,time_start,time_end,split\nx,a,1,11,train\n")
    if val:
        folder.annotate("val.csv", val)
    folder.touch(*media)


def test_the_list_and_the_help_name_every_dataset_and_its_files(capsys):
    assert cli.main(["import", "--list"]) == 0
    listed = capsys.readouterr().out
    assert len(listed.splitlines()) == len(IMPORTERS) == 14
    for name, importer in IMPORTERS.items():
        assert f"{name} " in listed
        with pytest.raises(SystemExit) as exit_:
            cli.main(["import", name, "--help"])
        out = capsys.readouterr().out
        assert exit_.value.code == 0 and importer.needs.split()[0] in out
    assert cli.main(["import"]) == 2
    assert "mmjax import --list" in capsys.readouterr().err


def test_the_three_formats_say_the_same(folder):
    kinetics(folder, val='label,youtube_id,time_start,time_end\n"y, z",b,2.5,12.5\n')
    folder.touch("whole/b.webm")
    for name in ("clips.csv", "clips.tsv", "clips.jsonl"):
        assert folder.run("kinetics400", out=name) == 0
    first, second = folder.clips("clips.csv")
    assert folder.clips("clips.tsv") == [first, second]
    assert [(c.path, c.start, c.end, c.labels) for c in folder.clips()] == [
        ("a_000001_000011.mp4", None, None, ("x",)),
        ("whole/b.webm", 2.5, 12.5, ("y, z",)),
    ]
    assert folder.cells("clips.csv")[2] == [
        "whole/b.webm",
        "2.5",
        "12.5",
        "y, z",
        "validation+test",
    ]
    assert (first.labels, second.labels, second.start) == (("x",), ("y, z",), 2.5)
    assert folder.run("kinetics400", out="clips.txt") == 2
    assert not (folder.root / "made" / "clips.txt").exists()


def test_missing_media_are_counted_named_and_listed(folder, capsys):
    header = "label,youtube_id,time_start,time_end\n"
    kinetics(folder, val=header + "".join(f"x,v{k},0,10\n" for k in range(3)))
    assert folder.run("kinetics400", out="clips.csv") == 1  # 3 of 4 are more than 5 %
    out = capsys.readouterr().out
    assert "1 clips: train 1; 1 classes" in out and "has 400 classes, not 1" in out
    assert "3 of 4 clips left out: 3 files are missing (missing.txt), first v0_000000" in out
    assert folder.lines("missing.txt") == [f"v{k}_000000_000010" for k in range(3)]
    assert folder.run("kinetics400", "--max-missing-fraction", "0.75") == 0
    folder.touch(*(f"v{k}_000000_000010.mkv" for k in range(3)))
    capsys.readouterr()
    assert folder.run("kinetics400") == 0
    out = capsys.readouterr().out
    assert "4 clips: test 3, train 1, validation 3; 1 classes" in out and "left out" not in out
    assert not folder.lines("missing.txt")  # the old one is gone
    assert "Next: mmjax build --csv " in out and "--fps 25" in out

    shutil.rmtree(folder.media)
    folder.media.mkdir()
    assert folder.run("kinetics400", out="none.csv") == 2
    assert "Not one of 4 clips has a file below" in capsys.readouterr().err
    assert not list((folder.root / "made").glob("none*"))


def test_repeated_annotations_and_several_files_are_named(folder, capsys):
    row = "x,a,1,11\n"
    kinetics(folder, val=f"label,youtube_id,time_start,time_end\n{row}")
    folder.touch("other/a_000001_000011.mkv", "other/a_000001_000011.wav")
    assert len(folder.table("kinetics400")) == 1
    out = capsys.readouterr().out
    assert "1 repeated annotations left out: val.csv:2 repeats train.csv:2" in out
    assert "1 names have several files; taken: a_000001_000011.mp4 (not other/a_" in out


def test_media_by_name_hint_and_kind(tmp_path):
    for name in (
        *("train/air_drumming/x.mp4", "val/air_drumming/x.mp4", "val/yoga/x.mp4"),
        *("y.mp4.webm", "sound/z.wav", "z.mkv", "n.txt", ".hidden.mp4", "w#1 (a).avi"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    media = MediaFolder(str(tmp_path))
    assert media.find("x", hints=("air drumming", "val")) == "val/air_drumming/x.mp4"
    assert media.find("y") == "y.mp4.webm" and media.find("z") == "z.mkv"
    assert media.find("n") is media.find(".hidden") is media.find("w_1_a_") is None
    assert not media.several
    assert media.find("x", hints=("yoga", "train")) == "train/air_drumming/x.mp4"
    assert list(media.several) == ["x"]
    assert MediaFolder(str(tmp_path), loose=True).find("W_1_a_") == "w#1 (a).avi"
    with pytest.raises(UserError, match="no media folder"):
        MediaFolder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("buffer", [1, 2, 7, 1000])
def test_a_json_file_is_read_piece_by_piece(tmp_path, monkeypatch, buffer):
    contents = {f'k"{k}': {"a": [k, -0.5], "é": "}," * k, "n": None} for k in range(9)}
    path = tmp_path / "c.json"
    monkeypatch.setattr(annotations, "_BUFFER", buffer)
    for indent in (None, 2):
        path.write_text(json.dumps(contents, indent=indent), encoding="utf-8")
        assert dict(annotations.json_items(str(path))) == contents
    path.write_text("{}")
    assert not list(annotations.json_items(str(path)))
    path.write_text(json.dumps(contents)[:-30])
    with pytest.raises(UserError, match="cut off, after the key 'k\"7'"):
        list(annotations.json_items(str(path)))
    path.write_text('{"a": {} "b" 3}')
    with pytest.raises(UserError, match="after the key 'a'"):
        list(annotations.json_items(str(path)))
    path.write_text("[]")
    with pytest.raises(UserError, match="no JSON object"):
        list(annotations.json_items(str(path)))


def test_annotations_that_are_missing_double_or_no_text(folder, capsys):
    folder.annotate("a/esc50.csv", "")
    folder.annotate("b/esc50.csv", "")
    assert folder.run("esc50") == 2
    assert "2 annotation files match esc50.csv: " in capsys.readouterr().err
    assert folder.run("ucf101") == 2
    assert "There is no classInd.txt in " in (err := capsys.readouterr().err)
    assert "found: esc50.csv." in err
    (folder.annotations / "classInd.txt").write_bytes(b"1 caf\xe9\n")
    assert folder.run("ucf101") == 2
    assert "classInd.txt is not text in UTF-8" in capsys.readouterr().err
    media = ["--media", str(folder.media), "--out", "t.csv"]
    assert cli.main(["import", "esc50", "--annotations", "nowhere", *media]) == 2
    assert "no annotation file or folder nowhere" in capsys.readouterr().err


def test_ucf101_from_official_files_to_batches(folder):
    """Import, build, validate and load; every split has its clips, and none is stored twice."""
    classes = ["ApplyEyeMakeup", "HandstandPushups"]
    folder.annotate("classInd.txt", "".join(f"{k} {c}\r\n" for k, c in enumerate(classes, 1)))
    clips = [f"{c}/v_{c.replace('sp', 'Sp')}_g0{g}_c01.avi" for c in classes for g in (1, 2, 3)]
    for split in (1, 2, 3):
        of = {"test": [c for c in clips if f"_g0{split}" in c]}
        of["train"] = [c for c in clips if c not in of["test"]]
        numbered = [f"{c} {1 + classes.index(c.split('/')[0])}\n" for c in of["train"]]
        folder.annotate(f"trainlist0{split}.txt", "".join(numbered))
        folder.annotate(f"testlist0{split}.txt", "\n".join(of["test"]))
    for number, clip in enumerate(clips):
        frames = [
            np.full((48, 64, 3), 20 + 40 * number, np.uint8)
        ] * 8  # brighter from clip to clip
        path = folder.media / clip.replace("avi", "mkv")
        path.parent.mkdir(exist_ok=True)
        films.write_film(path, frames=frames, fps=5)

    assert folder.run("ucf101", out="clips.csv") == 0
    data, made = str(folder.root / "data"), folder.root / "made"
    build = ["--csv", made / "clips.csv", "--media-root", folder.media, "--out", data]
    small = ["--fps", "5", "--size", "48", "--workers", "1", "--quiet"]
    assert cli.main(["build", *map(str, build), "--classes", f"{made}/classes.txt", *small]) == 0
    assert cli.main(["validate", data, "--quiet"]) == 0
    info = dataset.DatasetFolder(data).info
    assert info.class_names == classes
    assert sum(split.num_examples for split in info.splits.values()) == len(clips)
    sizes = {f"train{k}": 4 for k in (1, 2, 3)} | {f"test{k}": 2 for k in (1, 2, 3)}
    assert info.split_sizes() == sizes

    cfg = dict(train=data, split="train1", video=dict(num_frames=2, size=48), label={})
    for split, size in sizes.items():
        source = dataset.DatasetFolder(data).split(split)
        names = [schema.decode(source.read(k)).filename for k in range(len(source))]
        assert len(set(names)) == len(names) == size
        group = f"_g0{split[-1]}"
        assert all((group in name) == split.startswith("test") for name in names)
        (batch,) = make_eval_data(cfg, split=split, batch_size=4).iterate()
        present = np.flatnonzero(batch["mask"])
        numbers = [round((batch["video"][row].mean() - 20) / 40) for row in present]
        assert len(numbers) == size
        assert batch["label"][present].tolist() == [number // 3 for number in numbers]
        held_out = {number for number in range(6) if number % 3 + 1 == int(split[-1])}
        assert set(numbers) == (held_out if "test" in split else set(range(6)) - held_out)
