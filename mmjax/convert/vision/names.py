"""torchvision's and timm's names for backbones over single images: ResNets and MobileNetV2.

A ResNet's are the same in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmjax.convert.shapes import block_counts, image_resnet_options
from mmjax.errors import UserError
from mmjax.formats.name_rules import Rule, Rules, norm, prefixes
from mmjax.models.towers import mobilenet

COUNTER = "num_batches_tracked"  # of BatchNorm, which needs none with a constant momentum


def statistics(theirs: str, ours: str) -> Rules:
    """The rules of BatchNorm's statistics."""
    return [
        Rule(f"{theirs}.running_mean", (f"{ours}/mean",)),
        Rule(f"{theirs}.running_var", (f"{ours}/var",)),
    ]


def _unit(convolution: str, batch_norm: str, ours: str) -> Rules:
    """A convolution and its BatchNorm."""
    return [
        Rule(f"{convolution}.weight", (f"{ours}/conv/kernel",), "convolution"),
        *norm(batch_norm, f"{ours}/norm"),
        *statistics(batch_norm, f"{ours}/norm"),
    ]


_RESNET_UNITS = {
    "first": ("conv1", "bn1"),
    "second": ("conv2", "bn2"),
    "third": ("conv3", "bn3"),
    "shortcut": ("downsample.0", "downsample.1"),
}
RESNET: Rules = [
    *_unit("conv1", "bn1", "stem"),
    *(
        rule
        for group in range(4)
        for ours, theirs in _RESNET_UNITS.items()
        for rule in _unit(
            *(f"layer{group + 1}.{{j}}.{name}" for name in theirs), f"groups/{group}/{{j}}/{ours}"
        )
    ),
]

_COUNTS = tuple(count for _, _, count, _ in mobilenet.GROUPS)
# The first group of a MobileNetV2 has no expansion, so that its parts' names are other ones.
_EXPANDED = ("expand", "depthwise", "project")
_TIMM_UNITS = {
    False: dict(depthwise=("conv_dw", "bn1"), project=("conv_pw", "bn2")),
    True: dict(
        expand=("conv_pw", "bn1"), depthwise=("conv_dw", "bn2"), project=("conv_pwl", "bn3")
    ),
}
MOBILENET_TIMM: Rules = [
    *_unit("conv_stem", "bn1", "stem"),
    *(
        rule
        for group in range(len(_COUNTS))
        for ours, theirs in _TIMM_UNITS[group > 0].items()
        for rule in _unit(
            *(f"blocks.{group}.{{j}}.{name}" for name in theirs), f"groups/{group}/{{j}}/{ours}"
        )
    ),
    *_unit("conv_head", "bn2", "head"),
]


def _torchvision_mobilenet() -> Rules:
    rules = list(_unit("features.0.0", "features.0.1", "stem"))
    places = [(group, j) for group, count in enumerate(_COUNTS) for j in range(count)]
    for number, (group, j) in enumerate(places, 1):
        parts = _EXPANDED if group else _EXPANDED[1:]
        for k, part in enumerate(parts):
            at = f"features.{number}.conv.{k}"
            if part == "project":
                names = (at, f"features.{number}.conv.{k + 1}")
            else:
                names = (f"{at}.0", f"{at}.1")
            rules += _unit(*names, f"groups/{group}/{j}/{part}")
    last = f"features.{len(places) + 1}"
    return [*rules, *_unit(f"{last}.0", f"{last}.1", "head")]


MOBILENET: Rules = _torchvision_mobilenet()

RULES: dict[str, Rules] = {
    "resnet": RESNET,
    "mobilenet": MOBILENET,
    "mobilenet_timm": MOBILENET_TIMM,
}
# What the name of an array ends with that such a backbone alone has.
ENDINGS = {
    "resnet": "layer1.0.conv1.weight",
    "mobilenet": "features.1.conv.0.0.weight",
    "mobilenet_timm": "blocks.0.0.conv_dw.weight",
}


def places(names: Iterable[str]) -> dict[str, str]:
    """{what stands in front of a backbone's names: its kind}."""
    names = list(names)
    return {place: kind for kind, ending in ENDINGS.items() for place in prefixes(names, ending)}


def options(kind: str, shapes: Mapping[str, Sequence[int]], at: str) -> dict[str, Any]:
    """`name` and options of the backbone below `at`.

    Raises:
      UserError: an array that tells a size is missing, or a MobileNetV2 has other blocks.
    """
    if kind == "resnet":
        found = image_resnet_options(shapes, at)
        return dict(name="resnet50" if found["bottleneck"] else "resnet18", **found)
    return dict(name="mobilenet_v2", **_mobilenet_options(shapes, at))


def _mobilenet_options(shapes: Mapping[str, Sequence[int]], at: str) -> dict[str, Any]:
    counts, groups = block_counts(shapes, at), []
    if len(counts) != len(_COUNTS):
        raise UserError(
            f"{at}: a MobileNetV2 of {len(counts)} groups of blocks, not {len(_COUNTS)}: no array "
            "says what their strides are."
        )
    for group, (count, (*_, stride)) in enumerate(zip(counts, mobilenet.GROUPS, strict=True)):
        block = f"{at}/groups/{group}/0"
        channels, expansion = shapes[f"{block}/project/conv/kernel"][3], 1
        if f"{block}/expand/conv/kernel" in shapes:
            _, _, fan_in, inner = shapes[f"{block}/expand/conv/kernel"]
            expansion = inner // fan_in
        groups.append((expansion, channels, count, stride))
    stem, head = (shapes[f"{at}/{name}/conv/kernel"][3] for name in ("stem", "head"))
    return dict(groups=tuple(groups), stem=stem, head=head, width_multiplier=1.0)
