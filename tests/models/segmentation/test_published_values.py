"""Outputs of segmentation models equal those of torchvision and segmentation_models_pytorch."""

import jax
import numpy as np
import pytest

from mmjax import tree
from mmjax.convert.segmentation import names
from mmjax.formats.name_rules import to_torch
from mmjax.models.segmentation.registry import build_segmentation
from mmjax.state import ModelDef
from tests.models.segmentation.published import image, weights


def _run(name, rules, maps_of=lambda backbone, x: None, size=72):
    """Returns maps and the output of a model with deterministic weights, for one image."""
    model = ModelDef(lambda rngs: build_segmentation(name, rngs=rngs))

    def run(params, extra, x):
        module = model.bind(params, extra)
        return maps_of(module.backbone, x), module(x)

    return jax.device_get(jax.jit(run)(*weights(model, rules), image(size)))


def _check(x, shape, mean, std):
    assert x.shape == (1, *shape)
    np.testing.assert_allclose((x.mean(), x.std()), (mean, std), rtol=1e-4)


def _check_logits(logits, mean, std, samples, last=None, size=72):
    """Checks the first classes at row 10, column 20, and the last class of the last pixel."""
    _check(logits, (size, size, 21), mean, std)
    np.testing.assert_allclose(logits[0, 10, 20, : len(samples)], samples, rtol=1e-4)
    if last is not None:
        np.testing.assert_allclose(logits[0, -1, -1, 20], last, rtol=1e-4)


def test_lraspp_mobilenet():
    maps, output = _run(
        "lraspp_mobilenet_v3_large",
        names.RULES["lraspp"],
        lambda backbone, x: backbone.maps(x, train=False),
    )
    _check(maps[0], (36, 36, 16), 0.0532317, 0.288244)
    _check(maps[1], (36, 36, 16), 0.0577898, 0.3170579)
    _check(maps[4], (9, 9, 40), -0.0082175, 0.0204368)
    _check(maps[13], (5, 5, 160), -0.0032630, 0.0083127)
    _check(output.bottleneck, (5, 5, 960), -0.0016892, 0.0127264)
    samples = (-0.0320490, 0.0581928, -0.1683074, 0.0266684)
    _check_logits(output.logits, 0.0312821, 0.0974114, samples, last=-0.0615620)


def test_deeplab_mobilenet_with_auxiliary_head():
    _, output = _run("deeplabv3_mobilenet_v3_large", names.RULES["deeplabv3_mobilenet"])
    samples = (-0.0011780, 0.0321168, -0.0779859, 0.0172395)
    _check_logits(output.logits, 0.0152063, 0.0438451, samples, last=-0.0243882)
    _check_logits(output.aux, 0.0163219, 0.0491459, (-0.0356369, 0.0305585))
    _check(output.bottleneck, (5, 5, 960), -0.0016892, 0.0127264)


def test_deeplab_resnet18():
    maps, output = _run(
        "deeplabv3_resnet18",
        names.RULES["deeplabv3_resnet"],
        lambda backbone, x: backbone.feature_maps(x),
    )
    _check(maps["block2"], (9, 9, 128), 0.3627364, 0.4596841)
    _check(output.bottleneck, (9, 9, 512), 0.1637694, 0.2262568)
    samples = (-0.0032632, 0.0288341, -0.1036299, 0.0190010)
    _check_logits(output.logits, 0.0166082, 0.0664012, samples, last=-0.0492340)


def test_fpn_resnet18():
    _, output = _run("fpn_resnet18", names.RULES["fpn_resnet"], size=96)
    _check(output.bottleneck, (3, 3, 512), 0.2026196, 0.2780367)
    samples = (-1.0901786, 1.4143149, -3.2418478, 0.3351481)
    _check_logits(output.logits, -0.0855215, 2.0060515, samples, last=0.9302985, size=96)


def test_segformer_mit_b0():
    _, output = _run("segformer_mit_b0", names.RULES["segformer"], size=96)
    _check(output.bottleneck, (3, 3, 256), 0.0048386, 1.0075762)
    samples = (0.1237590, -0.2091507, -0.6550247, -0.6645989)
    _check_logits(output.logits, -0.0906637, 0.5197953, samples, last=0.5122491, size=96)


@pytest.mark.parametrize(
    "name, parameters, entries, rules",
    [
        ("lraspp_mobilenet_v3_large", 3_221_538, 319, names.RULES["lraspp"]),
        ("deeplabv3_mobilenet_v3_large", 11_029_328, 360, names.RULES["deeplabv3_mobilenet"]),
        ("deeplabv3_resnet18", 15_904_085, 164, names.RULES["deeplabv3_resnet"]),
        ("deeplabv3_resnet34", 26_012_245, 260, names.RULES["deeplabv3_resnet"]),
        ("deeplabv3_resnet50", 39_638_869, 362, names.RULES["deeplabv3_resnet"]),
        ("fpn_resnet18", 13_049_813, 151, names.RULES["fpn_resnet"]),
        ("segformer_mit_b0", 3_719_541, 192, names.RULES["segformer"]),
    ],
)
def test_numbers_of_parameters_and_entries(name, parameters, entries, rules):
    model = ModelDef(lambda rngs: build_segmentation(name, rngs=rngs))
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == parameters
    leaves = tree.flatten(model.params) | tree.flatten(model.extra)
    zeros = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in leaves.items()}
    exported = to_torch(zeros, rules)
    counters = sum(key.endswith("running_mean") for key in exported)
    assert len(exported) + counters == entries
