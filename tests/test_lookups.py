"""Norms of the gradients of looked-up rows, and clipping by them as TensorFlow does it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow as tf
from flax import nnx

from mmjax import lookups, optim, tree
from mmjax.errors import UserError
from mmjax.models.blocks.positions import Positions
from mmjax.state import ModelDef
from tests import fakes
from tests.messages import raises

IDS = np.array([[0, 1, 1], [1, 2, 0], [3, 3, 3], [0, 4, 1]])  # [B, W], with repeated ids
LIMIT = 0.05


class Words(nnx.Module):
    """A linear classifier of the mean of token embeddings."""

    def __init__(self, *, rngs):
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (6, 3)))
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (3, 2)))

    def __call__(self, ids):
        return lookups.rows(self.embedding, ids).mean(axis=1) @ self.kernel[...]


class Classify:
    """The task of `Words`; its loss is a mean over examples."""

    frozen = ()
    separable = True

    def __init__(self):
        self.model = ModelDef(lambda rngs: Words(rngs=rngs))

    def init(self, key):
        return self.model.init(key)

    def encode(self, params, extra, batch, key):
        return self.model.bind(params, extra)(batch["ids"]), extra

    def objective(self, params, extra, features, batch, key):
        losses = optax.softmax_cross_entropy_with_integer_labels(features, batch["label"])
        return losses.mean(), (extra, {})


def reference(embedding, kernel, ids, label):
    """Gradients of the classifier in NumPy: of each looked-up row [B, W, D], and of the kernel."""
    pooled = embedding[ids].mean(axis=1)
    logits = pooled @ kernel
    error = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error[np.arange(len(ids)), label] -= 1
    error /= len(ids)
    row_gradients = np.repeat((error @ kernel.T)[:, None] / ids.shape[1], ids.shape[1], axis=1)
    return row_gradients, pooled.T @ error


def summed(row_gradients, ids):
    total = np.zeros((6, 3))
    np.add.at(total, ids, row_gradients)
    return total


@pytest.mark.parametrize("groups", [0, 2])
def test_rows_count_separately_in_the_norm_and_are_summed_in_the_update(groups):
    """Compared with an independent formula, also for each part of a batch."""
    before, after = run_step(groups)
    embedding, kernel = (np.asarray(before[k], np.float64) for k in ("embedding", "kernel"))
    label = np.array([0, 1, 1, 0])
    expected, factors = {"embedding": 0.0, "kernel": 0.0}, []
    for part in np.split(np.arange(4), groups or 1):
        row_gradients, kernel_gradient = reference(embedding, kernel, IDS[part], label[part])
        row_gradients, kernel_gradient = (
            g / max(groups, 1) for g in (row_gradients, kernel_gradient)
        )
        norm = np.sqrt((row_gradients**2).sum() + (kernel_gradient**2).sum())
        factors.append(LIMIT / norm)
        dense = summed(row_gradients, IDS[part])
        other = np.sqrt((dense**2).sum() + (kernel_gradient**2).sum())
        assert abs(other / norm - 1) > 0.02  # summing first gives another factor
        expected["embedding"] = expected["embedding"] + factors[-1] * dense
        expected["kernel"] = expected["kernel"] + factors[-1] * kernel_gradient
    assert max(factors) < 1
    for name, gradient in expected.items():
        np.testing.assert_allclose(before[name] - after[name], gradient, atol=1e-6)


def run_step(groups, frozen=(), **options):
    """Parameters before and after one step of SGD with learning rate 1."""
    task = Classify()
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    trainable = {k: v for k, v in params.items() if not any(k in f for f in frozen)}
    cfg = dict(clip_norm=LIMIT, clip_lookups="separate")
    trainer = fakes.Trainer(
        task,
        tx=optax.sgd(1.0),
        frozen=list(frozen),
        clip_shards=groups,
        clip=optim.make_clipping(cfg, trainable),
        separate_lookups=True,
        **options,
    )
    state = trainer.init()
    before = jax.tree.map(np.asarray, state["params"])
    new, _ = trainer.step(state, {"ids": IDS, "label": np.array([0, 1, 1, 0])})
    return before, jax.tree.map(np.asarray, new["params"])


def test_the_norm_equals_that_of_tensorflow():
    """`tf.clip_by_global_norm` of an IndexedSlices gradient."""
    rng = np.random.default_rng(0)
    table, weights = rng.normal(size=(6, 3)), rng.normal(size=(4, 3, 3))
    variable = tf.Variable(table)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.nn.embedding_lookup(variable, IDS) ** 2 * weights)
    gradient = tape.gradient(loss, variable)
    assert isinstance(gradient, tf.IndexedSlices)
    _, expected = tf.clip_by_global_norm([gradient], 1.0)

    def ours(table, probe):
        module = nnx.Param(table)
        module.set_metadata(lookup_path="table")
        with lookups.probing({"table": probe}) as used:
            loss = (lookups.rows(module, IDS) ** 2 * weights).sum()
        assert used == {"table"}
        return loss

    dense, square = jax.grad(ours, argnums=(0, 1))(jnp.asarray(table), jnp.float32(0))
    np.testing.assert_allclose(np.sqrt(square), expected, rtol=1e-5)
    np.testing.assert_allclose(dense, tf.convert_to_tensor(gradient).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [(2, 3), (4, 3)])
def test_positions_are_looked_up_once_per_token(lengths):
    """The gradient of a row is that of the sum of all axes at one token.

    Resampled tables (the first axis for 4) have a dense gradient, in TensorFlow too.
    """
    axes, width = {"vertical": 2, "horizontal": 3}, 4
    model = ModelDef(
        lambda rngs: Positions(
            width=width, axes=axes, epsilon=1e-6, param_dtype=jnp.float32, rngs=rngs
        )
    )
    params, extra = model.init(jax.random.key(0))
    weights = np.random.default_rng(1).normal(size=(lengths[0] * lengths[1], width))

    def loss(params, probes):
        with lookups.probing(probes) as used:
            value = (model.bind(params, extra)(lengths) * weights).sum()
        return value, used

    probes = {name: jnp.float32(0) for name in axes}
    (grads, squares), used = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, probes)
    plain = jax.grad(lambda p: (model.bind(p, extra)(lengths) * weights).sum())(params)
    for path, leaf in tree.flatten(plain).items():
        np.testing.assert_allclose(tree.flatten(grads)[path], leaf, rtol=1e-5, atol=1e-6)
    if lengths != (2, 3):
        assert used == {"horizontal"}
        return
    assert used == set(axes)
    rows = np.asarray(params["vertical"])[:, None] + np.asarray(params["horizontal"])[None]
    rows = rows.reshape(-1, width).astype(np.float64)
    centered = rows - rows.mean(1, keepdims=True)
    scale = np.sqrt((centered**2).mean(1, keepdims=True) + 1e-6)
    unit = centered / scale  # the LayerNorm's scale is 1
    back = weights - weights.mean(1, keepdims=True) - unit * (weights * unit).mean(1, keepdims=True)
    expected = ((back / scale) ** 2).sum()
    np.testing.assert_allclose([squares[name] for name in axes], [expected] * 2, rtol=1e-4)


def test_lookups_outside_of_probing_are_plain():
    """The default compiles to the same program as before."""
    model = ModelDef(lambda rngs: Words(rngs=rngs))
    params, extra = model.init(jax.random.key(0))
    text = str(jax.make_jaxpr(lambda p: model.bind(p, extra)(IDS))(params))
    assert "custom_vjp" not in text


def test_unsupported_uses_are_an_error():
    with raises(UserError, "clip_lookups='separate'", "config.accumulate_steps=2"):
        run_step(0, accumulate_steps=2)
    with raises(UserError, "clip_lookups='separate'", "embedding", "'summed'"):
        run_step(0, frozen=("^embedding$",))
    with raises(UserError, "config.optimizer.clip_lookups", "'seperate'", "'separate'"):
        optim.make_clipping(dict(clip_norm=1.0, clip_lookups="seperate"), {})
    with raises(UserError, "clip_lookups='separate'", "config.optimizer.clip_norm"):
        optim.make_clipping(dict(clip_lookups="separate"), {})
    trainer = fakes.Trainer(
        fakes.Classify(), clip=lambda grads, squares: grads, separate_lookups=True
    )
    with raises(UserError, "clip_lookups='separate'", "embedding", "'summed'"):
        trainer.step(trainer.init(), fakes.batch_of(0))
