"""Importers of AudioSet and Kinetics, on small files in the official formats."""

import pytest

from tests.data.importers.importing import Workspace, assert_line_mentions
from tests.messages import assert_mentions

AUDIOSET_HEAD = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=2, num_segs=2, num_unique_labels=3, num_positive_labels=3
# YTID, start_seconds, end_seconds, positive_labels
"""


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def audioset(workspace, segments='a-_bcdefghi, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'):
    workspace.annotate(
        "class_labels_indices.csv",
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n'
        '2,/t/dd00088,"Gush"\n',
    )
    workspace.annotate("eval_segments.csv", AUDIOSET_HEAD + segments)
    workspace.touch("a-_bcdefghi.mp4")


def test_audioset_table_and_file_names(workspace):
    audioset(workspace)
    names = [
        *("Yb.wav", "c_0.000_10.000.m4a", "d_10000_20000.flac", "e_000010_000020.mp4"),
        *("f_10_20.mkv", "g_000010.mp4", "h_10000.webm", "i_10.mp4", "-j.mp4.webm"),
    ]
    ids = [*"bcdefghi", "-j"]
    starts = [10, 0, *[10] * 7]
    workspace.annotate(
        "balanced_train_segments.csv",
        AUDIOSET_HEAD
        + "".join(
            f'{name}, {start}.000, {start + 10}.000, "/m/05zppz"\n'
            for name, start in zip(ids, starts, strict=True)
        ),
    )
    workspace.annotate("unbalanced/unbalanced_train_segments.csv", AUDIOSET_HEAD)
    workspace.touch(*(f"train/{name}" for name in names))
    rows = workspace.table("audioset")
    assert workspace.lines("classes.txt") == ["Speech", "Male speech, man speaking", "Gush"]
    *train, whole, test = rows
    assert [row["path"] for row in train] == [f"train/{name}" for name in names[:-1]]
    assert all("start" not in row and row["split"] == "train+balanced_train" for row in train)
    assert train[0]["label"] == ["Male speech, man speaking"]
    assert (whole["start"], whole["end"]) == ("10", "20")
    assert test == {
        "path": "a-_bcdefghi.mp4",
        "start": "30",
        "end": "40",
        "label": ["Speech", "Gush"],
        "split": "eval+test",
    }
    assert "start" not in workspace.table("audioset", "--trimmed")[-1]
    assert workspace.run("audioset", out="clips.csv") == 0
    assert [clip.labels for clip in workspace.clips("clips.csv")][-1] == ("Speech", "Gush")


@pytest.mark.parametrize(
    ("segment", "facts"),
    [
        ("x, 0.000, 10.000, /m/09x0r,/t/dd00088", ("line 4", " 5 ", "4", "quotes")),
        ('x, 0.000, 10.000, "/m/09x0r,/m/0"', ("line 4", "'/m/0'")),
        ('x, 0.000, ten, "/m/09x0r"', ("line 4", "'ten'", "seconds")),
        ('x, 10.000, 0.000, "/m/09x0r"', ("line 4", " 0.000 s", " 10.000 s")),
        ('x, 0, 10, "/m/09x0r"\n# c\n\ny, -1, 2, /m/09x0r', ("line 7", "'-1'", "seconds")),
    ],
)
def test_malformed_audioset_segments_are_named(workspace, capsys, segment, facts):
    audioset(workspace, segment)
    assert workspace.run("audioset") == 2
    assert_mentions(capsys.readouterr().err, workspace.annotations / "eval_segments.csv", *facts)


def test_kinetics_table_and_class_order(workspace, capsys):
    workspace.annotate(
        "kinetics400/train.csv",
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        '"air drumming",-3B32lodo2M,59,69,train,0\n'
        "massaging person's head,b,0,10,train,1\n",
    )
    workspace.annotate(
        "kinetics400/validate.csv",
        "label,youtube_id,time_start,time_end,split\n"
        "using a remote controller (not gaming),c,5,15,validate\n"
        "air drumming,gone,5,15,validate\n",
    )
    workspace.annotate(
        "kinetics400/test.csv", "youtube_id,time_start,time_end,split\nd,1,11,test\n"
    )
    workspace.touch(
        "train/air_drumming/-3B32lodo2M_000059_000069.mp4",
        "b_0_10.mkv",
        "val/using a remote controller (not gaming)/c.mp4",
    )
    assert workspace.table("kinetics400") == [
        {
            "path": "train/air_drumming/-3B32lodo2M_000059_000069.mp4",
            "label": ["air drumming"],
            "split": "train",
        },
        {"path": "b_0_10.mkv", "label": ["massaging person's head"], "split": "train"},
        {
            "path": "val/using a remote controller (not gaming)/c.mp4",
            "start": "5",
            "end": "15",
            "label": ["using a remote controller (not gaming)"],
            "split": "validation+test",
        },
    ]
    assert workspace.lines("missing.txt") == ["gone_000005_000015"]
    classes = workspace.lines("classes.txt")
    assert classes == sorted(classes) and len(classes) == 3
    assert_line_mentions(capsys.readouterr().out, 1, "test.csv")
    assert "start" not in workspace.table("kinetics700", "--trimmed")[2]

    workspace.annotate("order.txt", "\n".join(["zumba", *classes[::-1]]))
    order = str(workspace.annotations / "order.txt")
    workspace.table("kinetics600", "--classes", order)
    assert workspace.lines("classes.txt") == ["zumba", *classes[::-1]]
    workspace.annotate("order.txt", "zumba")
    assert workspace.run("kinetics600", "--classes", order) == 2
    assert_line_mentions(capsys.readouterr().err, "train.csv, line 2", "'air drumming'", 1)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("label,id\nx,y", ("line 1", "'youtube_id'", "label, id")),
        ("label,youtube_id,time_start,time_end\nx,y,1", ("line 2", " 3 ", " 4 ")),
        ("label,youtube_id,time_start,time_end\n\nx,,1,2", ("line 3", "youtube_id")),
        ("label,youtube_id,time_start,time_end\nx,y,2,1", ("line 2", " 1 s", " 2 s")),
        ("", ("line 1", "'youtube_id'")),
    ],
)
def test_malformed_kinetics_annotations_are_named(workspace, capsys, text, facts):
    workspace.annotate("train.csv", text)
    assert workspace.run("kinetics400") == 2
    assert_mentions(capsys.readouterr().err, workspace.annotations / "train.csv", *facts)
