"""Requests for features, and the arrays that answer them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from absl import logging

from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Request:
    """A split of a dataset and the function of the task that is applied to it.

    Made by `FeatureStore.request`.

    Attributes:
      predict: Name of the task's predict function.
      data: Dataset; '' for the (first) training dataset.
      split: Split of the dataset.
      batch_size: Number of examples in a batch, over all devices.
      views: JSON of the sections of the data config that are replaced.
      limit: Number of leading examples to use; 0 for all.
    """

    predict: str
    data: str
    split: str
    batch_size: int
    views: str
    limit: int

    def __str__(self) -> str:
        first = f" (first {self.limit} examples)" if self.limit else ""
        data = self.data or "config.data.train"
        return f"{self.predict} of split {self.split!r} of {data}{first}"


@dataclasses.dataclass(frozen=True)
class Features:
    """Host arrays of N examples, each example once, ordered by `example_id`.

    Attributes:
      arrays: {name: float32 [N, …]}. Pooled features and embeddings are [N, views, D].
      masks: {modality: float32 [N] or [N, captions]}, 1 where the modality is present.
      label: int32 [N] with -1 for unlabeled examples, or float32 [N, C] for multi-label data; None
        for data without labels.
      example_id: int32 [N].
      info: The `DatasetInfo` of the dataset.
      split: Split of the dataset.
      tokenizer: Tokenizer of the array 'text'; None without text.
      seconds: Time that the computation took.
    """

    arrays: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    label: np.ndarray | None
    example_id: np.ndarray
    info: Any
    split: str
    tokenizer: Any
    seconds: float

    def __len__(self) -> int:
        return len(self.example_id)

    @property
    def source(self) -> str:
        """Split and dataset, for messages."""
        return f"split {self.split!r} of {self.info.name}"

    def present(self, modality: str) -> np.ndarray:
        """Returns where a modality is present: bool [N, captions] for text, [N, 1] for others."""
        mask = self.masks.get(modality, np.ones(len(self)))
        return mask.reshape(len(self), -1) > 0

    def with_modalities(self, *modalities: str, section: str) -> np.ndarray:
        """Returns which examples have all the modalities, bool [N], and logs how many do not.

        Args:
          *modalities: Names of the modalities.
          section: Config key of the evaluator's section, for messages.

        Raises:
          UserError: No example has them all.
        """
        keep = np.all([self.present(m).any(axis=1) for m in modalities], axis=0)
        if not keep.any():
            raise UserError(
                f"config.{section}: no example of {self.source} has {' and '.join(modalities)}. "
                f"Select another dataset or split with config.{section}.data and "
                f"config.{section}.split."
            )
        if not keep.all():
            logging.info(
                "config.%s: %d of %d examples of %s lack %s and are skipped.",
                section,
                (~keep).sum(),
                len(keep),
                self.source,
                " or ".join(modalities),
            )
        return keep

    def labeled(self, name: str, *, section: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Returns `(array, labels)` of the examples that have a label and the array's modality.

        Args:
          name: Name of the array. The part before '/' is its modality.
          section: Config key of the evaluator's section, for messages.

        Raises:
          UserError: No example has both.
        """
        prefix = f"config.{section}: " if section else ""
        if self.label is None:
            raise UserError(
                f"{prefix}{self.source} has no labels, which are needed to evaluate {name!r}. "
                "Select a labeled dataset, and set config.data.label."
            )
        has_label = self.label >= 0 if self.label.ndim == 1 else np.ones(len(self), bool)
        keep = has_label & self.present(name.split("/")[0]).any(axis=1)
        if not keep.any():
            raise UserError(
                f"{prefix}no example of {self.source} has both a label and {name!r}. Select "
                "another dataset or split."
            )
        if not keep.all():
            logging.info(
                "%s%d of %d examples of %s have no label or no %s and are skipped.",
                prefix,
                (~keep).sum(),
                len(keep),
                self.source,
                name,
            )
        return self.arrays[name][keep], self.label[keep]
