"""The tower registry: named towers, towers from outside the package, and checked options."""

import jax
import numpy as np
import pytest
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.towers.registry import TOWERS, build_tower, tower_options
from mmjax.models.vatt import make_model
from mmjax.state import ModelDef
from tests.messages import raises
from tests.random_arrays import random_arrays

OUTSIDE = '''
from flax import nnx
import jax
import jax.numpy as jnp

from mmjax.models.blocks.patches import PatchTransformer
from mmjax.models.blocks.transformer import EncoderConfig


class MeanColor(nnx.Module):
    """The mean color of a video through one dense layer."""

    modality = "video"
    input_ndim = 4

    def __init__(self, *, width: int = 16, dtype: str = "float32", rngs: nnx.Rngs):
        self.out_features = width
        self.dense = nnx.Linear(3, width, dtype=dtype, rngs=rngs)

    def __call__(self, x, *, key=None):
        tokens = jax.nn.relu(self.dense(x.mean(axis=(2, 3))))
        return tokens.mean(axis=1).astype(jnp.float32), tokens

    def flops(self, shape, *, train=False):
        return 2.0 * shape[0] * 3 * self.out_features


class Frames(PatchTransformer):
    """A transformer over frames without time."""

    modality = "image"

    def __init__(self, *, encoder: EncoderConfig, patch_size: int, rngs: nnx.Rngs, **options):
        super().__init__(
            encoder=encoder,
            patch_size=(patch_size, patch_size),
            channels=3,
            axes=("vertical", "horizontal"),
            buckets=(4, 4),
            rngs=rngs,
            **options,
        )

    FIXED_OPTIONS = (*PatchTransformer.FIXED_OPTIONS, "buckets")


class Incomplete(nnx.Module):
    modality = "video"

    def __init__(self, *, rngs: nnx.Rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x, *, key=None):
        return x, x


class Untyped(Incomplete):
    modality = "smell"

    def flops(self, shape, *, train=False):
        return 0.0


class NoWidth(Untyped):
    modality = "video"


def make_tower(rngs):
    return None
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Returns the name of an importable module with towers, outside the package."""
    (tmp_path / "outside_towers.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "outside_towers", raising=False)
    return "outside_towers"


def _model(**options):
    options = {"size": "tiny", "audio": None, "text": None, **options}
    return ModelDef(make_model("tx_fac", **options))


def test_a_tower_from_outside_the_package_is_pretrained(outside):
    spec = dict(name=f"{outside}:MeanColor", width=8)
    text = dict(vocab_size=20, embedding_dim=6, num_layers=1)
    model = _model(video=spec, text=text, dtype="bfloat16")
    assert model.params["video"]["dense"]["kernel"].shape == (3, 8)
    params, extra = random_arrays(model)
    x = dict(video=np.ones((2, 4, 6, 6, 3), np.float32), text=np.ones((2, 5), np.int32))

    @jax.jit
    def run(params):
        module = model.bind(params, extra)
        pooled, tokens = module.encode(x, tokens=True)
        return module.project(pooled), pooled, tokens

    projected, pooled, tokens = run(params)
    assert set(projected) == {"video/text", "text/video"}
    assert pooled["video"].shape == (2, 8) and tokens["video"].dtype == "bfloat16"
    towers = model.module.flops({"video": (4, 6, 6, 3)}) - model.module.head.flops("video")
    assert towers == 2 * 4 * 3 * 8


def test_a_tower_from_outside_the_package_can_be_the_backbone(outside):
    model = ModelDef(make_model("classifier", backbone=f"{outside}:MeanColor", num_classes=3))
    assert set(model.params) == {"video", "classifier"} and model.module.dropout_rate == 0.5


def test_encoder_options_reach_a_tower_from_outside_the_package(outside):
    encoder = dict(width=16, num_layers=2, num_heads=2, head_dim=8, mlp_dim=24)
    spec = dict(name=f"{outside}:Frames", patch_size=4, keep_tokens=0.5, **encoder)
    tower = nnx.eval_shape(lambda: build_tower(spec, rngs=nnx.Rngs(0)))
    assert tower.cfg.num_layers == 2 and tower.keep_tokens == 0.5
    with raises(UserError, "config.model.image.patch_size", "Frames"):
        build_tower(dict(name=f"{outside}:Frames", **encoder), rngs=nnx.Rngs(0))
    with raises(UserError, "config.model.image.width", "config.model.image.num_layers"):
        build_tower(dict(name=f"{outside}:Frames", patch_size=4), rngs=nnx.Rngs(0))
    with raises(UserError, "config.model.image.buckets", "Frames"):
        build_tower({**spec, "buckets": (2, 2)}, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(video=dict(name="{}:MeanColor", widht=8)), ("'model.video.widht'", "video.width'")),
        (dict(video=dict(name="{}:MeanColor", width="8")), ("config.model.video.width", "int")),
        (dict(audio="{}:MeanColor"), ("config.model.audio", "MeanColor", "video", "not audio")),
        (dict(video="{}:Incomplete"), ("config.model.video", "Incomplete", "flops")),
        (dict(video="{}:Untyped"), ("Untyped", "'smell'", "touch")),
        (dict(video="{}:NoWidth"), ("config.model.video", "input_ndim, out_features")),
        (dict(video="{}:make_tower"), ("config.model.video", "make_tower", "flax.nnx.Module")),
        (dict(video="{}:MeanColour"), ("config.model.video", "'MeanColour'", "'MeanColor'")),
        (
            dict(video="no_such_module:Tower"),
            ("config.model.video", "no_such_module", "PYTHONPATH"),
        ),
        (dict(video="mean_color"), ("config.model.video", "'mean_color'", "package.module:Name")),
        (dict(touch=dict(width=8)), ("config.model.touch.name",)),
    ],
)
def test_errors_of_towers_from_outside_the_package_name_the_key(outside, options, facts):
    def filled(spec):
        if isinstance(spec, str):
            return spec.format(outside)
        return {key: filled(v) if key == "name" else v for key, v in spec.items()}

    with raises(UserError, *facts):
        _model(head="joint", **{key: filled(spec) for key, spec in options.items()})


@pytest.mark.parametrize("name", TOWERS)
def test_every_named_option_is_an_option_of_its_class(name):
    entry = TOWERS[name]
    assert set(entry.options) <= set(tower_options(entry.cls))
    assert {"dtype", "param_dtype", "remat"} <= set(tower_options(entry.cls))
