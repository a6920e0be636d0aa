"""Few-shot classification of frozen features in random episodes.

The protocol is LGSSL's (El Banani et al. 2023, arXiv 2302.12248): an episode is a classification
problem with a few classes and a few support examples per class.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mmjax.errors import UserError
from mmjax.evals import classification, metrics
from mmjax.evals.base import CHANCE, CONFIDENCE, DEVIATION, Evaluator, names_tuple
from mmjax.evals.features.arrays import Features

_MAX_VALUES = 2**22  # feature values that a block of episodes gathers
_TIE = 1e-6  # scores that differ by less are tied
_MIN_SQUARE = 1e-9  # squared lengths below this are rounding noise; the mean over features is 1


class Examples(NamedTuple):
    """Features grouped by class.

    The examples of class k are `x[indices[first[k] : first[k] + count[k]]]`.
    """

    x: jax.Array  # [N, D]
    indices: jax.Array  # [N]
    first: jax.Array  # [K]
    count: jax.Array  # [K]


def by_class(x: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> Examples:
    """Returns features [N, D] with labels [N], grouped by the classes [K] to use."""
    indices = np.argsort(labels, kind="stable")
    first, last = (np.searchsorted(labels[indices], classes, side=s) for s in ("left", "right"))
    x = jnp.asarray(x, jnp.float32)
    return Examples(x, *(jnp.asarray(part, jnp.int32) for part in (indices, first, last - first)))


def sample_subset(bits: jax.Array, total: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Samples n distinct indices below `total` uniformly; all of them if `total` is at most n.

    Floyd's algorithm: its running time does not depend on `total`.

    Args:
      bits: Random uint32 [n], one for each index.
      total: Number of items to sample from.

    Returns:
      Indices, int [n], and which of them are valid, bool [n].
    """
    size = bits.size
    order = jnp.arange(size)
    highest = jnp.maximum(total - size + order, 0)
    proposals = (bits % (highest + 1).astype(bits.dtype)).astype(highest.dtype)
    chosen = jnp.full(size, -1)
    for n in range(size):
        taken = (chosen == proposals[n]).any()
        chosen = chosen.at[n].set(jnp.where(taken, highest[n], proposals[n]))
    enough = total >= size
    return jnp.where(enough, chosen, order), enough | (order < total)


def random_bits(key: jax.Array, ways: int, shots: int, num_queries: int) -> tuple[jax.Array, ...]:
    """Returns the random numbers of an episode for its classes, support examples and queries.

    They are uint32 [ways], [ways, shots] and [ways, num_queries].
    """
    bits = jax.random.bits(key, (ways, 1 + shots + num_queries))
    return bits[:, 0], bits[:, 1 : 1 + shots], bits[:, 1 + shots :]


def _episode(support: Examples, queries: Examples, key, ways, shots, num_queries, average):
    """Returns the accuracy over the queries of one episode.

    Centered and normalized vectors are never computed. Only their inner products are needed, which
    follow from those of the features. That is one pass over the features instead of many.
    """
    class_bits, support_bits, query_bits = random_bits(key, ways, shots, num_queries)
    classes, _ = sample_subset(class_bits, support.first.size)

    def sample(examples, bits):
        chosen, valid = jax.vmap(sample_subset)(bits, examples.count[classes])
        offsets = examples.first[classes][:, None] + jnp.where(valid, chosen, 0)
        return examples.x[examples.indices[offsets].reshape(-1)], valid  # [ways * n, D], [ways, n]

    support_x, _ = sample(support, support_bits)
    query_x, valid = sample(queries, query_bits)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    within, across = product(support_x, support_x.T), product(query_x, support_x.T)
    # With the mean m of the support: <x - m, y - m> = <x, y> - <x, m> - <m, y> + <m, m>.
    with_mean, square = within.mean(0), within.mean()
    lengths = jnp.sum(query_x**2, axis=1) - 2 * across.mean(1) + square
    across = across - across.mean(1, keepdims=True) - with_mean + square
    within = within - with_mean - with_mean[:, None] + square
    scale = _inverse_root(jnp.diag(within))
    across = (across * scale * _inverse_root(lengths)[:, None]).reshape(-1, ways, shots)
    within = (within * scale * scale[:, None]).reshape(ways, shots, ways, shots)
    # Ascending distances |x - p| have the order of descending <x, p> - |p|² / 2.
    if average:
        squares = jnp.einsum("csct->c", within) / shots**2
        score = across.mean(-1) - 0.5 * squares  # [queries, ways]
    else:
        score = (across - 0.5 * jnp.einsum("cscs->cs", within)).max(-1)
    best = score >= score.max(-1, keepdims=True) - _TIE
    correct = jnp.repeat(jnp.eye(ways, dtype=bool), num_queries, axis=0)
    hits = jnp.where((best & correct).any(-1), 1.0 / best.sum(-1), 0.0)
    return jnp.sum(hits * valid.reshape(-1)) / jnp.sum(valid)


def _inverse_root(square: jax.Array) -> jax.Array:
    """Returns 1 / length of vectors with this squared length; 0 for rounding noise."""
    return jnp.where(square > _MIN_SQUARE, jax.lax.rsqrt(jnp.maximum(square, _MIN_SQUARE)), 0.0)


def accuracies(
    support: tuple[np.ndarray, np.ndarray],
    queries: tuple[np.ndarray, np.ndarray],
    *,
    classes: np.ndarray,
    episodes: int = 5000,
    ways: int = 5,
    shots: int = 5,
    num_queries: int = 6,
    average: bool = True,
    seed: int = 0,
) -> np.ndarray:
    """Returns the accuracy of every episode, float [episodes].

    An episode samples classes, and support examples and queries of each class. The mean of the
    support is subtracted from all vectors, which are then normalized. A query is assigned to the
    class with the nearest prototype, the mean of its support. A tie of n classes that includes the
    correct one counts as 1 / n of a hit.

    Args:
      support: Features [N, D] and labels int [N] to sample support examples from.
      queries: Features and labels to sample queries from.
      classes: Labels to sample from, each with at least `shots` support examples.
      episodes: Number of episodes.
      ways: Number of classes in an episode.
      shots: Number of support examples per class.
      num_queries: Number of queries per class; a class with fewer uses all that it has.
      average: If False, a query is assigned to the class of the nearest support example.
      seed: Seed of the samples. Episode n is the same for any number of episodes.
    """
    # Center and scale, which changes no result but keeps float32 precision.
    mean = support[0].mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.sqrt(np.mean(np.sum((support[0] - mean) ** 2, axis=1))) or 1.0
    parts = [by_class((x - mean) / scale, labels, classes) for x, labels in (support, queries)]
    size = ways * (shots + num_queries) * support[0].shape[1]
    block = max(1, min(episodes, _MAX_VALUES // size))
    # Only whole blocks, so that one shape is compiled.
    indices = jnp.arange(-(-episodes // block) * block).reshape(-1, block)
    result = _episodes(
        *parts, jax.random.key(seed), indices, (ways, shots, num_queries), average=average
    )
    return np.asarray(result).reshape(-1)[:episodes]


@functools.partial(jax.jit, static_argnums=4, static_argnames="average")
def _episodes(support: Examples, queries: Examples, key, indices, sizes, *, average) -> jax.Array:
    """Returns the accuracies [blocks, block] of the episodes with these indices."""

    def episode(index):
        return _episode(support, queries, jax.random.fold_in(key, index), *sizes, average)

    return jax.lax.map(jax.vmap(episode), indices)


class FewShot(Evaluator):
    """Accuracy of nearest prototypes over many small random classification problems.

    Reports the mean over episodes, their standard deviation, and the half width of the 95 %
    confidence interval. Classes with fewer than `shots` support examples or without queries are
    skipped and logged. The views of an example are averaged.

    Args:
      feature: Output(s) of the task, for example 'image' or ('image', 'touch'), each evaluated
        separately.
      data: Dataset; '' for the training dataset.
      train_split: Split of the support examples.
      valid_split: Further support examples, used with support='train+valid'.
      support: 'train' (LGSSL's published code) or 'train+valid'.
      split: Split of the queries.
      batch_size: Number of examples in a batch, over all devices.
      views: Changes of the data config.
      episodes: Number of episodes.
      ways: Number of classes in an episode.
      shots: Number of support examples per class.
      queries: Number of queries per class; a class with fewer uses all that it has.
      average_features: False assigns a query to the class of the nearest support example instead
        of the nearest mean.
      seed: Seed of the samples.
    """

    def __init__(
        self,
        *,
        feature: str | Sequence[str] = "image",
        data: str = "",
        train_split: str = "train",
        valid_split: str | None = None,
        support: Literal["train", "train+valid"] = "train",
        split: str = "test",
        batch_size: int = 64,
        views: Mapping[str, Any] | None = None,
        episodes: int = 5000,
        ways: int = 5,
        shots: int = 5,
        queries: int = 6,
        average_features: bool = True,
        seed: int = 0,
        **common: Any,
    ):
        super().__init__(**common)
        self.check_minimum(1, episodes=episodes, shots=shots, queries=queries)
        self.check_minimum(2, ways=ways)
        if support == "train+valid" and not valid_split:
            raise UserError(
                f"{self.key('support')}='train+valid' needs {self.key('valid_split')}. Set it to a "
                "split of the dataset, or set support='train'."
            )
        self._options = dict(episodes=episodes, num_queries=queries, seed=seed)
        self._ways, self._shots, self._average = ways, shots, average_features
        self._features = names_tuple(feature)
        common = dict(data=data, batch_size=batch_size, views=views)
        splits = (train_split, valid_split) if support == "train+valid" else (train_split,)
        support = [self.add_request(self._features, split=s, **common) for s in splits]
        self._fit = self.add_fit(support, self.add_request(self._features, split=split, **common))

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Returns mean, standard deviation and confidence interval for each feature."""
        fitted, scored = self.get_fit(state, self._fit)
        parts = [*fitted, scored]
        result = {}
        for name in self._features:
            arrays = []
            for features in parts:
                x, labels = features.labeled(name, section=self.section)
                classification.check_single_label(
                    labels, features, section=self.section, evaluator_type="few_shot"
                )
                arrays.append((x.mean(axis=1), labels))
            *support, queries = arrays
            support = tuple(np.concatenate(several) for several in zip(*support, strict=True))
            values = accuracies(
                support,
                queries,
                classes=self._classes(support[1], queries[1], name, parts),
                ways=self._ways,
                shots=self._shots,
                average=self._average,
                **self._options,
            )
            result[f"{name}/top1"] = float(values.mean())
            result[f"{name}/top1{CHANCE}"] = 1 / self._ways
            result[f"{name}/top1{CONFIDENCE}"] = metrics.half_width(values)
            result[f"{name}/top1{DEVIATION}"] = float(values.std())
        return result

    def _classes(
        self,
        labels: np.ndarray,
        query_labels: np.ndarray,
        name: str,
        parts: Sequence[Features],
    ) -> np.ndarray:
        """Returns the classes with enough support examples and at least one query."""
        classes = np.unique(np.concatenate([labels, query_labels]))
        counts = np.bincount(labels, minlength=classes[-1] + 1)[classes]
        usable = (counts >= self._shots) & np.isin(classes, query_labels)
        if not usable.all():
            logging.warning(
                "%s: %d of %d classes have fewer than %d support examples or no query and are "
                "skipped: %s",
                self.name,
                (~usable).sum(),
                len(usable),
                self._shots,
                classification.name_list([str(c) for c in classes[~usable]]),
            )
        if usable.sum() < self._ways:
            raise UserError(
                f"config.{self.section}: only {usable.sum()} classes of {parts[0].info.name} have "
                f"{self._shots} or more support examples of {name!r} "
                f"({self.key('shots')}={self._shots}) and a query, but an episode needs "
                f"{self._ways} ({self.key('ways')}={self._ways}). Support examples are from split "
                f"{' and '.join(repr(part.split) for part in parts[:-1])}, queries from split "
                f"{parts[-1].split!r}. Reduce ways or shots, or use larger splits."
            )
        return classes[usable]
