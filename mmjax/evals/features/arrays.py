"""Outputs of a model for the examples of a split, and what says which ones are wanted."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from absl import logging

from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Request:
    """Which examples go through which function of the task, and how they are cut. Made by the
    store.

    Attributes:
      predict: name of the task's function.
      data, split: the dataset ('' is the one of training) and its split.
      batch_size: examples of a batch over all devices.
      views: JSON of what replaces keys in sections of the data config.
      limit: only the first so many examples (0: all).
    """

    predict: str
    data: str
    split: str
    batch_size: int
    views: str
    limit: int

    def __str__(self) -> str:
        first = f" (the first {self.limit})" if self.limit else ""
        return f"{self.predict!r} of {self.data or 'the training dataset'}, {self.split}{first}"


@dataclasses.dataclass(frozen=True)
class Features:
    """Host arrays of N examples, ordered by `example_id`, each example once.

    Attributes:
      arrays: {name: float32 [N, …]}; pooled features and embeddings are [N, views, D].
      masks: {modality: float32 [N] or [N, captions]}, 1 where it is present.
      label: int32 [N], -1 for none, or float32 [N, C] for multi-label data; None without labels.
      example_id: int32 [N].
      info: the dataset's `DatasetInfo`.
      tokenizer: from captions to the numbers in `text`; None without text.
      seconds: what the computation took.
    """

    arrays: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    label: np.ndarray | None
    example_id: np.ndarray
    info: Any
    tokenizer: Any
    seconds: float

    def __len__(self) -> int:
        return len(self.example_id)

    def present(self, modality: str) -> np.ndarray:
        """bool [N, captions] for text, [N, 1] for others: what is there."""
        mask = self.masks.get(modality, np.ones(len(self)))
        return mask.reshape(len(self), -1) > 0

    def having(self, *modalities: str, who: str) -> np.ndarray:
        """bool [N]: the examples that have all these modalities; the log says how many do not.

        Args:
          modalities: their names.
          who: the evaluator that asks, for messages.

        Raises:
          UserError: no example has them.
        """
        there = np.all([self.present(m).any(axis=1) for m in modalities], axis=0)
        if not there.any():
            raise UserError(
                f"Evaluator {who}: no example of {self.info.name} has {' and '.join(modalities)}."
            )
        if not there.all():
            logging.info(
                "%s: %d of %d examples lack %s and are left out.",
                who,
                (~there).sum(),
                len(there),
                " or ".join(modalities),
            )
        return there

    def labeled(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """`(array, labels)` of the examples that have a label and the modality of this name.

        Raises:
          UserError: no example has one.
        """
        if self.label is None:
            raise UserError(f"{self.info.name} has no labels to evaluate {name!r} with.")
        has_label = self.label >= 0 if self.label.ndim == 1 else np.ones(len(self), bool)
        keep = has_label & self.present(name.split("/")[0]).any(axis=1)
        if not keep.any():
            raise UserError(f"No example of {self.info.name} has both a label and {name!r}.")
        if not keep.all():
            logging.info(
                "%d of %d examples of %s have no label or no %s and are left out.",
                (~keep).sum(),
                len(keep),
                self.info.name,
                name,
            )
        return self.arrays[name][keep], self.label[keep]
