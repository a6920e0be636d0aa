"""Losses of `--task=segment` that compare a segmentation model with diagnostic texts.

The text stage (`mmjax.text_stage`) adds these fields to a batch of B images. P is the number of
pairs of an image and a class that the batch has room for, and D the width of text embeddings:

    text/embedding   float32 [P, D]      text of each pair
    text/image       int32 [P]           index of its image
    text/valid       float32 [P]         1 if the pair exists and has a text
    text/negatives   float32 [P, M, D]   M negatives of each text
    text/overlay     float32 [P, D]      embedding of the image with its predicted mask
    text/maps        float32 [P, h, w]   attention of the text over the image of the difference

Source: the published code of "Training Vision Tasks Using Diagnostic Text Description Loss" (TTDL).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from mmjax.errors import UserError, check_choice
from mmjax.losses import siglip
from mmjax.losses.rescaled_cross_entropy import Normalization, pixel_weights, rescaled_cross_entropy
from mmjax.models.decoders.resize import resize_half_pixel
from mmjax.models.segmentation.adapters import Adapter

PREFIX = "text/"
EMBEDDING, IMAGE, VALID = f"{PREFIX}embedding", f"{PREFIX}image", f"{PREFIX}valid"
NEGATIVES, OVERLAY, MAPS = f"{PREFIX}negatives", f"{PREFIX}overlay", f"{PREFIX}maps"

LossName = Literal[
    "none",
    "rescale",
    "variable_text",
    "paired_negative",
    "grouped",
    "grouped_paired_negative",
    "grouped_slacked_negative",
]
WITH_NEGATIVES = ("paired_negative", "grouped_paired_negative", "grouped_slacked_negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextLoss:
    """The section `loss.text`.

    Attributes:
      name: 'none' trains with cross entropy alone; 'rescale' weights its pixels by the attention of
        texts (`mmjax.losses.rescaled_cross_entropy`); the others are contrastive losses of
        `mmjax.losses.siglip`.
      weight: Weight of a contrastive loss.
      convex: Whether the cross entropy has the weight 1 − `weight`, or else 1.
      scale: Factor of inner products.
      bias: Added to scaled inner products.
      learn_scale: Whether `scale` and `bias` are initial values of parameters.
      normalize: 'l2' compares vectors of unit length, 'none' compares them as they are.
      negative_weight: Factor of the sum over negatives of the grouped losses.
      num_negatives: Number of negatives that 'grouped_slacked_negative' reaches.
      exclude: Texts of a batch that are no negatives: 'same_image', copies of the own text
        ('same_text'), or 'none'.
      query: Which texts adapters that pool by a text are conditioned on: the pair's 'own' text for
        all comparisons, or each 'candidate' that it is compared with.
      detach_bottleneck: Whether a contrastive loss trains only the adapter.
      fuse_prediction: Whether the adapter's output is fused with the embedding of the image with
        its predicted mask, by the layer `concat_adapter`.
      alpha: Factor of the pixel weights of 'rescale'.
      trend: Function of these weights; see `pixel_weights`.
      exponent: Its exponent.
      normalize_over: 'image' or 'batch', whose sum of losses 'rescale' keeps, or 'none'.
      count_ignored: Whether 'rescale' divides by the number of all pixels, also ignored ones.

    Raises:
      UserError: An option that the loss does not have, or a value out of range.
    """

    name: LossName = "none"
    weight: float = 0.1
    convex: bool = True
    scale: float = 1.0
    bias: float = 0.0
    learn_scale: bool = False
    normalize: siglip.Normalization = "none"
    negative_weight: float = 1.0
    num_negatives: int = 0
    exclude: Literal["none", "same_image", "same_text"] = "none"
    query: Literal["own", "candidate"] = "own"
    detach_bottleneck: bool = False
    fuse_prediction: bool = False
    alpha: float = 10.0
    trend: str = "power"
    exponent: float = 0.8
    normalize_over: Normalization = "image"
    count_ignored: bool = False

    def __post_init__(self) -> None:
        check_choice("config.loss.text.name", self.name, get_args(LossName))
        if self.convex and not 0 <= self.weight <= 1 or self.weight < 0:
            raise UserError(
                f"config.loss.text.weight={self.weight} must be at least 0, and at most 1 with "
                "convex=True."
            )
        if self.learn_scale and self.scale <= 0:
            raise UserError(f"config.loss.text.scale={self.scale} must be positive to be learned.")
        unused = {key for one in get_args(LossName) for key in options_of(one)}
        unused -= options_of(self.name)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        wrong = [key for key in sorted(unused) if getattr(self, key) != defaults[key]]
        if wrong:
            raise UserError(
                f"config.loss.text.{wrong[0]}={getattr(self, wrong[0])!r} is not an option of "
                f"config.loss.text.name={self.name!r}. Remove it."
            )

    @property
    def contrastive(self) -> bool:
        """Whether the loss compares vectors of images with texts."""
        return self.name not in ("none", "rescale")

    @property
    def per_image(self) -> bool:
        """Whether the loss compares one vector per image, not one per pair."""
        return self.name in ("variable_text", "paired_negative")

    @property
    def needs_negatives(self) -> bool:
        """Whether batches need `text/negatives`."""
        return self.name in WITH_NEGATIVES


_RESCALE = {"alpha", "trend", "exponent", "normalize_over", "count_ignored"}
_CONTRASTIVE = {"weight", "convex", "scale", "bias", "learn_scale", "normalize"}
_CONTRASTIVE |= {"detach_bottleneck"}
_PAIRS = _CONTRASTIVE | {"negative_weight", "query", "fuse_prediction"}
_USED = {
    "none": set(),
    "rescale": _RESCALE,
    "variable_text": _CONTRASTIVE | {"exclude"},
    "paired_negative": _CONTRASTIVE,
    "grouped": _PAIRS | {"exclude"},
    "grouped_paired_negative": _PAIRS,
    "grouped_slacked_negative": _PAIRS | {"exclude", "num_negatives"},
}


def options_of(name: LossName) -> set[str]:
    """Returns the options of `TextLoss` that a loss has."""
    return _USED[name]


def rescaled(
    options: TextLoss, logits: jax.Array, target: jax.Array, batch: Mapping[str, jax.Array]
) -> jax.Array:
    """Returns the cross entropy whose pixels are weighted by the attention of texts.

    Args:
      options: The options.
      logits: [B, H, W, C].
      target: int32 [B, H, W, 1]; -1 is ignored.
      batch: The batch.
    """
    maps = resize_half_pixel(batch[MAPS][..., None], logits.shape[1:3])[..., 0]
    weights = pixel_weights(
        maps,
        batch[IMAGE],
        len(logits),
        valid=batch[VALID],
        trend=options.trend,
        exponent=options.exponent,
    )
    return rescaled_cross_entropy(
        logits,
        target,
        weights,
        alpha=options.alpha,
        normalize_over=options.normalize_over,
        count_ignored=options.count_ignored,
    )


def contrastive(
    options: TextLoss,
    adapter: Adapter,
    bottleneck: jax.Array,
    batch: Mapping[str, jax.Array],
    *,
    scale: jax.Array | float,
    bias: jax.Array | float,
    fuse: jax.Array | None = None,
) -> jax.Array:
    """Returns the contrastive loss of a batch, 0 without any text.

    Args:
      options: The options.
      adapter: The bottleneck adapter.
      bottleneck: [B, h, w, F].
      batch: The batch.
      scale: Factor of inner products.
      bias: Added to them.
      fuse: Kernel [2 · D, D] of `concat_adapter`.
    """
    if options.detach_bottleneck:
        bottleneck = jax.lax.stop_gradient(bottleneck)
    text, images, valid = batch[EMBEDDING], batch[IMAGE], batch[VALID]
    how = dict(scale=scale, bias=bias, normalize=options.normalize)
    texts = adapter.texts(text)
    if options.per_image:
        vectors = adapter(bottleneck, train=True)  # [B, D]
        logits = siglip.pair_logits(vectors, texts, **how)
        if options.name == "variable_text":
            return siglip.variable_text(
                logits,
                images,
                valid=valid,
                image_valid=batch["image_mask"],
                excluded=_same_text_per_image(options, text, images, valid, len(vectors)),
            )
        own = adapter.texts(batch[NEGATIVES])  # those of an image are those of its first pair
        first = jnp.argmax(images[None] == jnp.arange(len(vectors))[:, None], axis=1)
        return siglip.paired_negative(
            logits,
            images,
            siglip.negative_logits(vectors, own[first], **how),
            valid=valid,
            image_valid=batch["image_mask"],
            ignore_empty=True,
        )

    def vectors_for(queries: jax.Array, index: jax.Array) -> jax.Array:
        """Returns the vectors of the images at `index`, pooled as the queries ask, [N, D]."""
        vectors = adapter(bottleneck, queries, images[index], train=True)
        if fuse is None:
            return vectors
        both = jnp.concatenate([vectors, batch[OVERLAY][index]], axis=-1)
        return jnp.einsum("nd,de->ne", both, fuse, precision=jax.lax.Precision.HIGHEST)

    pairs, width = jnp.arange(len(text)), text.shape[-1]
    vectors = vectors_for(text, pairs)
    each = vectors  # compared with other texts of the batch
    if options.query == "candidate" and options.name != "grouped_paired_negative":
        count = len(text)
        each = vectors_for(jnp.tile(text, (count, 1)), jnp.repeat(pairs, count))
        each = each.reshape(count, count, -1)
    logits = siglip.pair_logits(each, texts, **how)
    common = dict(valid=valid, negative_weight=options.negative_weight)
    excluded = _excluded(options, text, images)
    if options.name == "grouped":
        return siglip.grouped(logits, images, excluded=excluded, **common)
    negatives = batch[NEGATIVES]
    if options.query == "candidate":
        count = negatives.shape[1]
        own = vectors_for(negatives.reshape(-1, width), jnp.repeat(pairs, count))
        own = own.reshape(len(text), count, -1)
    else:
        own = vectors
    negatives = siglip.negative_logits(own, adapter.texts(negatives), **how)
    if options.name == "grouped_paired_negative":
        return siglip.grouped_paired_negative(logits, images, negatives, **common)
    return siglip.grouped_slacked_negative(
        logits,
        images,
        negatives,
        num_negatives=options.num_negatives,
        excluded=excluded,
        **common,
    )


def _excluded(options: TextLoss, text: jax.Array, images: jax.Array) -> jax.Array | None:
    """Returns bool [P, P], the pairs of texts that are no negatives of each other."""
    if options.exclude == "none":
        return None
    return siglip.same_group(images) if options.exclude == "same_image" else siglip.same_text(text)


def _same_text_per_image(
    options: TextLoss, text: jax.Array, images: jax.Array, valid: jax.Array, num_images: int
) -> jax.Array | None:
    """Returns bool [B, P], the texts that are copies of a text of the image."""
    if options.exclude != "same_text":
        return None
    own = (images[None] == jnp.arange(num_images)[:, None]) & (valid > 0)  # [B, P]
    same = siglip.same_text(text)
    return (own.astype(jnp.float32) @ same.astype(jnp.float32)) > 0
