"""Importer of ImageNet, on small files in the official formats."""

import numpy as np
import pytest
import scipy.io

from tests.data.importers.importing import Workspace, assert_line_mentions
from tests.messages import assert_mentions


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


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
