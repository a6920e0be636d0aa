"""Tables as lists of clips, and class indices."""

import json

import pytest

from mmjax.data.build import examples, manifest, plan
from mmjax.data.build.options import BuildOptions
from mmjax.data.storage import media
from mmjax.errors import UserError
from tests.messages import raises


def test_jsonl_and_tsv_give_the_same_clips_as_csv(tmp_path):
    (tmp_path / "t.csv").write_text('path,caption,caption2,label\nf.mp4,"x, y",z,a|b\n')
    (tmp_path / "t.tsv").write_text("path\tcaption\tcaption2\tlabel\nf.mp4\tx, y\tz\ta|b\n")
    row = {"path": "f.mp4", "captions": ["x, y", "z"], "labels": ["a", "b"]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    tables = [manifest.read_table(str(tmp_path / f"t.{s}")) for s in ("csv", "tsv", "jsonl")]
    clips = [(c.path, c.captions, c.labels) for (c,) in tables]
    assert clips == [("f.mp4", ("x, y", "z"), ("a", "b"))] * 3


def test_class_indices_come_from_the_file_the_names_or_the_labels(tmp_path):
    def indices(labels, names=None):
        clips = [manifest.Clip(path="f", labels=(label,)) for label in labels]
        return manifest.number_labels(clips, names)[1]

    assert indices(["b", "a", "b"]) == {"a": 0, "b": 1}
    assert indices(["7", "3"]) == {}
    assert indices(["b"], ["b", "a"]) == {"b": 0, "a": 1}
    example = examples.make_example(
        manifest.Clip(path="f.png", labels=("7",)), _OneFrame(), indices(["7", "3"])
    )
    assert example.labels == [7] and example.label_texts == []


class _OneFrame:
    options = BuildOptions()

    def read(self, clip):
        return media.Segment(frames=[b"\xff\xd8"], waveform=None, start=0.0, end=0.0)


def test_label_outside_the_classes_is_located():
    clips = [
        manifest.Clip(path="f", labels=("dots",)),
        manifest.Clip(path="g", labels=("stripe",), line=7),
    ]
    with raises(UserError, "t.csv, line 7", "'stripe'", "'stripes'", "2 classes"):
        manifest.number_labels(clips, ["dots", "stripes"], table="t.csv")
    with raises(UserError, "g: ", "'stripe'"):  # a directory of images has no lines
        manifest.number_labels(clips, ["dots", "stripes"])


def test_columns_that_a_table_would_read_or_refuse_get_a_prefix():
    assert manifest.unreserved_column("subreddit") == "subreddit"
    for name in ("label", "Labels", "caption2", "audio"):
        assert manifest.unreserved_column(name) == f"kept_{name}"


def read(tmp_path, text, **options):
    (tmp_path / "t.csv").write_text(text)
    return manifest.read_table(str(tmp_path / "t.csv"), **options)


def test_unknown_columns_are_refused_unless_they_are_ignored(tmp_path):
    text = "path,sound,note,Caption\na.mp4,s.wav,x,a dog\n"
    with raises(UserError, "t.csv", "sound, note", "--ignore-columns sound,note", "audio"):
        read(tmp_path, text)
    with raises(UserError, "t.csv", "note", "--ignore-columns note"):
        read(tmp_path, text, ignore_columns=["sound"])
    for ignored in (["sound", "Note"], ["*"], ["s*", "note"]):
        (clip,) = read(tmp_path, text, ignore_columns=ignored)
        assert clip.captions == ("a dog",)
    (clip,) = read(tmp_path, text, ignore_columns=["*", "caption"])
    assert clip.captions == () and clip.path == "a.mp4"
    with raises(UserError, "t.csv", "'sund'", "'sound'"):
        read(tmp_path, text, ignore_columns=["sund", "*"])
    with raises(UserError, "t.csv", "'captoin'", "'caption'"):
        read(tmp_path, "path,captoin\na.mp4,x\n")
    with raises(UserError, "t.csv", "column 1", "--ignore-columns 'column 1'"):  # pandas
        read(tmp_path, ",path\n0,a.mp4\n")
    assert len(read(tmp_path, "path,caption,\na.mp4,x,\n")) == 1


@pytest.mark.parametrize(
    "columns, row, expected",
    [
        ("path,audio", "a.mp4,s.wav", ("a.mp4", "s.wav")),
        ("video,audio", "a.mp4,s.wav", ("a.mp4", "s.wav")),
        ("video,audio", "a.mp4,", ("a.mp4", "")),
        ("path,image", "s.wav,i.jpg", ("i.jpg", "s.wav")),
        ("image,audio", "i.jpg,s.wav", ("i.jpg", "s.wav")),
        ("image,audio", ",s.wav", ("", "s.wav")),
    ],
)
def test_a_row_may_have_several_media_files(tmp_path, columns, row, expected):
    (clip,) = read(tmp_path, f"{columns}\n{row}\n")
    assert (clip.path, clip.audio) == expected


@pytest.mark.parametrize(
    "columns, row, facts",
    [
        ("video,image", "a.mp4,i.jpg", ("a.mp4", "i.jpg")),
        ("path,video,audio", "a.mp4,b.mp4,s.wav", ("a.mp4", "b.mp4", "s.wav")),
        ("path,path2", "a.mp4,b.mp4", ("path", "a.mp4, b.mp4")),
        ("path,audio,start", ",,3", ("path", "audio", "empty")),
        ("caption,label", "x,y", ("'path'", "'audio'", "'touch'")),
    ],
)
def test_contradicting_media_files_are_refused(tmp_path, columns, row, facts):
    with raises(UserError, "t.csv", *facts):
        read(tmp_path, f"{columns}\n{row}\n")


def test_whole_floats_are_class_numbers_and_other_mixtures_are_errors(tmp_path):
    def number(*labels):
        rows = "".join(f"a.jpg,{label}\n" for label in labels)
        clips = read(tmp_path, f"path,label\n{rows}")
        clips, classes = manifest.number_labels(clips, table="t.csv")
        return [clip.labels for clip in clips], classes

    assert number("0.0", "2.", "10", "") == ([("0",), ("2",), ("10",), ()], {})
    assert number("b", "a b", "a2")[1] == {"a b": 0, "a2": 1, "b": 2}
    for labels in (("cat", "1"), ("-1", "1"), ("0.5", "2"), ("0.5",), ("cat", "2.0"), ("nan", "1")):
        with raises(UserError, "t.csv, line 2", repr(labels[0])):
            number(*labels)
    (tmp_path / "t.jsonl").write_text(
        '{"path": "a", "label": 3.0}\n{"path": "b", "label": NaN, "caption": NaN}\n'
    )
    clips = manifest.read_table(str(tmp_path / "t.jsonl"))
    assert [(clip.labels, clip.captions) for clip in clips] == [(("3",), ()), ((), ())]


def test_both_unicode_forms_of_a_label_are_one_class(tmp_path):
    clips = read(tmp_path, "path,label\na.jpg,caf\u00e9\nb.jpg,cafe\u0301\n")
    assert manifest.number_labels(clips, table="t.csv")[1] == {"caf\u00e9": 0}
    assert manifest.number_labels(clips, ["cafe\u0301"], table="t.csv")[1] == {"caf\u00e9": 0}


@pytest.mark.parametrize("content", ["[" * 100_000, "", "[]", "3", '{"key": 1}'])
def test_a_damaged_plan_is_named_and_can_be_replaced(tmp_path, content):
    clips = read(tmp_path, "path\nt.csv\n")
    file = tmp_path / "ds" / ".build" / "plan.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    arguments = (str(tmp_path / "ds"), clips, BuildOptions())
    with raises(UserError, tmp_path / "ds", "--overwrite"):
        plan.prepare(*arguments, media_root=str(tmp_path))
    made = plan.prepare(*arguments, media_root=str(tmp_path), overwrite=True)
    assert plan.load_plan(str(tmp_path / "ds")) == made
