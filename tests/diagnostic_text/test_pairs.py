"""Selection of pairs, resizing and prompt images, against TTDL's fixtures."""

import numpy as np
import pytest

from mmjax.diagnostic_text import pairs, prompt_images
from mmjax.errors import UserError
from tests.diagnostic_text import masks
from tests.messages import raises

NAMES = ("BACKGROUND", "CAT", "DOG", "BUS")


def classes(truth, prediction, limit, seed=0):
    rng = np.random.default_rng(seed)
    return pairs.select_classes(truth, prediction, predicted_limit=limit, rng=rng)


@pytest.mark.parametrize(
    ("truth", "prediction", "limit", "expected"),
    [
        ([0, 2], [0, 1, 3], 0, [2]),
        ([0, 2], [0, 1, 3], None, [1, 2, 3]),
        ([0, 2], [0, 3], 1, [2, 3]),  # the background is dropped first
        ([0], [0], 0, [0]),
        ([0], [0, 1], 0, [0]),
        ([0], [0, 1], None, [1]),
    ],
)
def test_select_classes(truth, prediction, limit, expected):
    assert classes(truth, prediction, limit) == expected


def test_a_limit_keeps_a_random_reproducible_subset():
    results = {tuple(classes([0], [0, 1, 2, 3], 2, seed)) for seed in range(20)}
    assert results == {(1, 2), (1, 3), (2, 3)}
    assert classes([0], [0, 1, 2, 3], 2, 5) == classes([0], [0, 1, 2, 3], 2, 5)


def test_nearest_resize_uses_the_floor_rule():
    index = pairs.resize_mask(np.arange(520)[None].repeat(520, 0), 224)[0]
    assert index[:8].tolist() == [0, 2, 4, 6, 9, 11, 13, 16]
    assert index[-3:].tolist() == [513, 515, 517]


def select(truth, prediction, **options):
    scenes = np.zeros((1, 8, 8, 3), np.uint8)
    arrays = (np.asarray(truth)[None], np.asarray(prediction)[None])
    return pairs.select_pairs(["a-b"], scenes, *arrays, NAMES, size=4, **options)


def test_void_counts_as_background_in_masks_and_is_marked():
    truth, prediction = np.zeros((8, 8), int), np.zeros((8, 8), int)
    truth[:2], truth[2:4] = 255, 2
    prediction[:4] = 2
    (pair,) = select(truth, prediction, void=255)
    assert (pair.key, pair.class_name, pair.class_index) == ("a-b-2", "DOG", 2)
    assert pairs.split_key(pair.key) == ("a-b", 2)
    assert pair.truth.sum(1).tolist() == [0, 4, 0, 0]
    assert pair.prediction.sum(1).tolist() == [4, 4, 0, 0]
    assert pair.void.sum(1).tolist() == [4, 0, 0, 0]
    truth[truth == 2] = 0
    (pair,) = select(truth, prediction * 0, void=255)
    assert pair.class_index == 0 and pair.truth.all()
    assert (prompt_images.difference_image(pair)[0] > 0).all()  # unmapped: void is not background


def test_an_unknown_label_is_reported():
    with raises(UserError, "a-b", "label 4", "255"):
        select(np.full((8, 8), 4), np.zeros((8, 8), int), void=255)
    with raises(UserError, "a-b", "label 255"):
        select(np.full((8, 8), 255), np.zeros((8, 8), int))


def test_a_key_without_index_is_reported():
    with raises(UserError, "2007_000032"):
        pairs.split_key("2007_000032")
    assert pairs.split_key("2007-000032-15") == ("2007-000032", 15)


@pytest.mark.parametrize(
    ("alpha", "inside", "outside"),
    [
        (0.6, [153, 157, 193, 255], [0, 3, 39, 101]),
        (0.55, [140, 144, 185, 255], [0, 4, 45, 114]),
        (0.0, [0, 10, 100, 255], [0, 10, 100, 255]),
    ],
)
def test_overlay(alpha, inside, outside):
    scene = np.array([0, 10, 100, 255], np.uint8)[None, :, None].repeat(3, 2)
    for mask, expected in ((True, inside), (False, outside)):
        image = prompt_images.overlay(scene, np.full((1, 4), mask), alpha)
        assert image.dtype == np.uint8 and image[0].tolist() == [[v] * 3 for v in expected]


def test_comparison_images_are_truth_then_prediction():
    pair = masks.pair(masks.box(0, 10, 0, 10), masks.empty())
    truth, prediction = prompt_images.comparison_images(pair)
    assert truth.max() == 153 and prediction.max() == 0
    data = prompt_images.encode_png(truth)
    assert data == prompt_images.encode_png(truth.copy()) and data[1:4] == b"PNG"
