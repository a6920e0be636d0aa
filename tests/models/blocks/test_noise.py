"""Random bits and dropout masks on one and on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax import sharding
from mmjax.models.blocks.noise import dropout, random_bits


@pytest.fixture
def mesh():
    """Four devices share the batch; each of them is a pair of tensor parallelism."""
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        yield mesh


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_dropout_has_its_rate_and_keeps_the_mean(rate):
    x = jnp.full((64, 40, 50), 3.0)
    y = np.asarray(dropout(x, rate, jax.random.key(0)))
    np.testing.assert_allclose(y[y != 0], 3 / (1 - rate), rtol=1e-6)
    deviation = (rate * (1 - rate) / x.size) ** 0.5
    assert (y == 0).mean() == pytest.approx(rate, abs=4 * deviation)
    for axis in range(3):  # every row, token and feature
        fractions = (y == 0).mean(axis=tuple({0, 1, 2} - {axis}))
        deviation = (rate * (1 - rate) / (x.size / len(fractions))) ** 0.5
        np.testing.assert_allclose(fractions, rate, atol=5 * deviation)


def test_bits_are_uniform_and_depend_on_the_key():
    first, second = (
        np.asarray(random_bits(jax.random.key(i), (32, 64, 64))).ravel() for i in range(2)
    )
    counts = np.bincount(first >> 8, minlength=256)
    expected = len(first) / 256
    chi2 = ((counts - expected) ** 2 / expected).sum()  # mean 255, standard deviation 22.6
    assert chi2 == pytest.approx(255, abs=5 * 22.6)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / len(first) ** 0.5
    again = random_bits(jax.random.key(0), (32, 64, 64))
    np.testing.assert_array_equal(first, np.asarray(again).ravel())


def test_each_device_draws_the_bits_of_its_own_examples(mesh):
    """XLA alone would draw the bits of the whole batch on every device."""
    program = jax.jit(lambda key: random_bits(key, (64, 32, 16))).lower(jax.random.key(0)).compile()
    text = program.as_text()
    assert "[16,32,16]" in text and "[64,32,16]" not in text
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all"))
    bits = program(jax.random.key(0))
    parts = {}
    for shard in bits.addressable_shards:  # two devices have each part
        part = parts.setdefault(shard.index[0].start, np.asarray(shard.data))
        np.testing.assert_array_equal(shard.data, part)
    assert sorted(parts) == [0, 16, 32, 48]
    parts = np.stack([part.ravel() for part in parts.values()]).astype(float)
    correlations = np.corrcoef(parts)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 5 / parts.shape[1] ** 0.5


def test_a_batch_that_devices_cannot_share_evenly(mesh):
    y = jax.jit(lambda key: dropout(jnp.ones((6, 100, 40)), 0.25, key))(jax.random.key(0))
    assert float((y == 0).mean()) == pytest.approx(0.25, abs=0.02)


def test_gradients_have_the_masks_of_the_forward_pass(mesh):
    """Also through scan, recomputation and vmap, whose groups belong to different devices."""

    @jax.checkpoint
    def layer(x, key):
        return dropout(x, 0.5, key), None

    def total(x, keys):
        return (jax.lax.scan(layer, x, keys)[0] ** 2).sum() / 2

    keys = jax.random.split(jax.random.key(0), (4, 2))
    where = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
    x = jax.device_put(jnp.ones((4, 8, 6, 10)), where)
    function = jax.jit(jax.vmap(jax.value_and_grad(total)))
    text = function.lower(x, keys).compile().as_text()
    assert "u16[8,6,10]" in text and "[32,6,10]" not in text
    values, grads = function(x, keys)
    # Two layers keep an element with probability 1/4 and multiply it by 4; y dy/dx = 16 x.
    assert set(np.unique(grads)) == {0.0, 16.0}
    np.testing.assert_allclose(values, (np.asarray(grads) / 2).sum(axis=(1, 2, 3)))
    assert float((grads != 0).mean()) == pytest.approx(0.25, abs=0.04)
    assert len({grads[i].tobytes() for i in range(4)}) == 4
