"""A trained image encoder inside another task: images to embeddings and feature maps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax import config
from mmjax.config import Config
from mmjax.errors import UserError
from mmjax.modalities import INPUTS
from mmjax.models.decoders.base import EMBEDDING
from mmjax.tasks.predict import make_predict_task

# Modalities that encode images, in the order of preference.
MODALITIES = ("image", "video", "touch")
# Options of `config.model` of --task=guided that features do not depend on.
_GUIDED_HEADS = ("heads", "prototypes", "text_features")
# Options of `config.augment` for audio.
_AUDIO_OPTIONS = ("audio_noise", "audio_mixup", "spectrogram", "spec_augment")


def trunk_section(cfg: Config | Mapping[str, Any], num_classes: int | None = None) -> dict:
    """Returns the part of a run's config that its image encoder is built from.

    Args:
      cfg: The config of a run of any task.
      num_classes: Number of classes of its classifier; None without one.

    Raises:
      UserError: The run encodes no images.
    """
    cfg = config.resolve(cfg)
    modality = next((name for name in MODALITIES if cfg.data.get(name)), None)
    if modality is None:
        used = [name for name, value in cfg.data.items() if isinstance(value, Mapping)]
        raise UserError(
            f"This model (--task={cfg.task}) encodes no images: its config.data has the sections "
            f"{', '.join(used) or 'of no modality'}, but one of {', '.join(MODALITIES)} is needed."
        )
    options = {k: v for k, v in cfg.data[modality].items() if k not in ("features", "crops")}
    data: dict[str, Any] = {"train": "", modality: options}
    if num_classes is not None:
        data["label"] = {**(cfg.data.get("label") or {}), "num_classes": num_classes}
    others = [name for name in INPUTS if name != modality and name in cfg.model]
    unused = _GUIDED_HEADS if cfg.task == "guided" else ()
    model = {name: value for name, value in cfg.model.items() if name not in unused}
    return {
        "task": cfg.task,
        "model": {**model, **dict.fromkeys(others)},
        "augment": {name: v for name, v in cfg.augment.items() if name not in _AUDIO_OPTIONS},
        "data": data,
    }


class Trunk:
    """The image encoder of a run of any task, applied in evaluation mode.

    An encoder of video sees an image as a still clip.

    Args:
      section: From `trunk_section`.

    Attributes:
      task: The task of the run.
      modality: The modality that encodes images.
      size: Height and width in pixels of the images that it was trained on.

    Raises:
      UserError: An invalid section.
    """

    def __init__(self, section: Mapping[str, Any]):
        built = make_predict_task(config.Config(**section), {})
        self.task = built.task
        self.modality = next(name for name in MODALITIES if getattr(built.data, name))
        options = getattr(built.data, self.modality)
        self.size: int = options.size
        self._num_frames = options.num_frames if self.modality == "video" else 0

    def embedding(self, params: dict, extra: dict, images: jax.Array) -> jax.Array:
        """Returns pooled features [B, T, D] of images uint8 [B, T, H, W, 3]."""
        return self._predict("features", params, extra, images)[self.modality].astype(jnp.float32)

    def maps(self, params: dict, extra: dict, images: jax.Array) -> dict[str, jax.Array]:
        """Returns feature maps {name: [B, T, h, w, C]} of images uint8 [B, T, H, W, 3].

        Raises:
          UserError: The encoder has none.
        """
        if "maps" not in self.task.predict:
            raise UserError(
                f"The encoder (--task={type(self.task).__name__.lower()}, {self.modality}) has no "
                "feature maps, which pixelwise end tasks need. Use an encoder with a ResNet or a "
                "vision transformer for images."
            )
        return self._predict("maps", params, extra, images)

    def map_names(self) -> tuple[str, ...]:
        """Returns the names of the feature maps; () without any."""
        if "maps" not in self.task.predict:
            return ()
        images = jax.ShapeDtypeStruct((1, 1, self.size, self.size, 3), jnp.uint8)
        return tuple(jax.eval_shape(self.maps, *self.abstract(), images))

    def features(self) -> tuple[str, ...]:
        """Returns the names of everything that heads can read: see `mmjax.models.decoders`."""
        return EMBEDDING, *self.map_names()

    def tower(self, tree: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the part of parameters or statistics that belongs to the tower of images."""
        return tree.get(self.modality) or tree.get("backbone") or {}

    def abstract(self) -> tuple[dict, dict]:
        """Returns the abstract `(params, extra)`."""
        return jax.eval_shape(self.task.init, jax.random.key(0))

    def flops(self, shape: tuple[int, ...]) -> float:
        """Returns the forward operations for images of shape [B, T, H, W, 3]."""
        batch_size, views, height, width, _ = shape
        frames = (self._num_frames,) if self._num_frames else ()
        fields = {
            self.modality: jax.ShapeDtypeStruct((1, *frames, height, width, 3), jnp.uint8),
        }
        # A training step counts the backward pass as twice the forward pass.
        return batch_size * views * self.task.flops(fields) / 3

    def _predict(self, name: str, params: dict, extra: dict, images: jax.Array) -> Any:
        batch = {self.modality: images, f"{self.modality}_mask": jnp.ones(len(images))}
        if self._num_frames:
            frames = (*images.shape[:2], self._num_frames, *images.shape[2:])
            batch["video"] = jnp.broadcast_to(images[:, :, None], frames)
        return self.task.predict[name](params, extra, batch)


def embedding_width(trunk: Trunk) -> int:
    """Returns the width of the embeddings of an encoder."""
    images = jax.ShapeDtypeStruct((1, 1, trunk.size, trunk.size, 3), jnp.uint8)
    return math.prod(jax.eval_shape(trunk.embedding, *trunk.abstract(), images).shape)
