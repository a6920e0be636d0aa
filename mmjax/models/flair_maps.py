"""Maps of an image for a text from FLAIR's embeddings: attention and similarity of its patches.

Source: the published code of "Training Vision Tasks Using Diagnostic Text Description Loss" (TTDL).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from mmjax.errors import UserError, check_choice
from mmjax.losses.similarity import normalize
from mmjax.models.decoders.resize import resize_half_pixel, resize_nearest
from mmjax.models.flair import Encoded, Flair

Mode = Literal[
    "attention",
    "similarity",
    "max_token_attention",
    "mean_token_attention",
    "max_token_similarity",
    "mean_token_similarity",
]
Method = Literal["nearest", "bilinear"]
# The heads of the published model whose attention TTDL averages.
PUBLISHED_HEADS = (0, 3, 5, 7)
_NUM_PUBLISHED_HEADS = 8


class Maps(NamedTuple):
    """Maps of images for texts.

    Attributes:
      values: float32 [P, H, W], or [B, T, H, W].
      token: int32 of the same shape: the index of the token of the text that has the largest value;
        None unless `mode` is 'max_token_…'.
    """

    values: jax.Array
    token: jax.Array | None = None


def text_maps(
    model: Flair,
    images: Encoded,
    texts: Encoded,
    *,
    mode: Mode = "attention",
    broadcast: bool = False,
    size: tuple[int, int] | None = None,
    method: Method = "nearest",
    heads: Sequence[int] | None = None,
    token_mask: jax.Array | None = None,
) -> Maps:
    """Returns maps of images for texts.

    'attention' is the weight of each patch in the pooling for the text, averaged over heads. It
    sums to less than 1, because a part of the weight belongs to no token. 'similarity' is the
    cosine of each patch with the text. The other modes compute these for each token of the text,
    and take the maximum or mean.

    Args:
      model: The model.
      images: Embeddings of P images; with `broadcast`, of B images.
      texts: Embeddings of P texts; with `broadcast`, of T texts.
      mode: See above.
      broadcast: Whether to combine all images with all texts.
      size: Height and width to which maps are resized; None keeps one value per patch.
      method: How to resize: 'nearest', or 'bilinear' with centers of pixels at halves.
      heads: Heads to average over. None is those of TTDL if the model has the published number of
        heads, and all otherwise.
      token_mask: bool [P, W] or [T, W]: the tokens of the text to take into account. None is all,
        also padding, as in TTDL.

    Raises:
      UserError: An unknown mode or method, or patches that are not a square.
    """
    check_choice("mode", mode, get_args(Mode))
    per_token = mode not in ("attention", "similarity")
    queries = texts.tokens if per_token else texts.pooled[:, None]  # [P or T, Q, D]
    tokens = images.tokens[:, None] if broadcast else images.tokens
    if mode.endswith("attention"):
        values = _attention(model, tokens, queries, heads)
    else:
        values = jnp.einsum(
            "...nd,...qd->...qn",
            *(normalize(tokens), normalize(queries)),
            precision=jax.lax.Precision.HIGHEST,
        )
    token = None
    if not per_token:
        values = values[..., 0, :]
    else:
        mask = True if token_mask is None else token_mask[..., None]
        if mode.startswith("max"):
            values = jnp.where(mask, values, -jnp.inf)
            token = _unflatten(values.argmax(axis=-2).astype(jnp.int32), size, "nearest")
            values = values.max(axis=-2)
        else:
            values = values.mean(axis=-2, where=mask)
    return Maps(_unflatten(values, size, method), token)


def _attention(
    model: Flair, tokens: jax.Array, queries: jax.Array, heads: Sequence[int] | None
) -> jax.Array:
    """Returns the weights of the tokens, averaged over heads, float32 [..., Q, N]."""
    _, weights = model.pool(tokens, queries)
    if heads is None:
        published = weights.shape[-3] == _NUM_PUBLISHED_HEADS
        heads = PUBLISHED_HEADS if published else range(weights.shape[-3])
    return weights[..., tuple(heads), :, :-1].mean(axis=-3)


def _unflatten(values: jax.Array, size: tuple[int, int] | None, method: str) -> jax.Array:
    """Returns values [..., N] of patches in row-major order as resized maps [..., H, W]."""
    side = math.isqrt(values.shape[-1])
    if side * side != values.shape[-1]:
        raise UserError(
            f"Maps need square images; got {values.shape[-1]} patches, which are not a square."
        )
    check_choice("method", method, get_args(Method))
    values = values.reshape(*values.shape[:-1], side, side, 1)
    if size is not None:
        resize = resize_nearest if method == "nearest" else resize_half_pixel
        values = resize(values, tuple(size))
    return values[..., 0]
