"""Exports parameters under the names of PyTorch libraries, as a .safetensors or .pth file."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping

import numpy as np

from mmjax.convert.clip import load as clip_load
from mmjax.convert.clip.load import Component
from mmjax.convert.flair import names as flair_names
from mmjax.convert.load import load_params
from mmjax.convert.matching import is_statistic
from mmjax.convert.segmentation import export as segmentation_export
from mmjax.convert.shapes import block_counts
from mmjax.convert.vision import load as vision_load
from mmjax.convert.vision import names as vision_names
from mmjax.errors import UserError, check_choice
from mmjax.formats import safetensors, torch_writer
from mmjax.formats.name_rules import Rules, dense, to_torch, with_prefix
from mmjax.models.flair import ADAPTERS

# {format: prefixes of the paths that it contains}.
TARGETS = {
    "timm": ("touch/",),
    "tvl": ("touch/", "heads/", *clip_load.SCALAR_PATHS),
    "open_clip": ("image/", "text/", *clip_load.SCALAR_PATHS),
    "torchvision": ("image/",),
    "flair": (
        *("image/", "text/", "image_projection/", "text_projection/", "pooling/"),
        *(*ADAPTERS, *clip_load.SCALAR_PATHS),
    ),
    "segmentation": segmentation_export.PREFIXES,
}
# {(blocks, whether they are bottlenecks): name of the ResNet}.
_RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_WRITERS = {safetensors.SUFFIX: safetensors.write, torch_writer.SUFFIX: torch_writer.write}


def export(source: str, *, to: str, out: str) -> list[str]:
    """Writes a file and returns lines that describe it and how to load it.

    Args:
      source: A run directory, or any other source of `load_params`.
      to: Key of `TARGETS`. 'timm' is the touch encoder for `timm.create_model`; 'tvl' the same in
        the format of the entry `model` in TVL's checkpoints; 'open_clip' the image and text
        towers; 'torchvision' the image backbone, a ResNet (timm uses the same names) or
        MobileNetV2, with its final dense layer, if any, as `fc`; 'flair' a model of --task=flair;
        'segmentation' one of --task=segment, for torchvision or segmentation_models_pytorch.
      out: The .safetensors or .pth file; it must not exist.

    Raises:
      UserError: The source cannot be read or lacks a tower, or `out` cannot be written.
    """
    check_choice("--to", to, TARGETS)
    suffix = pathlib.Path(out).suffix
    if suffix not in _WRITERS:
        raise UserError(
            f"--out {out}: --to {to} writes a file that ends with {' or '.join(_WRITERS)}."
        )
    leaves, description = load_params(source)
    if to in ("timm", "tvl", "torchvision"):  # a backbone without heads fits either tower
        tower = "image/" if to == "torchvision" else "touch/"
        leaves = {path.replace(vision_load.BACKBONE, tower, 1): x for path, x in leaves.items()}
    leaves = {
        path.removeprefix("extra/").removeprefix(clip_load.CLIP): x for path, x in leaves.items()
    }
    arrays = {path: x for path, x in leaves.items() if path.startswith(TARGETS[to])}
    renamed = to_torch(arrays, rules_of(arrays, to))
    if to != "open_clip":  # PyTorch's BatchNorm also counts batches
        prefix = clip_load.TOUCH if to == "tvl" else ""
        count = np.zeros((), np.int64)
        means = [
            name for name in renamed if name.startswith(prefix) and name.endswith("running_mean")
        ]
        renamed |= {name.replace("running_mean", vision_names.COUNTER): count for name in means}
    _WRITERS[suffix](out, renamed)
    size = sum(x.size for path, x in arrays.items() if not is_statistic(path))
    lines = [f"{out}: {size:,} parameters of {description} in {len(renamed)} arrays."]
    model = _create_model_call(arrays, to)
    if model is not None:
        load = "load_file" if suffix == safetensors.SUFFIX else "torch.load"
        has_classifier = "features.0.0.weight" in renamed  # torchvision's MobileNetV2
        has_adapter = any(path.startswith("adapter/") for path in arrays)
        options = ", strict=False" if has_classifier or has_adapter else ""
        lines.append(f"In PyTorch: {model}.load_state_dict({load}({out!r}){options})")
    return lines


def rules_of(arrays: Mapping[str, np.ndarray], to: str) -> Rules:
    """Returns the names of these arrays in a format.

    Args:
      arrays: {path: array}.
      to: Key of `TARGETS`.

    Raises:
      UserError: A tower is missing.
    """
    if to == "open_clip":
        for tower in ("image", "text"):
            if f"{tower}/positions" not in arrays:
                raise UserError(f"--to open_clip: the source has no CLIP {tower} tower.")
        components = [
            Component("clip_image", "image/", "visual."),
            Component("clip_text", "text/", ""),
            Component("scalars", "", ""),
        ]
        return [rule for component in components for rule in component.rules]
    if to == "flair":
        if "pooling/query/kernel" not in arrays:
            raise UserError("--to flair: the source is not a model of --task=flair.")
        return flair_names.RULES
    if to == "segmentation":
        return segmentation_export.rules_of(arrays)
    if to == "torchvision":
        if "image/stem/conv/kernel" not in arrays:
            raise UserError(f"--to {to}: the source has no ResNet or MobileNetV2 as image tower.")
        backbone = "resnet" if "image/head/conv/kernel" not in arrays else "mobilenet"
        rules = with_prefix(vision_names.RULES[backbone], path="image/")
        return [*rules, *with_prefix(dense("fc", "projection"), path="image/")]
    encoders = {"vit": "touch/class_token", "resnet": "touch/stem/conv/kernel"}
    encoder = next((name for name, path in encoders.items() if path in arrays), None)
    if encoder is None:
        raise UserError(f"--to {to}: the source has no touch encoder.")
    prefix = clip_load.TOUCH if to == "tvl" else ""
    rules = with_prefix(clip_load.RULES[encoder], key=prefix, path="touch/")
    return [*rules, *clip_load.SCALARS, *clip_load.HEADS] if to == "tvl" else rules


def _create_model_call(arrays: Mapping[str, np.ndarray], to: str) -> str | None:
    """Returns the Python call that creates the model; None without one.

    `NAME` replaces an unpublished size.
    """
    if to in ("tvl", "flair"):
        return None
    if to == "segmentation":
        return segmentation_export.create_model_call(arrays)
    if to == "open_clip":
        return "open_clip.create_model(NAME)"
    if to == "torchvision":
        if "image/head/conv/kernel" in arrays:
            return "torchvision.models.mobilenet_v2(num_classes=0)"
        bottleneck = "image/groups/0/0/third/conv/kernel" in arrays
        num_classes = len(arrays.get("image/projection/bias", ()))
        published = arrays["image/stem/conv/kernel"].shape[-1] == 64  # the width
        blocks = block_counts(arrays, "image")
        name = _RESNETS.get((blocks, bottleneck), "NAME") if published else "NAME"
        return f"timm.create_model({name!r}, num_classes={num_classes})"
    num_classes = len(arrays.get("touch/projection/bias", ()))
    if "touch/class_token" not in arrays:
        name, pool = "resnet18", "avg"
    else:
        patch = len(arrays["touch/patch/kernel"])
        side = patch * math.isqrt(len(arrays["touch/positions"]) - 1)
        size = {192: "tiny", 384: "small", 768: "base"}.get(len(arrays["touch/class_token"]))
        name = f"vit_{size}_patch{patch}_{side}" if size else "NAME"
        pool = "avg" if "touch/pool_norm/scale" in arrays else "token"
    return f"timm.create_model({name!r}, num_classes={num_classes}, global_pool={pool!r})"
