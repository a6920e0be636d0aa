"""FLAIR's loss: sigmoid losses of images that are pooled as each caption asks, in float32.

Source: Xiao et al. 2024, "FLAIR: VLM with Fine-grained Language-informed Image Representations",
arXiv 2412.03561.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmjax.losses.similarity import EXCLUDED, map_chunks, normalize, products


def text_conditioned_sigmoid(
    tokens: jax.Array,
    texts: jax.Array,
    pool: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    logit_scale: jax.Array | float,
    logit_bias: jax.Array | float,
    key: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Returns FLAIR's loss of images that are pooled as each text asks (TCS).

    Each image is compared with its K captions and with one random caption of each other image. With
    one caption per image, that is every text of the batch. The tokens of the image are pooled by
    attention with the text as query, and the cosine of the result with the text is scaled. The
    loss is the sum over all pairs of softplus(∓logit), divided by the (mean) number of texts with
    which an image is compared: B + K − 1 if no caption is missing.

    Args:
      tokens: [B, N, D] of the images.
      texts: [B, K, D], the captions of each image.
      pool: Function `(queries [b, Q, D], tokens [b, N, D]) -> [b, Q, D]`.
      logit_scale: Factor of the cosines.
      logit_bias: Added to the scaled cosines.
      key: Random key that selects captions of other images; None selects their first ones.
      mask: [B], or [B, K] for each caption: 1 where both image and caption exist. Others are
        neither positives nor negatives.
      chunk_size: Number of images per chunk; must divide B. None compares all at once.

    Returns:
      A float32 scalar, or 0 if no example is valid.

    Raises:
      UserError: `chunk_size` does not divide B.
    """
    exists = _existing(texts, mask)
    owner, caption = _compared_texts(exists, key)
    compared = exists.any(axis=1)[:, None] & exists[owner, caption]

    def compare(block):
        image_tokens, index, owners, captions, is_compared = block
        queries = texts[owners, captions]  # [b, B + K − 1, D]
        pooled = normalize(pool(queries, image_tokens))
        cosine = jnp.einsum(
            "bqd,bqd->bq", pooled, normalize(queries), precision=jax.lax.Precision.HIGHEST
        )
        positive = owners == index[:, None]
        return _losses(logit_scale * cosine + logit_bias, positive, is_compared).sum(axis=1)

    arrays = (tokens, jnp.arange(len(exists)), owner, caption, compared)
    total = map_chunks(compare, arrays, chunk_size).sum()
    return total * exists.any(axis=1).sum() / jnp.maximum(compared.sum(), 1)


def multi_positive_sigmoid(
    images: jax.Array,
    texts: jax.Array,
    *,
    logit_scale: jax.Array | float,
    logit_bias: jax.Array | float,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Returns SigLIP's loss with K captions of each image (MPS), divided by the number of texts.

    Args:
      images: [B, D], pooled without a text.
      texts: [B, K, D], the captions of each image.
      logit_scale: Factor of the cosines.
      logit_bias: Added to the scaled cosines.
      mask: [B], or [B, K] for each caption: 1 where both image and caption exist. Others are
        neither positives nor negatives.
      chunk_size: Number of images per chunk; must divide B. None compares all at once.

    Returns:
      A float32 scalar, or 0 if no example is valid.

    Raises:
      UserError: `chunk_size` does not divide B.
    """
    count, num_captions, width = texts.shape
    exists = _existing(texts, mask)
    owners = jnp.repeat(jnp.arange(count), num_captions)
    captions = normalize(texts).reshape(-1, width)

    def compare(block):
        image, index, index_valid = block
        logits = logit_scale * products(image, captions) + logit_bias
        positive = owners == index[:, None]
        return _losses(logits, positive, index_valid[:, None] & exists.reshape(-1)).sum(axis=1)

    arrays = (normalize(images), jnp.arange(count), exists.any(axis=1))
    return map_chunks(compare, arrays, chunk_size).sum() / jnp.maximum(exists.sum(), 1)


def flair_loss(
    images: jax.Array,
    tokens: jax.Array,
    texts: jax.Array,
    pool: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    logit_scale: jax.Array | float,
    logit_bias: jax.Array | float,
    key: jax.Array | None = None,
    mask: jax.Array | None = None,
    multi_positive: bool = True,
    chunk_size: int | None = None,
) -> jax.Array:
    """Returns FLAIR's loss: the mean of both losses above, or only the first.

    Args:
      images: [B, D].
      tokens: [B, N, D].
      texts: [B, K, D].
      pool: See `text_conditioned_sigmoid`.
      logit_scale: Factor of the cosines.
      logit_bias: Added to the scaled cosines.
      key: See `text_conditioned_sigmoid`.
      mask: [B] or [B, K], 1 where both image and caption exist.
      multi_positive: Whether to include `multi_positive_sigmoid`.
      chunk_size: Number of images per chunk; must divide B. None compares all at once.

    Raises:
      UserError: `chunk_size` does not divide B.
    """
    options = dict(logit_scale=logit_scale, logit_bias=logit_bias, mask=mask, chunk_size=chunk_size)
    conditioned = text_conditioned_sigmoid(tokens, texts, pool, key=key, **options)
    if not multi_positive:
        return conditioned
    return 0.5 * (conditioned + multi_positive_sigmoid(images, texts, **options))


def _existing(texts: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns bool [B, K]: whether a caption of an image exists."""
    if mask is None:
        return jnp.ones(texts.shape[:2], bool)
    return jnp.broadcast_to((mask if mask.ndim == 2 else mask[:, None]) > 0, texts.shape[:2])


def _compared_texts(exists: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns the texts with which each image is compared, ordered by image.

    Args:
      exists: bool [B, K], the captions.
      key: See `text_conditioned_sigmoid`.

    Returns:
      int `(image, caption)`, each [B, B + K − 1].
    """
    count, num_captions = exists.shape
    own = jnp.arange(count)[:, None]
    column = jnp.arange(count + num_captions - 1)
    owner = jnp.where(column < own, column, jnp.maximum(column - num_captions + 1, own))
    if key is None or num_captions == 1:
        other = exists.argmax(axis=1)[owner]
    else:
        other = jax.random.categorical(key, jnp.where(exists, 0.0, EXCLUDED)[owner])
    return owner, jnp.where(owner == own, column - own, other)


def _losses(logits: jax.Array, positive: jax.Array, compared: jax.Array) -> jax.Array:
    """Returns softplus(∓logit) of compared pairs, and 0 of others."""
    logits = jnp.where(compared, logits, 0.0)
    return jnp.where(compared, jax.nn.softplus(jnp.where(positive, -logits, logits)), 0.0)
