"""Tests of scenes: determinism, shapes, labels, and unchanged published data."""

import hashlib

import numpy as np
import pytest

from mmjax.data.world import build as world
from mmjax.data.world import captions as world_captions
from mmjax.data.world.config import WorldConfig
from mmjax.data.world.scene import make_scene
from mmjax.errors import UserError
from tests.messages import raises

CFG = WorldConfig()


def test_scenes_do_not_depend_on_scenes_generated_before():
    cfg = WorldConfig(dense=True)
    first = make_scene(cfg, "train", 5)
    make_scene(cfg, "train", 4)
    repeated = make_scene(WorldConfig(dense=True), "train", 5)
    for name in ("frames", "waveform", "touch", "mask", "depth", "flow"):
        np.testing.assert_array_equal(getattr(first, name), getattr(repeated, name))
    assert first.captions == repeated.captions
    others = [make_scene(cfg, "test", 5), make_scene(WorldConfig(seed=1), "train", 5)]
    assert all((first.frames != other.frames).any() for other in others)


@pytest.mark.parametrize("size, frames, rate", [(16, 1, 8000), (33, 3, 16000), (64, 12, 48000)])
def test_shapes_and_types_follow_the_config(size, frames, rate):
    cfg = WorldConfig(
        frame_size=size, num_frames=frames, sample_rate=rate, touch_size=size, dense=True
    )
    scene = make_scene(cfg, "train", 10**6)
    assert scene.frames.shape == (frames, size, size, 3) and scene.frames.dtype == np.uint8
    assert scene.waveform.shape == (frames * rate // 10,) and scene.waveform.dtype == np.float32
    assert scene.touch.shape == (size, size, 3) and scene.touch.dtype == np.uint8
    assert scene.mask.shape == scene.depth.shape == (frames, size, size)
    assert scene.flow.shape == (frames, size, size, 2)
    assert np.abs(scene.waveform).max() <= 1


def test_label_all_gives_one_label_per_attribute():
    scene = make_scene(WorldConfig(label="all"), "train", 3)
    names = WorldConfig(label="all").class_names
    assert [names[label] for label in scene.labels] == list(scene.attributes.values())


def test_generated_data_does_not_change():
    """Published results depend on it, and caches are identified by the world's version."""
    first_scenes = [make_scene(world.WORLDS["tiny"][0], "train", index) for index in range(4)]
    described = repr([(one.captions, one.labels) for one in first_scenes])
    assert hashlib.sha256(described.encode()).hexdigest()[:16] == "399b394b349527f2"
    means = [[one.frames.mean(), one.touch.mean()] for one in first_scenes]
    np.testing.assert_allclose(
        means, [[38.44, 96.68], [47.75, 100.48], [40.75, 97.54], [80.46, 100.94]], atol=0.02
    )
    assert world_captions.vocabulary()[:3] == ["a", "amber", "and"]
    assert len(world_captions.vocabulary()) == 113


def test_unknown_split_is_named_with_the_nearest():
    with raises(UserError, "split", "'trian'", "'train'"):
        make_scene(CFG, "trian", 0)
