"""Importers of datasets with captions, on small files in the official formats with odd cases."""

import json

import pytest

from mmjax.tools.importers.howto100m import nearest, spread
from tests.tools.importing import Folder


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_youcook2(folder, capsys):
    def entry(subset, *segments):
        return {
            "duration": 100.5,
            "subset": subset,
            "recipe_type": "113",
            "annotations": [
                {"segment": segment, "id": number, "sentence": sentence}
                for number, (segment, sentence) in enumerate(segments)
            ],
            "video_url": "https://www.youtube.com/watch?v=x",
        }

    database = {
        "GLd3aX16zBg": entry("training", ([90, 102], "spread | margarine "), ([114, 127], " ")),
        "xHr8X2Wpmno": entry("validation", ([0, 7.25], "cut bread"), ([8, 9], "eat it")),
    }
    folder.annotate("youcookii_annotations_trainval.json", json.dumps({"database": database}))
    folder.touch("raw_videos/training/113/GLd3aX16zBg.mkv", "xHr8X2Wpmno_1.mp4")
    assert folder.table("youcook2") == [
        {
            "path": "raw_videos/training/113/GLd3aX16zBg.mkv",
            "start": "90",
            "end": "102",
            "caption": ["spread | margarine"],
            "split": "train",
        },
        {"path": "xHr8X2Wpmno_1.mp4", "caption": ["eat it"], "split": "validation+test"},
    ]
    assert folder.lines("missing.txt") == ["xHr8X2Wpmno"]
    assert not folder.lines("classes.txt")
    assert "1 left out: the sentence is empty." in capsys.readouterr().out
    assert folder.run("youcook2", out="clips.csv") == 2
    assert "contains '|', which separates several" in capsys.readouterr().err
    del database["xHr8X2Wpmno"]["annotations"][0]["sentence"]
    folder.annotate("youcookii_annotations_trainval.json", json.dumps({"database": database}))
    assert folder.run("youcook2") == 2
    assert "the entry of xHr8X2Wpmno is malformed" in capsys.readouterr().err
    folder.annotate("youcookii_annotations_trainval.json", '{\n"database": }')
    assert folder.run("youcook2") == 2
    assert "trainval.json, line 2: not JSON" in capsys.readouterr().err


def msrvtt(folder, file, videos):
    """`videos`: {number: (split, captions)}."""
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
    folder.annotate(file, json.dumps(contents))
    folder.touch(*(f"{k}/video{k}.mp4" for k in videos))


def test_msrvtt(folder, capsys):
    train = {0: ("train", ["a car", "a red car"]), 6513: ("validate", ["a cat"])}
    msrvtt(folder, "train_val_videodatainfo.json", train)
    test = {7010: ("test", ["a dog", ""]), 7020: ("test", ["x", "y"]), 7030: ("test", [])}
    msrvtt(folder, "test_videodatainfo.json", test)
    rows = {row["path"]: (row["split"], row["caption"]) for row in folder.table("msrvtt")}
    assert rows == {
        "0/video0.mp4": ("train", ["a car", "a red car"]),
        "6513/video6513.mp4": ("validation", ["a cat"]),
        "7010/video7010.mp4": ("test", ["a dog"]),
        "7020/video7020.mp4": ("test", ["x", "y"]),
    }
    assert "1 left out: without a caption." in capsys.readouterr().out
    assert folder.run("msrvtt", "--protocol", "1k-a") == 2
    assert "There is no MSRVTT_JSFUSION_test.csv" in capsys.readouterr().err
    head = "key,vid_key,video_id,sentence\n"
    folder.annotate("MSRVTT_JSFUSION_test.csv", head + 'ret0,msr7020,video7020,"a person, there"\n')
    chosen = folder.table("msrvtt", "--protocol", "1k-a")
    assert {row["path"]: (row["split"], row["caption"]) for row in chosen} == {
        "0/video0.mp4": ("train+train7k", ["a car", "a red car"]),
        "6513/video6513.mp4": ("train+train7k", ["a cat"]),
        "7010/video7010.mp4": ("train", ["a dog"]),
        "7020/video7020.mp4": ("test", ["a person, there"]),
    }
    folder.annotate("MSRVTT_JSFUSION_test.csv", head + "ret0,msr1,video1,a\n")
    assert folder.run("msrvtt", "--protocol", "1k-a") == 2
    assert "video1 of MSRVTT_JSFUSION_test.csv is in no videodatainfo" in capsys.readouterr().err
    msrvtt(folder, "MSRVTT_data.json", train)
    assert folder.run("msrvtt") == 2
    assert "video0 is both in " in capsys.readouterr().err


def howto_entry(*sentences):
    starts, ends, texts = zip(*sentences, strict=True)
    return {"start": starts, "end": ends, "text": texts}


def test_howto100m(folder, capsys):
    captions = {
        "-a_0": howto_entry(*((10 * k, 10 * k + 4, f"step {k} | now") for k in range(7))),
        "b": howto_entry((0.5, 1.5, "alone"), (1, 2, "!?"), (2, 3, " "), (4, 5, float("nan"))),
        "gone": howto_entry((0, 1, "x")),
        "unlisted": howto_entry((0, 1, "x")),
    }
    folder.annotate("caption.json", json.dumps(captions))
    head = "video_id,category_1,category_2,rank,task_id\n"
    folder.annotate(
        "HowTo100M_v1.csv", head + "".join(f"{v},Food,Soups,1,2\n" for v in ("-a_0", "b", "gone"))
    )
    folder.touch("-a_0.mp4.webm", "b.mp4", "unlisted.mp4")
    rows = folder.table("howto100m")
    assert len(rows) == 8 and folder.lines("missing.txt") == ["gone"]
    assert rows[3] == {
        "path": "-a_0.mp4.webm",
        "start": "30.4",  # the middle of the sentence, 32 s, less half of 3.2 s
        "end": "33.6",
        "caption": [f"step {k} | now" for k in (3, 2, 4, 1, 5)],
        "split": "train",
    }
    assert [caption[5] for caption in rows[0]["caption"]] == ["0", "1", "2", "3", "4"]
    assert (rows[7]["start"], rows[7]["end"], rows[7]["caption"]) == ("0", "3.2", ["alone"])
    assert folder.clips()[3].captions[1] == "step 2 | now"
    out = capsys.readouterr().out
    assert "3 left out: sentences without a word." in out
    assert "1 left out: sentences of videos that HowTo100M_v1.csv does not list." in out

    few = folder.table(
        *("howto100m", "--max-per-video", "2", "--neighbours", "0", "--clip-seconds", "8")
    )
    assert [row["caption"] for row in few] == [["step 1 | now"], ["step 5 | now"], ["alone"]]
    assert (few[0]["start"], few[0]["end"]) == ("8", "16")
    parts = [folder.table("howto100m", "--part", f"{k}/2") for k in (0, 1)]
    assert [row["split"] for row in parts[0] + parts[1]] == ["train+part0"] * 7 + ["train+part1"]
    assert folder.run("howto100m", "--part", "2/2") == 2
    assert "--part 2/2: write I/N" in capsys.readouterr().err


def test_howto100m_with_a_table_per_video(folder, capsys):
    folder.annotate("howto100m_captions/-a_0.csv", ',start,end,text\n0,1,3,"so, now"\n1,5,7,cut\n')
    folder.touch("-a_0.mp4")
    rows = folder.table("howto100m")
    assert [row["caption"] for row in rows] == [["so, now", "cut"], ["cut", "so, now"]]
    assert rows[1]["start"] == "4.4"
    folder.annotate("howto100m_captions/-a_0.csv", "start,end,text\n1,soon,x\n")
    assert folder.run("howto100m") == 2
    assert "-a_0.csv, line 2: 'soon' is not a time" in capsys.readouterr().err


@pytest.mark.parametrize(
    "entry",
    [{"start": [0], "end": [1, 2], "text": ["a"]}, {"start": [0]}, [], howto_entry((-5, 1, "a"))],
)
def test_malformed_howto100m(folder, capsys, entry):
    folder.annotate("raw_caption.json", json.dumps({"ok": howto_entry((0, 1, "a")), "bad": entry}))
    folder.touch("ok.mp4")
    assert folder.run("howto100m") == 2
    assert "raw_caption.json: the entry of bad is not lists" in capsys.readouterr().err


def test_nearest_sentences_and_even_choices():
    middles = [(m, "") for m in (0.0, 1.0, 1.5, 9.0, 9.1, 30.0)]
    assert nearest(middles, 2, 4) == [2, 1, 0, 3, 4]
    assert nearest(middles, 5, 2) == [5, 4, 3]
    assert nearest(middles[:2], 0, 4) == [0, 1]
    assert spread(3, None) == spread(3, 5) == [0, 1, 2]
    assert spread(10, 5) == [1, 3, 5, 7, 9] and spread(7, 1) == [3]
