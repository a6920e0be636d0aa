"""Retrieval between two modalities: the rank of each query's own example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.evals import metrics
from mmjax.evals.base import Evaluator, names_tuple, with_chance
from mmjax.evals.blocks import map_blocks
from mmjax.evals.features.arrays import Features
from mmjax.evals.features.embeddings import aggregate_views, first_caption, normalize

# Cosines that differ by less are tied: float32 rounding depends on a vector's position in a matrix.
TIE = 1e-6
Aggregate = Literal["embd", "cosine"]
_SUFFIXES = {"embd": "", "cosine": "_cosine"}  # of metric names


@jax.jit
def _count_block(queries, query_ids, targets, target_ids):
    scores = jnp.matmul(queries, targets.T, precision=jax.lax.Precision.HIGHEST)
    positive = query_ids[:, None] == target_ids[None]
    best = jnp.max(jnp.where(positive, scores, -jnp.inf), axis=1, keepdims=True)
    greater = jnp.sum(~positive & (scores > best + TIE), axis=1)
    ties = jnp.sum(~positive & (jnp.abs(scores - best) <= TIE), axis=1)
    return greater, ties


def count_better(
    queries: np.ndarray, query_ids: np.ndarray, targets: np.ndarray, target_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many negatives score above, and equal to, each query's best positive.

    Args:
      queries: [Q, D], compared by inner product.
      query_ids: int [Q], example of each query.
      targets: [N, D].
      target_ids: int [N], example of each target. Targets with the query's id are its positives.

    Returns:
      `(greater, ties)`, int [Q] each, for `metrics.rank_metrics`.
    """
    targets, target_ids = jnp.asarray(targets, jnp.float32), jnp.asarray(target_ids)
    greater, ties = map_blocks(
        lambda x, ids: _count_block(x, ids, targets, target_ids),
        (np.asarray(queries, np.float32), query_ids),
        num_targets=len(targets),
    )
    return greater, ties


class Retrieval(Evaluator):
    """Retrieves `target` by `query`: R@1, R@5, R@10 (fractions), median and mean rank from 1.

    Metrics are called `text_to_video/R@1`, and `text_to_video_cosine/R@1` for the second
    aggregation. Examples that lack one of the two modalities are skipped. Tied targets count as in
    random order.

    Args:
      query, target: Modalities. Several names evaluate all pairs of different modalities. The
        embeddings are the task's outputs 'query/target' and 'target/query'.
      data: Dataset; '' for the training dataset.
      split: Split of the dataset.
      batch_size: Number of examples in a batch, over all devices.
      views: Changes of the data config, for example `dict(video=dict(num_clips=4))`.
      aggregate: How the embeddings of several views are combined; 'embd', 'cosine' or both, see
        `aggregate_views`.
      captions: 'first' uses the first caption of an example. 'all' makes a query of each caption;
        as targets, the best caption of the correct example counts.
      limit: Number of leading examples to use; 0 for all.
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
        aggregate: Aggregate | Sequence[Aggregate] = "embd",
        captions: Literal["first", "all"] = "first",
        limit: int = 0,
        **common: Any,
    ):
        super().__init__(**common)
        queries, targets = names_tuple(query), names_tuple(target)
        self._pairs = [(q, t) for q in queries for t in targets if q != t]
        if not self._pairs:
            raise UserError(
                f"{self.key('query')}={query!r} and {self.key('target')}={target!r} must name at "
                "least two different modalities, for example query='text', target='video'."
            )
        self._aggregate = names_tuple(aggregate)
        self._captions = captions
        self._request = self.add_request(
            [name for q, t in self._pairs for name in (f"{q}/{t}", f"{t}/{q}")],
            data=data,
            split=split,
            batch_size=batch_size,
            views=views,
            limit=limit,
        )

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Returns the rank metrics of all pairs and aggregations."""
        features = self.store.get(state, self._request)
        result = {}
        for query, target in self._pairs:
            for how in self._aggregate:
                name = f"{query}_to_{target}{_SUFFIXES[how]}"
                for metric, value in self._evaluate_pair(features, query, target, how).items():
                    result[f"{name}/{metric}"] = value
        return result

    def _evaluate_pair(
        self, features: Features, query: str, target: str, how: Aggregate
    ) -> dict[str, float]:
        present = features.with_modalities(query, target, section=self.section)
        queries, query_ids = self._vectors(features, query, target, present, how)
        targets, target_ids = self._vectors(features, target, query, present, how)
        greater, ties = count_better(queries, query_ids, targets, target_ids)
        num_positives = np.bincount(target_ids, minlength=len(present))[query_ids]
        return with_chance(
            metrics.rank_metrics(greater, ties), metrics.rank_chance(num_positives, len(targets))
        )

    def _vectors(
        self, features: Features, modality: str, other: str, present: np.ndarray, how: Aggregate
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the vectors [Q, D] of a modality, and the example [Q] of each."""
        embeddings = features.arrays[f"{modality}/{other}"]
        if modality != "text":
            return aggregate_views(embeddings[present], how), np.flatnonzero(present)
        exists = features.present("text") & present[:, None]  # captions are not views of one text
        if self._captions == "first":
            exists = first_caption(exists)
        example, caption = np.nonzero(exists)
        return normalize(embeddings[example, caption]), example
