"""`mmjax import tvl` on a synthetic dataset in the published layout."""

import collections
import io
import json
import os
import re

import numpy as np
import pytest
import sklearn.model_selection
from PIL import Image

from mmjax.data.build import manifest
from mmjax.data.importers import tvl
from mmjax.data.storage import dataset, schema
from mmjax.tools import cli
from tests.data.importers import synthetic_tvl
from tests.data.importers.importing import assert_line_mentions
from tests.messages import assert_mentions


class Root:
    """A directory of subsets; its own name contains 'data3' and '_rgb', as file names do."""

    def __init__(self, path):
        self.root, self.out = path / "data3_rgb", path / "made" / "tvl.jsonl"
        self.root.mkdir()

    def run(self, *options, out=None):
        paths = ["--media", self.root, "--out", out or self.out, "--quiet"]
        return cli.main(["import", "tvl", *map(str, [*paths, *options])])

    def rows(self, *options):
        assert self.run("--max-missing-fraction", "1", *options) == 0
        lines = self.out.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def root(tmp_path):
    return Root(tmp_path)


@pytest.fixture
def both(root):
    synthetic_tvl.make_ssvtp(root.root)
    synthetic_tvl.make_hct(root.root)
    return root


def rows_of(rows, split):
    return [row for row in rows if split in row["split"].split("+")]


def test_table_has_the_rows_of_both_subsets(both, capsys):
    rows = both.rows()
    out = capsys.readouterr().out
    assert_line_mentions(out, both.out, 90, "test 10, train 72, valid 8", 4, "classes.txt")
    assert_line_mentions(out, "tvl", 24, "background")  # ssvtp has no backgrounds
    assert sum("background" not in row for row in rows) == 24
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows) == 90
    assert by_path["ssvtp/images_rgb/image_2_rgb.jpg"] == {
        "path": "ssvtp/images_rgb/image_2_rgb.jpg",
        "touch": ["ssvtp/images_tac/image_2_tac.jpg"],
        "crop": [16, 24, 17, 17],  # 15.5 and 23.5 round to even
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
    assert second["background"] == "hct/data2/digit_background.png"  # the listed one is missing
    assert second["crop"] == [0, 23, 17, 17]
    classes = (both.out.parent / "classes.txt").read_text().split()
    assert classes == ["ssvtp", "hct/data1", "hct/data2", "hct/data3"]
    # `mmjax build` reads the same values.
    for clip, row in zip(manifest.read_table(str(both.out)), rows, strict=True):
        assert (clip.path, list(clip.touch), list(clip.crop)) == (
            row["path"],
            row["touch"],
            row["crop"],
        )
        assert (list(clip.captions), list(clip.labels)) == (row["caption"], row["label"])


@pytest.mark.parametrize(
    ("subset", "size", "crop"),
    [
        # The sides 163, 326 and 489 are those of TVL's code.
        ("ssvtp", (640, 480), (158, 238, 163, 163)),  # 158.5 and 238.5 round to even
        ("ssvtp", (1280, 720), (197, 477, 326, 326)),
        ("hct/data1", (640, 480), (0, 238, 163, 163)),
        ("hct/data3", (1920, 1080), (200, 715, 489, 489)),
        ("hct/data2", (480, 640), (0, 158, 163, 163)),
    ],
)
def test_crops_equal_those_of_the_published_code(subset, size, crop):
    assert tvl.crop_of(subset, *size) == crop


@pytest.mark.parametrize("count", [10, 11, 19, 20, 387, 4587])
def test_validation_set_equals_the_published_one(count):
    train, valid = sklearn.model_selection.train_test_split(
        list(range(count)), train_size=0.9, random_state=42
    )
    result = tvl.validation_indices(count)
    assert result.tolist() == valid
    assert sorted(set(range(count)) - set(result.tolist())) == sorted(train)


def indices(rows, subset):
    """Returns the indices in the training table of the synthetic dataset."""
    offset = {"ssvtp": 0, "hct/data1": 0, "hct/data2": 20, "hct/data3": 40}
    name = {"ssvtp": lambda path: path.split("_")[-2], "hct": lambda path: path.split("/")[-1]}
    read = name[subset]
    return {
        offset[row["label"][0]] + int(read(row["path"]).split("-")[0])
        for row in rows
        if row["label"][0].startswith(subset)
    }


def test_valid_is_sampled_per_subset_before_no_contact_images_are_added(both):
    rows = both.rows()
    for subset, count in (("ssvtp", 20), ("hct", 60)):
        _, valid = sklearn.model_selection.train_test_split(
            range(count), train_size=0.9, random_state=42
        )
        assert indices(rows_of(rows, "valid"), subset) == set(valid)
    with_extra = both.rows("--no-contact", "0.2")
    extra = [row for row in with_extra if row.get("caption") == ["background"]]
    assert len(extra) == 10 == int(0.2 * 54) and {row["split"] for row in extra} == {"train"}
    assert [row for row in with_extra if row not in extra] == rows
    assert both.rows("--no-contact", "0.2") == with_extra  # the same selection again
    everything = both.rows("--no-contact", "9")
    assert sum(row["caption"] == ["background"] for row in everything) == 30


def test_original_split_overlaps_as_published(both, capsys):
    rows = both.rows("--no-contact", "0.1", "--split", "original")
    hct = [row for row in rows if row["label"] != ["ssvtp"]]
    train, valid = rows_of(hct, "train"), rows_of(hct, "valid")
    train_indices, rest = sklearn.model_selection.train_test_split(
        range(66), train_size=0.9, random_state=42
    )
    _, expected = sklearn.model_selection.train_test_split(
        range(60), train_size=0.9, random_state=42
    )
    assert indices(valid, "hct") == set(expected)
    contact = [row for row in train if row["caption"] != ["background"]]
    assert indices(contact, "hct") == {k for k in train_indices if k < 60}
    assert len(train) == len(train_indices)
    assert {row["split"] for row in valid} == {"valid", "train+valid"}
    in_no_split = sum(k >= 60 or k not in expected for k in rest)
    assert_line_mentions(capsys.readouterr().out, "tvl", in_no_split, "original split")
    # For ssvtp, and without the added images, the two splits are the same.
    original, clean = (
        {row["path"]: row for row in both.rows(*options)}
        for options in (["--split", "original"], [])
    )
    assert original == clean


def test_missing_files_are_listed_and_rows_without_caption_are_kept(both, capsys):
    directory = both.root / "ssvtp"
    (directory / "images_rgb/image_3_rgb.jpg").unlink()
    (directory / "images_tac/image_5_tac.jpg").unlink()
    (directory / "text/labels_7.txt").unlink()
    (directory / "text/labels_8.txt").write_text("\nsecond line\n")
    (directory / "images_rgb/image_9_rgb.jpg").write_text("not an image")
    rows = both.rows("--subsets", "ssvtp")
    out = capsys.readouterr().out
    assert len(rows) == 24 - 3
    assert (both.out.parent / "missing.txt").read_text().split() == [
        "ssvtp/images_rgb/image_3_rgb.jpg",
        "ssvtp/images_tac/image_5_tac.jpg",
    ]
    assert_line_mentions(out, 2, 23, "missing.txt", "ssvtp/images_rgb/image_3_rgb.jpg")
    assert_line_mentions(out, "tvl", 2, "caption")
    assert_line_mentions(out, "ssvtp/images_rgb/image_9_rgb.jpg")
    without_caption = [row for row in rows if "caption" not in row]
    assert sorted(row["path"].split("_")[-2] for row in without_caption) == ["7", "8"]
    # As published, rows without an image are removed before sampling.
    rest = [k for k in range(20) if k != 3]
    _, valid = sklearn.model_selection.train_test_split(rest, train_size=0.9, random_state=42)
    assert indices(rows_of(rows, "valid"), "ssvtp") == set(valid) - {5, 9}
    assert both.run("--subsets", "ssvtp", "--max-missing-fraction", "0.01") == 1


def test_training_rows_that_are_also_in_test_are_skipped(root, capsys):
    synthetic_tvl.make_ssvtp(root.root)
    with open(root.root / "ssvtp" / "train.csv", "a") as file:
        file.write("images_rgb/image_21_rgb.jpg,images_tac/image_21_tac.jpg,x\n" * 3)
    rows = root.rows()
    assert [r["split"] for r in rows if "image_21_" in r["path"]] == ["test"]
    assert len(rows) == 24
    # The repeated rows fall into train or valid; one line of the report counts each of the two.
    counts = re.findall(r"^tvl: .*\b(?:train|valid)\b.*split: (\d+)", capsys.readouterr().out, re.M)
    assert sum(map(int, counts)) == 3


def test_fallbacks_for_missing_tables_are_reported(root, capsys):
    synthetic_tvl.make_ssvtp(root.root)
    synthetic_tvl.make_hct(root.root, parts=("data1",))
    for path in ("ssvtp/train.csv", "ssvtp/test.csv", "hct/data1/train.csv", "hct/data1/test.csv"):
        (root.root / path).unlink()
    rows = root.rows()
    out = capsys.readouterr().out
    for facts in (
        ("ssvtp/train.csv", 24, "ssvtp/images_rgb"),
        ("ssvtp/test.csv", "test", "ssvtp"),
        ("hct/data1/train.csv", "hct/data1/contact.json", "caption"),
        ("hct/data1/test.csv", "test", "hct/data1"),
    ):
        assert_line_mentions(out, *facts)
    assert collections.Counter(row["label"][0] for row in rows) == {"ssvtp": 24, "hct/data1": 22}
    assert all(("caption" in row) == (row["label"] == ["ssvtp"]) for row in rows)
    assert not rows_of(rows, "test") and len(rows_of(rows, "valid")) == 3 + 3


def test_background_option_sets_the_background_of_ssvtp(root, tmp_path):
    synthetic_tvl.make_ssvtp(root.root, train=4, test=1)
    inside, outside = root.root / "ssvtp" / "empty.png", tmp_path / "empty.png"
    for path in (inside, outside):
        synthetic_tvl.write_image(path, synthetic_tvl.DIGIT, 0, camera=False)
    assert {row["background"] for row in root.rows("--background", inside)} == {"ssvtp/empty.png"}
    (background,) = {row["background"] for row in root.rows("--background", outside)}
    assert os.path.samefile(os.path.join(root.root, background), outside)


DIGIT, SAME = (240, 320), (40, 40)


@pytest.mark.parametrize("sizes", [((64, 48), (24, 32)), ((240, 426), DIGIT), (SAME, SAME)])
@pytest.mark.parametrize("background", [True, False])
def test_swapped_recordings_are_detected_and_swapped_back(root, capsys, sizes, background):
    swapped = ("data1/1-0.5", "data2/0-1.5")
    synthetic_tvl.make_hct(root.root, parts=("data1", "data2"), sizes=sizes, swapped=swapped)
    if not background:
        for path in root.root.glob("hct/*/digit_background.png"):
            path.unlink()
    assert root.run() == 2
    recordings = "hct/data1/1-0.5, hct/data2/0-1.5"
    facts = (2, recordings, "--swapped fix", "--swapped keep")
    assert_line_mentions(capsys.readouterr().err, *facts)
    assert not root.out.exists()

    kept = root.rows("--swapped", "keep")
    assert all("/vision/" in row["path"] for row in kept)
    rows = root.rows("--swapped", "fix", "--no-contact", "0.1")
    output = capsys.readouterr().out
    assert "hct/data1/0-0.5" not in output  # no recording is ambiguous
    assert output.count(recordings) == 2  # kept, then swapped back
    for row in rows:
        is_swapped = any(f"hct/{name}/" in row["path"] for name in swapped)
        assert ("/tactile/" in row["path"]) == ("/vision/" in row["touch"][0]) == is_swapped
        for path, size in ((row["path"], sizes[0]), (row["touch"][0], sizes[1])):
            assert Image.open(root.root / path).size == size
        for path in (row["touch"][0], row["background"] if "background" in row else None):
            if path:  # touch is a gray slope, unlike the camera's noise
                image = np.asarray(Image.open(root.root / path), float)
                assert np.ptp(image.mean(0), axis=-1).max() < 15
        assert row["crop"][2] == tvl.crop_of("hct/data1", *sizes[0])[2]


def test_ambiguous_recordings_are_reported(root, capsys):
    synthetic_tvl.make_hct(root.root, parts=("data1",), sizes=(SAME, SAME))
    for path in root.root.glob("hct/data1/0-0.5/*/*.jpg"):
        synthetic_tvl.write_image(path, SAME, 7)
    root.rows()
    assert_line_mentions(capsys.readouterr().out, 1, "hct/data1/0-0.5")


@pytest.mark.parametrize(
    ("broken", "options", "facts"),
    [
        (
            None,
            ["--subsets", "ssvtp", "--no-contact", "0.1"],
            ("--no-contact", "hct/data*/not_contact.json"),
        ),
        (None, ["--no-contact", "-1"], ("--no-contact", "-1", "0")),
        (None, ["--subsets", "hct", "--background", "x.png"], ("--background", "ssvtp", "hct")),
        (None, ["--background", "x.png"], ("--background", "x.png")),
        ("hct/data1/train.csv", [], ("hct/data1/train.csv", "line 2", " 2 ", "vision", "touch")),
        (
            "hct/data1/not_contact.json",
            ["--no-contact", "1"],
            ("hct/data1/not_contact.json", "vision", "tactile", "background", "1, 0, 0"),
        ),
        ("ssvtp/train.csv", [], ("ssvtp/train.csv, line 2", "'a'", "images_rgb/image_N_rgb.jpg")),
    ],
)
def test_malformed_files_and_wrong_options_are_named(root, capsys, broken, options, facts):
    synthetic_tvl.make_ssvtp(root.root, train=2, test=1)
    synthetic_tvl.make_hct(root.root, train=2, test=1, no_contact=2, parts=("data1",))
    if broken:
        columns = {"vision": ["a"], "tactile": [], "background": []}
        text = json.dumps(columns) if broken.endswith("json") else "url,tactile\na,b\n"
        (root.root / broken).write_text(text)
    assert root.run(*options) == 2
    assert_mentions(capsys.readouterr().err, *facts)


def test_missing_subset_directories_are_named(root, capsys):
    assert root.run() == 2
    assert_mentions(capsys.readouterr().err, root.root, "ssvtp", "hct")
    synthetic_tvl.make_ssvtp(root.root, train=2, test=1)
    assert root.run("--subsets", "hct") == 2
    assert_mentions(capsys.readouterr().err, root.root / "hct", "--media")
    (root.root / "hct").mkdir()
    assert root.run() == 2
    facts = (root.root / "hct", "contact.json", "train.csv", "test.csv")
    assert_mentions(capsys.readouterr().err, *facts)
    (root.root / "hct").rmdir()
    assert root.run() == 0
    assert re.search(r"\bhct\b", capsys.readouterr().out)


def test_csv_and_jsonl_tables_give_the_same_clips(both):
    # In a .csv, '|' separates captions, and crops are quoted.
    both.rows("--no-contact", "0.1")
    csv = both.out.with_suffix(".csv")
    assert both.run("--no-contact", "0.1", out=csv) == 0
    clips = [manifest.read_table(str(path)) for path in (csv, both.out)]
    assert [vars(c) | {"line": 0} for c in clips[0]] == [vars(c) | {"line": 0} for c in clips[1]]


def test_table_builds_a_dataset(root):
    synthetic_tvl.make_ssvtp(root.root)
    synthetic_tvl.make_hct(root.root, parts=("data3",), sizes=((320, 240), synthetic_tvl.DIGIT))
    root.rows("--no-contact", "0.1")
    out = root.out.parent / "ds"
    arguments = ["--csv", root.out, "--media-root", root.root, "--out", out, "--size", "0"]
    arguments += ["--classes", root.out.parent / "classes.txt", "--crop-margin", "0.05"]
    assert cli.main(["build", *map(str, arguments), "--quiet", "--workers", "1"]) == 0
    directory = dataset.DatasetDir(out)
    assert directory.info.split_sizes() == {"test": 6, "valid": 4, "train": 37}
    assert directory.info.class_names == ["ssvtp", "hct/data3"]
    records = directory.split("test")
    example = schema.decode(records.read(0))
    assert example.filename == "ssvtp/images_rgb/image_20_rgb.jpg" and example.roi[2:] == (17, 17)
    assert example.touch == [(root.root / "ssvtp/images_tac/image_20_tac.jpg").read_bytes()]
    assert example.captions == ["smooth"]
    hct = schema.decode(records.read(4))
    # The lower half of the crop is outside the image, so it is black and has no margin.
    assert hct.labels == [1] and hct.roi == (4, 4, 82, 82)
    image = np.asarray(Image.open(io.BytesIO(hct.frames[0])), float)
    assert image.shape[:2] == (86, 90) and image[:40].mean() > 20 and image[48:].mean() < 2
