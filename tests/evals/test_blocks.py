"""Computation over blocks of queries."""

import numpy as np
import pytest

from mmjax.evals import blocks


@pytest.mark.parametrize("max_block", [1, 3, 7, 100])
def test_results_do_not_depend_on_the_block_size(monkeypatch, max_block):
    monkeypatch.setattr(blocks, "MAX_BLOCK", max_block)
    x, ids = np.arange(14.0).reshape(7, 2), np.arange(7)
    shapes = set()

    def function(x, ids):
        shapes.add((x.shape, ids.shape))
        return x.sum(axis=1), np.stack([ids, -ids], axis=1)

    sums, pairs = blocks.map_blocks(function, (x, ids), num_targets=5)
    np.testing.assert_array_equal(sums, x.sum(axis=1))
    np.testing.assert_array_equal(pairs, np.stack([ids, -ids], axis=1))
    assert len(shapes) == 1  # one compilation


def test_blocks_are_small_for_many_targets(monkeypatch):
    monkeypatch.setattr(blocks, "MAX_SCORES", 20)
    sizes = []
    blocks.map_blocks(lambda x: (sizes.append(len(x)) or x,), (np.zeros(7),), num_targets=9)
    assert sizes == [2, 2, 2, 2]
