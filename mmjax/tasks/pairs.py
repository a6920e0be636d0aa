"""Helpers of tasks that compare pairs of modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmjax import tree
from mmjax.errors import UserError

_THUMBNAIL = 96  # pixels


def parse_weights(weights: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """Returns {(first, second): weight} from {'first_second': weight} without zero weights.

    Raises:
      UserError: An invalid name, a negative weight, or only zero weights.
    """
    pairs = {}
    for name, weight in weights.items():
        pair = tuple(name.split("_"))
        if len(pair) != 2 or not isinstance(weight, int | float) or weight < 0:
            raise UserError(
                f"config.loss.weights.{name}={weight!r} must be a pair of modalities with a weight "
                "of at least 0, for example video_text=1.0."
            )
        if weight:
            pairs[pair] = float(weight)
    if not pairs:
        raise UserError(
            f"config.loss.weights={dict(weights)}: at least one weight must be greater than 0."
        )
    return pairs


def fit_vocabulary(model: dict, vocab_size: int) -> dict:
    """Returns model options whose token embedding fits a vocabulary.

    Args:
      model: The section `model`. A configured `text.vocab_size` is kept.
      vocab_size: Size of the tokenizer's vocabulary.

    Raises:
      UserError: The configured token embedding is smaller than the vocabulary.
    """
    text = model.get("text", "")
    if text is None:
        return model
    text = {"name": text} if isinstance(text, str) and text else dict(text or {})
    size = text.setdefault("vocab_size", vocab_size)
    if size < vocab_size:
        raise UserError(
            f"config.model.text.vocab_size={size} is smaller than the vocabulary of the tokenizer "
            f"({vocab_size}). Increase it, or set a smaller vocabulary in config.data.text.vocab."
        )
    return model | {"text": text}


def present(batch: Mapping[str, jax.Array], modality: str) -> jax.Array:
    """Returns float32 [B], 1 where the example has the modality."""
    mask = batch.get(f"{modality}_mask")
    if mask is None:
        return jnp.ones(len(batch[modality]), jnp.float32)
    return mask.reshape(len(mask), -1).max(axis=1)


def frozen_towers(
    modalities: Sequence[str], params: dict, patterns: Sequence[str]
) -> tuple[str, ...]:
    """Returns the modalities whose tower has only frozen parameters.

    Args:
      modalities: Modalities with a tower.
      params: The parameters of the model.
      patterns: `config.optimizer.frozen`.
    """
    paths = list(tree.flatten(params))
    matched = tree.first_match(patterns, paths, what="config.optimizer.frozen")
    trained = {path.split("/")[0] for path in paths if matched[path] is None}
    return tuple(modality for modality in modalities if modality not in trained)


def thumbnails(modalities: Sequence[str]) -> Callable[..., dict[str, jax.Array]]:
    """Returns the predict function of the inputs for figures, float32.

    Images are [B, V, h, w, 3] in [0, 255], at most 96 pixels high; text is token ids [B, L, W].

    Args:
      modalities: Images and text that the model encodes.
    """

    def inputs(params: Any, extra: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        del params, extra
        out = {}
        for modality in modalities:
            if modality not in batch:
                continue
            x = batch[modality].astype(jnp.float32)
            if modality != "text":
                size = min(_THUMBNAIL, x.shape[-2])
                x = jax.image.resize(x, (*x.shape[:2], size, size, 3), "linear")
            out[modality] = x
        return out

    return inputs
