"""Parameters of a run under the names of PyTorch's libraries, as a .safetensors or .pth file."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping

import numpy as np

from mmjax import init_from
from mmjax.convert.clip import load as clip_load
from mmjax.convert.problems import is_statistic
from mmjax.convert.shapes import block_counts
from mmjax.convert.vision import load as vision_load
from mmjax.convert.vision import names as vision_names
from mmjax.errors import UserError
from mmjax.formats import safetensors, torch_writer
from mmjax.formats.name_rules import Rules, dense, with_prefix
from mmjax.formats.name_rules import to_torch as rename

# What can be written, and what of our paths it takes.
TARGETS = {
    "timm": ("touch/",),
    "tvl": ("touch/", "heads/", *clip_load.SCALAR_PATHS),
    "open_clip": ("image/", "text/", *clip_load.SCALAR_PATHS),
    "torchvision": ("image/",),
}
# Names of ResNets by their blocks, and whether these are bottlenecks.
_RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_WRITERS = {safetensors.SUFFIX: safetensors.write, torch_writer.SUFFIX: torch_writer.write}


def export(source: str, *, to: str, out: str) -> list[str]:
    """Writes a file; returns lines that say what is in it and how it is loaded.

    Args:
      source: a run, or anything else that `initialize.load_params` reads.
      to: 'timm': the touch encoder, as `timm.create_model` or torchvision has it; 'tvl': the same
        as in the entry `model` of TVL's checkpoints; 'open_clip': the towers of images and text;
        'torchvision': the backbone of images, a ResNet (timm's names are the same) or
        MobileNetV2, with the dense layer behind it, if it has one, as `fc`.
      out: the .safetensors or .pth file; it must not be there yet.

    Raises:
      UserError: the source cannot be read or lacks what is to be written, or `out` cannot be
        written.
    """
    suffix = pathlib.Path(out).suffix
    if suffix not in _WRITERS:
        raise UserError(
            f"--out {out}: --to {to} writes a file that ends with {' or '.join(_WRITERS)}."
        )
    leaves, what = init_from.load_params(source)
    if to in ("timm", "tvl", "torchvision"):  # a backbone alone is whichever is asked for
        tower = "image/" if to == "torchvision" else "touch/"
        leaves = {path.replace(vision_load.BACKBONE, tower, 1): x for path, x in leaves.items()}
    leaves = {
        path.removeprefix("extra/").removeprefix(clip_load.CLIP): x for path, x in leaves.items()
    }
    arrays = {path: x for path, x in leaves.items() if path.startswith(TARGETS[to])}
    names = rename(arrays, rules_of(arrays, to))
    if to != "open_clip":  # torch counts the batches behind its statistics
        at = clip_load.TOUCH if to == "tvl" else ""
        count = np.zeros((), np.int64)
        means = [name for name in names if name.startswith(at) and name.endswith("running_mean")]
        names |= {name.replace("running_mean", vision_names.COUNTER): count for name in means}
    _WRITERS[suffix](out, names)
    number = sum(x.size for path, x in arrays.items() if not is_statistic(path))
    lines = [f"{out}: {number:,} parameters of {what} in {len(names)} arrays."]
    if to != "tvl":
        load = "load_file" if suffix == safetensors.SUFFIX else "torch.load"
        more = ", strict=False" if "features.0.0.weight" in names else ""  # has a classifier
        lines.append(f"In PyTorch: {_model(arrays, to)}.load_state_dict({load}({out!r}){more})")
    return lines


def rules_of(arrays: Mapping[str, np.ndarray], to: str) -> Rules:
    """The rules for these arrays by our paths.

    Raises:
      UserError: a tower is missing.
    """
    if to == "open_clip":
        for tower in ("image", "text"):
            if f"{tower}/positions" not in arrays:
                raise UserError(f"--to open_clip: there is no tower of CLIP for {tower}.")
        parts = [
            clip_load.Part("clip_image", "image/", "visual."),
            clip_load.Part("clip_text", "text/", ""),
        ]
        return [rule for part in [*parts, clip_load.Part("scalars", "", "")] for rule in part.rules]
    if to == "torchvision":
        if "image/stem/conv/kernel" not in arrays:
            raise UserError(f"--to {to}: there is no ResNet or MobileNetV2 over images.")
        kind = "resnet" if "image/head/conv/kernel" not in arrays else "mobilenet"
        rules = with_prefix(vision_names.RULES[kind], path="image/")
        return [*rules, *with_prefix(dense("fc", "projection"), path="image/")]
    kinds = {"vit": "touch/class_token", "resnet": "touch/stem/conv/kernel"}
    found = [kind for kind, path in kinds.items() if path in arrays]
    if not found:
        raise UserError(f"--to {to}: there is no touch encoder.")
    rules = with_prefix(
        clip_load.RULES[found[0]], key=clip_load.TOUCH if to == "tvl" else "", path="touch/"
    )
    return [*rules, *clip_load.SCALARS, *clip_load.HEADS] if to == "tvl" else rules


def _model(arrays: Mapping[str, np.ndarray], to: str) -> str:
    """How the model is made that takes the file; sizes that no name has are left to the reader."""
    if to == "open_clip":
        return "open_clip.create_model(NAME)"
    if to == "torchvision":
        if "image/head/conv/kernel" in arrays:
            return "torchvision.models.mobilenet_v2(num_classes=0)"
        kind = (block_counts(arrays, "image"), "image/groups/0/0/third/conv/kernel" in arrays)
        classes = len(arrays.get("image/projection/bias", ()))
        published = arrays["image/stem/conv/kernel"].shape[-1] == 64  # else another width
        name = _RESNETS.get(kind, "NAME") if published else "NAME"
        return f"timm.create_model({name!r}, num_classes={classes})"
    classes = len(arrays.get("touch/projection/bias", ()))
    if "touch/class_token" not in arrays:
        name, pool = "resnet18", "avg"
    else:
        patch = len(arrays["touch/patch/kernel"])
        side = patch * math.isqrt(len(arrays["touch/positions"]) - 1)
        size = {192: "tiny", 384: "small", 768: "base"}.get(len(arrays["touch/class_token"]))
        name = f"vit_{size}_patch{patch}_{side}" if size else "NAME"
        pool = "avg" if "touch/pool_norm/scale" in arrays else "token"
    return f"timm.create_model({name!r}, num_classes={classes}, global_pool={pool!r})"
