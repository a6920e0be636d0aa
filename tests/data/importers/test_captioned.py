"""Importers of YouCook2 and MSR-VTT, on small files in the official formats."""

import json

import pytest

from tests.data.importers.importing import Workspace, assert_line_mentions
from tests.messages import assert_mentions


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def test_youcook2_table_and_errors(workspace, capsys):
    def entry(subset, *segments):
        return {
            "duration": 100.5,
            "subset": subset,
            "recipe_type": "113",
            "annotations": [
                {"segment": segment, "id": index, "sentence": sentence}
                for index, (segment, sentence) in enumerate(segments)
            ],
            "video_url": "https://www.youtube.com/watch?v=x",
        }

    database = {
        "GLd3aX16zBg": entry("training", ([90, 102], "spread | margarine "), ([114, 127], " ")),
        "xHr8X2Wpmno": entry("validation", ([0, 7.25], "cut bread"), ([8, 9], "eat it")),
    }
    workspace.annotate("youcookii_annotations_trainval.json", json.dumps({"database": database}))
    workspace.touch("raw_videos/training/113/GLd3aX16zBg.mkv", "xHr8X2Wpmno_1.mp4")
    assert workspace.table("youcook2") == [
        {
            "path": "raw_videos/training/113/GLd3aX16zBg.mkv",
            "start": "90",
            "end": "102",
            "caption": ["spread | margarine"],
            "split": "train",
        },
        {"path": "xHr8X2Wpmno_1.mp4", "caption": ["eat it"], "split": "validation+test"},
    ]
    assert workspace.lines("missing.txt") == ["xHr8X2Wpmno"]
    assert not workspace.lines("classes.txt")
    assert_line_mentions(capsys.readouterr().out, "youcook2", 1, "empty sentence", "GLd3aX16zBg")
    assert workspace.run("youcook2", out="clips.csv") == 2
    facts = ("caption", "GLd3aX16zBg.mkv", "'|'", "clips.csv", ".jsonl")
    assert_mentions(capsys.readouterr().err, *facts)
    del database["xHr8X2Wpmno"]["annotations"][0]["sentence"]
    workspace.annotate("youcookii_annotations_trainval.json", json.dumps({"database": database}))
    assert workspace.run("youcook2") == 2
    file = workspace.annotations / "youcookii_annotations_trainval.json"
    assert_mentions(capsys.readouterr().err, file, "xHr8X2Wpmno", "'sentence'")
    workspace.annotate("youcookii_annotations_trainval.json", '{\n"database": }')
    assert workspace.run("youcook2") == 2
    assert_mentions(capsys.readouterr().err, file, "line 2", "JSON")


def msrvtt(workspace, file, videos):
    """Writes annotations and media. `videos` is {index: (split, captions)}."""
    contents = {
        "info": {"year": "2016"},
        "videos": [
            {"id": k, "video_id": f"video{k}", "category": 9, "split": split, "start time": 137.7}
            for k, (split, _) in videos.items()
        ],
        "sentences": [
            {"sen_id": 0, "video_id": f"video{k}", "caption": caption}
            for k, (_, captions) in reversed(videos.items())
            for caption in captions
        ],
    }
    workspace.annotate(file, json.dumps(contents))
    workspace.touch(*(f"{k}/video{k}.mp4" for k in videos))


def test_msrvtt_protocols_and_errors(workspace, capsys):
    train = {0: ("train", ["a car", "a red car"]), 6513: ("validate", ["a cat"])}
    msrvtt(workspace, "train_val_videodatainfo.json", train)
    test = {7010: ("test", ["a dog", ""]), 7020: ("test", ["x", "y"]), 7030: ("test", [])}
    msrvtt(workspace, "test_videodatainfo.json", test)
    rows = {row["path"]: (row["split"], row["caption"]) for row in workspace.table("msrvtt")}
    assert rows == {
        "0/video0.mp4": ("train", ["a car", "a red car"]),
        "6513/video6513.mp4": ("validation", ["a cat"]),
        "7010/video7010.mp4": ("test", ["a dog"]),
        "7020/video7020.mp4": ("test", ["x", "y"]),
    }
    assert_line_mentions(capsys.readouterr().out, "msrvtt", 1, "caption", "video7030")
    assert workspace.run("msrvtt", "--protocol", "1k-a") == 2
    facts = ("MSRVTT_JSFUSION_test.csv", workspace.annotations, "test_videodatainfo.json")
    assert_mentions(capsys.readouterr().err, *facts)
    head = "key,vid_key,video_id,sentence\n"
    workspace.annotate(
        "MSRVTT_JSFUSION_test.csv", head + 'ret0,msr7020,video7020,"a person, there"\n'
    )
    rows = workspace.table("msrvtt", "--protocol", "1k-a")
    assert {row["path"]: (row["split"], row["caption"]) for row in rows} == {
        "0/video0.mp4": ("train+train7k", ["a car", "a red car"]),
        "6513/video6513.mp4": ("train+train7k", ["a cat"]),
        "7010/video7010.mp4": ("train", ["a dog"]),
        "7020/video7020.mp4": ("test", ["a person, there"]),
    }
    workspace.annotate("MSRVTT_JSFUSION_test.csv", head + "ret0,msr1,video1,a\n")
    assert workspace.run("msrvtt", "--protocol", "1k-a") == 2
    facts = ("video1 ", "MSRVTT_JSFUSION_test.csv", "videodatainfo")
    assert_mentions(capsys.readouterr().err, *facts)
    msrvtt(workspace, "MSRVTT_data.json", train)
    assert workspace.run("msrvtt") == 2
    facts = ("video0 ", "MSRVTT_data.json", "train_val_videodatainfo.json")
    assert_mentions(capsys.readouterr().err, *facts)
