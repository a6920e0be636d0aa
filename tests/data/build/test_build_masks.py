"""`mmjax build` with segmentation masks: directories, tables, JSON files, and bad input."""

import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from mmjax.data.build import plan as plans
from mmjax.data.build import validate
from mmjax.data.build.options import BuildOptions
from mmjax.data.storage import dataset, schema
from mmjax.tools import cli
from tests.data.importers.importing import assert_line_mentions
from tests.docs import pages
from tests.messages import assert_mentions

SIZES = {"train/a": (40, 30), "train/b": (30, 40), "test/c": (50, 30)}  # width, height


def pixels(name):
    """A class map with classes 0, 1 and 2, and ignored pixels."""
    width, height = SIZES[name]
    mask = np.zeros((height, width), np.uint8)
    mask[2:9, 3:20] = 1
    mask[10:, :5] = 2
    mask[10:12, 5:7] = 255
    return mask


@pytest.fixture
def tree(tmp_path):
    """`images/SPLIT/NAME.jpg` with `masks/SPLIT/NAME.png`, and class names."""
    for name, (width, height) in SIZES.items():
        for part, suffix in (("images", "jpg"), ("masks", "png")):
            path = tmp_path / part / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels(name))
            image.putpalette(list(range(256)) * 3)
            if part == "images":
                image = Image.new("RGB", (width, height), (200, 60, 10))
            image.save(path)
    (tmp_path / "classes.txt").write_text("floor\nchair\ntable\n")
    return tmp_path


def build(tree, *arguments, images="images"):
    arguments = ["--images", tree / images, *arguments] if images else list(arguments)
    options = ["--out", tree / "ds", "--size", "0", "--workers", "1", "--quiet"]
    return cli.main(["build", *map(str, [*options, *arguments])])


def masks(tree, split):
    records = dataset.DatasetDir(tree / "ds").split(split)
    examples = [schema.decode(records.read(k)) for k in range(len(records))]
    return {e.filename: schema.decode_mask(e.masks[0]) if e.masks else None for e in examples}


def test_images_and_masks_of_the_same_names_become_a_dataset(tree):
    assert build(tree, "--masks", tree / "masks", "--mask-classes", tree / "classes.txt") == 0
    info = dataset.DatasetDir(tree / "ds").info
    assert info.modalities == ("video", "mask") and not info.class_names
    assert info.mask_classes == ["floor", "chair", "table"]
    stored = masks(tree, "train") | masks(tree, "test")
    assert {name.removesuffix(".jpg") for name in stored} == set(SIZES)
    for name in SIZES:
        assert np.array_equal(stored[f"{name}.jpg"], pixels(name))
    counts = sum(np.bincount(pixels(name).ravel(), minlength=256) for name in SIZES)
    assert info.statistics["mask_pixels"] == counts[:3].tolist()
    assert info.statistics["ignored_mask_pixels"] == counts[255]
    result = validate.validate(str(tree / "ds"), progress=False)
    assert result.num_errors == 0 and "unmasked" not in result.counts


def test_masks_are_resized_with_their_images(tree):
    assert build(tree, "--masks", tree / "masks", "--size", "15") == 0
    stored = masks(tree, "train")["train/a.jpg"]
    assert stored.shape == (15, 20) and np.array_equal(stored, pixels("train/a")[1::2, 1::2])
    assert dataset.DatasetDir(tree / "ds").info.mask_classes == ["0", "1", "2"]
    assert validate.validate(str(tree / "ds"), progress=False).num_errors == 0


def test_a_table_has_a_column_with_masks(tree):
    rows = ["path,mask,split,caption"]
    rows += [f"images/{name}.jpg,masks/{name}.png,train,one" for name in ("train/a", "test/c")]
    (tree / "t.csv").write_text("\n".join([*rows, "images/train/b.jpg,,train,"]) + "\n")
    assert build(tree, "--csv", tree / "t.csv", images=None) == 0
    stored = masks(tree, "train")
    assert np.array_equal(stored["images/test/c.jpg"], pixels("test/c"))
    assert stored["images/train/b.jpg"] is None
    result = validate.validate(str(tree / "ds"), progress=False)
    assert result.counts["unmasked"] == 1 and not result.num_errors


def test_foreground_of_255_needs_the_values_of_the_classes(tree, capsys):
    for name in SIZES:
        mask = np.where(pixels(name) == 1, 255, 0).astype(np.uint8)
        Image.fromarray(mask).save(tree / "masks" / f"{name}.png")
    assert build(tree, "--masks", tree / "masks") == 2
    assert_mentions(capsys.readouterr().err, "3 masks", "--mask-values 0,255", "--overwrite")
    assert build(tree, "--masks", tree / "masks", "--mask-values", "0,255", "--overwrite") == 0
    assert np.array_equal(masks(tree, "train")["train/a.jpg"], pixels("train/a") == 1)
    assert dataset.DatasetDir(tree / "ds").info.mask_classes == ["0", "1"]


def test_values_can_be_renumbered_and_ignored(tree):
    values = ["--mask-values", "2,0", "--mask-ignore", "1,255"]
    assert build(tree, "--masks", tree / "masks", *values) == 0
    expected = np.array([1, 255, 0] + [255] * 253, np.uint8)[pixels("train/b")]
    assert np.array_equal(masks(tree, "train")["train/b.jpg"], expected)


def test_bad_masks_are_listed_with_their_values_and_sizes(tree):
    (tree / "classes.txt").write_text("floor\nchair\n")
    Image.fromarray(pixels("train/b")[:, :-1]).save(tree / "masks/train/b.png")
    Image.new("RGB", SIZES["test/c"], (9, 8, 7)).save(tree / "masks/test/c.png")
    arguments = ["--masks", tree / "masks", "--mask-classes", tree / "classes.txt"]
    assert build(tree, *arguments, "--max-bad-fraction", "1") == 2
    # No example is left, so `dataset.json` is not written, but the list is.
    report = (tree / "ds/bad_rows.csv").read_text()
    count = (pixels("train/a") == 2).sum()
    assert_line_mentions(report, "masks/train/a.png", f"2 ({count} pixels)", "2 classes")
    assert_line_mentions(report, "masks/test/c.png", "(9, 8, 7)")
    (tree / "classes.txt").write_text("floor\nchair\ntable\n")
    build(tree, *arguments, "--overwrite", "--max-bad-fraction", "1")
    report = (tree / "ds/bad_rows.csv").read_text()
    assert_line_mentions(report, "masks/train/b.png", "29×40", "30×40")


def test_the_message_about_sizes_mentions_the_rotation_of_the_image(tree):
    image = Image.new("RGB", (30, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tree / "images/train/b.jpg", exif=exif)
    build(tree, "--masks", tree / "masks", "--max-bad-fraction", "1")
    report = (tree / "ds/bad_rows.csv").read_text()
    assert_line_mentions(report, "train/b.png", "30×40", "40×30", "EXIF")


def test_images_without_masks_are_listed(tree, capsys):
    (tree / "masks/train/a.png").unlink()
    assert build(tree, "--masks", tree / "masks") == 2
    assert_mentions(capsys.readouterr().err, "1 of 3 images", "train/a.jpg", tree / "masks")
    (tree / "masks/train/b.gif").write_bytes((tree / "masks/train/b.png").read_bytes())
    assert build(tree, "--masks", tree / "masks") == 2
    assert_mentions(capsys.readouterr().err, "b.gif", "b.png")


@pytest.mark.parametrize(
    "arguments, facts",
    [
        (["--masks", "nowhere"], ["--masks nowhere"]),
        (["--masks", "masks", "--mask-values", "0,a"], ["--mask-values", "0,a"]),
        (["--masks", "masks", "--mask-ignore", "1", "--mask-values", "0,1,2"], ["1", "ignored"]),
        (["--masks", "masks", "--mask-classes", "none.txt"], ["--mask-classes none.txt"]),
    ],
)
def test_wrong_options_are_refused(tree, monkeypatch, capsys, arguments, facts):
    monkeypatch.chdir(tree)
    assert build(tree, *arguments) == 2
    assert_mentions(capsys.readouterr().err, *facts)


def test_masks_need_images_and_no_crop(tree, capsys):
    (tree / "t.csv").write_text('path,mask,crop\nimages/train/a.jpg,m.png,"0,0,9,9"\n')
    assert build(tree, "--csv", tree / "t.csv", "--masks", tree / "masks", images=None) == 2
    assert_mentions(capsys.readouterr().err, "--masks", "--images", "'mask'")
    assert build(tree, "--csv", tree / "t.csv", images=None) == 2
    assert_mentions(capsys.readouterr().err, "t.csv, line 2", "crop", "mask")


def write_json(tree, **changes):
    images = [
        {"id": f"i{n}", "file_name": f"/somewhere/{name}.jpg", "width": w, "height": h}
        for n, (name, (w, h)) in enumerate(SIZES.items())
    ]
    content = {
        "images": images,
        "categories": [{"id": 5, "name": "chair"}, {"id": 7, "name": "table"}],
        "annotations": [
            {"id": 1, "image_id": "i0", "category_id": 7, "segmentation": [[4, 4, 9, 4, 9, 9]]}
        ],
    }
    (tree / "i.json").write_text(json.dumps(content | changes))
    return tree / "i.json"


def test_a_json_file_in_the_format_of_coco_has_the_masks(tree, capsys):
    assert build(tree, "--masks", write_json(tree)) == 0
    info = dataset.DatasetDir(tree / "ds").info
    assert info.mask_classes == ["background", "chair", "table"]
    stored = masks(tree, "train")
    assert set(np.unique(stored["train/a.jpg"])) == {0, 2} and stored["train/a.jpg"][5, 7] == 2
    assert not stored["train/b.jpg"].any()
    # Names, not numbers, select the class.
    (tree / "classes.txt").write_text("table\nbackground\nchair\n")
    classes = ["--mask-classes", tree / "classes.txt", "--overwrite"]
    assert build(tree, "--masks", tree / "i.json", *classes) == 0
    stored = masks(tree, "train")["train/a.jpg"]
    assert stored[5, 7] == 0 and stored[0, 0] == 1
    (tree / "classes.txt").write_text("table\nchair\n")
    assert build(tree, "--masks", tree / "i.json", *classes) == 2
    assert_mentions(capsys.readouterr().err, "'table'", "'background'", "--mask-classes")


def test_problems_of_a_json_file_are_named(tree, capsys):
    path = write_json(tree)
    assert build(tree, "--masks", path, "--mask-classes", tree / "classes.txt") == 0
    assert build(tree, "--masks", path, "--mask-values", "0,1,2", "--overwrite") == 2
    assert_mentions(capsys.readouterr().err, path, "--mask-values")
    (tree / "classes.txt").write_text("background\nchairs\ntable\n")
    assert build(tree, "--masks", path, "--mask-classes", tree / "classes.txt") == 2
    assert_mentions(capsys.readouterr().err, "'chair'", "'chairs'", "--mask-classes")
    path = write_json(tree, images=[])
    assert build(tree, "--masks", path, "--overwrite") == 2
    assert_mentions(capsys.readouterr().err, "3 of 3 images", "images")


def test_options_without_masks_keep_the_key_of_earlier_plans():
    options = BuildOptions()
    with_masks = BuildOptions(mask_classes=("a",))
    clips = []
    assert plans.plan_key(clips, options) == "a3302111c90a2107"
    assert plans.plan_key(clips, with_masks) != plans.plan_key(clips, options)


def test_validate_reports_masks_that_do_not_fit(tree):
    assert build(tree, "--masks", tree / "masks") == 0
    path = tree / "ds/dataset.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"mask_classes": ["a", "b"]}))
    result = validate.validate(str(tree / "ds"), progress=False)
    assert result.counts["mask"] == 3
    assert_mentions(
        [f.detail for f in result.findings if f.problem == "mask"][0], "2 (", "2 classes"
    )


def test_a_video_cannot_have_a_mask(tree):
    (tree / "t.csv").write_text("path,mask\nimages/train,masks/train/a.png\n")
    build(tree, "--csv", tree / "t.csv", "--max-bad-fraction", "1", images=None)
    assert_line_mentions(
        (tree / "ds/bad_rows.csv").read_text(), "images/train", "mask", "directory"
    )


def test_the_commands_of_the_documentation_run_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = {"train/street": (90, 70), "train/square": (80, 80), "test/yard": (70, 100)}
    for name, (width, height) in images.items():
        mask = np.zeros((height, width), np.uint8)
        mask[20:50, 10:40], mask[55:, :] = 1, 2
        for part, suffix, image in (
            ("photos", "jpg", Image.new("RGB", (width, height), (90, 120, 60))),
            ("masks", "png", Image.fromarray(mask)),
        ):
            path = tmp_path / part / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    (tmp_path / "classes.txt").write_text("other\ncar\nroad\n")
    json_images = [
        {"id": k, "file_name": f"{name}.jpg", "width": w, "height": h}
        for k, (name, (w, h)) in enumerate(images.items())
    ]
    polygon = [[5, 5, 30, 5, 30, 30]]
    content = {
        "images": json_images,
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "segmentation": polygon}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    text = (pages.REPOSITORY / "docs/your_data.md").read_text()
    section = text.partition("\n## Segmentation masks\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert [language for language, _ in blocks] == ["bash", "csv", "bash", "bash", "python"]
    for language, block in blocks:
        if language == "csv":
            (tmp_path / "streets.csv").write_text(block)
        elif language == "python":
            exec(block, {})  # noqa: S102 - the page's own code
        else:
            for line in block.replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(line)
                assert program == "mmjax" and cli.main(arguments) == 0, line
    shapes = "(2, 48, 48, 3) (2, 48, 48) ('other', 'car', 'road')"
    assert_line_mentions(capsys.readouterr().out, shapes)
    expected = {"photos": {"train": 2, "test": 1}, "streets": {"train": 1, "test": 1}}
    for name, sizes in expected.items():
        assert dataset.DatasetDir(f"datasets/{name}").info.split_sizes() == sizes
    info = dataset.DatasetDir("datasets/labels").info
    assert info.mask_classes == ["background", "car"]
