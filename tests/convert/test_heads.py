"""Heads under the names of pyVTAB's `model_head.pt` (specification, section 20)."""

import jax
import numpy as np
import pytest

from mmjax import tree
from mmjax.convert import heads
from mmjax.errors import UserError
from mmjax.formats import torch_reader, torch_writer
from mmjax.models.decoders.registry import HEADS, build_head
from mmjax.state import ModelDef
from tests.messages import raises
from tests.random_arrays import random_arrays

RESNET50 = dict(conv=64, block1=256, block2=512, block3=1024, block4=2048)
SMALL = dict(conv=4, block1=8, block2=12, block3=16, block4=32)


def head_of(name, num_outputs=5, num_images=1, channels=SMALL, embedding_dim=6):
    return ModelDef(
        lambda rngs: build_head(
            name,
            num_outputs=num_outputs,
            embedding_dim=embedding_dim,
            num_images=num_images,
            channels=channels,
            rngs=rngs,
        )
    )


def torch_shapes(name, **options):
    model = head_of(name, channels=RESNET50, embedding_dim=2048, **options)
    empty = jax.tree.map(
        lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), (model.params, model.extra)
    )
    leaves = tree.flatten(empty[0]) | tree.flatten(empty[1])
    shapes = {}
    for rule in heads.rules_of(name, leaves):
        x = leaves[rule.paths[0]]
        shapes[rule.key] = heads.name_rules.LAYOUTS[rule.layout].to_torch(x).shape
    return shapes


def with_bias(weights):
    out = {}
    for name, shape in weights.items():
        out |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return out


UPS = {
    "up1.0": (4096, 2048, 3, 3),
    "up2.0": (2048, 1024, 3, 3),
    "up3.0": (1024, 512, 3, 3),
    "up4.0": (256, 256, 3, 3),
}
FUSIONS = {
    "fusion1": (2048, 4096, 1, 1),
    "fusion2": (1024, 2048, 1, 1),
    "fusion3": (512, 1024, 1, 1),
    "fusion4": (256, 512, 1, 1),
    "fusion5": (64, 128, 1, 1),
}


def test_names_and_shapes_equal_the_specification():
    assert torch_shapes("linear") == with_bias({"head": (5, 2048)})
    expected = with_bias({"head.0": (512, 4096), "head.2": (5, 512)})
    assert torch_shapes("mlp", num_images=2) == expected
    unet = with_bias(UPS | {"up5.0": (4 * 3, 64, 3, 3)})
    assert torch_shapes("unet", num_outputs=3) == unet
    siamese = with_bias(UPS | {"up5.0": (4, 64, 3, 3)} | FUSIONS)
    assert torch_shapes("siamese_unet", num_outputs=1, num_images=2) == siamese


def test_names_of_deeplab_equal_the_specification():
    shapes = torch_shapes("deeplab")
    assert shapes["aspp.aspp1.weight"] == shapes["aspp.aspp5.weight"] == (256, 2048, 1, 1)
    assert shapes["aspp.aspp3.weight"] == (256, 2048, 3, 3)
    assert shapes["aspp.aspp4_bn.running_var"] == shapes["aspp.bn2.weight"] == (256,)
    assert shapes["aspp.conv2.weight"] == (256, 1280, 1, 1)
    assert shapes["low_level_feature_reducer.0.weight"] == (48, 256, 1, 1)
    assert shapes["low_level_feature_reducer.0.bias"] == (48,)
    assert shapes["low_level_feature_reducer.1.running_mean"] == (48,)
    assert shapes["decoder.0.weight"] == (256, 304, 3, 3)
    assert shapes["decoder.4.bias"] == shapes["decoder.3.bias"] == (256,)
    assert shapes["decoder.6.weight"] == (5, 256, 3, 3)
    assert shapes["block4.upsample_layer.conv1.weight"] == (512, 1024, 1, 1)
    assert shapes["block4.upsample_layer.downsample.0.weight"] == (2048, 1024, 1, 1)
    assert shapes["block4.upsample_layer.downsample.1.running_mean"] == (2048,)
    assert shapes["block4.conv.0.conv2.weight"] == (512, 512, 3, 3)
    assert shapes["block4.conv.1.bn3.running_var"] == (2048,)
    roots = {name.split(".")[0] for name in shapes}
    assert roots == {"aspp", "low_level_feature_reducer", "decoder", "block4"}


@pytest.mark.parametrize("channels", [SMALL, dict(grid=16)])
@pytest.mark.parametrize("name", HEADS)
def test_a_file_has_all_arrays_of_a_head(tmp_path, name, channels):
    if channels != SMALL and name in ("deeplab", "deeplab_classifier"):
        channels = SMALL | dict(grid=16)
    model = head_of(name, num_images=2 if name == "siamese_unet" else 1, channels=channels)
    params, extra = random_arrays(model)
    path = tmp_path / "model_head.pt"
    torch_writer.write(path, heads.to_torch(name, params, extra))
    arrays = torch_reader.tensors(path)
    read = heads.from_torch(name, arrays, model.params, model.extra)
    assert jax.tree.structure(read) == jax.tree.structure((params, extra))
    jax.tree.map(np.testing.assert_array_equal, read, (params, extra))
    counters = [key for key in arrays if key.endswith("num_batches_tracked")]
    assert len(counters) == len(jax.tree.leaves(extra)) / 2


def test_differences_are_reported_by_name_and_shape():
    model = head_of("mlp", num_images=2)
    arrays = heads.to_torch("mlp", *random_arrays(model))
    target = (model.params, model.extra)
    wrong = {key: x for key, x in arrays.items() if key != "head.2.bias"}
    with raises(UserError, "mlp", "head.2.bias", "output/bias", "(5,)"):
        heads.from_torch("mlp", wrong, *target)
    with raises(UserError, "head.1.weight"):
        heads.from_torch("mlp", arrays | {"head.1.weight": np.ones(3)}, *target)
    other = head_of("mlp", num_images=2, num_outputs=7)
    with raises(UserError, "head.2.weight", "output/kernel", "(512, 5)", "(512, 7)"):
        heads.from_torch("mlp", arrays, other.params, other.extra)
