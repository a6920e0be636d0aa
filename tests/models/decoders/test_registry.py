"""The registry of heads: options, encoders without the features of a head, own classes."""

import jax
import numpy as np
import pytest
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.decoders.base import Head
from mmjax.models.decoders.registry import build_head, check_features
from mmjax.state import ModelDef
from tests.messages import raises

CHANNELS = dict(conv=4, block1=8, block2=12, block3=16, block4=32)
MAPS = tuple(CHANNELS)


class Counting(Head):
    """A head of this test: sums the embedding."""

    def __init__(
        self, *, num_outputs, embedding_dim, num_images=1, channels=None, factor: int = 1, rngs
    ):
        self.factor = factor

    def __call__(self, features, *, size=None, train=False):
        return self.factor * features["embedding"].sum((1, 2))[:, None]


OWN = f"{__name__}:Counting"


def build(name, **options):
    arguments = dict(num_outputs=3, embedding_dim=6, channels=CHANNELS) | options
    return nnx.eval_shape(lambda: build_head(name, rngs=nnx.Rngs(0), **arguments))


@pytest.mark.parametrize(
    "name, available, facts",
    [
        ("unet", ("embedding",), ("unet", "conv", "block4", "embedding", "config.probe.head.name")),
        ("unet", ("embedding", "block3", "block4"), ("conv, block1, block2",)),
        ("deeplab", ("embedding", "grid"), ("block1", "grid", "deeplab_plain")),
        ("deeplab_classifier", ("embedding", "grid"), ("block4", "grid", "linear")),
        ("deeplab_plain", ("conv", "block3"), ("block1",)),
        ("linear", MAPS, ("embedding", "conv")),
        ("unett", MAPS, ("config.probe.head.name", "'unett'", "'unet'")),
        ("linear.", MAPS, ("package.module:Name",)),
    ],
)
def test_a_missing_feature_or_head_is_named(name, available, facts):
    with raises(UserError, *facts):
        check_features(name, available, where="probe.head")


def test_heads_accept_the_maps_they_read_or_the_grid_of_a_transformer():
    for name in ("unet", "siamese_unet", "deeplab", "deeplab_plain", "deeplab_classifier"):
        check_features(name, MAPS)
    for name in ("unet", "siamese_unet", "deeplab_plain"):
        check_features(name, ("grid",))
    check_features("deeplab", ("block1", "block3"))


@pytest.mark.parametrize(
    "name, options, facts",
    [
        ("mlp", dict(hiden=3), ("'head.hiden'", "'head.hidden'", "mlp")),
        ("mlp", dict(hidden="x"), ("config.head.hidden", "x")),
        ("mlp", dict(hidden=0), ("config.head", "hidden", 0)),
        ("unet", dict(num_images=2), ("unet", 2, "siamese_unet")),
        ("deeplab", dict(paper_batch_norm=3), ("config.head.paper_batch_norm", 3)),
        ("deeplab", dict(channels=CHANNELS | dict(block4=30)), ("block4", 30, "deeplab_plain")),
        ("deeplab_classifier", dict(map_size=(0, 7)), ("map_size", "(0, 7)")),
        ("unet", dict(channels=dict(grid=8), pyramid_width=0), ("config.head.pyramid_width", 0)),
        ("unet", dict(channels={}), ("unet", "conv", "embedding")),
        (f"{__name__}:build", {}, (f"{__name__}:build", "flax.nnx.Module", "needs")),
    ],
)
def test_invalid_options_are_named(name, options, facts):
    with raises(UserError, *facts):
        build(name, **options)


def test_a_class_of_another_package_is_a_head():
    model = ModelDef(
        lambda rngs: build_head(OWN, num_outputs=1, embedding_dim=2, factor=3, rngs=rngs)
    )
    out = model.bind({}, {})({"embedding": np.ones((4, 1, 2), np.float32)})
    np.testing.assert_array_equal(out, np.full((4, 1), 6))


def test_the_classifier_names_the_size_of_the_map():
    head = build("deeplab_classifier")
    x = jax.ShapeDtypeStruct((1, 1, 5, 6, 32), "float32")
    with raises(UserError, "map_size", "(7, 7)", "(5, 6)"):
        jax.eval_shape(lambda head, x: head({"block4": x}), head, x)
