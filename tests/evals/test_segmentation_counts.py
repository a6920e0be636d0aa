"""Counts of pixels of semantic segmentation, against NumPy, SciPy and scikit-learn."""

import jax
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import confusion_matrix, jaccard_score

from mmjax.evals import segmentation_counts as counts

C = 5
SIZES = np.array([[30, 41], [17, 23], [5, 41]])


def blobs(seed, shape=(30, 41), count=C):
    """Smooth regions of classes, with some classes missing."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(count, *shape)), (0, 3, 3))
    return noise.argmax(0).astype(np.uint8)


def masks(seed):
    """Predictions and truth [3, H, W] with ignored pixels."""
    rng = np.random.default_rng(seed)
    truth = np.stack([blobs(seed + k, count=C - k) for k in range(3)])
    noise = rng.integers(0, C, truth.shape)
    classes = np.where(rng.random(truth.shape) < 0.2, noise, truth).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    for mask, (height, width) in zip(truth, SIZES, strict=True):
        mask[height:], mask[:, width:] = 255, 255
    return classes, truth


def test_fixture_of_ttdl():
    prediction = np.array([[0, 0, 1, 1], [0, 2, 1, 1], [0, 2, 2, 3]])
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, 2], [255, 2, 2, 255]])
    matrix = np.asarray(counts.confusion(prediction[None], truth[None], 21))
    correct = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - correct
    assert correct[:3].tolist() == [3, 3, 2] and union[:4].tolist() == [4, 4, 4, 0]
    assert correct.sum() / matrix.sum() == pytest.approx(0.8)


@pytest.mark.parametrize("seed", range(3))
def test_confusion_equals_that_of_scikit_learn(seed):
    classes, truth = masks(seed)
    matrix = np.asarray(jax.jit(counts.confusion, static_argnums=2)(classes, truth, C))
    kept = truth != 255
    assert np.array_equal(matrix, confusion_matrix(truth[kept], classes[kept], labels=range(C)))
    iou = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    expected = jaccard_score(truth[kept], classes[kept], average=None, labels=range(C))
    np.testing.assert_allclose(iou, expected, rtol=1e-6)


def boundary_by_erosion(mask, radius):
    """Pixels of each class that erosion with a square removes, as in the published code."""
    square = np.ones((3, 3), bool)
    result = np.zeros(mask.shape, bool)
    for value in np.unique(mask):
        region = mask == value
        eroded = ndimage.binary_erosion(region, square, iterations=radius, border_value=0)
        result |= region & ~eroded
    return result


@pytest.mark.parametrize("radius", [1, 2, 3, 7, 40])
def test_boundaries_are_those_of_an_erosion(radius):
    function = jax.jit(counts.boundary)
    for seed, (height, width) in enumerate(SIZES):
        mask = blobs(seed)
        actual = np.asarray(function(mask, SIZES[seed], radius))
        expected = boundary_by_erosion(mask[:height, :width], radius)
        assert np.array_equal(actual[:height, :width], expected)
        assert not actual[height:].any() and not actual[:, width:].any()


@pytest.mark.parametrize("seed", range(3))
def test_boundary_counts_are_sums_over_images(seed):
    classes, truth = masks(seed)
    radii = np.array([1, 2, 3])
    actual = jax.jit(counts.boundary_counts, static_argnums=4)(classes, truth, SIZES, radii, C)
    expected = np.zeros((C, 3), int)
    for predicted, labeled, (height, width), radius in zip(
        classes, truth, SIZES, radii, strict=True
    ):
        labeled = labeled[:height, :width]
        predicted = np.where(labeled == 255, 255, predicted[:height, :width])
        edges = [boundary_by_erosion(mask, radius) for mask in (predicted, labeled)]
        for value in range(C):
            regions = [
                edge & (mask == value)
                for edge, mask in zip(edges, (predicted, labeled), strict=True)
            ]
            expected[value] += [(regions[0] & regions[1]).sum(), *(r.sum() for r in regions)]
    assert np.array_equal(actual, expected) and expected[:, 0].sum() > 0


def test_a_perfect_prediction_has_equal_boundaries():
    _, truth = masks(0)
    predicted = np.where(truth == 255, 1, truth)
    result = np.asarray(counts.boundary_counts(predicted, truth, SIZES, np.full(3, 2), C))
    assert (result == result[:, :1]).all() and result.any()


def resized_by_definition(logits, new_size):
    """Bilinear interpolation between pixel centers, pixel by pixel."""
    height, width = logits.shape[:2]
    result = np.zeros((*new_size, logits.shape[-1]))
    for row, column in np.ndindex(*new_size):
        y = np.clip((row + 0.5) * height / new_size[0] - 0.5, 0, height - 1)
        x = np.clip((column + 0.5) * width / new_size[1] - 0.5, 0, width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        v, u = y - top, x - left
        result[row, column] = (1 - v) * (
            (1 - u) * logits[top, left] + u * logits[top, right]
        ) + v * ((1 - u) * logits[bottom, left] + u * logits[bottom, right])
    return result


def test_classes_are_those_of_the_resized_logits_of_each_image():
    logits = np.random.default_rng(0).normal(size=(3, 30, 41, C)).astype(np.float32)
    new_sizes = np.array([[30, 41], [40, 20], [9, 50]])
    function = jax.jit(counts.classes_at, static_argnums=3)
    actual = np.asarray(function(logits, SIZES, new_sizes, (40, 50)))
    assert actual.shape == (3, 40, 50) and actual.dtype == np.uint8
    assert np.array_equal(actual[0, :30, :41], logits[0].argmax(-1))
    for image, (height, width), (rows, columns), classes in zip(
        logits, SIZES, new_sizes, actual, strict=True
    ):
        expected = resized_by_definition(image[:height, :width], (rows, columns)).argmax(-1)
        assert (classes[:rows, :columns] == expected).mean() > 0.999
