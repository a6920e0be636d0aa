"""`mmjax import`: behavior common to all datasets, and UCF101 from official files to batches."""

import json
import shutil

import numpy as np
import pytest

from mmjax.data.importers import IMPORTERS, annotations
from mmjax.data.importers.media_directory import MediaDir
from mmjax.data.pipeline.loader import make_eval_data
from mmjax.data.storage import dataset, schema
from mmjax.errors import UserError
from mmjax.tools import cli
from tests.data import films
from tests.data.importers.importing import Workspace, assert_line_mentions
from tests.messages import assert_mentions, raises


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def kinetics(workspace, *, val="", media=("a_000001_000011.mp4",)):
    workspace.annotate("train.csv", "label,youtube_id,time_start,time_end,split\nx,a,1,11,train\n")
    if val:
        workspace.annotate("val.csv", val)
    workspace.touch(*media)


def test_list_and_help_name_every_dataset_and_its_files(capsys):
    assert cli.main(["import", "--list"]) == 0
    listed = capsys.readouterr().out
    assert len(listed.splitlines()) == len(IMPORTERS) == 17
    for name, importer in IMPORTERS.items():
        assert f"{name} " in listed
        with pytest.raises(SystemExit) as exit_:
            cli.main(["import", name, "--help"])
        out = capsys.readouterr().out
        assert exit_.value.code == 0 and importer.annotation_files.split()[0] in out
    assert cli.main(["import"]) == 2
    assert_mentions(capsys.readouterr().err, "mmjax import --list")


EXTERNAL = """
from mmjax.data.importers.base import AnnotatedExample, Importer, MediaName, Option


def read(job):
    for line, text in enumerate(open(job.annotations.require_one("birds.txt")), 1):
        name, label = text.split()
        if label == job.options.without:
            job.skip("birds of an excluded class", example=name)
            continue
        location = f"birds.txt, line {line}"
        yield AnnotatedExample(
            media=(MediaName(name),), labels=[label], split="train", location=location
        )


BIRDS = Importer(
    name="birds",
    title="Birds",
    annotation_files="birds.txt",
    media_names="NAME",
    read=read,
    options=(Option(name="without", help="class to skip"),),
    num_classes=2,
)


class Birds(Importer):
    def __init__(self):
        super().__init__(**vars(BIRDS))


NOT_AN_IMPORTER = 3
"""


def test_importers_outside_the_package_are_found_by_reference(workspace, capsys, monkeypatch):
    (workspace.root / "my_birds.py").write_text(EXTERNAL)
    monkeypatch.syspath_prepend(workspace.root)
    workspace.annotate("birds.txt", "a robin\nb wren\nc crow\n")
    workspace.touch("x/a.mp4", "x/b.mp4", "x/c.mp4")
    for name in ("my_birds:BIRDS", "my_birds:Birds"):
        rows = workspace.table(name, "--without", "crow")
        assert [(row["path"], row["label"]) for row in rows] == [
            ("x/a.mp4", ["robin"]),
            ("x/b.mp4", ["wren"]),
        ]
        out = capsys.readouterr().out
        assert_line_mentions(out, "birds", "excluded", 1, "c")
        assert_mentions(out, "--out datasets/birds")
    with pytest.raises(SystemExit):
        cli.main(["import", "my_birds:BIRDS", "--help"])
    assert_mentions(
        capsys.readouterr().out, "mmjax import my_birds:BIRDS", "--without", "birds.txt"
    )
    shutil.rmtree(workspace.media)
    workspace.media.mkdir()
    assert workspace.run("my_birds:BIRDS") == 2
    assert_mentions(capsys.readouterr().err, "mmjax import my_birds:BIRDS --help")
    for name, facts in (
        ("my_birds:NOT_AN_IMPORTER", ("my_birds:NOT_AN_IMPORTER", "int", "Importer")),
        ("my_birds:BIRD", ("my_birds", "'BIRD'", "'BIRDS'")),
        ("no_such_module:X", ("no_such_module",)),
        ("kinetics40", ("'kinetics40'", "'kinetics400'", "package.module:Name")),
    ):
        assert workspace.run(name) == 2
        assert_mentions(capsys.readouterr().err, *facts)


def test_unknown_importer_options_are_refused():
    with raises(UserError, "protocl", "'protocol'"):
        IMPORTERS["msrvtt"].resolve_options({"protocl": "full"})
    assert vars(IMPORTERS["audioset"].resolve_options({})) == {"trimmed": False}


def test_the_three_table_formats_give_the_same_clips(workspace):
    kinetics(workspace, val='label,youtube_id,time_start,time_end\n"y, z",b,2.5,12.5\n')
    workspace.touch("whole/b.webm")
    for name in ("clips.csv", "clips.tsv", "clips.jsonl"):
        assert workspace.run("kinetics400", out=name) == 0
    first, second = workspace.clips("clips.csv")
    assert workspace.clips("clips.tsv") == [first, second]
    assert [(c.path, c.start, c.end, c.labels) for c in workspace.clips()] == [
        ("a_000001_000011.mp4", None, None, ("x",)),
        ("whole/b.webm", 2.5, 12.5, ("y, z",)),
    ]
    assert workspace.cells("clips.csv")[2] == [
        "whole/b.webm",
        "2.5",
        "12.5",
        "y, z",
        "validation+test",
    ]
    assert (first.labels, second.labels, second.start) == (("x",), ("y, z",), 2.5)
    assert workspace.run("kinetics400", out="clips.txt") == 2
    assert not (workspace.root / "made" / "clips.txt").exists()


def test_missing_media_files_are_counted_named_and_listed(workspace, capsys):
    header = "label,youtube_id,time_start,time_end\n"
    kinetics(workspace, val=header + "".join(f"x,v{k},0,10\n" for k in range(3)))
    assert workspace.run("kinetics400", out="clips.csv") == 1  # 3 of 4 exceed the limit of 5 %
    out = capsys.readouterr().out
    assert_line_mentions(out, "clips.csv", 1, "train 1", "classes.txt")
    assert_line_mentions(out, 400, 1, "classes")
    assert_line_mentions(out, 3, 4, "missing.txt", "v0_000000_000010")
    assert workspace.lines("missing.txt") == [f"v{k}_000000_000010" for k in range(3)]
    assert workspace.run("kinetics400", "--max-missing-fraction", "0.75") == 0
    workspace.touch(*(f"v{k}_000000_000010.mkv" for k in range(3)))
    capsys.readouterr()
    assert workspace.run("kinetics400") == 0
    out = capsys.readouterr().out
    assert_line_mentions(out, "clips.jsonl", 4, "test 3, train 1, validation 3", 1, "classes.txt")
    assert "missing.txt" not in out and "v0_000000_000010" not in out
    assert not workspace.lines("missing.txt")  # the list of the earlier run is removed
    assert_line_mentions(
        out,
        f"mmjax build --csv {workspace.root}/made/clips.jsonl --media-root {workspace.media}",
        "--fps 25",
    )

    shutil.rmtree(workspace.media)
    workspace.media.mkdir()
    assert workspace.run("kinetics400", out="none.csv") == 2
    facts = (workspace.media, "a_000001_000011", "mmjax import kinetics400 --help")
    assert_line_mentions(capsys.readouterr().err, 4, *facts)
    assert not list((workspace.root / "made").glob("none*"))


def test_repeated_annotations_and_ambiguous_files_are_named(workspace, capsys):
    row = "x,a,1,11\n"
    kinetics(workspace, val=f"label,youtube_id,time_start,time_end\n{row}")
    workspace.touch("other/a_000001_000011.mkv", "other/a_000001_000011.wav")
    assert len(workspace.table("kinetics400")) == 1
    out = capsys.readouterr().out
    assert_line_mentions(out, 1, "val.csv, line 2", "train.csv, line 2")
    assert_line_mentions(out, 1, "a_000001_000011.mp4", "other/a_000001_000011.mkv")


def test_media_are_found_by_name_hint_and_file_type(tmp_path):
    for name in (
        *("train/air_drumming/x.mp4", "val/air_drumming/x.mp4", "val/yoga/x.mp4"),
        *("y.mp4.webm", "sound/z.wav", "z.mkv", "n.txt", ".hidden.mp4", "w#1 (a).avi"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    media = MediaDir(str(tmp_path))
    assert media.find("x", hints=("air drumming", "val")) == "val/air_drumming/x.mp4"
    assert media.find("y") == "y.mp4.webm" and media.find("z") == "z.mkv"
    assert media.find("n") is media.find(".hidden") is media.find("w_1_a_") is None
    assert not media.ambiguous
    assert media.find("x", hints=("yoga", "train")) == "train/air_drumming/x.mp4"
    assert list(media.ambiguous) == ["x"]
    assert MediaDir(str(tmp_path), fuzzy=True).find("W_1_a_") == "w#1 (a).avi"
    with raises(UserError, tmp_path / "nowhere"):
        MediaDir(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("buffer", [1, 2, 7, 1000])
def test_large_json_files_are_read_with_a_small_buffer(tmp_path, monkeypatch, buffer):
    contents = {f'k"{k}': {"a": [k, -0.5], "é": "}," * k, "n": None} for k in range(9)}
    path = tmp_path / "c.json"
    monkeypatch.setattr(annotations, "_BUFFER", buffer)
    for indent in (None, 2):
        path.write_text(json.dumps(contents, indent=indent), encoding="utf-8")
        assert dict(annotations.iterate_json(str(path))) == contents
    path.write_text("{}")
    assert not list(annotations.iterate_json(str(path)))
    path.write_text(json.dumps(contents)[:-30])
    with raises(UserError, path, "JSON", "'k\"7'"):
        list(annotations.iterate_json(str(path)))
    path.write_text('{"a": {} "b" 3}')
    with raises(UserError, path, "JSON", "'a'"):
        list(annotations.iterate_json(str(path)))
    path.write_text("[]")
    with raises(UserError, path, "JSON object"):
        list(annotations.iterate_json(str(path)))


def test_missing_ambiguous_and_undecodable_annotations_are_named(workspace, capsys):
    for name in "abcd":
        workspace.annotate(f"{name}/esc50.csv", "")
    assert workspace.run("esc50") == 2
    matches = [workspace.annotations / name / "esc50.csv" for name in "abcd"]
    assert_mentions(capsys.readouterr().err, *matches, "--annotations")
    assert workspace.run("ucf101") == 2
    assert_mentions(capsys.readouterr().err, "classInd.txt", workspace.annotations, "esc50.csv")
    path = workspace.annotations / "classInd.txt"
    path.write_bytes(b"1 caf\xe9\n")
    assert workspace.run("ucf101") == 2
    assert_mentions(capsys.readouterr().err, path, "UTF-8", "0xe9")
    media = ["--media", str(workspace.media), "--out", "t.csv"]
    assert cli.main(["import", "esc50", "--annotations", "nowhere", *media]) == 2
    assert_mentions(capsys.readouterr().err, "--annotations nowhere")


def test_ucf101_from_official_files_to_batches(workspace):
    """Every split has its clips after import, build and loading, and no clip is stored twice."""
    classes = ["ApplyEyeMakeup", "HandstandPushups"]
    workspace.annotate("classInd.txt", "".join(f"{k} {c}\r\n" for k, c in enumerate(classes, 1)))
    clips = [f"{c}/v_{c.replace('sp', 'Sp')}_g0{g}_c01.avi" for c in classes for g in (1, 2, 3)]
    for split in (1, 2, 3):
        of = {"test": [c for c in clips if f"_g0{split}" in c]}
        of["train"] = [c for c in clips if c not in of["test"]]
        numbered = [f"{c} {1 + classes.index(c.split('/')[0])}\n" for c in of["train"]]
        workspace.annotate(f"trainlist0{split}.txt", "".join(numbered))
        workspace.annotate(f"testlist0{split}.txt", "\n".join(of["test"]))
    for index, clip in enumerate(clips):
        frame = np.full((48, 64, 3), 20 + 40 * index, np.uint8)  # the gray level tells the clip
        frames = [frame] * 8
        path = workspace.media / clip.replace("avi", "mkv")
        path.parent.mkdir(exist_ok=True)
        films.write_film(path, frames=frames, fps=5)

    assert workspace.run("ucf101", out="clips.csv") == 0
    data, made = str(workspace.root / "data"), workspace.root / "made"
    build = ["--csv", made / "clips.csv", "--media-root", workspace.media, "--out", data]
    small = ["--fps", "5", "--size", "48", "--workers", "1", "--quiet"]
    assert cli.main(["build", *map(str, build), "--classes", f"{made}/classes.txt", *small]) == 0
    assert cli.main(["validate", data, "--quiet"]) == 0
    info = dataset.DatasetDir(data).info
    assert info.class_names == classes
    assert sum(split.num_examples for split in info.splits.values()) == len(clips)
    sizes = {f"train{k}": 4 for k in (1, 2, 3)} | {f"test{k}": 2 for k in (1, 2, 3)}
    assert info.split_sizes() == sizes

    cfg = dict(train=data, split="train1", video=dict(num_frames=2, size=48), label={})
    for split, size in sizes.items():
        source = dataset.DatasetDir(data).split(split)
        names = [schema.decode(source.read(k)).filename for k in range(len(source))]
        assert len(set(names)) == len(names) == size
        group = f"_g0{split[-1]}"
        assert all((group in name) == split.startswith("test") for name in names)
        (batch,) = make_eval_data(cfg, split=split, batch_size=4).iterate()
        present = np.flatnonzero(batch["mask"])
        indices = [round((batch["video"][example].mean() - 20) / 40) for example in present]
        assert len(indices) == size
        assert batch["label"][present].tolist() == [index // 3 for index in indices]
        held_out = {index for index in range(6) if index % 3 + 1 == int(split[-1])}
        assert set(indices) == (held_out if "test" in split else set(range(6)) - held_out)
