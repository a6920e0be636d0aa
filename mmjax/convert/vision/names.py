"""torchvision's and timm's names for image backbones: ResNets, MobileNetV2 and ViTs.

Both libraries use the same names for ResNets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmjax.convert.shapes import (
    HEAD_DIM,
    Shapes,
    block_counts,
    image_resnet_options,
    nearest_name,
    vit_options,
)
from mmjax.errors import UserError
from mmjax.formats.name_rules import QKV, Rule, Rules, dense, norm, prefixes
from mmjax.models.towers import mobilenet, vit

# Batches counted by BatchNorm. They are not needed with a constant momentum.
COUNTER = "num_batches_tracked"


def statistics(key: str, path: str) -> Rules:
    """Returns the rules of the statistics of a BatchNorm."""
    return [
        Rule(f"{key}.running_mean", (f"{path}/mean",)),
        Rule(f"{key}.running_var", (f"{path}/var",)),
    ]


def conv_norm(convolution: str, batch_norm: str, path: str) -> Rules:
    """Returns the rules of a convolution with BatchNorm."""
    return [
        Rule(f"{convolution}.weight", (f"{path}/conv/kernel",), "convolution"),
        *norm(batch_norm, f"{path}/norm"),
        *statistics(batch_norm, f"{path}/norm"),
    ]


_RESNET_UNITS = {
    "first": ("conv1", "bn1"),
    "second": ("conv2", "bn2"),
    "third": ("conv3", "bn3"),
    "shortcut": ("downsample.0", "downsample.1"),
}


def resnet_block(key: str, path: str) -> Rules:
    """Returns the rules of a block of a ResNet, with the units that it may have."""
    return [
        rule
        for name, (convolution, batch_norm) in _RESNET_UNITS.items()
        for rule in conv_norm(f"{key}.{convolution}", f"{key}.{batch_norm}", f"{path}/{name}")
    ]


RESNET: Rules = [
    *conv_norm("conv1", "bn1", "stem"),
    *(
        rule
        for group in range(4)
        for rule in resnet_block(f"layer{group + 1}.{{j}}", f"groups/{group}/{{j}}")
    ),
]

_COUNTS = tuple(count for _, _, count, _ in mobilenet.GROUPS)
# The first group of a MobileNetV2 has no expansion, so its units have other names.
_EXPANDED = ("expand", "depthwise", "project")
_TIMM_UNITS = {
    False: dict(depthwise=("conv_dw", "bn1"), project=("conv_pw", "bn2")),
    True: dict(
        expand=("conv_pw", "bn1"), depthwise=("conv_dw", "bn2"), project=("conv_pwl", "bn3")
    ),
}
MOBILENET_TIMM: Rules = [
    *conv_norm("conv_stem", "bn1", "stem"),
    *(
        rule
        for group in range(len(_COUNTS))
        for path, keys in _TIMM_UNITS[group > 0].items()
        for rule in conv_norm(
            *(f"blocks.{group}.{{j}}.{key}" for key in keys), f"groups/{group}/{{j}}/{path}"
        )
    ),
    *conv_norm("conv_head", "bn2", "head"),
]


def _torchvision_mobilenet() -> Rules:
    rules = list(conv_norm("features.0.0", "features.0.1", "stem"))
    blocks = [(group, j) for group, count in enumerate(_COUNTS) for j in range(count)]
    for number, (group, j) in enumerate(blocks, 1):
        units = _EXPANDED if group else _EXPANDED[1:]
        for k, unit in enumerate(units):
            key = f"features.{number}.conv.{k}"
            if unit == "project":
                keys = (key, f"features.{number}.conv.{k + 1}")
            else:
                keys = (f"{key}.0", f"{key}.1")
            rules += conv_norm(*keys, f"groups/{group}/{j}/{unit}")
    last = f"features.{len(blocks) + 1}"
    return [*rules, *conv_norm(f"{last}.0", f"{last}.1", "head")]


MOBILENET: Rules = _torchvision_mobilenet()

_LAYERS = "encoder/layers"
VIT: Rules = [
    Rule("cls_token", ("class_token",), "class_token"),
    Rule("pos_embed", ("positions",), "positions"),
    Rule("patch_embed.proj.weight", ("patch/kernel",), "convolution"),
    Rule("patch_embed.proj.bias", ("patch/bias",)),
    *norm("norm_pre", "pre_norm"),
    *norm("blocks.{i}.norm1", f"{_LAYERS}/attention_norm"),
    *dense("blocks.{i}.attn.qkv", *QKV),
    *dense("blocks.{i}.attn.proj", f"{_LAYERS}/attention/out"),
    *norm("blocks.{i}.norm2", f"{_LAYERS}/mlp_norm"),
    *dense("blocks.{i}.mlp.fc1", f"{_LAYERS}/mlp/up"),
    *dense("blocks.{i}.mlp.fc2", f"{_LAYERS}/mlp/down"),
    *norm("norm", "encoder/final_norm"),
    *norm("fc_norm", "pool_norm"),
    *dense("head", "projection"),
]
_TORCHVISION_LAYER = "encoder.layers.encoder_layer_{i}"
VIT_TORCHVISION: Rules = [
    Rule("class_token", ("class_token",), "class_token"),
    Rule("encoder.pos_embedding", ("positions",), "positions"),
    Rule("conv_proj.weight", ("patch/kernel",), "convolution"),
    Rule("conv_proj.bias", ("patch/bias",)),
    *norm(f"{_TORCHVISION_LAYER}.ln_1", f"{_LAYERS}/attention_norm"),
    *dense(f"{_TORCHVISION_LAYER}.self_attention.in_proj", *QKV, weight="_weight", bias="_bias"),
    *dense(f"{_TORCHVISION_LAYER}.self_attention.out_proj", f"{_LAYERS}/attention/out"),
    *norm(f"{_TORCHVISION_LAYER}.ln_2", f"{_LAYERS}/mlp_norm"),
    *dense(f"{_TORCHVISION_LAYER}.mlp.0", f"{_LAYERS}/mlp/up"),
    *dense(f"{_TORCHVISION_LAYER}.mlp.3", f"{_LAYERS}/mlp/down"),
    *norm("encoder.ln", "encoder/final_norm"),
]
# Names of the MLP in files of torchvision before 0.14.
VIT_TORCHVISION_OLD: Rules = [
    dataclasses.replace(
        rule, key=rule.key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")
    )
    for rule in VIT_TORCHVISION
]

RULES: dict[str, Rules] = {
    "resnet": RESNET,
    "mobilenet": MOBILENET,
    "mobilenet_timm": MOBILENET_TIMM,
    # Without the classifier, which an image encoder does not need.
    "vit": [rule for rule in VIT if not rule.key.startswith("head.")],
    "vit_torchvision": VIT_TORCHVISION,
    "vit_torchvision_old": VIT_TORCHVISION_OLD,
}
# Ending of a name that occurs once in each backbone, and only there.
ENDINGS = {
    "resnet": "layer1.0.conv1.weight",
    "mobilenet": "features.1.conv.0.0.weight",
    "mobilenet_timm": "blocks.0.0.conv_dw.weight",
    "vit": "patch_embed.proj.weight",
    "vit_torchvision": "encoder.layers.encoder_layer_0.mlp.0.weight",
    "vit_torchvision_old": "encoder.layers.encoder_layer_0.mlp.linear_1.weight",
}
# timm's ViT that pools by the class token. Those of TVL are touch encoders; they pool the mean and
# have `fc_norm` instead.
_CLASS_POOLING = "norm.weight"


def find_backbones(names: Iterable[str]) -> dict[str, str]:
    """Returns {prefix: key of `RULES`} of the backbones in a file with arrays of these names."""
    names = list(names)
    return {
        prefix: backbone
        for backbone, ending in ENDINGS.items()
        for prefix in prefixes(names, ending)
        if backbone != "vit" or f"{prefix}{_CLASS_POOLING}" in names
    }


def backbone_options(
    backbone: str, shapes: Shapes, path: str, *, head_dim: int = HEAD_DIM
) -> dict[str, Any]:
    """Returns the name and options of a backbone.

    Args:
      backbone: Key of `RULES`.
      shapes: {path: shape}.
      path: Path of the backbone.
      head_dim: Width of an attention head.

    Raises:
      UserError: An array that determines a size is missing, or a MobileNetV2 has another number of
        groups.
    """
    if backbone.startswith("vit"):
        options = vit_options(shapes, path, head_dim)
        return dict(name=nearest_name(vit.IMAGE_CONFIGS, options), **options)
    if backbone == "resnet":
        options = image_resnet_options(shapes, path)
        return dict(name="resnet50" if options["bottleneck"] else "resnet18", **options)
    return dict(name="mobilenet_v2", **_mobilenet_options(shapes, path))


def _mobilenet_options(shapes: Mapping[str, Sequence[int]], path: str) -> dict[str, Any]:
    counts, groups = block_counts(shapes, path), []
    if len(counts) != len(_COUNTS):
        raise UserError(
            f"{path}: a MobileNetV2 with {len(counts)} groups of blocks; expected {len(_COUNTS)}. "
            "The strides of other groups are unknown."
        )
    for group, (count, (*_, stride)) in enumerate(zip(counts, mobilenet.GROUPS, strict=True)):
        block = f"{path}/groups/{group}/0"
        channels, expansion = shapes.sizes(f"{block}/project/conv/kernel", 4)[3], 1
        if f"{block}/expand/conv/kernel" in shapes:
            _, _, fan_in, inner = shapes.sizes(f"{block}/expand/conv/kernel", 4)
            expansion = inner // fan_in
        groups.append((expansion, channels, count, stride))
    stem, head = (shapes.sizes(f"{path}/{name}/conv/kernel", 4)[3] for name in ("stem", "head"))
    return dict(groups=tuple(groups), stem=stem, head=head, width_multiplier=1.0)
