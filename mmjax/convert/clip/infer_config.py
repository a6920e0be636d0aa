"""The config that builds the model of TVL's or OpenCLIP's files, inferred from their shapes."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from mmjax import config
from mmjax.convert.clip import load as clip_load
from mmjax.convert.shapes import (
    HEAD_DIM,
    Shapes,
    encoder_options,
    image_resnet_options,
    named,
)
from mmjax.convert.torch_contents import Contents
from mmjax.errors import UserError
from mmjax.models.towers import clip, vit

RECIPE = "mmjax.configs.touch.tvl"
_RECIPES = ("tiny", "small", "base")  # its arguments, by the sizes of the ViT


def model_section(
    contents: Contents, *, head_dim: int | None = None, quick_gelu: bool = False
) -> dict[str, Any]:
    """The section `model` of a config of the touch task: every tower and its sizes.

    Args:
      contents: of the files.
      head_dim: features of an attention head, which no shape tells; None is 64.
      quick_gelu: CLIP's towers compute x·sigmoid(1.702 x) for GELU, which no shape tells either.

    Raises:
      UserError: an array that tells a size is missing, or a size cannot be.
    """
    shapes = Shapes({path: leaf.shape for path, leaf in contents.leaves.items()})
    head_dim = head_dim or HEAD_DIM
    activation = dict(activation="quick_gelu") if quick_gelu else {}
    model: dict[str, Any] = {}
    if kind := contents.parts.get("touch"):
        model["touch"] = _touch(kind, shapes, head_dim)
    if "image" in contents.parts:
        model["image"] = _clip_image(shapes, head_dim) | activation
    if "text" in contents.parts:
        model["text"] = clip_text_options(shapes, head_dim) | activation
    for path in shapes:
        if path.startswith("heads/"):
            model["common_dim"] = shapes[path][1]
    if "logit_bias" in shapes:
        model["logit_bias"] = 0.0
    return model


def _projection(shapes: Mapping, at: str) -> int:
    path = f"{at}/projection/kernel"
    return shapes[path][1] if path in shapes else 0


def _patches(shapes: Mapping, at: str) -> dict[str, Any]:
    rows, columns, channels, _ = shapes[f"{at}/patch/kernel"]
    patches = shapes[f"{at}/positions"][0] - 1
    side = math.isqrt(max(patches, 0))
    if rows != columns or channels != 3 or side * side != patches or not side:
        raise UserError(
            f"{at}: mmjax's towers take square RGB images in square patches, and a class token; "
            f"these patches are {rows} × {columns} × {channels}, and there are {patches} positions "
            "for them."
        )
    return dict(image_size=side * rows, patch_size=rows)


def _touch(kind: str, shapes: Mapping, head_dim: int) -> dict[str, Any]:
    if kind == "resnet":
        return dict(name="resnet18", **image_resnet_options(shapes, "touch"))
    mean = "touch/pool_norm/scale" in shapes  # timm's fc_norm stands behind its mean
    options = dict(
        **encoder_options(shapes, "touch/encoder", head_dim),
        **_patches(shapes, "touch"),
        patch_bias="touch/patch/bias" in shapes,
        input_norm="touch/pre_norm/scale" in shapes,
        pool="mean" if mean else "class",
        pool_norm=mean,
        final_norm="layer" if "touch/encoder/final_norm/scale" in shapes else "none",
        projection=_projection(shapes, "touch"),
    )
    return dict(name=named(vit.TOUCH_CONFIGS, options), **options)


def _clip_image(shapes: Mapping, head_dim: int) -> dict[str, Any]:
    options = dict(
        **encoder_options(shapes, "image/encoder", head_dim),
        **_patches(shapes, "image"),
        projection=_projection(shapes, "image"),
    )
    return dict(name=named(vit.CLIP_CONFIGS, options), **options)


def clip_text_options(shapes: Mapping, head_dim: int) -> dict[str, Any]:
    """`name` and options of CLIP's tower of texts below `text`."""
    options = dict(
        **encoder_options(shapes, "text/encoder", head_dim),
        vocab_size=shapes["text/token_embedding"][0],
        context_length=shapes["text/positions"][0],
        projection=_projection(shapes, "text"),
    )
    return dict(name=named(clip.CONFIGS, options), **options)


def make_config(
    contents: Contents, *, head_dim: int | None = None, quick_gelu: bool = False
) -> ml_collections.ConfigDict:
    """A whole config: the model of the files in TVL's recipe.

    Inputs have the sizes that the tables of positions are for. What the recipe says of modalities
    that the files do not have is left out. The model computes in float32.
    """
    model = model_section(contents, head_dim=head_dim, quick_gelu=quick_gelu)
    touch = model.get("touch", {}).get("name", "")
    size = next((size for size in _RECIPES if f"_{size}_" in touch), "tiny")
    cfg = importlib.import_module(RECIPE).get_config(touch if touch == "resnet18" else size)
    missing = [part for part in ("touch", "image", "text") if part not in model]
    cfg.init_from = ""
    cfg.model = {**model, **dict.fromkeys(missing)}
    cfg.total_steps = max(cfg.total_steps, contents.step)
    _leave_out(cfg, missing, list(contents.leaves))
    for part in ("touch", "image"):
        if "image_size" in (model.get(part) or {}):
            cfg.data[part].size = model[part]["image_size"]
    if "text" in model:
        cfg.data.text.max_tokens = model["text"]["context_length"]
    config.resolve(cfg)
    return cfg


def config_of(sources: Sequence[str]) -> ml_collections.ConfigDict:
    """`make_config` of files, for those who start from them without a run directory.

    Raises:
      UserError: a file cannot be read or holds no such model, or they do not tell its sizes.
    """
    return make_config(clip_load.read_all(sources))


def _leave_out(cfg: ml_collections.ConfigDict, missing: list[str], paths: list[str]) -> None:
    """Takes out of a recipe what is for modalities that the model does not have."""
    frozen = cfg.optimizer.get("frozen", ())
    cfg.optimizer.frozen = tuple(
        pattern for pattern in frozen if any(re.search(pattern, path) for path in paths)
    )
    if not missing:
        return
    with cfg.unlocked(), cfg.ignore_type():
        for part in missing:
            cfg.data[part] = None
            if part in cfg.augment:  # words have no section
                cfg.augment[part] = None
        cfg.checkpoint.best = ""  # is a figure of touch
        here = [part for part in ("touch", "image", "text") if part not in missing]
        for evaluator in cfg.evals.values():
            if evaluator.type == "semantic_retrieval":
                evaluator.pairs = ("_".join(here),)
            elif evaluator.type == "affinity":
                evaluator.query, evaluator.target = here[0], here[-1]
