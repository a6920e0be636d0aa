"""Zero-shot retrieval between two modalities: the rank of each query's own example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError, choose
from mmjax.evals import metrics
from mmjax.evals.base import Evaluator, with_chance
from mmjax.evals.features.store import Features

# Cosines closer than this are a tie: float32 rounding depends on where in a matrix a vector stands.
TIE = 1e-6
_AGGREGATES = {"embd": "", "cosine": "_cosine"}  # and what they add to a metric's name
_MAX_SCORES = 2**24  # scores held at once
_MAX_BLOCK = 1024


def normalize(x: np.ndarray) -> np.ndarray:
    """Vectors [..., D] of length 1; a vector of zeros stays one."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def aggregate_views(embeddings: np.ndarray, how: str) -> np.ndarray:
    """One vector [N, D] from the embeddings [N, V, D] of several windows (VATT's two variants).

    `embd` normalizes the mean of the windows. `cosine` is the mean of the normalized windows, so
    that an inner product with it is the mean of the windows' cosines.
    """
    if how == "embd":
        return normalize(embeddings.mean(axis=1))
    return normalize(embeddings).mean(axis=1)


def first_caption(exists: np.ndarray) -> np.ndarray:
    """bool [N, L] that is true at the first caption of each example, of those that `exists`."""
    return exists & (np.cumsum(exists, axis=1) == 1)


@jax.jit
def _count_block(queries, query_ids, targets, target_ids):
    scores = jnp.matmul(queries, targets.T, precision=jax.lax.Precision.HIGHEST)
    own = query_ids[:, None] == target_ids[None]
    best = jnp.max(jnp.where(own, scores, -jnp.inf), axis=1, keepdims=True)
    greater = jnp.sum(~own & (scores > best + TIE), axis=1)
    ties = jnp.sum(~own & (jnp.abs(scores - best) <= TIE), axis=1)
    return greater, ties


def count_better(
    queries: np.ndarray, query_ids: np.ndarray, targets: np.ndarray, target_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many foreign targets score above, and the same as, the best of each query's own targets.

    Works on blocks of queries, so that the matrix of all scores is never stored.

    Args:
      queries: [Q, D], compared by inner product.
      query_ids: [Q] which example each is of.
      targets: [N, D].
      target_ids: [N] which example each is of; targets with the query's id are its own.

    Returns:
      `(greater, ties)`, int [Q] each, for `metrics.rank_metrics`.
    """
    block = max(1, min(len(queries), _MAX_BLOCK, _MAX_SCORES // len(targets)))
    targets, target_ids = jnp.asarray(targets, jnp.float32), jnp.asarray(target_ids)
    found = []
    for start in range(0, len(queries), block):
        part, ids = queries[start : start + block], query_ids[start : start + block]
        missing = block - len(part)  # the last block is filled up: one shape, one compilation
        part = np.pad(np.asarray(part, np.float32), ((0, missing), (0, 0)))
        counts = _count_block(part, np.pad(ids, (0, missing)), targets, target_ids)
        found.append([np.asarray(count)[: block - missing] for count in counts])
    greater, ties = (np.concatenate(counts) for counts in zip(*found, strict=True))
    return greater, ties


class Retrieval(Evaluator):
    """Retrieval of `target` by `query`; R@1, R@5, R@10 (fractions), median and mean rank from 1.

    Metrics are called `text_to_video/R@1`, and `text_to_video_cosine/R@1` for the second
    aggregation. Examples that lack one of the two modalities are left out. Tied targets count as in
    random order.

    Args:
      query, target: modalities; several make all pairs of different ones. The embeddings are the
        task's outputs 'query/target' and 'target/query'.
      data: dataset; default the one of training.
      split: of the dataset.
      batch_size: over all devices.
      views: what differs from the training's data config, e.g. `dict(video=dict(num_clips=4))`.
      aggregate: how the embeddings of several windows are compared, 'embd' or 'cosine' or both.
      captions: 'first' uses the first caption of a clip; 'all' makes a query of each, and as
        targets the best placed caption of the right clip counts.
      limit: only the first so many examples (0: all).
    """

    def __init__(
        self,
        *,
        query: str | Sequence[str] = "text",
        target: str | Sequence[str] = "video",
        data: str = "",
        split: str = "test",
        batch_size: int = 64,
        views: Mapping[str, Any] | None = None,
        aggregate: str | Sequence[str] = "embd",
        captions: str = "first",
        limit: int = 0,
        **common: Any,
    ):
        super().__init__(**common)
        query = (query,) if isinstance(query, str) else query
        target = (target,) if isinstance(target, str) else target
        self._pairs = [(q, t) for q in query for t in target if q != t]
        if not self._pairs:
            raise UserError(f"Evaluator {self.name}: no pair in query={query}, target={target}.")
        self._aggregate = (aggregate,) if isinstance(aggregate, str) else tuple(aggregate)
        for how in self._aggregate:
            choose("aggregate", how, _AGGREGATES)
        choose("captions", captions, {"first": 0, "all": 0})
        self._captions = captions
        self._request = self.ask(
            [name for q, t in self._pairs for name in (f"{q}/{t}", f"{t}/{q}")],
            data=data,
            split=split,
            batch_size=batch_size,
            views=views,
            limit=limit,
        )

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        features = self.store.get(state, self._request)
        result = {}
        for query, target in self._pairs:
            for how in self._aggregate:
                name = f"{query}_to_{target}{_AGGREGATES[how]}"
                for metric, value in self._evaluate_pair(features, query, target, how).items():
                    result[f"{name}/{metric}"] = value
        return result

    def _evaluate_pair(
        self, features: Features, query: str, target: str, how: str
    ) -> dict[str, float]:
        present = features.having(query, target, who=self.name)
        queries, query_ids = self._side(features, query, target, present, how)
        targets, target_ids = self._side(features, target, query, present, how)
        greater, ties = count_better(queries, query_ids, targets, target_ids)
        num_own = np.bincount(target_ids, minlength=len(present))[query_ids]
        return with_chance(
            metrics.rank_metrics(greater, ties), metrics.rank_chance(num_own, len(targets))
        )

    def _side(
        self, features: Features, modality: str, other: str, present: np.ndarray, how: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vectors [Q, D] of one side and which example [Q] each is of."""
        embeddings = features.arrays[f"{modality}/{other}"]
        if modality != "text":
            return aggregate_views(embeddings[present], how), np.flatnonzero(present)
        exists = features.present("text") & present[:, None]  # captions are not windows of one text
        if self._captions == "first":
            exists = first_caption(exists)
        example, caption = np.nonzero(exists)
        return normalize(embeddings[example, caption]), example
