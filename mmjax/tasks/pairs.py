"""What tasks that compare pairs of modalities share."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mmjax.errors import UserError


def parse_weights(weights: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """{(first, second): weight} of {'first_second': weight}; pairs of weight 0 are left out.

    Raises:
      UserError: a name that is no pair, a negative weight, or no weight above 0.
    """
    pairs = {}
    for name, weight in weights.items():
        pair = tuple(name.split("_"))
        if len(pair) != 2 or not isinstance(weight, int | float) or weight < 0:
            raise UserError(
                f"config.loss.weights.{name}={weight!r}: write a pair of modalities and a number "
                "from 0, like video_text=1.0."
            )
        if weight:
            pairs[pair] = float(weight)
    if not pairs:
        raise UserError("config.loss.weights: no pair of modalities has a weight above 0.")
    return pairs


def fit_vocabulary(model: dict, vocab_size: int) -> dict:
    """A model's options with a word table for this tokenizer, unless they name its size.

    Raises:
      UserError: the table named is smaller than the vocabulary.
    """
    text = model.get("text", "")
    if text is None:
        return model
    text = {"name": text} if isinstance(text, str) and text else dict(text or {})
    size = text.setdefault("vocab_size", vocab_size)
    if size < vocab_size:
        raise UserError(
            f"config.model.text.vocab_size={size} is smaller than the tokenizer's vocabulary of "
            f"{vocab_size}: raise it, or give config.data.text a smaller vocabulary."
        )
    return model | {"text": text}


def present(batch: Mapping[str, jax.Array], modality: str) -> jax.Array:
    """float32 [B], 1 where the example has the modality."""
    mask = batch.get(f"{modality}_mask")
    if mask is None:
        return jnp.ones(len(batch[modality]), jnp.float32)
    return mask.reshape(len(mask), -1).max(axis=1)
