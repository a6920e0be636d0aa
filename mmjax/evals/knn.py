"""Weighted nearest neighbors by cosine: what a frozen encoder knows, without training anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.evals import classification, metrics
from mmjax.evals.base import Evaluator, with_chance
from mmjax.evals.retrieval import aggregate_views

_MAX_SCORES = 2**24  # similarities held at once
_MAX_BLOCK = 1024


def knn_scores(
    train: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    num_classes: int,
    neighbors: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Votes [Q, C] of the nearest training examples, each with weight exp(cosine / temperature).

    The rule of Wu et al., "Unsupervised feature learning via non-parametric instance
    discrimination" (2018). Scores of a query are divided by its largest weight, which changes no
    order.

    Args:
      train: [N, D], normalized.
      labels: int [N].
      queries: [Q, D], normalized.
      num_classes: C.
      neighbors: how many vote; all of them if there are fewer.
      temperature: of the weights.
    """
    neighbors = min(neighbors, len(train))

    @jax.jit
    def block_scores(queries, train, labels):
        cosine = jnp.matmul(queries, train.T, precision=jax.lax.Precision.HIGHEST)
        nearest, where = jax.lax.top_k(cosine, neighbors)  # [Q, K]
        weight = jnp.exp((nearest - nearest[:, :1]) / temperature)
        rows = jnp.arange(len(queries))[:, None]
        return jnp.zeros((len(queries), num_classes)).at[rows, labels[where]].add(weight)

    block = max(1, min(len(queries), _MAX_BLOCK, _MAX_SCORES // len(train)))
    train, labels = jnp.asarray(train, jnp.float32), jnp.asarray(labels)
    scores = []
    for start in range(0, len(queries), block):
        part = np.asarray(queries[start : start + block], np.float32)
        missing = block - len(part)
        part = np.pad(part, ((0, missing), (0, 0)))
        scores.append(np.asarray(block_scores(part, train, labels))[: block - missing])
    return np.concatenate(scores)


class NearestNeighbors(Evaluator):
    """k-nearest-neighbor accuracy of frozen features (single labels).

    Several views of an example are averaged before features are normalized.

    Args:
      feature: output(s) of the task, e.g. 'video' or ('video', 'audio').
      data, train_split, split: dataset (default the one of training), where neighbors come from,
        and where accuracy is measured.
      batch_size: over all devices.
      views: what differs from the training's data config, e.g. `dict(video=dict(num_clips=4))`.
      neighbors: how many vote.
      temperature: of their weights exp(cosine / temperature).
      train_limit: only the first so many training examples (0: all).
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
        if neighbors < 1 or temperature <= 0:
            raise UserError(
                f"Evaluator {self.name}: neighbors={neighbors} must be at least 1 and "
                f"temperature={temperature} positive."
            )
        self._features = (feature,) if isinstance(feature, str) else tuple(feature)
        self._neighbors, self._temperature = neighbors, temperature
        common = dict(data=data, batch_size=batch_size, views=views)
        self._train = self.ask(self._features, split=train_split, limit=train_limit, **common)
        self._test = self.ask(self._features, split=split, **common)

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        train, test = self.store.get(state, self._train), self.store.get(state, self._test)
        result = {}
        for name in self._features:
            x, labels = train.labeled(name)
            queries, right = test.labeled(name)
            if labels.ndim > 1:
                raise UserError(f"Evaluator {self.name}: knn needs data with single labels.")
            num_classes = classification.num_classes(labels, right, train.info)
            scores = knn_scores(
                aggregate_views(x, "embd"),
                labels,
                aggregate_views(queries, "embd"),
                num_classes=num_classes,
                neighbors=self._neighbors,
                temperature=self._temperature,
            )
            found = {"top1": metrics.top_k_accuracy(scores, right, 1)}
            if num_classes > 5:
                found["top5"] = metrics.top_k_accuracy(scores, right, 5)
            guess = metrics.classification_chance(len(np.unique(labels)))
            found = with_chance(found, guess)
            result |= {f"{name}/{metric}": value for metric, value in found.items()}
        return result
