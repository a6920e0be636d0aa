"""Importers of labeled datasets, on small files in the official formats with edge cases."""

import numpy as np
import pytest
import scipy.io

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


def test_moments_in_time(workspace, capsys):
    workspace.annotate("moments_categories.txt", "clapping,1\nadult+female+singing,0\n")
    workspace.annotate("trainingSet.csv", "clapping/yt-a_1.mp4,clapping,3,0\n")
    workspace.annotate(
        "validationSet.csv", "adult+female+singing/0-4-5.mp4,adult+female+singing,3,1\n"
    )
    workspace.touch("training/clapping/yt-a_1.mp4", "validation/adult+female+singing/0-4-5.mp4")
    assert workspace.table("moments_in_time") == [
        {"path": "training/clapping/yt-a_1.mp4", "label": ["clapping"], "split": "train"},
        {
            "path": "validation/adult+female+singing/0-4-5.mp4",
            "label": ["adult+female+singing"],
            "split": "validation+test",
        },
    ]
    assert workspace.lines("classes.txt") == ["adult+female+singing", "clapping"]
    workspace.annotate("trainingSet.csv", "clapping/a.mp4\n")
    assert workspace.run("moments_in_time") == 2
    facts = (workspace.annotations / "trainingSet.csv", "line 1", "'clapping/a.mp4'")
    assert_mentions(capsys.readouterr().err, *facts)
    workspace.annotate("moments_categories.txt", "clapping,one\n")
    assert workspace.run("moments_in_time") == 2
    facts = (workspace.annotations / "moments_categories.txt", "line 1", "'clapping,one'")
    assert_mentions(capsys.readouterr().err, *facts)


def test_hmdb51_table_and_errors(workspace, capsys):
    odd = "#20_Rhythm_clap_u_nm_np1_fr_goo_0", "Bob's_[a;b]_&_(c)!_clap_f_cm_np1_ba_med_1"
    splits = {1: (1, 2, 0), 2: (2, 1, 0), 3: (1, 0, 0)}
    for split, kinds in splits.items():
        names = [*odd, "unused_clap_f_cm_np1_ba_med_0"]
        text = "".join(f"{name}.avi {kind} \n" for name, kind in zip(names, kinds, strict=True))
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


def imagenet(workspace):
    workspace.annotate(
        "LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n"
    )
    workspace.touch("train/n03126707/n03126707_1.JPEG", "train/n01440764/n01440764_9.JPEG")
    workspace.touch("train/n01440764/note.txt")


def test_imagenet_in_class_directories(workspace, capsys):
    imagenet(workspace)
    workspace.touch("val/n02012849/ILSVRC2012_val_00000001.JPEG")
    rows = workspace.table("imagenet")
    assert [(row["path"], row["label"], row["split"]) for row in rows] == [
        ("train/n01440764/n01440764_9.JPEG", ["n01440764 tench"], "train"),
        ("train/n03126707/n03126707_1.JPEG", ["n03126707 crane"], "train"),
        ("val/n02012849/ILSVRC2012_val_00000001.JPEG", ["n02012849 crane"], "validation+test"),
    ]
    assert workspace.lines("classes.txt") == [
        "n01440764 tench",
        "n02012849 crane",
        "n03126707 crane",
    ]
    (workspace.annotations / "LOC_synset_mapping.txt").unlink()
    assert workspace.table("imagenet")[1]["label"] == ["n03126707"]
    workspace.annotate("synset_words.txt", "n01440764 tench\n")
    assert workspace.run("imagenet") == 2
    assert_line_mentions(capsys.readouterr().err, workspace.media / "train/n03126707", 1)


@pytest.mark.parametrize("form", ["solution", "meta.mat", "map_clsloc.txt"])
def test_imagenet_with_a_flat_validation_set(workspace, capsys, form):
    imagenet(workspace)
    workspace.touch("val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000003.JPEG")
    # The development kit has its own class order.
    kit = {1: "n03126707", 2: "n01440764", 3: "n02012849"}
    truth = [3, 1, 2]
    if form == "solution":
        lines = (
            f"ILSVRC2012_val_{k:08d},{kit[number]} 111 108 421 326 \n"
            for k, number in enumerate(truth, 1)
        )
        workspace.annotate("LOC_val_solution.csv", "ImageId,PredictionString\n" + "".join(lines))
    else:
        workspace.annotate(
            "ILSVRC2012_validation_ground_truth.txt", "".join(f"{n}\n" for n in truth)
        )
        assert workspace.run("imagenet") == 2
        facts = ("ILSVRC2012_validation_ground_truth.txt", "meta.mat", "LOC_val_solution.csv")
        assert_mentions(capsys.readouterr().err, *facts)
    if form == "meta.mat":
        columns = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
        table = np.array([(n, synset, "w") for n, synset in kit.items()], columns)[:, None]
        scipy.io.savemat(workspace.annotations / "meta.mat", {"synsets": table})
    elif form == "map_clsloc.txt":
        workspace.annotate("map_clsloc.txt", "".join(f"{s} {n} name\n" for n, s in kit.items()))
    rows = workspace.table("imagenet")[2:]
    assert [(row["path"], row["label"][0][:9]) for row in rows] == [
        ("val/ILSVRC2012_val_00000001.JPEG", "n02012849"),
        ("val/ILSVRC2012_val_00000003.JPEG", "n01440764"),
    ]
    assert workspace.lines("missing.txt") == ["ILSVRC2012_val_00000002"]
