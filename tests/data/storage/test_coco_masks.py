"""Masks in COCO's format: painting order, polygons, run lengths, malformed files."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from mmjax.data.storage import coco_masks
from mmjax.errors import UserError
from tests.messages import raises

SHAPE = (40, 60)


def square(left, top, side):
    right, bottom = left + side, top + side
    return [left, top, right, top, right, bottom, left, bottom]


def write(path, annotations, **changes):
    content = {
        "images": [{"id": 3, "file_name": "a/b.jpg", "height": SHAPE[0], "width": SHAPE[1]}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [{"id": 1 + n, "image_id": 3, **a} for n, a in enumerate(annotations)],
    }
    path.write_text(json.dumps(content | changes))
    return str(path)


def random_mask(seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return np.hypot(y - rng.integers(10, 30), x - rng.integers(10, 50)) < rng.integers(2, 20)


def runs(mask):
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat.astype(int))) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + counts}


def test_later_instances_cover_earlier_ones_crowds_too(tmp_path):
    path = write(
        tmp_path / "i.json",
        [
            {"category_id": 9, "segmentation": [square(5, 5, 20)]},
            {"category_id": 4, "segmentation": [square(15, 5, 20)]},
            {"category_id": 9, "segmentation": runs(random_mask(0)), "iscrowd": 1},
        ],
    )
    masks = coco_masks.CocoMasks(path)
    assert masks.class_names == ("background", "cat", "dog")
    painted = masks.paint(3, {"cat": 1, "dog": 2})
    expected = np.zeros(SHAPE, np.uint8)
    expected[5:25, 5:25] = 2
    expected[5:25, 15:35] = 1
    expected[random_mask(0)] = 2
    assert np.array_equal(painted, expected)
    assert set(np.unique(masks.paint(3, {"cat": 7}))) == {0, 7}
    assert masks.names_in(3) == {"cat", "dog"} and masks.files() == {"a/b.jpg": 3}


@pytest.mark.parametrize("seed", range(5))
def test_compressed_runs_are_those_of_pycocotools(seed):
    mask = random_mask(seed) | random_mask(seed + 10)
    compressed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    compressed = {"size": list(SHAPE), "counts": compressed["counts"].decode()}
    assert np.array_equal(coco_masks.decode(compressed, SHAPE), mask)
    assert np.array_equal(coco_masks.decode(runs(mask), SHAPE), mask)


def test_polygons_are_those_of_pycocotools():
    polygons = [[3.2, 4.1, 50.7, 8.9, 30.3, 38.5], square(-4, 30, 11.5), [1, 1, 2, 2]]
    whole = coco.decode(coco.merge(coco.frPyObjects(polygons[:2], *SHAPE))).astype(bool)
    assert np.array_equal(coco_masks.decode(polygons, SHAPE), whole)


@pytest.mark.parametrize(
    "segmentation, facts",
    [
        ({"size": [40, 60], "counts": [5, 5]}, ("10 pixels", "2400")),
        ({"size": [60, 40], "counts": [2400]}, ("[60, 40]", "[40, 60]")),
        ({"size": [40, 60], "counts": [2401, -1]}, ("whole numbers",)),
        ({"size": [40, 60], "counts": "0 "}, ("' '",)),
        ({"size": [40, 60], "counts": "P"}, ("truncated",)),
        ([[1, 2, 3, 4, 5]], ("x1, y1",)),
        ([[1, 2, 3, 4, 5, float("nan")]], ("numbers",)),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], ("60×40",)),
        ([["a"]], ("numbers",)),
        (3, ("polygons", "counts")),
    ],
)
def test_malformed_segmentations_name_the_annotation(tmp_path, segmentation, facts):
    path = write(tmp_path / "i.json", [{"category_id": 4, "segmentation": segmentation}])
    with raises(UserError, "annotation 1", "image 3", *facts):
        coco_masks.CocoMasks(path).paint(3, {"cat": 1})


@pytest.mark.parametrize(
    "changes, facts",
    [
        (dict(images={}), ("images", "list")),
        (dict(images=[{"file_name": "x"}]), ("'id'", "file_name")),
        (dict(images=[{"id": [1]}]), ("id", "[1]")),
        (dict(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), ("same name",)),
    ],
)
def test_malformed_files_are_refused(tmp_path, changes, facts):
    path = write(tmp_path / "i.json", [], **changes)
    with raises(UserError, path, *facts):
        coco_masks.CocoMasks(path)


def test_unknown_categories_and_images_are_refused(tmp_path):
    path = write(tmp_path / "i.json", [{"category_id": 5, "segmentation": []}])
    masks = coco_masks.CocoMasks(path)
    with raises(UserError, path, "category_id", "5"):
        masks.paint(3, {})
    with raises(UserError, path, "'4'"):
        masks.paint("4", {})
    with raises(UserError, path, "'dog'", "dogs", "classes.txt"):
        masks.check_classes(["background", "cat", "dogs"], source="classes.txt")


@pytest.mark.parametrize("side", [0, -1, 2.5, None])
def test_sizes_must_be_positive(tmp_path, side):
    images = [{"id": 3, "file_name": "a.jpg", "height": side, "width": 4}]
    masks = coco_masks.CocoMasks(write(tmp_path / "i.json", [], images=images))
    with raises(UserError, "image 3", side):
        masks.paint(3, {})
