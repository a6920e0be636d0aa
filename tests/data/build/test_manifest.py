"""Tables as lists of clips, and class indices."""

import json

from mmjax.data.build import examples, manifest
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
        return manifest.class_indices(clips, names)

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
        manifest.class_indices(clips, ["dots", "stripes"], table="t.csv")
    with raises(UserError, "g: ", "'stripe'"):  # a directory of images has no lines
        manifest.class_indices(clips, ["dots", "stripes"])


def test_columns_that_a_table_would_read_or_refuse_get_a_prefix():
    assert manifest.unreserved_column("subreddit") == "subreddit"
    for name in ("label", "labels", "caption2", "captoin"):
        assert manifest.unreserved_column(name) == f"kept_{name}"
