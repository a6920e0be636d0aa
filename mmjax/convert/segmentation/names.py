"""Names of torchvision and segmentation_models_pytorch for the arrays of segmentation models.

Names of bottleneck adapters are in `mmjax.convert.segmentation.adapter_names`.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmjax.convert.vision.names import RESNET, conv_norm
from mmjax.formats.name_rules import Rule, Rules, dense, norm, with_prefix
from mmjax.models.segmentation import lraspp
from mmjax.models.segmentation.mobilenet_v3 import LARGE, Block

_STAGES = 4  # of a mix transformer


def biased(key: str, path: str) -> Rules:
    """Returns the rules of a convolution with bias."""
    return [
        Rule(f"{key}.weight", (f"{path}/kernel",), "convolution"),
        Rule(f"{key}.bias", (f"{path}/bias",)),
    ]


def mobilenet(blocks: Sequence[Block] = LARGE, stem: int = 16) -> Rules:
    """Returns the rules of a MobileNetV3, without a prefix, as torchvision would name its blocks.

    Args:
      blocks: The blocks.
      stem: Channels of the first convolution.
    """
    rules, features = list(conv_norm("0.0", "0.1", "stem")), stem
    for index, block in enumerate(blocks):
        parts = [
            *(["expand"] if block.inner != features else []),
            "depthwise",
            *(["squeeze"] if block.squeeze else []),
            "project",
        ]
        for number, part in enumerate(parts):
            key, path = f"{index + 1}.block.{number}", f"blocks/{index}/{part}"
            if part == "squeeze":
                rules += biased(f"{key}.fc1", f"{path}/reduce")
                rules += biased(f"{key}.fc2", f"{path}/expand")
            else:
                rules += conv_norm(f"{key}.0", f"{key}.1", path)
        features = block.out
    last = len(blocks) + 1
    return [*rules, *conv_norm(f"{last}.0", f"{last}.1", "last")]


def _lraspp(blocks: Sequence[Block] = LARGE, stem: int = 16) -> Rules:
    return [
        *with_prefix(mobilenet(blocks, stem), key="backbone.", path="backbone/"),
        *conv_norm("classifier.cbr.0", "classifier.cbr.1", "head/reduce"),
        Rule("classifier.scale.1.weight", ("head/scale/kernel",), "convolution"),
        *biased("classifier.low_classifier", "head/low"),
        *biased("classifier.high_classifier", "head/high"),
    ]


def _aspp(key: str, path: str) -> Rules:
    """Returns the rules of a pyramid; in PyTorch, its last branch starts with the pooling."""
    units = {f"branch{n + 1}": (f"convs.{n}.0", f"convs.{n}.1") for n in range(4)}
    units |= {"branch5": ("convs.4.1", "convs.4.2"), "fuse": ("project.0", "project.1")}
    return [
        rule
        for name, (convolution, batch_norm) in units.items()
        for rule in conv_norm(f"{key}.{convolution}", f"{key}.{batch_norm}", f"{path}/{name}")
    ]


# The 1×1 convolution of each level of a pyramid, from the coarsest, and the number of its units.
_LATERAL = {5: ("p5", 3), 4: ("p4.skip_conv", 2), 3: ("p3.skip_conv", 1), 2: ("p2.skip_conv", 1)}


def _fpn_head() -> Rules:
    rules: list[Rule] = []
    for index, (level, (lateral, count)) in enumerate(_LATERAL.items()):
        rules += biased(f"decoder.{lateral}", f"head/lateral/{level}")
        for unit in range(count):
            key = f"decoder.seg_blocks.{index}.block.{unit}.block"
            path = f"head/levels/{level}/{unit}"
            rules.append(Rule(f"{key}.0.weight", (f"{path}/conv/kernel",), "convolution"))
            rules += norm(f"{key}.1", f"{path}/norm")
    return rules


def _mix_transformer() -> Rules:
    rules: list[Rule] = []
    for stage in range(_STAGES):
        number, path = stage + 1, f"stages/{stage}"
        key, block = f"block{number}.{{j}}", f"{path}/blocks/{{j}}"
        rules += [
            *biased(f"patch_embed{number}.proj", f"{path}/patch"),
            *norm(f"patch_embed{number}.norm", f"{path}/patch_norm"),
            *norm(f"norm{number}", f"{path}/norm"),
            *norm(f"{key}.norm1", f"{block}/attention_norm"),
            *dense(f"{key}.attn.q", f"{block}/attention/query"),
            *dense(f"{key}.attn.kv", f"{block}/attention/key", f"{block}/attention/value"),
            *dense(f"{key}.attn.proj", f"{block}/attention/out"),
            *biased(f"{key}.attn.sr", f"{block}/attention/reduce"),
            *norm(f"{key}.attn.norm", f"{block}/attention/reduce_norm"),
            *norm(f"{key}.norm2", f"{block}/mlp_norm"),
            *dense(f"{key}.mlp.fc1", f"{block}/mlp/up"),
            *biased(f"{key}.mlp.dwconv.dwconv", f"{block}/mlp/depthwise"),
            *dense(f"{key}.mlp.fc2", f"{block}/mlp/down"),
        ]
    return rules


MIX_TRANSFORMER: Rules = _mix_transformer()
_DEMO = lraspp.CONFIGS["lraspp_demo"]
_RESNET: Rules = with_prefix(RESNET, key="encoder.", path="backbone/")
_SMP_HEAD: Rules = biased("segmentation_head.0", "head/classifier")
# Rules by the family of a model; the names in `mmjax.models.segmentation.registry` are members.
RULES: dict[str, Rules] = {
    "lraspp": _lraspp(),
    "lraspp_demo": _lraspp(_DEMO["blocks"], _DEMO["stem"]),
    "deeplabv3_mobilenet": [
        *with_prefix(mobilenet(), key="backbone.", path="backbone/"),
        *_aspp("classifier.0", "head/aspp"),
        *conv_norm("classifier.1", "classifier.2", "head/hidden"),
        *biased("classifier.4", "head/classifier"),
        *conv_norm("aux_classifier.0", "aux_classifier.1", "aux_head/hidden"),
        *biased("aux_classifier.4", "aux_head/classifier"),
    ],
    "deeplabv3_resnet": [
        *_RESNET,
        *_aspp("decoder.aspp", "head/aspp"),
        *conv_norm("decoder.conv", "decoder.bn", "head/hidden"),
        *_SMP_HEAD,
    ],
    "fpn_resnet": [*_RESNET, *_fpn_head(), *_SMP_HEAD],
    "segformer": [
        *with_prefix(MIX_TRANSFORMER, key="encoder.", path="backbone/"),
        # The projection of the coarsest map comes first in PyTorch.
        *(
            rule
            for stage in range(_STAGES)
            for rule in dense(
                f"decoder.mlp_stage.{_STAGES - 1 - stage}.linear", f"head/projections/{stage}"
            )
        ),
        *conv_norm("decoder.fuse_stage.0", "decoder.fuse_stage.1", "head/fuse"),
        *_SMP_HEAD,
    ],
}
# The last convolution in the backbone of `lraspp_demo`; that of MobileNetV3 has a block there.
DEMO_KEY = f"backbone.{1 + len(_DEMO['blocks'])}.0.weight"
# Backbones of ImageNet classifiers, from which models can start.
BACKBONES: dict[str, Rules] = {
    "mobilenet_v3_large": with_prefix(mobilenet(), key="features.", path="backbone/"),
    "mix_transformer": with_prefix(MIX_TRANSFORMER, path="backbone/"),
}
# The name of an array that identifies a family, with any prefix.
KEYS = {
    "lraspp": "classifier.low_classifier.weight",
    "deeplabv3_mobilenet": "classifier.0.convs.0.0.weight",
    "deeplabv3_resnet": "decoder.aspp.convs.0.0.weight",
    "fpn_resnet": "decoder.seg_blocks.0.block.0.block.0.weight",
    "segformer": "decoder.mlp_stage.0.linear.weight",
    "mobilenet_v3_large": "features.1.block.0.0.weight",
    "mix_transformer": "patch_embed1.proj.weight",
}
# The path of an array that identifies a family in mmjax, in this order.
PATHS = {
    "lraspp": "head/low/kernel",
    "deeplabv3_mobilenet": "backbone/last/conv/kernel",
    "deeplabv3_resnet": "head/aspp/fuse/conv/kernel",
    "fpn_resnet": "head/lateral/5/kernel",
    "segformer": "head/projections/0/kernel",
}
