"""Position tables: resampling, sums over axes, and token dropping."""

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.linalg import solve_banded

from mmjax.errors import UserError
from mmjax.models.blocks.positions import (
    Positions,
    drop_tokens,
    kept_tokens,
    resize_table,
    spline_matrix,
)
from tests.messages import raises


def _polyharmonic(table, length):
    """The formula of VATT's published code: r³ splines plus a line, as one dense float64 system."""
    size = len(table)
    knots, query = np.arange(size) / size, np.arange(length) / length
    line = np.stack([knots, np.ones(size)], axis=1)
    system = np.block([[np.abs(knots[:, None] - knots) ** 3, line], [line.T, np.zeros((2, 2))]])
    weights = np.linalg.solve(system, np.concatenate([table, np.zeros((2, table.shape[1]))]))
    basis = np.abs(query[:, None] - knots) ** 3
    return np.concatenate([basis, query[:, None], np.ones((length, 1))], axis=1) @ weights


@pytest.mark.parametrize("size, length", [(8, 12), (14, 10), (8, 4), (16, 17), (2, 3), (40, 50)])
def test_resampling_equals_the_polyharmonic_spline(size, length):
    table = np.random.default_rng(0).normal(size=(size, 3))
    np.testing.assert_allclose(
        spline_matrix(size, length) @ table, _polyharmonic(table, length), atol=1e-8
    )


def test_resampling_of_a_long_table_equals_the_tridiagonal_formula():
    size, length = 1200, 1500
    table = np.random.default_rng(0).normal(size=(size, 2))
    curvature = np.zeros_like(table)
    bands = np.array([np.ones(size - 2), np.full(size - 2, 4.0), np.ones(size - 2)])
    curvature[1:-1] = solve_banded((1, 1), bands, 6 * np.diff(table, 2, axis=0))
    at = np.arange(length) * size / length
    i = np.minimum(at.astype(int), size - 2)
    right = (np.minimum(at, size - 1) - i)[:, None]
    left = 1 - right
    expected = left * table[i] + right * table[i + 1]
    expected += ((left**3 - left) * curvature[i] + (right**3 - right) * curvature[i + 1]) / 6
    slope = table[-1] - table[-2] + curvature[-2] / 6
    expected += np.maximum(at - (size - 1), 0)[:, None] * slope
    resized = resize_table(table.astype(np.float32), length)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=1e-4)


def test_resampling_edge_cases_one_row_equal_size_and_zero_length():
    np.testing.assert_array_equal(spline_matrix(1, 3), np.ones((3, 1)))
    table = np.random.default_rng(0).normal(size=(5, 2))
    assert resize_table(table, 5) is table
    np.testing.assert_allclose(spline_matrix(5, 5), np.eye(5), atol=1e-12)
    with raises(UserError, 17, "to 0 positions", "buckets"):
        spline_matrix(17, 0)


def _positions(**options):
    axes = {"temporal": 3, "spectral": 4}
    return Positions(
        width=8, axes=axes, epsilon=1e-6, param_dtype="float32", rngs=nnx.Rngs(0), **options
    )


def test_positions_are_the_layer_norm_of_the_sum_over_axes():
    module = _positions()
    time, frequency = np.asarray(module.temporal[...]), np.asarray(module.spectral[...])
    total = np.stack([time[t] + frequency[s] for t in range(3) for s in range(4)])
    centered = total - total.mean(1, keepdims=True)
    expected = centered / np.sqrt((centered**2).mean(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(module((3, 4)), expected, atol=1e-5)
    swapped = expected.reshape(3, 4, 8).swapaxes(0, 1).reshape(12, 8)
    np.testing.assert_allclose(_positions(swap_axes=True)((3, 4)), swapped, atol=1e-5)


def test_positions_for_another_grid_use_resized_tables():
    module, resized = _positions(), _positions()
    resized.temporal = nnx.Param(jax.numpy.asarray(resize_table(module.temporal[...], 5)))
    np.testing.assert_allclose(module((5, 4)), resized((5, 4)), atol=1e-5)


def test_drop_tokens_samples_distinct_tokens():
    keep = np.asarray(drop_tokens(jax.random.key(0), 11, 0.5))
    assert keep.shape == (5,) and len(set(keep)) == 5 and set(keep) <= set(range(11))
    per_example = np.asarray(drop_tokens(jax.random.key(0), 11, 0.5, batch=4))
    assert per_example.shape == (4, 5) and len({tuple(keep) for keep in per_example}) == 4
    assert all(len(set(keep)) == 5 for keep in per_example)
    counts = np.bincount(
        np.concatenate([drop_tokens(jax.random.key(i), 4, 0.5) for i in range(100)]), minlength=4
    )
    assert counts.min() > 30  # the expected count is 50


def test_number_of_kept_tokens():
    assert [kept_tokens(*x) for x in ((1568, 0.5), (1200, 0.5), (3, 0.5), (1, 0.5))] == [
        784,
        600,
        1,
        1,
    ]
