"""Logits of overlapping windows, against a loop over the windows of each image."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.evals.segmentation_predict import Predictor
from tests.messages import raises

C = 3
STATE = {"params": {"scale": np.float32(2.0)}, "extra": {"shift": np.float32(0.25)}}


def predict(params, extra, batch):
    """Logits that depend on the pixel and on its position in the image or window."""
    image = batch["image"].astype(jnp.float32) / 255
    rows, columns = (jnp.arange(side) / 10 for side in image.shape[1:3])
    position = jnp.stack(jnp.broadcast_arrays(rows[:, None], columns, 0.5), -1)
    return {"logits": image * params["scale"] + jnp.sin(position) + extra["shift"]}


def logits_of(image):
    batch = {"image": image[None]}
    return np.asarray(predict(STATE["params"], STATE["extra"], batch)["logits"])[0]


def windows_by_definition(image, size, window, stride):
    """The mean over windows that start at multiples of the stride, the last one at the end."""
    total, count = np.zeros((*image.shape[:2], C)), np.zeros(image.shape[:2])
    starts = []
    for side in size:
        last = max(side - window, 0)
        starts.append([*range(0, last, stride), last])
    for top in starts[0]:
        for left in starts[1]:
            part = np.s_[top : top + window, left : left + window]
            total[part] += logits_of(image[part])
            count[part] += 1
    return total / np.maximum(count, 1)[..., None]


@pytest.mark.parametrize("overlap, stride", [(0.0, 16), (0.5, 8), (1 / 3, 10)])
def test_windows_average_their_logits(overlap, stride):
    images = np.random.default_rng(0).integers(0, 256, (4, 48, 40, 3), np.uint8)
    sizes = np.array([(48, 40), (16, 33), (20, 11), (41, 16)], np.int32)
    predictor = Predictor(predict, num_classes=C, window=16, overlap=overlap)
    actual = np.asarray(predictor(STATE, {"image": images}, sizes))
    for image, size, logits in zip(images, sizes, actual, strict=True):
        expected = windows_by_definition(image, size, 16, stride)
        visible = np.s_[: size[0], : size[1]]
        np.testing.assert_allclose(logits[visible], expected[visible], rtol=1e-5, atol=1e-6)


def test_whole_images_are_predicted_at_once():
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 20, 3), np.uint8)
    predictor = Predictor(predict, num_classes=C)
    actual = predictor(STATE, {"image": images}, np.full((2, 2), 12))
    np.testing.assert_allclose(actual[1], logits_of(images[1]), rtol=1e-6)


def test_other_logits_than_one_per_class_and_pixel_are_refused():
    images = np.zeros((2, 12, 20, 3), np.uint8)
    with raises(UserError, "(2, 12, 20, 3)", "(2, 12, 20, 5)", "5 classes"):
        Predictor(predict, num_classes=5)(STATE, {"image": images}, np.full((2, 2), 12))
