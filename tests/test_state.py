"""Conversion between NNX modules and plain dicts of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax import tree
from mmjax.state import ModelDef
from tests.messages import raises


class Small(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)

    def __call__(self, x, *, train):
        return self.norm(self.first(x), use_running_average=not train)


@pytest.fixture(scope="module")
def model():
    return ModelDef(lambda rngs: Small(rngs))


def test_a_model_definition_has_abstract_shapes(model):
    shapes = {path: leaf.shape for path, leaf in tree.flatten(model.params).items()}
    assert shapes == {
        "first/bias": (4,),
        "first/kernel": (3, 4),
        "norm/bias": (4,),
        "norm/scale": (4,),
    }
    assert set(tree.flatten(model.extra)) == {"norm/mean", "norm/var"}
    leaves = jax.tree.leaves((model.params, model.extra))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def test_init_returns_plain_dicts_that_depend_only_on_the_key(model):
    params, extra = model.init(jax.random.key(1))
    jitted, _ = jax.jit(model.init)(jax.random.key(1))
    other, _ = model.init(jax.random.key(2))
    assert type(params) is dict and type(params["first"]["kernel"]) is not nnx.Param
    assert jax.tree.structure(params) == jax.tree.structure(model.params)
    assert jax.tree.structure(extra) == jax.tree.structure(model.extra)
    np.testing.assert_allclose(jitted["first"]["kernel"], params["first"]["kernel"], rtol=1e-6)
    assert not np.array_equal(other["first"]["kernel"], params["first"]["kernel"])


def test_a_bound_module_computes_with_the_bound_arrays(model):
    params, extra = model.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.5, params)
    extra = {"norm": {"mean": jnp.arange(4.0), "var": jnp.full(4, 2.0)}}
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    y = model.bind(params, extra)(x, train=False)
    hidden = x @ params["first"]["kernel"] + params["first"]["bias"]
    expected = (hidden - np.arange(4.0)) / np.sqrt(2.0 + 1e-5)
    expected = expected * params["norm"]["scale"] + params["norm"]["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_updated_statistics_are_returned_without_changing_the_input(model):
    params, extra = model.init(jax.random.key(0))
    x = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)

    @jax.jit
    def loss(params, extra):
        module = model.bind(params, extra)
        return module(x, train=True).sum(), model.extra_of(module)

    (_, new), _ = jax.value_and_grad(loss, has_aux=True)(params, extra)
    hidden = x @ params["first"]["kernel"] + params["first"]["bias"]
    np.testing.assert_allclose(new["norm"]["mean"], 0.1 * hidden.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(extra["norm"]["mean"], np.zeros(4))
    assert jax.tree.structure(new) == jax.tree.structure(model.extra)


def test_modules_with_random_state_are_an_error():
    class Stateful(nnx.Module):
        def __init__(self, rngs):
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

    with raises(TypeError, "'dropout', 'rngs', 'key'"):
        ModelDef(lambda rngs: Stateful(rngs))
