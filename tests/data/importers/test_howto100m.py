"""Importer of HowTo100M, on small files in the official formats."""

import json

import pytest

from mmjax.data.importers.howto100m import evenly_spaced, nearest
from tests.data.importers.importing import Workspace, assert_line_mentions
from tests.messages import assert_mentions


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def howto_entry(*sentences):
    starts, ends, texts = zip(*sentences, strict=True)
    return {"start": starts, "end": ends, "text": texts}


def test_howto100m_table_options_and_errors(workspace, capsys):
    captions = {
        "-a_0": howto_entry(*((10 * k, 10 * k + 4, f"step {k} | now") for k in range(7))),
        "b": howto_entry((0.5, 1.5, "alone"), (1, 2, "!?"), (2, 3, " "), (4, 5, float("nan"))),
        "gone": howto_entry((0, 1, "x")),
        "unlisted": howto_entry((0, 1, "x")),
    }
    workspace.annotate("caption.json", json.dumps(captions))
    head = "video_id,category_1,category_2,rank,task_id\n"
    workspace.annotate(
        "HowTo100M_v1.csv", head + "".join(f"{v},Food,Soups,1,2\n" for v in ("-a_0", "b", "gone"))
    )
    workspace.touch("-a_0.mp4.webm", "b.mp4", "unlisted.mp4")
    rows = workspace.table("howto100m")
    assert len(rows) == 8 and workspace.lines("missing.txt") == ["gone"]
    assert rows[3] == {
        "path": "-a_0.mp4.webm",
        "start": "30.4",  # the middle of the sentence, 32 s, minus half of 3.2 s
        "end": "33.6",
        "caption": [f"step {k} | now" for k in (3, 2, 4, 1, 5)],
        "split": "train",
    }
    assert [caption[5] for caption in rows[0]["caption"]] == ["0", "1", "2", "3", "4"]
    assert (rows[7]["start"], rows[7]["end"], rows[7]["caption"]) == ("0", "3.2", ["alone"])
    assert workspace.clips()[3].captions[1] == "step 2 | now"
    out = capsys.readouterr().out
    assert_line_mentions(out, "howto100m", 3, "sentences", "word")
    assert_line_mentions(out, "howto100m", 1, "sentences", "HowTo100M_v1.csv")

    options = ("--max-per-video", "2", "--neighbors", "0", "--clip-seconds", "8")
    rows = workspace.table("howto100m", *options)
    assert [row["caption"] for row in rows] == [["step 1 | now"], ["step 5 | now"], ["alone"]]
    assert (rows[0]["start"], rows[0]["end"]) == ("8", "16")
    parts = [workspace.table("howto100m", "--part", f"{k}/2") for k in (0, 1)]
    assert [row["split"] for row in parts[0] + parts[1]] == ["train+part0"] * 7 + ["train+part1"]
    assert workspace.run("howto100m", "--part", "2/2") == 2
    assert_mentions(capsys.readouterr().err, "--part", "2/2", "I/N")


def test_howto100m_with_one_csv_per_video(workspace, capsys):
    workspace.annotate(
        "howto100m_captions/-a_0.csv", ',start,end,text\n0,1,3,"so, now"\n1,5,7,cut\n'
    )
    workspace.touch("-a_0.mp4")
    rows = workspace.table("howto100m")
    assert [row["caption"] for row in rows] == [["so, now", "cut"], ["cut", "so, now"]]
    assert rows[1]["start"] == "4.4"
    workspace.annotate("howto100m_captions/-a_0.csv", "start,end,text\n1,soon,x\n")
    assert workspace.run("howto100m") == 2
    assert_mentions(capsys.readouterr().err, "-a_0.csv", "line 2", "'soon'")


@pytest.mark.parametrize(
    "entry",
    [{"start": [0], "end": [1, 2], "text": ["a"]}, {"start": [0]}, [], howto_entry((-5, 1, "a"))],
)
def test_malformed_howto100m_entries_are_named(workspace, capsys, entry):
    contents = {"ok": howto_entry((0, 1, "a")), "broken": entry}
    workspace.annotate("raw_caption.json", json.dumps(contents))
    workspace.touch("ok.mp4")
    assert workspace.run("howto100m") == 2
    facts = ("raw_caption.json", "broken", "start", "end", "text")
    assert_mentions(capsys.readouterr().err, *facts)


def test_nearest_sentences_and_evenly_spaced_indices():
    middles = [(m, "") for m in (0.0, 1.0, 1.5, 9.0, 9.1, 30.0)]
    assert nearest(middles, 2, 4) == [2, 1, 0, 3, 4]
    assert nearest(middles, 5, 2) == [5, 4, 3]
    assert nearest(middles[:2], 0, 4) == [0, 1]
    assert evenly_spaced(3, None) == evenly_spaced(3, 5) == [0, 1, 2]
    assert evenly_spaced(10, 5) == [1, 3, 5, 7, 9] and evenly_spaced(7, 1) == [3]
