"""The Pallas kernel, run as ordinary operations, against plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax import sharding
from mmjax.models.blocks.attention import attend
from mmjax.models.blocks.fused_attention import fused_attention

SCALE = 0.3


def _inputs(shape, num_keys=None, dtype=jnp.float32):
    """Returns query, key, value, and a factor of the output for a scalar loss."""
    batch, num_queries, *heads = shape
    lengths = (num_queries, num_keys or num_queries, num_keys or num_queries, num_queries)
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(batch, n, *heads)), dtype) for n in lengths]


def _fused(query, key, value, **options):
    return fused_attention(query, key, value, scale=SCALE, interpret=True, **options)


def _plain(query, key, value, *, key_mask=None, **options):
    mask = None if key_mask is None else key_mask[:, None, None]
    return attend(query, key, value, scale=SCALE, mask=mask, impl="xla", **options)


def _results(function, inputs, **options):
    """Returns the output, and the gradients of query, key and value."""

    @jax.jit
    def run(query, key, value, factor):
        output, backward = jax.vjp(lambda *args: function(*args, **options), query, key, value)
        return output, *backward(factor)

    return run(*inputs)


@pytest.mark.parametrize(
    ("shape", "num_keys", "causal", "masked"),
    [
        ((2, 17, 3, 64), None, False, False),  # TVL's smallest tower: three heads at once
        ((2, 77, 4, 32), None, True, True),  # four heads at once
        ((1, 785, 2, 64), None, False, True),  # several blocks of queries, odd
        ((1, 330, 1, 128), 1000, True, False),
        ((2, 40, 2, 24), 150, False, True),  # heads that fill no register
    ],
)
def test_fused_attention_equals_plain_attention(shape, num_keys, causal, masked):
    inputs = _inputs(shape, num_keys)
    options = {"causal": causal}
    if masked:
        mask = np.random.default_rng(1).random((shape[0], inputs[1].shape[1])) < 0.7
        mask[-1, 10:] = False
        options["key_mask"] = jnp.asarray(mask)
    output, *gradients = _results(_fused, inputs, **options)
    expected_output, *expected_gradients = _results(_plain, inputs, **options)
    np.testing.assert_allclose(output, expected_output, atol=1e-5)
    for actual, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(actual, expected, atol=3e-5)


def test_queries_without_visible_keys_attend_to_all_of_them():
    """As in plain attention, so that padding never makes values that are not finite."""
    inputs = _inputs((2, 20, 2, 64))
    options = {"key_mask": jnp.zeros((2, 20), bool)}
    mean = jnp.broadcast_to(inputs[2].mean(axis=1, keepdims=True), inputs[2].shape)
    results = _results(_fused, inputs, **options)
    np.testing.assert_allclose(results[0], mean, atol=1e-6)
    for actual, plain in zip(results, _results(_plain, inputs, **options), strict=True):
        np.testing.assert_allclose(actual, plain, atol=1e-6)


def test_half_precision():
    inputs = _inputs((2, 200, 2, 64), dtype=jnp.bfloat16)
    exact = _inputs((2, 200, 2, 64))
    output, *gradients = _results(_fused, inputs)
    expected_output, *expected_gradients = _results(_plain, exact)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(output), expected_output, atol=0.03)
    for actual, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(np.float32(actual), expected, atol=0.06)


def test_dropout_has_its_rate_and_the_masks_of_the_forward_pass():
    """The weights are the outputs for values that select one key each."""
    query, key, _, factor = _inputs((2, 300, 4, 64))
    options = {"dropout_rate": 0.3, "dropout_key": jax.random.key(5)}

    @jax.jit
    def run(value, dropout_key):
        return _fused(query, key, value, dropout_rate=0.3, dropout_key=dropout_key)

    weights = []
    for start in range(0, 300, 64):
        value = np.zeros(key.shape, np.float32)
        stop = min(start + 64, 300)
        value[:, np.arange(start, stop), :, np.arange(stop - start)] = 1
        weights.append(np.asarray(run(value, options["dropout_key"]))[..., : stop - start])
    weights = np.concatenate(weights, axis=-1).swapaxes(1, 2)  # [B, H, T, S]
    kept = weights != 0
    assert 1 - kept.mean() == pytest.approx(0.3, abs=4 * (0.21 / kept.size) ** 0.5)
    # Blocks, heads and examples have masks of their own.
    masks = {kept[b, h, t : t + 100].tobytes() for b in (0, 1) for h in range(4) for t in (0, 200)}
    assert len(masks) == 16

    def expected(query, key, value):
        scores = SCALE * jnp.einsum("bthk,bshk->bhts", query, key)
        dropped = jax.nn.softmax(scores) * kept / 0.7
        return jnp.einsum("bhts,bshk->bthk", dropped, value)

    inputs = (query, key, _inputs((2, 300, 4, 64))[2], factor)
    output, *gradients = _results(_fused, inputs, **options)
    expected_output, *expected_gradients = _results(expected, inputs)
    np.testing.assert_allclose(output, expected_output, atol=3e-5)
    for actual, gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(actual, gradient, atol=1e-5)
    other = run(inputs[2], jax.random.key(6))
    assert np.abs(other - output).max() > 0.1


@pytest.mark.parametrize("vmapped", [False, True])
def test_each_device_computes_its_own_examples_and_heads(vmapped):
    """Without communication, also under vmap, as in clipping per group of examples."""
    inputs = _inputs((4, 40, 4, 64))
    mask = jnp.asarray(np.random.default_rng(1).random((4, 40)) < 0.7)
    _, *expected = _results(_plain, inputs, key_mask=mask)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)

    def grads(*inputs, mask):
        if not vmapped:
            return _results(_fused, inputs, key_mask=mask)[1:]
        one = [x[:, None] for x in inputs]
        run = jax.vmap(lambda mask, *x: _results(_fused, x, key_mask=mask)[1:])
        results = run(mask[:, None], *one)
        return [x[:, 0] for x in results]

    with jax.set_mesh(mesh):
        where = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES, None, "tensor"))
        inputs = [jax.device_put(x, where) for x in inputs]
        rows = jax.device_put(mask, NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES)))
        program = jax.jit(grads, out_shardings=where).lower(*inputs, mask=rows).compile()
        text = program.as_text()
        assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all"))
        for actual, gradient in zip(program(*inputs, mask=rows), expected, strict=True):
            np.testing.assert_allclose(actual, gradient, atol=3e-5)


def test_masks_of_examples_and_heads_differ_also_between_devices():
    same = [jnp.tile(x, (4, 1, 4, 1)) for x in _inputs((1, 40, 1, 64))[:3]]
    options = {"dropout_rate": 0.3, "dropout_key": jax.random.key(5)}
    with jax.set_mesh(sharding.make_mesh(data=2, fsdp=2, tensor=2)):
        outputs = jax.jit(lambda *x: _fused(*x, **options))(*same)
    outputs = np.asarray(outputs).swapaxes(1, 2).reshape(16, -1)
    assert len({x.tobytes() for x in outputs}) == 16
