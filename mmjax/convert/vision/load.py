"""Reads image backbones, and LGSSL's training checkpoints with their heads.

Backbones are ResNets, MobileNetV2 or ViTs with the names of torchvision or timm and any prefix.
LGSSL (El Banani et al. 2023, arXiv 2302.12248) publishes such files, and so do SimCLR (Lightning
Bolts), SimSiam, SwAV, MoCo, VISSL (PIRL, ClusterFit) and pyVTAB (Kotar et al. 2021, arXiv
2103.14005; `model.` precedes each name). Training checkpoints are those of LGSSL's code (PyTorch
Lightning), for all its methods.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.convert import torch_source
from mmjax.convert.clip import names as clip_names
from mmjax.convert.torch_source import UNKNOWN, NamingScheme, TorchSource
from mmjax.convert.vision import names as vision_names
from mmjax.errors import UserError
from mmjax.formats import torch_reader
from mmjax.formats.name_rules import Rule, Rules, dense, match_keys, norm, with_prefix

# Prefix of the paths of a backbone that may become an image or a touch tower.
BACKBONE = "backbone/"
_VISUAL, _LANGUAGE = "visual_backbone.", "language_backbone."
_MAX_LAYERS = 8  # of an MLP head
# Names of heads in LGSSL and in mmjax. With a single layer, visual_project is the head `clip`.
_HEADS = {
    "visual_project": "projection",
    "proj_mlp": "projection",
    "pred_mlp": "predictor",
    "clip_vis_project": "clip",
}
_TEXT_KEYS = ("language_project.", "clip_scale", _LANGUAGE)
# Reasons why an entry is unused.
HEAD = "head"
AVERAGE = "moving average"
NO_TEXTS = "text encoder other than CLIP"
OUTSIDE = "outside the model"
# Names in other models that are not part of the backbone.
_HEAD = re.compile(
    r"(^|\.)(fc|heads?|classifier|projection|projection_head|projector|predictor|prototypes|queue|"
    r"queue_ptr|non_linear_evaluator|decoder_\w+|mask_token)(\.|$)"
)
# The final dense layer of a backbone.
_DENSE = re.compile(r"(^|\.)(fc|head|heads\.head)\.(weight|bias)$")
_VISSL = "base_model.model."  # precedes the trunk and the heads in files of VISSL
# Endings of the prefixes of moving averages of the backbone.
_AVERAGES = ("momentum_encoder.", "encoder_k.", "moco_encoder.trunk._feature_blocks.")


def _head_rules(key: str, head: str) -> Rules:
    """Returns the rules of an MLP head.

    The head is a dense layer without bias, or a Sequential of such layers, each followed by
    BatchNorm and ReLU.
    """
    rules = [Rule(f"{key}.weight", (f"heads/{head}/linear/0/kernel",), "dense")]
    for layer in range(_MAX_LAYERS):
        path, batch_norm = f"heads/{head}/norm/{layer}", f"{key}.{3 * layer + 1}"
        kernel = f"heads/{head}/linear/{layer}/kernel"
        rules += [
            Rule(f"{key}.{3 * layer}.weight", (kernel,), "dense"),
            *norm(batch_norm, path),
            *vision_names.statistics(batch_norm, path),
        ]
    return rules


def _lgssl_rules(names: Sequence[str], root: str) -> tuple[Rules, bool]:
    """Returns the rules of an LGSSL model without its backbone, and whether it has a text tower."""
    rules: list[Rule] = [Rule("prototypes.weight", ("prototypes/kernel",), "dense")]
    for key, head in _HEADS.items():
        if any(name.startswith(f"{root}{key}.") for name in names):
            linear = f"{root}visual_project.weight" in names and key == "visual_project"
            rules += _head_rules(key, "clip" if linear else head)
    text = f"{root}{_LANGUAGE}{clip_names.TEXT_KEY}" in names
    if text:
        rules += [
            *_head_rules("language_project", "text"),
            Rule("clip_scale", ("logit_scale",)),
            *with_prefix(clip_names.TEXT, key=_LANGUAGE, path="text/"),
        ]
    return with_prefix(rules, key=root), text


def find_scheme(names: Sequence[str]) -> NamingScheme | None:
    """Returns the naming scheme of a file with arrays of these names.

    Returns:
      None if the file has no such backbone, or is a file of TVL or OpenCLIP.

    Raises:
      UserError: The file has several backbones.
    """
    backbones = vision_names.find_backbones(names)
    texts = [name for name in names if name.endswith(clip_names.TEXT_KEY) and _LANGUAGE not in name]
    if texts or any("visual." in prefix or "tactile_encoder." in prefix for prefix in backbones):
        return None
    averages = tuple(prefix for prefix in backbones if prefix.endswith(_AVERAGES))
    backbones = {p: backbone for p, backbone in backbones.items() if p not in averages}
    if not backbones:
        return None
    if len(backbones) > 1:
        raise UserError(
            f"the file contains {len(backbones)} backbones, with the prefixes "
            f"{' and '.join(map(repr, backbones))}. Save only one of them in a file."
        )
    ((prefix, backbone),) = backbones.items()
    rules = list(with_prefix(vision_names.RULES[backbone], key=prefix, path="image/"))
    components, root = {"image": backbone}, prefix.removesuffix(_VISUAL)
    is_lgssl = root != prefix
    if is_lgssl:
        more, text = _lgssl_rules(names, root)
        rules += more
        components |= dict(text="clip_text") if text else {}
    other_text = tuple(root + name for name in _TEXT_KEYS) if is_lgssl and not text else ()
    top = f"{prefix.split('.')[0]}." if prefix else ""
    if _VISSL in prefix:
        top = prefix[: prefix.index(_VISSL) + len(_VISSL)]

    def unused_reason(name: str) -> str:
        last = name.rsplit(".", 1)[-1]
        if last == vision_names.COUNTER or last in clip_names.CONSTANTS:
            return "constant"
        if averages and name.startswith(averages):
            return AVERAGE
        if other_text and name.startswith(other_text):
            return NO_TEXTS
        if not is_lgssl and _HEAD.search(name):
            return HEAD
        return UNKNOWN if name.startswith(top) else OUTSIDE

    return NamingScheme(components, rules, unused_reason)


def fits(source: str) -> bool:
    """Returns whether a PyTorch file contains such a backbone.

    Raises:
      UserError: The file cannot be read or has several backbones.
    """
    try:
        return find_scheme(list(torch_reader.tensors(source))) is not None
    except UserError as error:
        prefix = "" if str(error).startswith(source) else f"{source}: "
        raise UserError(f"{prefix}{error}") from error


def read(source: str) -> TorchSource:
    """Returns the entries of one file.

    Raises:
      UserError: The file cannot be read or contains no such backbone.
    """
    return torch_source.read_file(
        source,
        find_scheme,
        expected="the names of a ResNet, MobileNetV2 or ViT of torchvision or timm.",
    )


def load(source: str) -> tuple[dict[str, np.ndarray], str]:
    """Returns the arrays of a file for `mmjax.convert.load.load_params`.

    The paths of a backbone without heads start with `BACKBONE`. Its final dense layer, if any, is
    `projection`. `place_backbone` assigns it to a tower of the model.

    Returns:
      `(arrays, description)`: {path: array}, and a description for the log.

    Raises:
      UserError: The file cannot be read, contains no such backbone, or is incomplete.
    """
    file = read(source)
    leaves = file.params(source)
    if all(path.removeprefix("extra/").startswith("image/") for path in file.leaves):
        arrays = file.arrays()
        unused = {
            name: arrays[name].shape
            for name, reason in file.unused_keys.items()
            if reason == HEAD and _DENSE.search(name)
        }
        layers = {name.rpartition(".")[0] for name in unused}
        rules = [rule for layer in layers for rule in dense(layer, "image/projection")]
        leaves |= {path: leaf.read(arrays) for path, leaf in match_keys(unused, rules)[0].items()}
        leaves = {path.replace("image/", BACKBONE, 1): x for path, x in leaves.items()}
    return leaves, f"the backbone of {source}"


def place_backbone(
    leaves: Mapping[str, np.ndarray], target: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns the leaves with a backbone at the tower of the model that fits.

    It stays in place if the model has a backbone itself, as segmentation models do. Its final dense
    layer is dropped if the tower has none.

    Args:
      leaves: {path: array} of the sources.
      target: {path: leaf} of the model; a leaf has a shape.

    Raises:
      UserError: Both the image and the touch tower fit.
    """
    marked = {path for path in leaves if path.removeprefix("extra/").startswith(BACKBONE)}
    if not marked:
        return dict(leaves)
    if any(path.startswith(BACKBONE) for path in target):
        dense = f"{BACKBONE}projection/"
        return {k: x for k, x in leaves.items() if k in target or not k.startswith(dense)}
    towers = _fitting_towers(leaves, target)
    if len(towers) > 1:
        raise UserError(
            "The source contains one backbone, and two towers of the model fit it. Select one with "
            f"config.init_map=(('{BACKBONE}', 'touch/'),) or (('{BACKBONE}', 'image/'),)."
        )
    tower = towers[0] if towers else "image"
    result = {path: x for path, x in leaves.items() if path not in marked}
    for path in marked:
        new = path.replace(BACKBONE, f"{tower}/", 1)
        if new in target or "/projection/" not in new:
            result[new] = leaves[path]
    return result


def _fitting_towers(leaves: Mapping[str, np.ndarray], target: Mapping[str, Any]) -> list[str]:
    """Returns the towers of the model that have the architecture of the backbone in `leaves`.

    If there are several, only those whose first layer has the same arrays and shapes.
    """
    convolutional = f"{BACKBONE}stem/conv/kernel" in leaves
    kernel, first = ("stem/conv/kernel", "stem/") if convolutional else ("patch/kernel", "patch/")
    towers = [tower for tower in ("image", "touch") if f"{tower}/{kernel}" in target]
    if len(towers) < 2:
        return towers

    def layer(arrays: Mapping[str, Any], root: str) -> dict[str, tuple[int, ...]]:
        start = root + first
        return {
            path.removeprefix(root): tuple(x.shape)
            for path, x in arrays.items()
            if path.startswith(start)
        }

    own = layer(leaves, BACKBONE)
    return [tower for tower in towers if layer(target, f"{tower}/") == own] or towers
