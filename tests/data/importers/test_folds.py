"""Importers of UCF-101, HMDB-51 and ESC-50, on small files in the official formats."""

import pytest

from tests.data.importers.importing import Workspace, assert_line_mentions
from tests.messages import assert_mentions


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def test_hmdb51_table_and_errors(workspace, capsys):
    odd = "#20_Rhythm_clap_u_nm_np1_fr_goo_0", "Bob's_[a;b]_&_(c)!_clap_f_cm_np1_ba_med_1"
    splits = {1: (1, 2, 0), 2: (2, 1, 0), 3: (1, 0, 0)}
    for split, codes in splits.items():
        names = [*odd, "unused_clap_f_cm_np1_ba_med_0"]
        text = "".join(f"{name}.avi {code} \n" for name, code in zip(names, codes, strict=True))
        workspace.annotate(f"testTrainMulti_7030_splits/clap_test_split{split}.txt", text)
    workspace.annotate("testTrainMulti_7030_splits/brush_hair_test_split1.txt", "b.avi 2\n")
    workspace.touch(f"clap/{odd[0]}.avi", "clap/Bob_s_(a_b)_&_(c)!_clap_f_cm_np1_ba_med_1.avi")
    workspace.touch("brush_hair/b.mp4")
    rows = {row["path"]: row["split"] for row in workspace.table("hmdb51")}
    assert rows == {
        "brush_hair/b.mp4": "test1",
        f"clap/{odd[0]}.avi": "train1+test2+train3",
        "clap/Bob_s_(a_b)_&_(c)!_clap_f_cm_np1_ba_med_1.avi": "test1+train2",
    }
    assert_line_mentions(capsys.readouterr().out, "hmdb51", 1, "splits", "unused_clap")
    assert workspace.lines("classes.txt") == ["brush_hair", "clap"]
    assert workspace.run("hmdb51", out="clips.csv") == 0
    assert {clip.path: clip.split for clip in workspace.clips("clips.csv")} == rows
    workspace.annotate("testTrainMulti_7030_splits/clap_test_split2.txt", "a.avi 1\na.avi 3\n")
    assert workspace.run("hmdb51") == 2
    assert_mentions(capsys.readouterr().err, "clap_test_split2.txt", "line 2", "'a.avi 3'")


def test_malformed_ucf101_annotations_are_named(workspace, capsys):
    workspace.annotate("trainlist01.txt", "A/v_A_g01_c01.avi 1\nv_A_g01_c02.avi 1\n")
    workspace.annotate("classInd.txt", "1 A\n3 B\n")
    assert workspace.run("ucf101") == 2
    assert_mentions(capsys.readouterr().err, "classInd.txt", "line 2", "'3 B'", "'2 ClassName'")
    workspace.annotate("classInd.txt", "1 B\n")
    assert workspace.run("ucf101") == 2
    assert_mentions(capsys.readouterr().err, "trainlist01.txt", "line 2", "'v_A_g01_c02.avi 1'")
    workspace.annotate("trainlist01.txt", "A/v_A_g01_c01.avi 1\n")
    workspace.touch("v_A_g01_c01.avi")
    assert workspace.run("ucf101") == 2
    assert_line_mentions(capsys.readouterr().err, "trainlist01.txt, line 1", "'A'", 1)


def test_esc50_table_and_errors(workspace, capsys):
    head = "filename,fold,target,category,esc10,src_file,take\n"
    clips = [(1, 1, "dog"), (3, 0, "crackling_fire"), (5, 1, "dog")]
    lines = [f"{f}-10-A-{t}.wav,{f},{t},{name},True,10,A\n" for f, t, name in clips]
    workspace.annotate("meta/esc50.csv", head + "".join(lines))
    workspace.touch(*(f"audio/{line.split(',')[0]}" for line in lines))
    rows = workspace.table("esc50")
    assert [(row["path"], row["label"][0], row["split"]) for row in rows] == [
        ("audio/1-10-A-1.wav", "dog", "test1+train2+train3+train4+train5"),
        ("audio/3-10-A-0.wav", "crackling_fire", "train1+train2+test3+train4+train5"),
        ("audio/5-10-A-1.wav", "dog", "train1+train2+train3+train4+test5"),
    ]
    assert workspace.lines("classes.txt") == ["crackling_fire", "dog"]
    for line, facts in (
        ("a.wav,6,1,dog,True,1,A", ("fold", "1..5", "'6'")),
        ("a.wav,1,1,cat,True,1,A", ("target 1",)),
    ):
        workspace.annotate("meta/esc50.csv", f"{head}{lines[0]}{line}\n")
        assert workspace.run("esc50") == 2
        assert_mentions(capsys.readouterr().err, "esc50.csv", "line 3", *facts)
