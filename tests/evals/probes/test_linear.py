"""Linear classifiers and their matrix products."""

import numpy as np
import pytest

from mmjax.evals.probes import linear


def test_logits_are_affine_in_the_features():
    kernel = np.array([[1.0, 0.0], [2.0, -1.0]], np.float32)
    classifier = linear.Linear(kernel, np.array([0.5, 0.0], np.float32))
    x = np.array([[[1.0, 1.0], [0.0, 2.0]]])  # [1, V, D]
    np.testing.assert_array_equal(classifier.logits(x), [[[3.5, -1.0], [4.5, -2.0]]])


@pytest.mark.parametrize("size", [3, 512, 513, 1500])
def test_the_blocked_product_equals_the_product(size):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(size, n)).astype(np.float32) for n in (7, 4))
    result = linear.transposed_product(x, y)
    np.testing.assert_allclose(result, x.T.astype(np.float64) @ y, atol=1e-4)
