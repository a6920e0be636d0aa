"""Helpers that several modalities of the pipeline share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mmjax.data.pipeline import crops
from mmjax.data.pipeline.phases import Features, Function, Pipeline
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.data.text.tokenizers import Tokenizer
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What a modality needs to know besides its own options.

    Attributes:
      train: Whether examples are for training; otherwise for evaluation.
      infos: Description of the dataset of each source.
      tokenizer: Tokenizer of the text; None without text.
      num_classes: Number of classes; None without labels.
      features: {modality: precomputed features of each source}, each [N, K, D]; see
        `mmjax.data.pipeline.precomputed_features`. They replace these modalities.
      views: Indices of the crops of `data.image.crops` to make; None for all.
    """

    train: bool
    infos: Sequence[DatasetInfo] = ()
    tokenizer: Tokenizer | None = None
    num_classes: int | None = None
    features: Mapping[str, Sequence[np.ndarray]] = dataclasses.field(default_factory=dict)
    views: Sequence[int] | None = None


# Adds the functions of a modality: (pipeline, options of its section, context).
AddFunction = Callable[[Pipeline, Any, Context], None]


def check_positive(section: str, options: Any, *names: str) -> None:
    """Raises UserError unless these integer options are at least 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise UserError(
                f"data.{section}.{name} must be at least 1; got {getattr(options, name)}."
            )


def encoded_parser(pipeline: Pipeline, key: str, name: str, mask: str) -> Function:
    """Returns a function of the parse phase that reads encoded images.

    Args:
      pipeline: The pipeline to request the feature from.
      key: Key of the images in the record: a feature list or a feature of the context.
      name: Feature to add: string [n], or one black image if the record has none.
      mask: Feature to add: 1.0 if the record has images, else 0.0.
    """
    pipeline.sequence(key, tf.string)
    pipeline.context(key, tf.string)
    black = tf.constant([crops.black_jpeg()])

    def parse(features: Features) -> Features:
        images = first_present(
            features[f"_sequence/{key}"].flat_values, features[f"_context/{key}"]
        )
        present = tf.size(images) > 0
        return features | {
            name: tf.cond(present, lambda: images, lambda: black),
            mask: tf.cast(present, tf.float32),
        }

    return parse


def first_present(first: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
    """Returns the first of these vectors that is not empty, or else the last."""
    if not others:
        return first
    return tf.cond(tf.size(first) > 0, lambda: first, lambda: first_present(*others))


def random_below(limit: tf.Tensor, seed: tf.Tensor, *, shape: Sequence[int] = ()) -> tf.Tensor:
    """Returns int32 `shape`, uniform in [0, limit)."""
    return tf.random.stateless_uniform(shape, seed, 0, limit, tf.int32)
