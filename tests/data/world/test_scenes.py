"""Tests of the world of images with segmentation masks."""

import dataclasses

import numpy as np
import pytest

from mmjax.data.build import validate
from mmjax.data.storage import dataset, schema
from mmjax.data.world import build as world
from mmjax.data.world.attributes import SHAPES
from mmjax.data.world.scenes import ScenesConfig, make_scene
from mmjax.errors import UserError
from tests.messages import raises


def test_scenes_are_deterministic_and_differ():
    cfg = ScenesConfig()
    first, again = make_scene(cfg, "train", 3), make_scene(cfg, "train", 3)
    assert np.array_equal(first.frames, again.frames) and np.array_equal(first.mask, again.mask)
    other = make_scene(cfg, "test", 3)
    assert other.frames.shape != first.frames.shape or (other.frames != first.frames).any()


def test_masks_follow_the_objects_and_contain_all_classes():
    cfg = ScenesConfig(outline=False)
    counts, sizes = np.zeros(256, int), set()
    for index in range(60):
        scene = make_scene(cfg, "train", index)
        image, mask = scene.frames[0].astype(int), scene.mask[0]
        assert mask.shape == image.shape[:2] and max(mask.shape) == cfg.frame_size
        sizes.add(mask.shape)
        counts += np.bincount(mask.ravel(), minlength=256)
        # Objects are brighter than the background.
        assert image[mask > 0].mean() > image[mask == 0].mean() + 20
    assert (counts[: 1 + len(SHAPES)] > 0).all() and not counts[1 + len(SHAPES) :].any()
    assert len(sizes) > 20 and any(h > w for h, w in sizes) and any(h < w for h, w in sizes)
    assert 0.3 < counts[0] / counts.sum() < 0.8


def test_only_outlines_are_without_a_class():
    cfg = ScenesConfig(max_objects=1)
    with_outline = make_scene(cfg, "train", 0).mask[0]
    without = make_scene(dataclasses.replace(cfg, outline=False), "train", 0).mask[0]
    ignored = with_outline == 255
    assert np.array_equal(with_outline[~ignored], without[~ignored])
    padded = np.pad(without, ((0, 1), (0, 1)), mode="edge")
    assert np.array_equal(ignored, (padded[1:, :-1] != without) | (padded[:-1, 1:] != without))
    assert 0 < ignored.mean() < 0.2


def test_the_dataset_describes_its_masks(tmp_path):
    _, cfg, _ = world.parse_spec("world:scenes_tiny")
    info = world.build_world(tmp_path, cfg, {"train": 12, "test": 4})
    assert info.modalities == ("video", "mask") and not info.num_classes
    assert info.mask_classes == ["background", *SHAPES]
    example = schema.decode(dataset.DatasetDir(tmp_path).split("test").read(2))
    expected = make_scene(cfg, "test", 2).mask[0]
    assert np.array_equal(schema.decode_mask(example.masks[0]), expected)
    result = validate.validate(str(tmp_path), progress=False)
    assert result.records == 16 and not result.counts


@pytest.mark.parametrize("setting", ["max_objects=0", "num_captions=2", "dense=false", "fps=0"])
def test_settings_that_make_no_sense_are_refused(setting):
    with raises(UserError, setting.split("=")[0]):
        world.parse_spec(f"world:scenes,{setting}")


def test_worlds_with_dense_annotations_name_the_classes_of_masks(tmp_path):
    _, cfg, _ = world.parse_spec("world:tiny,dense=true,num_frames=1")
    assert world.build_world(tmp_path, cfg, {"test": 1}).mask_classes == ["background", *SHAPES]
