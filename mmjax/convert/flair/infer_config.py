"""Infers the config of FLAIR's files from the shapes of their arrays."""

from __future__ import annotations

from typing import Any

import ml_collections

from mmjax import config
from mmjax.convert.clip import infer_config as clip_config
from mmjax.convert.flair import load as flair_load
from mmjax.convert.shapes import HEAD_DIM, Shapes
from mmjax.convert.torch_source import TorchSource
from mmjax.errors import UserError
from mmjax.models.flair import ADAPTERS
from mmjax.published.flair import flair_config


def model_section(source: TorchSource, *, head_dim: int | None = None) -> dict[str, Any]:
    """Returns the section `model` of a config of the flair task.

    Args:
      source: The entries of the file.
      head_dim: Width of an attention head, which shapes do not determine; None for 64.

    Raises:
      UserError: An array that determines a size is missing, or its shape is not supported.
    """
    shapes, head_dim = Shapes(source.leaves), head_dim or HEAD_DIM
    width = shapes.sizes("image_projection/kernel", 2)[1]
    if width % head_dim:
        raise UserError(
            f"The width of the attention pooling, {width}, is not a multiple of the head dimension "
            f"{head_dim}. Set the head dimension with --head-dim."
        )
    return dict(
        image=clip_config.clip_image_options(shapes, head_dim),
        text=clip_config.clip_text_options(shapes, head_dim),
        width=width,
        num_heads=width // head_dim,
        adapters=tuple(name for name in ADAPTERS if f"{name}/kernel" in shapes),
    )


def make_config(source: TorchSource, *, head_dim: int | None = None) -> ml_collections.ConfigDict:
    """Returns a complete config: the model of the file in TTDL's training config, in float32.

    Args:
      source: The entries of the file.
      head_dim: See `model_section`.
    """
    model = model_section(source, head_dim=head_dim)
    cfg = flair_config(
        image_size=model["image"]["image_size"], max_tokens=model["text"]["context_length"]
    )
    cfg.model = model
    cfg.optimizer.frozen += tuple(f"^{name}/" for name in model["adapters"])
    config.resolve(cfg)
    return cfg


def config_of(source: str) -> ml_collections.ConfigDict:
    """Returns the config of a file, to use it without a run directory.

    Raises:
      UserError: The file cannot be read or does not contain FLAIR, or a size is undetermined.
    """
    return make_config(flair_load.read(source))
