"""Stand-ins of end tasks: the published layouts, with labels that an image shows."""

import os

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mmjax.data.sources import layouts, registry
from mmjax.data.storage import schema
from mmjax.data.world import end_tasks
from mmjax.end_tasks.registry import END_TASKS
from mmjax.errors import UserError
from tests.messages import raises


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path))
    return tmp_path


def test_every_end_task_has_a_stand_in_for_its_files():
    names = {
        name for task in END_TASKS.values() for name in layouts.datasets(layouts.reader_of(task))
    }
    assert names <= end_tasks.STAND_INS.keys()


def test_stand_ins_are_drawn_once_and_are_the_same_again(cache, monkeypatch):
    options = dict(size=24, train=4, test=2)
    root = end_tasks.ensure(["dtd"], **options)
    files = {
        os.path.relpath(os.path.join(parent, name), root): open(
            os.path.join(parent, name), "rb"
        ).read()
        for parent, _, names in os.walk(os.path.join(root, "dtd"))
        for name in names
    }
    assert len(files) == 6 and len(set(files.values())) == 6
    modified = os.stat(os.path.join(root, "dtd")).st_mtime_ns
    assert end_tasks.ensure(["dtd"], **options) == root
    assert os.stat(os.path.join(root, "dtd")).st_mtime_ns == modified
    assert end_tasks.ensure(["dtd"], **options | dict(seed=1)) != root
    monkeypatch.setenv("MMJAX_CACHE", str(cache / "other"))
    other = end_tasks.ensure(["dtd"], **options)
    for path, content in files.items():
        with open(os.path.join(other, path), "rb") as file:
            assert file.read() == content


def test_sizes_of_stand_ins():
    for name, expected in (
        ("CLEVERNumObjects", (13, 5)),
        ("KITTI", (13, 2)),
        ("EgoHands", (36, 8)),
    ):
        spec = f"end_task:{name},root=world,size=16,train=13,test=5"
        sizes = [registry.open_source(spec, split=s).num_examples for s in ("train", "test")]
        assert tuple(sizes) == expected, name


def test_all_classes_are_in_both_splits():
    for name, task in END_TASKS.items():
        if task.pixelwise or name in ("CLEVERDist", "Imagenetv2"):
            continue
        spec = f"end_task:{name},root=world,size=16,train=32,test=32"
        train, test = (registry.open_source(spec, split=s) for s in ("train", "test"))
        counts = np.bincount(train.labels(), minlength=train.info.num_classes)
        assert set(train.labels()) == set(test.labels()), name
        assert counts.max() < 0.5 * counts.sum(), name  # no class is the answer for most images


def test_depth_grows_with_the_distance_of_what_an_image_shows():
    """Larger objects are nearer, and the wall is behind all of them."""
    root = end_tasks.ensure(["nyu"], size=48, train=3, test=1)
    for name in range(3):
        depth = np.asarray(Image.open(os.path.join(root, f"nyu/train/depths/{name:05d}.tiff")))
        walkable = np.asarray(Image.open(os.path.join(root, f"nyu/train/walkable/{name:05d}.png")))
        levels = np.unique(depth[2:])
        assert (depth[:2] == 0).all() and levels[0] > 0 and levels[-1] == 3
        areas = [(depth[2:] == level).sum() for level in levels[:-1]]
        assert len(areas) in (1, 2, 3) and areas[0] == max(areas)
        assert (depth[walkable > 0] == 3).all() and (walkable[:24] == 0).all()


def test_flow_of_kitti_moves_the_objects():
    root = end_tasks.ensure(["KITTI"], size=48, train=4, test=1)
    path = os.path.join(root, "KITTI/training")
    errors = {"moved": [], "unmoved": []}
    for number in range(4):
        first, second = (
            np.asarray(Image.open(f"{path}/image_2/{number:06d}_{frame}.png")).astype(float)
            for frame in (10, 11)
        )
        with open(f"{path}/flow_occ/{number:06d}_10.png", "rb") as file:
            flow = schema.decode_flow(file.read())
        y, x = np.nonzero(np.hypot(*np.moveaxis(flow, -1, 0)) > 0)
        rows, columns = (np.round([y + flow[y, x, 1], x + flow[y, x, 0]])).astype(int)
        inside = (rows >= 0) & (rows < 48) & (columns >= 0) & (columns < 144)
        y, x, rows, columns = (array[inside] for array in (y, x, rows, columns))
        errors["moved"].append(np.abs(first[y, x] - second[rows, columns]).mean())
        errors["unmoved"].append(np.abs(first[y, x] - second[y, x]).mean())
    assert np.mean(errors["moved"]) < 0.6 * np.mean(errors["unmoved"])


def test_images_of_clevr_show_as_many_objects_as_their_labels_say():
    spec = "end_task:CLEVERNumObjects,root=world,size=64,train=12,test=1"
    source = registry.open_source(spec, split="train")
    for record in range(12):
        image = np.asarray(Image.open(source.where(record))).astype(float).max(-1)
        blobs, _ = ndimage.label(ndimage.binary_closing(image > 100, iterations=2))
        assert blobs.max() >= 1
        assert source.labels()[record] == 1 + record % 6


def test_wrong_settings():
    with raises(UserError, "size=8", "16"):
        end_tasks.ensure(["dtd"], size=8)
    with raises(UserError, "flowers", "dtd"):
        end_tasks.ensure(["flowers"])
