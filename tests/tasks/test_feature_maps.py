"""`predict["maps"]`: feature maps of the image towers of a task, for heads on pixels."""

import jax
import numpy as np
import pytest

from mmjax import config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.pixel_statistics import IMAGENET_MEAN, IMAGENET_STD
from mmjax.tasks import make_task
from tests.messages import raises
from tests.random_arrays import random_arrays

BATCH, VIEWS, SIZE = 2, 3, 16
VIT = dict(width=8, num_layers=1, num_heads=1, head_dim=8, mlp_dim=8, scan_unroll=0)
VIT |= dict(image_size=SIZE, patch_size=8, projection=0)
RESNET = dict(blocks=(1, 1), bottleneck=False, width_multiplier=0.125)


def task_of(name, modality, tower):
    cfg = config.base()
    cfg.task = name
    cfg.model = {modality: tower, **({"common_dim": 4} if name == "touch" else {})}
    cfg.augment = {modality: dict(mean=IMAGENET_MEAN, std=IMAGENET_STD)}
    spec = {
        modality: jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), np.uint8),
        f"{modality}_mask": jax.ShapeDtypeStruct((BATCH,), np.float32),
    }
    return make_task(cfg, DataSpec(batch=spec, train=False))


def images_of(modality, *size):
    images = np.random.default_rng(0).integers(0, 256, (BATCH, VIEWS, *size, 3), np.uint8)
    return {modality: images, f"{modality}_mask": np.ones(BATCH, np.float32)}


@pytest.mark.parametrize(
    "name, modality, tower, size, shapes",
    [
        (
            *("guided", "image", dict(name="resnet50", **RESNET), (21, 32)),
            dict(conv=(11, 16, 8), block1=(6, 8, 8), block2=(3, 4, 16)),
        ),
        ("guided", "image", dict(name="image_vit_s16", **VIT), (24, 40), dict(grid=(3, 5, 8))),
        ("touch", "image", dict(name="clip_vit_tiny", **VIT), (16, 16), dict(grid=(2, 2, 8))),
        ("touch", "touch", dict(name="touch_tiny", **VIT), (8, 24), dict(grid=(1, 3, 8))),
    ],
)
def test_maps_of_images_of_any_size(name, modality, tower, size, shapes):
    task = task_of(name, modality, tower)
    params, extra = random_arrays(task.model)
    batch = images_of(modality, *size)
    maps = jax.jit(task.predict["maps"])(params, extra, batch)
    assert {key: x.shape for key, x in maps.items()} == {
        key: (BATCH, VIEWS, *shape) for key, shape in shapes.items()
    }
    pixels = (batch[modality][:, 1] / 255 - IMAGENET_MEAN) / np.array(IMAGENET_STD)
    tower = getattr(task.model.bind(params, extra), modality)
    expected = jax.jit(lambda x: tower.feature_maps(x))(pixels.astype(np.float32))
    for key, x in expected.items():
        np.testing.assert_allclose(maps[key][:, 1], x, rtol=1e-3, atol=1e-4)


def test_sizes_that_do_not_fit_and_batches_without_images_are_named():
    task = task_of("guided", "image", dict(name="image_vit_s16", **VIT))
    arrays = (task.model.params, task.model.extra)
    with raises(UserError, "config.model.image", "patch_size", 8, "(24, 30, 3)"):
        jax.eval_shape(task.predict["maps"], *arrays, images_of("image", 24, 30))
    with raises(UserError, "image", "touch_mask"):
        jax.eval_shape(task.predict["maps"], *arrays, images_of("touch", 24, 32))
