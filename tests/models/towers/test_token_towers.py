"""Video, audio and text towers, except for their encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.models.blocks import patches
from mmjax.models.blocks.patches import extract_patches
from mmjax.models.towers.registry import build_tower
from mmjax.models.towers.text import relative_buckets
from mmjax.state import ModelDef
from tests.random_arrays import random_arrays

SMALL = dict(width=16, num_heads=2, head_dim=8, mlp_dim=16, num_layers=1, dropout_rate=0.0)


def _build(spec):
    model = ModelDef(lambda rngs: build_tower(spec, rngs=rngs))
    return model.bind(*random_arrays(model))


def _call(tower, x, **options):
    return jax.jit(lambda tower, x: tower(x, **options))(tower, x)


def _tower(name, **options):
    return _build(dict(name=name, **SMALL, **options))


def test_patch_embedding_equals_a_strided_convolution():
    x = np.random.default_rng(0).normal(size=(2, 5, 9, 8, 3)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(2, 4, 3, 3, 6)).astype(np.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (2, 4, 3), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    actual = extract_patches(jnp.asarray(x), (2, 4, 3)) @ kernel.reshape(-1, 6)
    assert actual.shape == (2, 2, 2, 2, 6)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize(
    "name, shape",
    [("vit_tiny", (8, 16, 16, 3)), ("wat_tiny", (640,)), ("spt_tiny", (40, 20))],
)
def test_pooled_features_depend_on_the_order_of_tokens(name, shape):
    tower = _tower(name)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    pooled, tokens = _call(tower, x)
    assert pooled.shape == (2, 16) and tokens.shape[-1] == 16
    assert np.abs(pooled - _call(tower, x[:, ::-1])[0]).max() > 1e-4


@pytest.mark.parametrize("per_example", [False, True])
def test_drop_token_equals_the_tower_on_the_kept_tokens(per_example, monkeypatch):
    tower = _tower("wat_tiny", keep_tokens=0.5, drop_per_example=per_example)
    x = np.random.default_rng(0).normal(size=(2, 6 * 128)).astype(np.float32)
    samples = []
    sample = patches.drop_tokens
    monkeypatch.setattr(
        patches, "drop_tokens", lambda *a, **k: samples.append(sample(*a, **k)) or samples[-1]
    )
    (pooled, tokens), keep = jax.jit(lambda: (tower(x, key=jax.random.key(5)), samples[0]))()
    keep = np.broadcast_to(keep, (2, 3))
    assert (keep[0] != keep[1]).any() == per_example

    @jax.jit
    def reference(keep):
        kept = tower.patch(x.reshape(2, 6, 128)) + tower.positions((6,))
        kept = jnp.take_along_axis(kept, keep[..., None], axis=1)
        agg = jnp.broadcast_to(tower.agg_token[...], (2, 1, 16))
        return tower.encoder(jnp.concatenate([agg, kept], axis=1))

    expected = reference(keep)
    np.testing.assert_allclose(pooled, expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(tokens, expected[:, 1:], atol=1e-5)


def test_training_accepts_fewer_tokens_than_buckets():
    tower = _tower("vit_tiny", patch_size=(4, 16, 16), buckets=(8, 14, 14), keep_tokens=0.5)
    _, tokens = _call(tower, np.ones((1, 4, 32, 32, 3), np.float32), key=jax.random.key(0))
    assert tokens.shape == (1, 2, 16)


def test_pre_and_post_projection_surround_the_encoder():
    tower = _tower("wat_tiny", pre_projection=True, post_projection=24)
    x = np.random.default_rng(0).normal(size=(2, 256)).astype(np.float32)
    pooled, tokens = _call(tower, x)
    assert pooled.shape == (2, 24) and tokens.shape == (2, 2, 24) and tower.out_features == 24

    def dense(layer, x):
        return jax.nn.gelu(x @ layer.kernel[...] + layer.bias[...], approximate=False)

    @jax.jit
    def reference():
        embedded = dense(tower.pre_projection, tower.patch(x.reshape(2, 2, 128)))
        embedded = embedded + tower.positions((2,))
        agg = jnp.broadcast_to(tower.agg_token[...], (2, 1, 16))
        encoded = tower.encoder(jnp.concatenate([agg, embedded], axis=1))
        return dense(tower.post_projection, encoded)[:, 0]

    np.testing.assert_allclose(pooled, reference(), atol=1e-5)


def test_relative_buckets_equal_t5():
    buckets = relative_buckets(70)
    first_query = buckets[0]  # keys after the query: the upper 16 buckets
    np.testing.assert_array_equal(
        first_query[:17], [0, 17, 18, 19, 20, 21, 22, 23, 24, 24, 24, 25, 25, 25, 26, 26, 26]
    )
    assert first_query[63] == 31 and first_query[69] == 31
    np.testing.assert_array_equal(buckets[:, 0][1:], first_query[1:] - 16)  # keys before the query


def test_t5_ignores_padding_and_depends_on_token_order():
    tower = _tower("t5_tiny", vocab_size=20, embedding_dim=8)
    tower.relative_bias[...] = jax.random.normal(jax.random.key(0), (32, 2))
    ids = np.array([[3, 4, 5, 0, 0], [3, 4, 5, 0, 0], [5, 4, 3, 0, 0]])
    pooled, tokens = _call(tower, ids)
    assert tokens.shape == (3, 5, 16)
    np.testing.assert_allclose(pooled[0], _call(tower, ids[:1, :3])[0][0], atol=1e-5)
    assert np.abs(pooled[0] - pooled[2]).max() > 1e-4
    empty = _call(tower, np.zeros((1, 5), int))[0]
    np.testing.assert_allclose(empty, _call(tower, np.zeros((1, 0), int))[0], atol=1e-5)


def test_linear_text_is_the_maximum_over_tokens():
    options = dict(name="linear", width=6, vocab_size=10, embedding_dim=4)
    tower = _build(options)
    ids = np.array([[1, 2, 0]])
    embedded = np.asarray(tower.word_embedding[...])[ids[0]]
    projection = jax.device_get(nnx.to_pure_dict(nnx.state(tower.projection)))
    tokens = np.maximum(embedded @ projection["kernel"] + projection["bias"], 0)
    np.testing.assert_allclose(tower(ids)[0][0], tokens[:2].max(0), atol=1e-6)
    padded = _build(dict(options, pool_padding=True))
    np.testing.assert_allclose(padded(ids)[0][0], tokens.max(0), atol=1e-6)
