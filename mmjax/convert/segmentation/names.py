"""Names of torchvision and segmentation_models_pytorch for the arrays of segmentation models."""

from __future__ import annotations

from mmjax.convert.vision.names import RESNET, conv_norm
from mmjax.formats.name_rules import Rule, Rules, dense, norm, with_prefix
from mmjax.models.segmentation.mobilenet_v3 import LARGE


def biased(key: str, path: str) -> Rules:
    """Returns the rules of a convolution with bias."""
    return [
        Rule(f"{key}.weight", (f"{path}/kernel",), "convolution"),
        Rule(f"{key}.bias", (f"{path}/bias",)),
    ]


def _mobilenet() -> Rules:
    """Returns the rules of a MobileNetV3-Large, with the names that torchvision's blocks have."""
    rules = list(conv_norm("backbone.0.0", "backbone.0.1", "backbone/stem"))
    features = 16
    for index, block in enumerate(LARGE):
        parts = [
            *(["expand"] if block.inner != features else []),
            "depthwise",
            *(["squeeze"] if block.squeeze else []),
            "project",
        ]
        for number, part in enumerate(parts):
            key = f"backbone.{index + 1}.block.{number}"
            path = f"backbone/blocks/{index}/{part}"
            if part == "squeeze":
                rules += [
                    *biased(f"{key}.fc1", f"{path}/reduce"),
                    *biased(f"{key}.fc2", f"{path}/expand"),
                ]
            else:
                rules += conv_norm(f"{key}.0", f"{key}.1", path)
        features = block.out
    last = f"backbone.{len(LARGE) + 1}"
    return [*rules, *conv_norm(f"{last}.0", f"{last}.1", "backbone/last")]


def _aspp(key: str, path: str) -> Rules:
    """Returns the rules of a pyramid; the mean over the map is not an array."""
    units = {f"branch{n + 1}": (f"convs.{n}.0", f"convs.{n}.1") for n in range(4)}
    units |= {"branch5": ("convs.4.1", "convs.4.2"), "fuse": ("project.0", "project.1")}
    return [
        rule
        for name, (convolution, batch_norm) in units.items()
        for rule in conv_norm(f"{key}.{convolution}", f"{key}.{batch_norm}", f"{path}/{name}")
    ]


MOBILENET: Rules = _mobilenet()
LRASPP: Rules = [
    *MOBILENET,
    *conv_norm("classifier.cbr.0", "classifier.cbr.1", "head/reduce"),
    Rule("classifier.scale.1.weight", ("head/scale/kernel",), "convolution"),
    *biased("classifier.low_classifier", "head/low"),
    *biased("classifier.high_classifier", "head/high"),
]
DEEPLAB_MOBILENET: Rules = [
    *MOBILENET,
    *_aspp("classifier.0", "head/aspp"),
    *conv_norm("classifier.1", "classifier.2", "head/hidden"),
    *biased("classifier.4", "head/classifier"),
    *conv_norm("aux_classifier.0", "aux_classifier.1", "aux_head/hidden"),
    *biased("aux_classifier.4", "aux_head/classifier"),
]
_ENCODER: Rules = with_prefix(RESNET, key="encoder.", path="backbone/")
_SMP_HEAD: Rules = biased("segmentation_head.0", "head/classifier")
DEEPLAB_RESNET: Rules = [
    *_ENCODER,
    *_aspp("decoder.aspp", "head/aspp"),
    *conv_norm("decoder.conv", "decoder.bn", "head/hidden"),
    *_SMP_HEAD,
]
# Of each level of the pyramid, from the coarsest: its 1×1 convolution, and the number of its units.
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


FPN: Rules = [*_ENCODER, *_fpn_head(), *_SMP_HEAD]


def _mix_transformer(stages: int = 4) -> Rules:
    rules: list[Rule] = []
    for stage in range(stages):
        number, path = stage + 1, f"backbone/stages/{stage}"
        key, block = f"encoder.block{number}.{{j}}", f"{path}/blocks/{{j}}"
        rules += [
            *biased(f"encoder.patch_embed{number}.proj", f"{path}/patch"),
            *norm(f"encoder.patch_embed{number}.norm", f"{path}/patch_norm"),
            *norm(f"encoder.norm{number}", f"{path}/norm"),
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


# The projection of the coarsest map comes first in segmentation_models_pytorch.
_PROJECTIONS: Rules = [
    rule
    for index in range(4)
    for rule in dense(f"decoder.mlp_stage.{3 - index}.linear", f"head/projections/{index}")
]
SEGFORMER: Rules = [
    *_mix_transformer(),
    *_PROJECTIONS,
    *conv_norm("decoder.fuse_stage.0", "decoder.fuse_stage.1", "head/fuse"),
    *_SMP_HEAD,
]
