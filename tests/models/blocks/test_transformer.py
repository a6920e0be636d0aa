"""The Transformer encoder, attention, dropout and stochastic depth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import erf, expit

from mmjax import sharding
from mmjax.errors import UserError
from mmjax.models.blocks import attention
from mmjax.models.blocks.attention import attend
from mmjax.models.blocks.initializers import token_init
from mmjax.models.blocks.noise import dropout
from mmjax.models.blocks.transformer import Encoder, EncoderConfig
from mmjax.state import ModelDef
from tests.messages import raises
from tests.random_arrays import random_arrays

SIZE = dict(num_layers=2, width=16, num_heads=2, head_dim=4, mlp_dim=24)


def _encoder(**options):
    cfg = EncoderConfig(**{**SIZE, "dropout_rate": 0.0, **options})
    model = ModelDef(lambda rngs: Encoder(cfg, rngs=rngs))
    return model.bind(*random_arrays(model))


def _numpy_encoder(module, x, *, bias=0.0, mask=None, causal=False):
    """Reference encoder in float64 NumPy, layer by layer."""
    cfg = module.cfg
    params = nnx.to_pure_dict(nnx.state(module))
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def norm(p, x):
        if "bias" in p:
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.epsilon)
        return x * p["scale"] + p.get("bias", 0)

    def dense(p, x):
        return x @ p["kernel"] + p.get("bias", 0)

    def attention(p, x):
        q, k, v = (
            dense(p[n], x).reshape(*x.shape[:2], cfg.num_heads, cfg.head_dim).swapaxes(1, 2)
            for n in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(2, 3) * (cfg.head_dim**-0.5 if cfg.scale_attention else 1) + bias
        if mask is not None:
            scores = np.where(mask[:, None, None, :], scores, -np.inf)
        if causal:
            scores[..., *np.triu_indices(x.shape[1], 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return dense(p["out"], (weights @ v).swapaxes(1, 2).reshape(*x.shape[:2], -1))

    def feed_forward(p, x):
        h = dense(p["up"], x)
        gelu = h * (1 + erf(h / np.sqrt(2))) / 2
        quick_gelu = h * expit(1.702 * h)
        h = {"relu": np.maximum(h, 0), "swish": h * expit(h), "quick_gelu": quick_gelu}.get(
            cfg.activation, gelu
        )
        return dense(p["down"], h * dense(p["gate"], x) if "gate" in p else h)

    for i in range(cfg.num_layers):
        p = jax.tree.map(lambda a, i=i: a[i], params["layers"])
        if cfg.pre_norm:
            x = x + attention(p["attention"], norm(p["attention_norm"], x))
            x = x + feed_forward(p["mlp"], norm(p["mlp_norm"], x))
        else:
            x = norm(p["attention_norm"], x + attention(p["attention"], x))
            x = norm(p["mlp_norm"], x + feed_forward(p["mlp"], x))
    return norm(params["final_norm"], x) if "final_norm" in params else x


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(pre_norm=False, activation="relu"),
        dict(activation="geglu", use_bias=False),
        dict(activation="swish", scale_attention=False, attention_norm="rms", final_norm="rms"),
        dict(activation="quick_gelu", final_norm="none", kernel_init="clip"),
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_encoder_equals_numpy_reference(options, causal):
    module = _encoder(**options)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 16)).astype(np.float32)
    bias = rng.normal(size=(1, 2, 5, 5)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], bool)
    actual = jax.jit(lambda m: m(x, bias=bias, key_mask=mask, causal=causal))(module)
    expected = _numpy_encoder(module, x.astype(np.float64), bias=bias, mask=mask, causal=causal)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_masked_tokens_do_not_affect_the_output():
    module = _encoder()
    x = np.random.default_rng(0).normal(size=(1, 4, 16)).astype(np.float32)
    padded = np.concatenate([x, np.full((1, 2, 16), 7, np.float32)], axis=1)
    mask = np.array([[1, 1, 1, 1, 0, 0]], bool)
    run = jax.jit(lambda module, x, mask=None: module(x, key_mask=mask))
    np.testing.assert_allclose(run(module, padded, mask)[:, :4], run(module, x), atol=1e-5)


def test_remat_and_unrolling_do_not_change_loss_or_gradients():
    x = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)

    def results(**options):
        module = _encoder(**options)

        def loss(module):
            return (module(x) ** 2).sum()

        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(module))

    plain = results()
    for options in (dict(remat="full"), dict(remat="dots"), dict(scan_unroll=0)):
        for a, b in zip(plain, results(**options), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_remat_reduces_the_residuals_kept_for_the_backward_pass():
    x = jnp.ones((2, 5, 16))

    def num_residuals(remat):
        module = _encoder(remat=remat)
        backward = jax.eval_shape(lambda m: jax.vjp(lambda m: m(x), m)[1], module)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert num_residuals("full") < num_residuals("dots") < num_residuals("none")


def test_program_size_does_not_grow_with_depth():
    x = jnp.ones((1, 5, 16))

    def lines(depth):
        module = _encoder(num_layers=depth, dropout_rate=0.1)
        grad = jax.grad(lambda m: m(x, key=jax.random.key(0)).sum())
        return jax.jit(grad).lower(module).as_text().count("\n")

    assert lines(6) == lines(18)


def test_dropout_preserves_the_mean_and_is_removed_when_off():
    x = jnp.ones((100, 100))
    y = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)
    assert abs(y.mean() - 1) < 0.03
    assert dropout(x, 0.0, jax.random.key(0)) is x
    assert dropout(x, 0.3, None) is x
    module = _encoder()
    without = jax.make_jaxpr(lambda x: module(x, key=jax.random.key(0)))(x[None, :5, :16])
    assert "random_bits" not in str(without)


def test_bfloat16_attention_computes_its_softmax_in_float32():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 300, 1, 8)), jnp.bfloat16) for _ in range(3))
    run = jax.jit(functools.partial(attend, scale=1.0))
    half = run(q, k, v)
    full = run(*(np.asarray(x, np.float32) for x in (q, k, v)))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), full, atol=0.01)
    with raises(UserError, "attention_impl", "cudnn", "attention_dropout_rate=0"):
        attend(q, k, v, scale=1.0, impl="cudnn", dropout_rate=0.1, dropout_key=jax.random.key(0))


@pytest.mark.parametrize("length", [6, 7])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_padding_for_cudnn_changes_nothing(length, with_bias, with_mask, causal):
    """cuDNN's kernel needs a GPU; JAX's own implementation takes the same padded arguments."""
    rng = np.random.default_rng(0)
    inputs = tuple(jnp.asarray(rng.normal(size=(2, length, 3, 4)), jnp.float32) for _ in range(3))
    bias = jnp.asarray(rng.normal(size=(1, 3, length, length)), jnp.float32) if with_bias else None
    mask = (
        jnp.asarray(rng.random((2, 1, 1, length)) < 0.7).at[..., 0].set(True) if with_mask else None
    )

    def padded(inputs, bias):
        return attention._attend_cudnn(
            *inputs, bias, mask, scale=0.5, causal=causal, implementation="xla"
        )

    def plain(inputs, bias):
        return attend(*inputs, bias=bias, mask=mask, scale=0.5, causal=causal, impl="xla")

    @functools.partial(jax.jit, static_argnums=0)
    def results(function, inputs, bias):
        output, backward = jax.vjp(function, inputs, bias)
        return output, backward(2 * output)

    both = (jax.tree.leaves(results(function, inputs, bias)) for function in (padded, plain))
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_cudnn_gets_whole_sequences_of_examples_and_heads():
    """JAX's partitioner of the kernel fails if XLA divides other axes, as with fsdp."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 2, 8)), jnp.float32)
    expected = attend(x, x, x, scale=0.5, impl="xla")
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        where = NamedSharding(mesh, PartitionSpec(None, "fsdp", None, "tensor"))
        function = jax.jit(
            lambda x: attention._attend_cudnn(
                x, x, x, None, None, scale=0.5, causal=False, implementation="xla"
            )
        )
        output = function(jax.device_put(x, where))
    np.testing.assert_allclose(output, expected, atol=1e-6)
    assert output.sharding.shard_shape(x.shape)[1:] == (8, 1, 8)


def test_kernels_are_used_where_they_can_run_and_refused_elsewhere():
    """The mesh knows its devices also if the program is compiled on another machine."""

    def choose(platform, impl="auto", dtype=jnp.bfloat16, shape=(4, 785, 2, 64), **options):
        options = {"bias": None, "mask": None, "has_dropout": False, **options}
        device = jax.sharding.AbstractDevice("a device", None, platform)
        mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            query = jax.ShapeDtypeStruct(shape, dtype)
            return attention._choose_kernel(impl, query, num_keys=shape[1], **options)

    assert choose("cuda") == choose("gpu") == choose("gpu", "cudnn") == "cudnn"
    assert choose("cuda", dtype=jnp.float32) == choose("cuda", has_dropout=True) == "xla"
    assert choose("tpu") == choose("tpu", has_dropout=True, dtype=jnp.float32) == "pallas"
    keys, queries = jnp.ones((4, 1, 1, 785), bool), jnp.ones((4, 1, 785, 785), bool)
    assert choose("tpu", mask=keys) == "pallas"
    assert choose("tpu", mask=queries) == choose("tpu", bias=keys) == "xla"
    assert choose("tpu", shape=(4, 5000, 2, 64)) == choose("tpu", shape=(4, 17, 2, 64)) == "xla"
    assert choose("tpu", "pallas", shape=(4, 17, 2, 64)) == "pallas"
    assert choose("cpu") == "xla"
    for impl, platform, fact, options in [
        ("cudnn", "tpu", "'tpu'", {}),
        ("cudnn", "cuda", "float32", {"dtype": jnp.float32}),
        ("cudnn", "cuda", "20", {"shape": (4, 6, 2, 20)}),
        ("cudnn", "cuda", "attention_dropout_rate=0", {"has_dropout": True}),
        ("pallas", "cuda", "'cuda'", {}),
        ("pallas", "tpu", "bias", {"bias": keys}),
        ("pallas", "tpu", "(4, 1, 785, 785)", {"mask": queries}),
        ("pallas", "tpu", "5000", {"shape": (4, 5000, 2, 64)}),
    ]:
        with raises(UserError, f"attention_impl='{impl}'", fact, "attention_impl='auto'"):
            choose(platform, impl, **options)
    x = jnp.ones((1, 4, 2, 8), jnp.bfloat16)
    with raises(UserError, "attention_impl='cudnn'", "'cpu'"):
        attend(x, x, x, scale=1.0, impl="cudnn")


def test_attention_equals_jax():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 7, 3, 4)), jnp.float32) for _ in range(3))
    bias = jnp.asarray(rng.normal(size=(1, 3, 7, 7)), jnp.float32)
    mask = jnp.asarray(rng.random((2, 1, 1, 7)) < 0.7).at[..., 0].set(True)

    @jax.jit
    def both(q, k, v):
        return (
            attend(q, k, v, bias=bias, mask=mask, scale=0.5),
            jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=0.5),
            attend(q, k, v, causal=True, scale=0.5),
            jax.nn.dot_product_attention(q, k, v, is_causal=True, scale=0.5),
        )

    actual, expected, causal, expected_causal = both(q, k, v)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    np.testing.assert_allclose(causal, expected_causal, atol=1e-5)


def _counting_encoder(**options):
    """Returns an encoder in which sublayer i of layer n adds 1 to feature 2 · n + i."""
    module = _encoder(**{**SIZE, "num_layers": 3, "final_norm": "none", **options})
    layers = module.layers
    for i, layer in enumerate((layers.attention.out, layers.mlp.down)):
        layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
        layer.bias[...] = jnp.stack([jax.nn.one_hot(2 * n + i, 16) for n in range(3)])
    return module


@pytest.mark.parametrize("options", [dict(), dict(remat="full"), dict(scan_unroll=0)])
def test_stochastic_depth_rate_grows_linearly_with_depth(options):
    module = _counting_encoder(drop_path_rate=0.4, **options)
    x = jnp.zeros((4000, 2, 16))
    run = jax.jit(lambda seed: module(x, key=jax.random.key(seed)))
    added = np.asarray(run(0))
    np.testing.assert_array_equal(added[:, 0], added[:, 1])  # sampled once per example
    added = added[:, 0]
    np.testing.assert_allclose(added[:, :2], 1)
    np.testing.assert_allclose(np.unique(added[:, 2:4]), [0, 1 / 0.8], rtol=1e-6)
    np.testing.assert_allclose(np.unique(added[:, 4:6]), [0, 1 / 0.6], rtol=1e-6)
    kept = added[:, 2:6] > 0
    np.testing.assert_allclose(kept.mean(0), [0.8, 0.8, 0.6, 0.6], atol=0.03)
    assert np.abs(np.corrcoef(kept.T) - np.eye(4)).max() < 0.06  # sublayers are independent
    np.testing.assert_array_equal(run(0), run(0))
    assert (np.asarray(run(0)) != np.asarray(run(1))).any()
    np.testing.assert_array_equal(jax.jit(module)(x[:2])[0, 0, :6], 1)  # off without a key


def test_stochastic_depth_is_sampled_per_sequence_in_packed_batches():
    module = _counting_encoder(drop_path_rate=0.5)
    sequences = [jnp.zeros((40, 3, 16)), jnp.zeros((80, 2, 16))]
    run = jax.jit(lambda: module.together(sequences, key_masks=[None] * 2, key=jax.random.key(0)))
    first, second = (np.asarray(x) for x in run())
    for x in (first, second):
        np.testing.assert_array_equal(x, x[:, :1] * np.ones((1, x.shape[1], 1)))
    pairs = second[:, 0].reshape(40, 2, 16)  # two sequences per packed example
    assert 5 < (pairs[:, 0, 4] != pairs[:, 1, 4]).sum() < 35
    assert 5 < (pairs[:, 0, 4] != first[:, 0, 4]).sum() < 35


def test_initial_values():
    cfg = EncoderConfig(num_layers=2, width=256, num_heads=4, mlp_dim=1024)
    module = jax.jit(lambda: Encoder(cfg, rngs=nnx.Rngs(0)))()
    up = np.asarray(module.layers.mlp.up.kernel[...])
    limit = np.sqrt(6 / (256 + 1024))
    assert up.shape == (2, 256, 1024)
    assert 0.99 * limit < np.abs(up).max() <= limit
    assert not np.allclose(up[0], up[1])
    token = np.asarray(jax.jit(lambda: token_init(64)(jax.random.key(0), (20_000,)))())
    np.testing.assert_allclose(token.std(), 1 / 8, rtol=0.02)
    np.testing.assert_allclose(np.abs(token).max(), 2 / 8 / 0.8796, rtol=0.01)
