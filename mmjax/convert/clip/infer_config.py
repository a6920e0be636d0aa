"""Infers the config of TVL's or OpenCLIP's files from the shapes of their arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import ml_collections

from mmjax import config
from mmjax.convert.clip import load as clip_load
from mmjax.convert.shapes import (
    HEAD_DIM,
    Shapes,
    encoder_options,
    image_resnet_options,
    nearest_name,
    patch_options,
    projection_width,
    vit_options,
)
from mmjax.convert.torch_source import TorchSource
from mmjax.models.towers import clip, vit
from mmjax.published.tvl import tvl_config


def model_section(
    source: TorchSource, *, head_dim: int | None = None, quick_gelu: bool = False
) -> dict[str, Any]:
    """Returns the section `model` of a config of the touch task.

    Args:
      source: The entries of the files.
      head_dim: Width of an attention head, which shapes do not determine; None for 64.
      quick_gelu: Whether the CLIP towers compute GELU as x·sigmoid(1.702 x), which shapes do not
        determine either.

    Raises:
      UserError: An array that determines a size is missing, or its shape is not supported.
    """
    shapes = Shapes(source.leaves)
    head_dim = head_dim or HEAD_DIM
    activation = dict(activation="quick_gelu") if quick_gelu else {}
    model: dict[str, Any] = {}
    if tower := source.components.get("touch"):
        model["touch"] = _touch_options(tower, shapes, head_dim)
    if "image" in source.components:
        model["image"] = clip_image_options(shapes, head_dim) | activation
    if "text" in source.components:
        model["text"] = clip_text_options(shapes, head_dim) | activation
    for path in shapes:
        if path.startswith("heads/"):
            model["common_dim"] = shapes.sizes(path, 2)[1]
    if "logit_bias" in shapes:
        model["logit_bias"] = 0.0
    return model


def _touch_options(tower: str, shapes: Shapes, head_dim: int) -> dict[str, Any]:
    if tower == "resnet":
        return dict(name="resnet18", **image_resnet_options(shapes, "touch"))
    options = vit_options(shapes, "touch", head_dim)
    return dict(name=nearest_name(vit.TOUCH_CONFIGS, options), **options)


def clip_image_options(shapes: Shapes, head_dim: int) -> dict[str, Any]:
    """Returns the name and options of the CLIP image tower at `image`."""
    options = dict(
        **encoder_options(shapes, "image/encoder", head_dim),
        **patch_options(shapes, "image"),
        projection=projection_width(shapes, "image"),
    )
    return dict(name=nearest_name(vit.CLIP_CONFIGS, options), **options)


def clip_text_options(shapes: Shapes, head_dim: int) -> dict[str, Any]:
    """Returns the name and options of the CLIP text tower at `text`."""
    options = dict(
        **encoder_options(shapes, "text/encoder", head_dim),
        vocab_size=shapes.sizes("text/token_embedding", 2)[0],
        context_length=shapes.sizes("text/positions", 2)[0],
        projection=projection_width(shapes, "text"),
    )
    return dict(name=nearest_name(clip.CONFIGS, options), **options)


def make_config(
    source: TorchSource, *, head_dim: int | None = None, quick_gelu: bool = False
) -> ml_collections.ConfigDict:
    """Returns a complete config: the model of the files in TVL's training config.

    The sizes of images and texts are those of the position embeddings. Sections for modalities
    without a tower are removed. The model computes in float32.

    Args:
      source: The entries of the files.
      head_dim: See `model_section`.
      quick_gelu: See `model_section`.
    """
    model = model_section(source, head_dim=head_dim, quick_gelu=quick_gelu)
    touch = model.get("touch", {}).get("name", "")
    slower = any(f"_{size}_" in touch for size in ("small", "base"))
    cfg = tvl_config(base_learning_rate=1.5e-4 if slower else 3e-4)
    missing = [tower for tower in ("touch", "image", "text") if tower not in model]
    cfg.model = {**model, **dict.fromkeys(missing)}
    cfg.total_steps = max(cfg.total_steps, source.step)
    _remove_modalities(cfg, missing, list(source.leaves))
    for tower in ("touch", "image"):
        if "image_size" in (model.get(tower) or {}):
            cfg.data[tower].size = model[tower]["image_size"]
    if "text" in model:
        cfg.data.text.max_tokens = model["text"]["context_length"]
    config.resolve(cfg)
    return cfg


def config_of(sources: Sequence[str]) -> ml_collections.ConfigDict:
    """Returns the config of files, to use them without a run directory.

    Raises:
      UserError: A file cannot be read or contains no supported model, or a size is undetermined.
    """
    return make_config(clip_load.read_all(sources))


def _remove_modalities(
    cfg: ml_collections.ConfigDict, missing: list[str], paths: list[str]
) -> None:
    """Removes the sections for missing modalities, in place.

    Args:
      cfg: A config of the touch task.
      missing: Modalities without a tower.
      paths: Paths of all arrays of the model.
    """
    frozen = cfg.optimizer.get("frozen", ())
    cfg.optimizer.frozen = tuple(
        pattern for pattern in frozen if any(re.search(pattern, path) for path in paths)
    )
    if not missing:
        return
    with cfg.unlocked(), cfg.ignore_type():
        for modality in missing:
            cfg.data[modality] = None
            if modality in cfg.augment:  # text is not augmented
                cfg.augment[modality] = None
        cfg.checkpoint.best = ""  # a metric of touch
        present = [m for m in ("touch", "image", "text") if m not in missing]
        for evaluator in cfg.evals.values():
            if evaluator.type == "semantic_retrieval":
                evaluator.pairs = ("_".join(present),)
            elif evaluator.type == "affinity":
                evaluator.query, evaluator.target = present[0], present[-1]
