"""Class labels: the section `data.label` and its function of the input pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from mmjax.data.pipeline.common import Context, first_present
from mmjax.data.pipeline.phases import Features, Pipeline
from mmjax.data.storage import schema
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """The section `data.label`.

    Attributes:
      multi_label: Whether labels are vectors of zeros and ones instead of one class index.
      num_classes: Number of classes; 0 takes that of the dataset.
    """

    multi_label: bool = False
    num_classes: int = 0


def count_classes(options: Label, infos: Sequence[DatasetInfo]) -> int:
    """Returns the number of classes.

    Args:
      options: The section `data.label`.
      infos: Description of the dataset of each source.

    Raises:
      UserError: The section does not set it, and the datasets do not agree on one.
    """
    if options.num_classes:
        return options.num_classes
    counts = {info.num_classes for info in infos}
    if len(counts) != 1 or counts == {0}:
        listed = ", ".join(f"{info.name}: {info.num_classes or 'unknown'}" for info in infos)
        raise UserError(
            "data.label.num_classes=0 takes the number of classes from the datasets, but they do "
            f"not agree on one ({listed}). Set data.label.num_classes."
        )
    return counts.pop()


def add_label(pipeline: Pipeline, options: Label, context: Context) -> None:
    """Adds the batch field `label`.

    It is int32 [], -1 for an unlabeled example, or with `multi_label` float32 [C].

    Function: parse 'label'.
    """
    num_classes = context.num_classes
    for key in schema.LABELS:
        pipeline.context(key, tf.int64)

    def parse(features: Features) -> Features:
        labels = first_present(*(features[f"_context/{key}"] for key in schema.LABELS))
        invalid = tf.boolean_mask(labels, (labels < 0) | (labels >= num_classes))
        tf.debugging.Assert(
            tf.size(invalid) == 0,
            [
                "class index",
                invalid,
                f"is out of range; expected one in [0, {num_classes}). Set "
                "data.label.num_classes to the number of classes, or correct the labels",
            ],
        )
        if options.multi_label:
            label = tf.reduce_max(tf.one_hot(labels, num_classes), 0)
            label = tf.maximum(label, 0.0)  # The maximum over no label is -inf.
        else:
            label = tf.cast(tf.concat([labels, [-1]], 0)[0], tf.int32)
        return features | {"label": label}

    pipeline.add("parse", "label", parse)
