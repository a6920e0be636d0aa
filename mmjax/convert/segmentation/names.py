"""Names of torchvision and segmentation_models_pytorch for the arrays of segmentation models."""

from __future__ import annotations

from mmjax.convert.vision.names import RESNET, conv_norm
from mmjax.formats.name_rules import Rule, Rules, with_prefix
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
