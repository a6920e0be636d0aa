"""`mmjax import tvl` on a made dataset in the published layout."""

import collections
import io
import json
import os
import re

import numpy as np
import pytest
import sklearn.model_selection
from PIL import Image

from mmjax.data import dataset, schema
from mmjax.tools import cli, manifest
from mmjax.tools.importers import tvl
from tests.tools import tvl_folder


class Root:
    """A folder of datasets, below one whose name holds what careless matching falls for."""

    def __init__(self, path):
        self.root, self.out = path / "data3_rgb", path / "made" / "tvl.jsonl"
        self.root.mkdir()

    def run(self, *options, out=None):
        places = ["--media", self.root, "--out", out or self.out, "--quiet"]
        return cli.main(["import", "tvl", *map(str, [*places, *options])])

    def rows(self, *options):
        assert self.run("--max-missing-fraction", "1", *options) == 0
        lines = self.out.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def root(tmp_path):
    return Root(tmp_path)


@pytest.fixture
def both(root):
    tvl_folder.make_ssvtp(root.root)
    tvl_folder.make_hct(root.root)
    return root


def of(rows, split):
    return [row for row in rows if split in row["split"].split("+")]


def test_rows_of_both_subsets(both, capsys):
    rows = both.rows()
    out = capsys.readouterr().out
    assert "90 clips: test 10, train 72, valid 8; 4 classes in classes.txt" in out
    assert "24 clips have no picture of the sensor untouched" in out  # ssvtp's
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows) == 90
    assert by_path["ssvtp/images_rgb/image_2_rgb.jpg"] == {
        "path": "ssvtp/images_rgb/image_2_rgb.jpg",
        "touch": ["ssvtp/images_tac/image_2_tac.jpg"],
        "crop": [16, 24, 17, 17],  # 15.5 and 23.5 go to the even number
        "caption": ["soft, bumpy"],
        "label": ["ssvtp"],
        "split": by_path["ssvtp/images_rgb/image_2_rgb.jpg"]["split"],
    }
    first = by_path["hct/data3/0-2.5/vision/20-0.02.jpg"]
    assert first["split"] == "test" and first["label"] == ["hct/data3"]
    assert first["touch"] == ["hct/data3/0-2.5/tactile/20-0.02.jpg"]
    assert first["background"] == "hct/data3/0-2.5/tactile/22-0.02.jpg"
    assert first["crop"] == [200, 23, 17, 17]
    second = by_path["hct/data2/1-1.5/vision/21-0.02.jpg"]
    assert second["background"] == "hct/data2/digit_background.png"  # the listed one is not there
    assert second["crop"] == [0, 23, 17, 17]
    classes = (both.out.parent / "classes.txt").read_text().split()
    assert classes == ["ssvtp", "hct/data1", "hct/data2", "hct/data3"]
    # What build reads of it.
    clips = manifest.read_table(str(both.out))
    assert clips[0].crop and clips[0].touch and clips[0].captions


@pytest.mark.parametrize(
    ("subset", "size", "crop"),
    [
        # Sides 163, 326 and 489 are those of TVL's code.
        ("ssvtp", (640, 480), (158, 238, 163, 163)),  # 158.5 and 238.5 go to the even number
        ("ssvtp", (1280, 720), (197, 477, 326, 326)),
        ("hct/data1", (640, 480), (0, 238, 163, 163)),
        ("hct/data3", (1920, 1080), (200, 715, 489, 489)),
        ("hct/data2", (480, 640), (0, 158, 163, 163)),
    ],
)
def test_crops_are_those_of_the_published_code(subset, size, crop):
    assert tvl.crop_of(subset, *size) == crop


@pytest.mark.parametrize("count", [10, 11, 19, 20, 387, 4587])
def test_the_validation_set_is_the_published_one(count):
    train, valid = sklearn.model_selection.train_test_split(
        list(range(count)), train_size=0.9, random_state=42
    )
    found = tvl.validation_rows(count)
    assert found.tolist() == valid
    assert sorted(set(range(count)) - set(found.tolist())) == sorted(train)


def numbers(rows, subset):
    """Positions in the training table of the made dataset."""
    order = {"ssvtp": 0, "hct/data1": 0, "hct/data2": 20, "hct/data3": 40}
    name = {"ssvtp": lambda path: path.split("_")[-2], "hct": lambda path: path.split("/")[-1]}
    read = name[subset]
    return {
        order[row["label"][0]] + int(read(row["path"]).split("-")[0])
        for row in rows
        if row["label"][0].startswith(subset)
    }


def test_valid_is_drawn_per_dataset_before_anything_is_added(both):
    rows = both.rows()
    for subset, count in (("ssvtp", 20), ("hct", 60)):
        _, valid = sklearn.model_selection.train_test_split(
            range(count), train_size=0.9, random_state=42
        )
        assert numbers(of(rows, "valid"), subset) == set(valid)
    more = both.rows("--no-contact", "0.2")
    extra = [row for row in more if row.get("caption") == ["background"]]
    assert len(extra) == 10 == int(0.2 * 54) and {row["split"] for row in extra} == {"train"}
    assert [row for row in more if row not in extra] == rows
    assert both.rows("--no-contact", "0.2") == more  # the same choice again
    everything = both.rows("--no-contact", "9")
    assert sum(row["caption"] == ["background"] for row in everything) == 30


def test_the_published_split_overlaps(both, capsys):
    rows = both.rows("--no-contact", "0.1", "--split", "original")
    hct = [row for row in rows if row["label"] != ["ssvtp"]]
    train, valid = of(hct, "train"), of(hct, "valid")
    longer, left = sklearn.model_selection.train_test_split(
        range(66), train_size=0.9, random_state=42
    )
    _, wanted = sklearn.model_selection.train_test_split(range(60), train_size=0.9, random_state=42)
    assert numbers(valid, "hct") == set(wanted)
    contact = [row for row in train if row["caption"] != ["background"]]
    assert numbers(contact, "hct") == {k for k in longer if k < 60}
    assert len(train) == len(longer)
    assert {row["split"] for row in valid} == {"valid", "train+valid"}
    nowhere = len([k for k in left if k < 60 and k not in wanted])
    assert f"{nowhere + sum(k >= 60 for k in left)} left out: in neither set" in (
        capsys.readouterr().out
    )
    # Of ssvtp, and without the added pictures, the two splits are the same.
    original, clean = (
        {row["path"]: row for row in both.rows(*options)}
        for options in (["--split", "original"], [])
    )
    assert original == clean


def test_what_is_missing_is_listed_and_what_lacks_something_is_kept(both, capsys):
    folder = both.root / "ssvtp"
    (folder / "images_rgb/image_3_rgb.jpg").unlink()
    (folder / "images_tac/image_5_tac.jpg").unlink()
    (folder / "text/labels_7.txt").unlink()
    (folder / "text/labels_8.txt").write_text("\nsecond line\n")
    (folder / "images_rgb/image_9_rgb.jpg").write_text("no picture")
    rows = both.rows("--subsets", "ssvtp")
    out = capsys.readouterr().out
    assert len(rows) == 24 - 3
    assert (both.out.parent / "missing.txt").read_text().split() == [
        "ssvtp/images_rgb/image_3_rgb.jpg",
        "ssvtp/images_tac/image_5_tac.jpg",
    ]
    assert "2 clips have no caption; they are kept" in out
    assert "1 left out: pictures that cannot be read" in out and "image_9_rgb.jpg cannot" in out
    bare = [row for row in rows if "caption" not in row]
    assert sorted(row["path"].split("_")[-2] for row in bare) == ["7", "8"]
    # As published, rows without a picture do not count in the draw.
    left = [k for k in range(20) if k != 3]
    _, valid = sklearn.model_selection.train_test_split(left, train_size=0.9, random_state=42)
    assert numbers(of(rows, "valid"), "ssvtp") == set(valid) - {5, 9}
    assert both.run("--subsets", "ssvtp", "--max-missing-fraction", "0.01") == 1


def test_a_training_row_that_is_also_tested_is_left_out(root, capsys):
    tvl_folder.make_ssvtp(root.root)
    with open(root.root / "ssvtp" / "train.csv", "a") as file:
        file.write("images_rgb/image_21_rgb.jpg,images_tac/image_21_tac.jpg,x\n" * 3)
    rows = root.rows()
    assert [r["split"] for r in rows if "image_21_" in r["path"]] == ["test"]
    out = capsys.readouterr().out
    assert sum(int(line.split()[0]) for line in out.splitlines() if "another split" in line) == 3


def test_without_tables_the_fallbacks_are_said(root, capsys):
    tvl_folder.make_ssvtp(root.root)
    tvl_folder.make_hct(root.root, parts=("data1",))
    for path in ("ssvtp/train.csv", "ssvtp/test.csv", "hct/data1/train.csv", "hct/data1/test.csv"):
        (root.root / path).unlink()
    rows = root.rows()
    out = capsys.readouterr().out
    for notice in (
        "There is no ssvtp/train.csv: all 24 pictures of ssvtp/images_rgb are taken.",
        "There is no ssvtp/test.csv: the split test has nothing of ssvtp.",
        "There is no hct/data1/train.csv: hct/data1/contact.json is taken, which has no captions.",
        "There is no hct/data1/test.csv: the split test has nothing of hct/data1.",
    ):
        assert notice in out
    assert collections.Counter(row["label"][0] for row in rows) == {"ssvtp": 24, "hct/data1": 22}
    assert all(("caption" in row) == (row["label"] == ["ssvtp"]) for row in rows)
    assert not of(rows, "test") and len(of(rows, "valid")) == 3 + 3


def test_ssvtp_takes_one_background(root, tmp_path):
    tvl_folder.make_ssvtp(root.root, train=4, test=1)
    inside, outside = root.root / "ssvtp" / "empty.png", tmp_path / "empty.png"
    for path in (inside, outside):
        tvl_folder.picture(path, tvl_folder.DIGIT, 0, camera=False)
    assert {row["background"] for row in root.rows("--background", inside)} == {"ssvtp/empty.png"}
    (found,) = {row["background"] for row in root.rows("--background", outside)}
    assert os.path.samefile(os.path.join(root.root, found), outside)


DIGIT, SAME = (240, 320), (40, 40)


@pytest.mark.parametrize("sizes", [((64, 48), (24, 32)), ((240, 426), DIGIT), (SAME, SAME)])
@pytest.mark.parametrize("background", [True, False])
def test_swapped_recordings_are_found_and_turned(root, capsys, sizes, background):
    swapped = ("data1/1-0.5", "data2/0-1.5")
    tvl_folder.make_hct(root.root, parts=("data1", "data2"), sizes=sizes, swapped=swapped)
    if not background:
        for path in root.root.glob("hct/*/digit_background.png"):
            path.unlink()
    assert root.run() == 2
    said = capsys.readouterr().err
    assert "2 recordings have touch and vision swapped: hct/data1/1-0.5, hct/data2/0-1.5" in said
    assert "--swapped fix" in said and not root.out.exists()

    kept = root.rows("--swapped", "keep")
    assert all("/vision/" in row["path"] for row in kept)
    rows = root.rows("--swapped", "fix", "--no-contact", "0.1")
    assert "do not tell" not in capsys.readouterr().out
    for row in rows:
        turned = any(f"hct/{name}/" in row["path"] for name in swapped)
        assert ("/tactile/" in row["path"]) == ("/vision/" in row["touch"][0]) == turned
        for picture, size in ((row["path"], sizes[0]), (row["touch"][0], sizes[1])):
            assert Image.open(root.root / picture).size == size
        for path in (row["touch"][0], row["background"] if "background" in row else None):
            if path:  # touch, a slope of grey, not the camera's noise
                image = np.asarray(Image.open(root.root / path), float)
                assert np.ptp(image.mean(0), axis=-1).max() < 15
        assert row["crop"][2] == tvl.crop_of("hct/data1", *sizes[0])[2]


def test_recordings_that_do_not_tell_are_noticed(root, capsys):
    tvl_folder.make_hct(root.root, parts=("data1",), sizes=(SAME, SAME))
    for path in root.root.glob("hct/data1/0-0.5/*/*.jpg"):
        tvl_folder.picture(path, SAME, 7)
    root.rows()
    assert "1 recordings do not tell by size or contents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("break_it", "options", "problem"),
    [
        (None, ["--subsets", "ssvtp", "--no-contact", "0.1"], "there is no .*not_contact.json"),
        (None, ["--no-contact", "-1"], "--no-contact must be 0 or more"),
        (None, ["--subsets", "hct", "--background", "x.png"], "--background is ssvtp's"),
        (None, ["--background", "x.png"], "There is no file x.png"),
        ("hct/data1/train.csv", [], r"data1/train.csv, line 2: 2 cells, not vision, touch"),
        ("hct/data1/not_contact.json", ["--no-contact", "1"], "not the same number"),
        ("ssvtp/train.csv", [], r"ssvtp/train.csv:2: 'a' is not images_rgb/image_N_rgb.jpg"),
    ],
)
def test_bad_files_and_options(root, capsys, break_it, options, problem):
    tvl_folder.make_ssvtp(root.root, train=2, test=1)
    tvl_folder.make_hct(root.root, train=2, test=1, no_contact=2, parts=("data1",))
    if break_it:
        columns = {"vision": ["a"], "tactile": [], "background": []}
        text = json.dumps(columns) if break_it.endswith("json") else "url,tactile\na,b\n"
        (root.root / break_it).write_text(text)
    assert root.run(*options) == 2
    assert re.search(problem, capsys.readouterr().err)


def test_folders_that_are_not_there(root, capsys):
    assert root.run() == 2
    assert "neither a folder ssvtp nor a folder hct" in capsys.readouterr().err
    tvl_folder.make_ssvtp(root.root, train=2, test=1)
    assert root.run("--subsets", "hct") == 2
    assert "There is no folder" in capsys.readouterr().err
    (root.root / "hct").mkdir()
    assert root.run() == 2
    assert "no folder with a contact.json" in capsys.readouterr().err
    (root.root / "hct").rmdir()
    assert root.run() == 0
    assert "There is no folder hct: it is left out." in capsys.readouterr().out


def test_csv_and_jsonl_become_the_same_clips(both):
    # In a .csv, '|' separates captions and crops are quoted.
    both.rows("--no-contact", "0.1")
    csv = both.out.with_suffix(".csv")
    assert both.run("--no-contact", "0.1", out=csv) == 0
    clips = [manifest.read_table(str(path)) for path in (csv, both.out)]
    assert [vars(c) | {"row": 0} for c in clips[0]] == [vars(c) | {"row": 0} for c in clips[1]]


def test_the_table_builds(root):
    tvl_folder.make_ssvtp(root.root)
    tvl_folder.make_hct(root.root, parts=("data3",), sizes=((320, 240), tvl_folder.DIGIT))
    root.rows("--no-contact", "0.1")
    out = root.out.parent / "ds"
    arguments = ["--csv", root.out, "--media-root", root.root, "--out", out, "--size", "0"]
    arguments += ["--classes", root.out.parent / "classes.txt", "--crop-margin", "0.05"]
    assert cli.main(["build", *map(str, arguments), "--quiet", "--workers", "1"]) == 0
    folder = dataset.DatasetFolder(out)
    assert folder.info.split_sizes() == {"test": 6, "valid": 4, "train": 37}
    assert folder.info.class_names == ["ssvtp", "hct/data3"]
    records = folder.split("test")
    example = schema.decode(records.read(0))
    assert example.filename == "ssvtp/images_rgb/image_20_rgb.jpg" and example.roi[2:] == (17, 17)
    assert example.touch == [(root.root / "ssvtp/images_tac/image_20_tac.jpg").read_bytes()]
    assert example.captions == ["smooth"]
    hct = schema.decode(records.read(4))
    # Its lower half lies beyond the picture, so it is black; the margin is at the other sides.
    assert hct.labels == [1] and hct.roi == (4, 4, 82, 82)
    image = np.asarray(Image.open(io.BytesIO(hct.frames[0])), float)
    assert image.shape[:2] == (86, 90) and image[:40].mean() > 20 and image[48:].mean() < 2
