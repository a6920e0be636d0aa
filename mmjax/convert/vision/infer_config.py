"""Infers the config of image backbones and LGSSL checkpoints from the shapes of their arrays."""

from __future__ import annotations

import re
from typing import Any

import ml_collections

from mmjax import config
from mmjax.convert.clip import infer_config as clip_config
from mmjax.convert.shapes import HEAD_DIM, Shapes
from mmjax.convert.torch_source import TorchSource
from mmjax.convert.vision import load as vision_load
from mmjax.convert.vision import names as vision_names
from mmjax.pixel_statistics import IMAGENET_MEAN, IMAGENET_STD

_SIZE = 224  # image size in pixels of the published training and evaluation


def config_of(source: str) -> ml_collections.ConfigDict:
    """Returns the config of a file, to use it without a run directory.

    Raises:
      UserError: The file cannot be read or contains no such backbone, or a size is undetermined.
    """
    return make_config(vision_load.read(source))


def make_config(source: TorchSource, *, head_dim: int | None = None) -> ml_collections.ConfigDict:
    """Returns a complete config: the model of the file, and images as LGSSL evaluates them.

    The shorter side is resized to 224 pixels, or to the size of a ViT (PIL's bicubic filter), the
    center square is cropped, and pixels are normalized by ImageNet's mean and standard deviation.
    Some of timm's ViTs were trained with a mean and standard deviation of 0.5 instead
    (config.augment.image.mean and std), which a file does not tell. The model computes in float32.

    Args:
      source: The entries of the file.
      head_dim: See `model_section`.
    """
    cfg = config.base()
    cfg.task = "guided"
    cfg.model = model_section(source, head_dim=head_dim)
    cfg.total_steps = max(cfg.total_steps, source.step)
    size = cfg.model.image.get("image_size", _SIZE)
    cfg.data = dict(image=dict(size=size, resize="bicubic", square="crop_resized"))
    if "text" in cfg.model:
        length = cfg.model.text.context_length
        cfg.data.text = dict(tokenizer="clip", max_tokens=length, candidates=1)
        if "clip" not in cfg.model.heads and "projection" in cfg.model.heads:
            cfg.loss = dict(clip=dict(head="projection"))  # LGSLIP compares projections with text
    cfg.augment = dict(image=dict(mean=IMAGENET_MEAN, std=IMAGENET_STD))
    config.resolve(cfg)
    return cfg


def model_section(source: TorchSource, *, head_dim: int | None = None) -> dict[str, Any]:
    """Returns the section `model` of a config of the guided task.

    Args:
      source: The entries of the file.
      head_dim: Width of an attention head, which shapes do not determine; None for 64.

    Raises:
      UserError: An array that determines a size is missing, or its shape is not supported.
    """
    shapes = Shapes(source.leaves)
    backbone, head_dim = source.components["image"], head_dim or HEAD_DIM
    image = vision_names.backbone_options(backbone, shapes, "image", head_dim=head_dim)
    model: dict[str, Any] = dict(image=image)
    if "text" in source.components:
        # LGSSL's code uses OpenAI's GELU.
        text = clip_config.clip_text_options(shapes, head_dim)
        model["text"] = dict(text, name="clip_text_b", activation="quick_gelu")
    if heads := _head_options(shapes):
        model["heads"] = heads
    if "prototypes/kernel" in shapes:
        model["prototypes"] = shapes.sizes("prototypes/kernel", 2)[1]
    return model


def _head_options(shapes: Shapes) -> dict[str, dict[str, Any]]:
    last_layer: dict[str, int] = {}
    for path in shapes:
        if match := re.match(r"heads/(\w+)/linear/(\d+)/", path):
            head, layer = match[1], int(match[2])
            last_layer[head] = max(last_layer.get(head, 0), layer)
    return {
        head: dict(
            dims=tuple(
                shapes.sizes(f"heads/{head}/linear/{n}/kernel", 2)[1] for n in range(last + 1)
            ),
            final_norm=any(path.startswith(f"heads/{head}/norm/{last}/") for path in shapes),
        )
        for head, last in last_layer.items()
    }
