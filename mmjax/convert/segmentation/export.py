"""Names of a segmentation model for the library that defines it in PyTorch."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from mmjax.convert.segmentation import adapter_names, names
from mmjax.convert.shapes import block_counts
from mmjax.errors import UserError
from mmjax.formats.name_rules import Rules

# Prefixes of the paths of a model.
PREFIXES = ("backbone/", "head/", "aux_head/", "adapter/")
# {(blocks, whether they are bottlenecks): encoder of segmentation_models_pytorch}.
_ENCODERS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
}
_TORCHVISION = "torchvision.models.segmentation"
_NO_WEIGHTS = "weights=None, weights_backbone=None"


def family_of(paths: Collection[str]) -> str:
    """Returns the family of a model, a key of `names.RULES`.

    Raises:
      UserError: The source is not one of these models, or a LRASPP with other blocks.
    """
    family = next((name for name, path in names.PATHS.items() if path in paths), None)
    if family is None:
        raise UserError(
            "--to segmentation: the source is not a segmentation model. Expected one of: "
            f"{', '.join(names.PATHS)}."
        )
    if family != "lraspp":
        return family
    own = {path for path in paths if path.startswith(("backbone/", "head/"))}
    for name in ("lraspp", "lraspp_demo"):
        if {path for rule in names.RULES[name] for path in rule.paths} == own:
            return name
    raise UserError(
        "--to segmentation: the blocks of this LRASPP are neither those of "
        "lraspp_mobilenet_v3_large nor those of lraspp_demo. Its arrays have no names in PyTorch."
    )


def rules_of(arrays: Mapping[str, np.ndarray]) -> Rules:
    """Returns the names of the arrays of a model and its adapter.

    Args:
      arrays: {path: array}; statistics have no `extra/` in front.

    Raises:
      UserError: The source is not one of these models, or its adapter is not one of TTDL's.
    """
    adapter = adapter_names.by_paths(arrays)
    rules = [] if adapter is None else adapter_names.rules_of(adapter)
    return [*names.RULES[family_of(arrays)], *rules]


def create_model_call(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Returns the Python call that creates the model; None if PyTorch has no such model.

    `NAME` replaces an encoder of another size than the published ones.

    Args:
      arrays: See `rules_of`.
    """
    family = family_of(arrays)
    if family == "lraspp_demo":
        return None
    classifier = "head/low/kernel" if family == "lraspp" else "head/classifier/kernel"
    count = arrays[classifier].shape[-1]
    if family == "lraspp":
        return f"{_TORCHVISION}.lraspp_mobilenet_v3_large({_NO_WEIGHTS}, num_classes={count})"
    if family == "deeplabv3_mobilenet":
        options = f"num_classes={count}, aux_loss={'aux_head/classifier/kernel' in arrays}"
        return f"{_TORCHVISION}.deeplabv3_mobilenet_v3_large({_NO_WEIGHTS}, {options})"
    if family == "segformer":
        cls, encoder = "Segformer", "mit_b0"
    else:
        cls = "DeepLabV3" if family == "deeplabv3_resnet" else "FPN"
        bottleneck = "backbone/groups/0/0/third/conv/kernel" in arrays
        encoder = _ENCODERS.get((block_counts(arrays, "backbone"), bottleneck), "NAME")
    options = f"{encoder!r}, encoder_weights=None, classes={count}"
    return f"segmentation_models_pytorch.{cls}({options})"
