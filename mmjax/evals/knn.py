"""Weighted k-nearest-neighbor classification of frozen features, which trains nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.evals import classification, metrics
from mmjax.evals.base import Evaluator, names_tuple, with_chance
from mmjax.evals.blocks import map_blocks
from mmjax.evals.features.embeddings import aggregate_views


def knn_scores(
    train: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    num_classes: int,
    neighbors: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Returns the votes [Q, C] of the nearest training examples.

    Each neighbor has the weight exp(cosine / temperature), as in Wu et al., "Unsupervised feature
    learning via non-parametric instance discrimination" (2018). Scores of a query are divided by
    its largest weight, which does not change their order.

    Args:
      train: float [N, D], normalized.
      labels: int [N].
      queries: float [Q, D], normalized.
      num_classes: Number of classes C.
      neighbors: Number of neighbors that vote; at most N.
      temperature: Temperature of the weights.
    """
    neighbors = min(neighbors, len(train))

    @jax.jit
    def block_scores(queries, train, labels):
        cosine = jnp.matmul(queries, train.T, precision=jax.lax.Precision.HIGHEST)
        nearest, indices = jax.lax.top_k(cosine, neighbors)  # [Q, K]
        weight = jnp.exp((nearest - nearest[:, :1]) / temperature)
        query = jnp.arange(len(queries))[:, None]
        return jnp.zeros((len(queries), num_classes)).at[query, labels[indices]].add(weight)

    train, labels = jnp.asarray(train, jnp.float32), jnp.asarray(labels)
    (scores,) = map_blocks(
        lambda x: (block_scores(x, train, labels),),
        (np.asarray(queries, np.float32),),
        num_targets=len(train),
    )
    return scores


class NearestNeighbors(Evaluator):
    """k-nearest-neighbor accuracy of frozen features on single-label data.

    The views of an example are averaged before the features are normalized.

    Args:
      feature: Output(s) of the task, for example 'video' or ('video', 'audio').
      data: Dataset; '' for the training dataset.
      train_split: Split that neighbors come from.
      split: Split that accuracy is measured on.
      batch_size: Number of examples in a batch, over all devices.
      views: Changes of the data config, for example `dict(video=dict(num_clips=4))`.
      neighbors: Number of neighbors that vote.
      temperature: Temperature of their weights exp(cosine / temperature).
      train_limit: Number of leading training examples to use; 0 for all.
    """

    def __init__(
        self,
        *,
        feature: str | Sequence[str] = "video",
        data: str = "",
        train_split: str = "train",
        split: str = "test",
        batch_size: int = 64,
        views: Mapping[str, Any] | None = None,
        neighbors: int = 20,
        temperature: float = 0.07,
        train_limit: int = 0,
        **common: Any,
    ):
        super().__init__(**common)
        self.check_minimum(1, neighbors=neighbors)
        self.check_minimum(0, train_limit=train_limit)
        if temperature <= 0:
            raise UserError(f"{self.key('temperature')} must be positive; got {temperature}.")
        self._features = names_tuple(feature)
        self._neighbors, self._temperature = neighbors, temperature
        common = dict(data=data, batch_size=batch_size, views=views)
        train = self.add_request(self._features, split=train_split, limit=train_limit, **common)
        self._fit = self.add_fit([train], self.add_request(self._features, split=split, **common))

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Returns `top1` and, with more than 5 classes, `top5` of each feature."""
        (train,), test = self.get_fit(state, self._fit)
        result = {}
        for name in self._features:
            x, labels = train.labeled(name, section=self.section)
            queries, test_labels = test.labeled(name, section=self.section)
            classification.check_single_label(
                labels, train, section=self.section, evaluator_type="knn"
            )
            num_classes = classification.num_classes(labels, test_labels, train.info)
            scores = knn_scores(
                aggregate_views(x, "embd"),
                labels,
                aggregate_views(queries, "embd"),
                num_classes=num_classes,
                neighbors=self._neighbors,
                temperature=self._temperature,
            )
            values = {"top1": metrics.top_k_accuracy(scores, test_labels, 1)}
            if num_classes > 5:
                values["top5"] = metrics.top_k_accuracy(scores, test_labels, 5)
            chance = metrics.classification_chance(len(np.unique(labels)))
            values = with_chance(values, chance)
            result |= {f"{name}/{metric}": value for metric, value in values.items()}
        return result
