"""CLIP's text tower. The image tower is tested in test_vit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import tree
from mmjax.errors import UserError
from mmjax.models.towers.registry import build_tower
from mmjax.models.tvl import make_model
from mmjax.state import ModelDef
from tests.messages import raises
from tests.models import torch_reference, torch_weights
from tests.models.blocks.convolution_fixture import count
from tests.models.vatt_fixture import relative_error

TEXT = dict(
    name="clip_text_tiny",
    width=32,
    num_heads=2,
    head_dim=16,
    mlp_dim=128,
    num_layers=3,
    scan_unroll=1,
    vocab_size=40,
    context_length=12,
    projection=20,
)
END = 39


def _model(**options):
    return ModelDef(lambda rngs: build_tower({**TEXT, **options}, rngs=rngs))


def _run(model, params, ids):
    return jax.jit(lambda params, ids: model.bind(params, {})(ids))(params, ids)


def _ids(*lengths, width=12):
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, END, n) for n in lengths]
    return np.stack([np.pad(np.append(t[:-1], END), (0, width - len(t))) for t in texts])


@pytest.fixture(scope="module")
def state():
    return torch_reference.open_clip_state(
        width=16,
        text_width=32,
        num_layers=1,
        text_layers=3,
        image_size=8,
        patch_size=8,
        embed_dim=20,
        vocab_size=40,
        context_length=12,
    )


def test_parameter_counts_equal_open_clip():
    model = ModelDef(make_model(image="clip_vit_l14", text="clip_text_l14"))
    assert count(model) == 427_616_513
    for vision, expected in (("clip_vit_b16", 149_620_737), ("clip_vit_b32", 151_277_313)):
        assert count(ModelDef(make_model(image=vision, text="clip_text_b"))) == expected


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_text_tower_equals_open_clip(state, quick_gelu):
    model = _model(**({"activation": "quick_gelu"} if quick_gelu else {}))
    _, params = torch_weights.open_clip(state)
    assert tree.flatten(params).keys() == tree.flatten(model.params).keys()
    ids = _ids(4, 12, 2)
    pooled, tokens = _run(model, params, ids)
    assert pooled.dtype == jnp.float32 and tokens.shape == (3, 12, 32)
    expected = torch_reference.open_clip_text(state, ids, num_heads=2, quick_gelu=quick_gelu)
    assert relative_error(pooled, expected) < 1e-5


def test_attention_is_causal(state):
    model = _model()
    _, params = torch_weights.open_clip(state)
    ids = np.repeat(_ids(12), 2, axis=0)
    ids[1, 5] = ids[0, 5] % 30 + 1
    _, tokens = _run(model, params, ids)
    difference = np.abs(np.asarray(tokens[0] - tokens[1])).max(-1)
    np.testing.assert_array_equal(difference[:5], 0)
    assert (difference[5:] > 1e-4).all()


def test_texts_shorter_than_the_context_are_accepted_and_longer_ones_rejected(state):
    model = _model()
    _, params = torch_weights.open_clip(state)
    ids = _ids(4, 6)
    short, _ = _run(model, params, ids[:, :7])
    np.testing.assert_allclose(short, _run(model, params, ids)[0], rtol=1e-4, atol=1e-5)
    for call in (
        lambda: _run(model, params, np.ones((1, 13), int)),
        lambda: model.module.flops((13,)),
    ):
        with raises(UserError, 13, 12, "data.text.max_tokens", "context_length"):
            call()


def test_all_padding_texts_are_pooled_at_the_first_token(state):
    model = _model()
    _, params = torch_weights.open_clip(state)
    ids = np.zeros((1, 12), int)
    pooled, _ = _run(model, params, ids)
    expected = torch_reference.open_clip_text(state, ids, num_heads=2)
    assert relative_error(pooled, expected) < 1e-5


def test_bfloat16_is_close_to_float32(state):
    _, params = torch_weights.open_clip(state)
    ids = _ids(4, 12)
    expected = torch_reference.open_clip_text(state, ids, num_heads=2)
    pooled, tokens = _run(_model(dtype="bfloat16"), params, ids)
    assert pooled.dtype == jnp.float32 and tokens.dtype == jnp.bfloat16
    assert 1e-4 < relative_error(pooled, expected) < 0.05


def test_initial_values_and_flops():
    model = _model()
    params, _ = jax.jit(model.init)(jax.random.key(0))
    np.testing.assert_allclose(np.std(params["token_embedding"]), 0.02, rtol=0.1)
    np.testing.assert_allclose(np.std(params["positions"]), 0.01, rtol=0.15)
    np.testing.assert_allclose(np.std(params["projection"]["kernel"]), 32**-0.5, rtol=0.1)
    encoder = 3 * (7 * (4 * 32 * 32 + 2 * 32 * 128) + 2 * 7 * 7 * 32)
    assert model.module.flops((7,)) == 2 * (encoder + 32 * 20)
