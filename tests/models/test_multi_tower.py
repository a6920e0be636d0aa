"""Options that apply to all towers of a model reach each of them or are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.towers.registry import build_tower
from mmjax.models.vatt import make_model
from mmjax.state import ModelDef
from tests.messages import raises


def test_shared_options_reach_every_tower():
    options = dict(dtype="bfloat16", param_dtype="bfloat16", remat="full")
    towers = dict(image="clip_vit_tiny", touch="touch_tiny", head="joint")
    module = ModelDef(make_model("mmv_fac", size="tiny", **towers, **options)).module
    assert module.modalities == ("video", "audio", "text", "image", "touch")
    for modality in module.modalities:
        tower = getattr(module, modality)
        if modality == "text":  # LinearText has no config
            assert tower.projection.dtype == "bfloat16" and tower.remat == "full"
        else:
            assert tower.cfg.dtype == "bfloat16" and tower.cfg.remat == "full"
        kernels = nnx.state(tower, nnx.Param)
        assert {leaf.dtype for leaf in jax.tree.leaves(kernels)} == {jnp.dtype("bfloat16")}


def test_options_of_a_tower_override_shared_options():
    video = dict(dtype="float32", num_layers=1)
    options = dict(video=video, text=None, dtype="bfloat16", num_layers=3)
    module = ModelDef(make_model("tx_fac", size="tiny", **options)).module
    assert (module.video.cfg.dtype, module.audio.cfg.dtype) == ("float32", "bfloat16")
    assert (module.video.cfg.num_layers, module.audio.cfg.num_layers) == (1, 3)


@pytest.mark.parametrize(
    "options, facts",
    [
        (
            dict(text="linear", dropout_rate=0.0),
            ("config.model.dropout_rate", "config.model.text", "'linear'", "model.video.dropout"),
        ),
        (
            dict(video="tsm_tiny", scan_unroll=0),
            ("config.model.scan_unroll", "config.model.video", "'tsm_tiny'", "model.audio.scan"),
        ),
        (dict(dtype="bfloat17"), ("dtype", "'bfloat17'", "'bfloat16'")),
        (dict(num_layers="2"), ("config.model.num_layers", "int", "'2'")),
    ],
)
def test_shared_options_that_a_tower_lacks_are_refused(options, facts):
    with raises(UserError, *facts):
        ModelDef(make_model("tx_fac", **{"size": "tiny", **options}))


def test_backbone_errors_name_the_key_of_the_backbone():
    backbone = dict(name="vit_tiny", keep_tokens=0.0)
    with raises(UserError, "config.model.backbone", "keep_tokens"):
        ModelDef(make_model("classifier", backbone=backbone, num_classes=3))
    module = ModelDef(make_model("classifier", backbone="i3d_tiny", num_classes=3)).module
    with raises(UserError, "config.model.backbone", (8, 8), "config.data.video"):
        module.flops({"video": (8, 8)})


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_linear_text_gradients_do_not_depend_on_remat(remat):
    def gradient(remat):
        spec = dict(name="linear", width=6, vocab_size=10, embedding_dim=4, remat=remat)
        tower = build_tower(spec, rngs=nnx.Rngs(0))
        graph, params = nnx.split(tower)

        def loss(params):
            return (nnx.merge(graph, params)(np.array([[1, 2, 0]]))[0] ** 2).sum()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

    for result, expected in zip(gradient(remat), gradient("none"), strict=True):
        assert np.any(expected != 0)
        np.testing.assert_allclose(result, expected, rtol=1e-6)
