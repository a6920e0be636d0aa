"""Few-shot classification of frozen features: episodes of a few classes with a few examples each,
as LGSSL evaluates (El Banani et al. 2023, arXiv 2302.12248)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mmjax.errors import UserError, choose
from mmjax.evals import metrics
from mmjax.evals.base import CHANCE, CONFIDENCE, DEVIATION, Evaluator

_MAX_VALUES = 2**22  # features that a block of episodes gathers
_TIE = 1e-6  # scores closer than this are equal
_NOTHING = 1e-9  # a squared length, where that of all features is 1 in the mean


class Examples(NamedTuple):
    """Features by class: those of class k are `x[rows[first[k] : first[k] + count[k]]]`."""

    x: jax.Array  # [N, D]
    rows: jax.Array  # [N]
    first: jax.Array  # [K]
    count: jax.Array  # [K]


def by_class(x: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> Examples:
    """Features [N, D] with labels [N], by the classes [K] that count."""
    rows = np.argsort(labels, kind="stable")
    first, last = (np.searchsorted(labels[rows], classes, side=s) for s in ("left", "right"))
    x = jnp.asarray(x, jnp.float32)
    return Examples(x, *(jnp.asarray(part, jnp.int32) for part in (rows, first, last - first)))


def draw(bits: jax.Array, total: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Different numbers below `total`, any such set equally likely; all of them if they are fewer
    than asked for.

    Floyd's algorithm: its time does not depend on `total`.

    Args:
      bits: uint32 [n], random, one for each number that is asked for.
      total: how many there are.

    Returns:
      int [n], and bool [n]: which of them there are.
    """
    number = bits.size
    place = jnp.arange(number)
    highest = jnp.maximum(total - number + place, 0)
    tries = (bits % (highest + 1).astype(bits.dtype)).astype(highest.dtype)
    chosen = jnp.full(number, -1)
    for n in range(number):
        chosen = chosen.at[n].set(jnp.where((chosen == tries[n]).any(), highest[n], tries[n]))
    enough = total >= number
    return jnp.where(enough, chosen, place), enough | (place < total)


def random_bits(key: jax.Array, ways: int, shots: int, num_queries: int) -> tuple[jax.Array, ...]:
    """uint32 [ways], [ways, shots] and [ways, num_queries]: for all draws of an episode."""
    bits = jax.random.bits(key, (ways, 1 + shots + num_queries))
    return bits[:, 0], bits[:, 1 : 1 + shots], bits[:, 1 + shots :]


def _episode(support: Examples, queries: Examples, key, ways, shots, num_queries, average):
    """Accuracy over the queries of one episode.

    Centered and normalized vectors are never made: all that is asked of them are inner products,
    which follow from those of the features. That is one pass over the features instead of many.
    """
    of_classes, of_support, of_queries = random_bits(key, ways, shots, num_queries)
    classes, _ = draw(of_classes, support.first.size)

    def pick(examples, bits):
        chosen, there = jax.vmap(draw)(bits, examples.count[classes])
        rows = examples.rows[examples.first[classes][:, None] + jnp.where(there, chosen, 0)]
        return examples.x[rows.reshape(-1)], there  # [ways * number, D], [ways, number]

    known, _ = pick(support, of_support)
    asked, there = pick(queries, of_queries)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    within, across = product(known, known.T), product(asked, known.T)
    # Less the mean m of the support: <x - m, y - m> = <x, y> - <x, m> - <m, y> + <m, m>.
    with_mean, square = within.mean(0), within.mean()
    lengths = jnp.sum(asked**2, axis=1) - 2 * across.mean(1) + square
    across = across - across.mean(1, keepdims=True) - with_mean + square
    within = within - with_mean - with_mean[:, None] + square
    scale = _inverse_root(jnp.diag(within))
    across = (across * scale * _inverse_root(lengths)[:, None]).reshape(-1, ways, shots)
    within = (within * scale * scale[:, None]).reshape(ways, shots, ways, shots)
    # The order of Euclidean distances to x is that of <x, p> - |p|² / 2, the other way round.
    if average:
        squares = jnp.einsum("csct->c", within) / shots**2
        score = across.mean(-1) - 0.5 * squares  # [queries, ways]
    else:
        score = (across - 0.5 * jnp.einsum("cscs->cs", within)).max(-1)
    best = score >= score.max(-1, keepdims=True) - _TIE
    right = jnp.repeat(jnp.eye(ways, dtype=bool), num_queries, axis=0)
    hits = jnp.where((best & right).any(-1), 1.0 / best.sum(-1), 0.0)
    return jnp.sum(hits * there.reshape(-1)) / jnp.sum(there)


def _inverse_root(square: jax.Array) -> jax.Array:
    """1 / length of vectors with this squared length; 0 for those that are rounding noise."""
    return jnp.where(square > _NOTHING, jax.lax.rsqrt(jnp.maximum(square, _NOTHING)), 0.0)


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
    """Accuracy of every episode, float [episodes].

    Each takes some classes, some support examples and some queries of each class. The mean of the
    support is subtracted from all, they get length 1, and a query goes to the class with the
    nearest prototype, the mean of its support. Tied classes share a hit.

    Args:
      support, queries: features [N, D] and labels int [N].
      classes: the labels to draw from, each with at least `shots` in the support.
      episodes: how many.
      ways, shots, num_queries: classes, support examples and queries of a class in an episode; a
        class with fewer queries gives all that it has.
      average: False compares with every support example, of which the nearest decides.
      seed: of all draws; episode n is the same however many there are.
    """
    # Less their mean and scaled, which changes nothing but keeps the digits of float32.
    mean = support[0].mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.sqrt(np.mean(np.sum((support[0] - mean) ** 2, axis=1))) or 1.0
    parts = [by_class((x - mean) / scale, labels, classes) for x, labels in (support, queries)]
    size = ways * (shots + num_queries) * support[0].shape[1]
    block = max(1, min(episodes, _MAX_VALUES // size))
    # Whole blocks: a rest would be compiled a second time.
    numbers = jnp.arange(-(-episodes // block) * block).reshape(-1, block)
    found = _episodes(
        *parts, jax.random.key(seed), numbers, (ways, shots, num_queries), average=average
    )
    return np.asarray(found).reshape(-1)[:episodes]


@functools.partial(jax.jit, static_argnums=4, static_argnames="average")
def _episodes(support: Examples, queries: Examples, key, numbers, sizes, *, average) -> jax.Array:
    """Accuracies [blocks, block] of episodes of these numbers."""

    def one(number):
        return _episode(support, queries, jax.random.fold_in(key, number), *sizes, average)

    return jax.lax.map(jax.vmap(one), numbers)


class FewShot(Evaluator):
    """Accuracy of nearest prototypes over many small random classification problems.

    Classes with fewer than `shots` support examples, or without queries, are left out and named in
    the log. The mean over episodes has a standard deviation over them and half of its 95 %
    confidence interval. Several views of an example are averaged.

    Args:
      feature: output(s) of the task, e.g. 'image' or ('image', 'touch'), each on its own.
      data: dataset; default the one of training.
      train_split: the examples that are shown.
      valid_split: more of them, with `support='train+valid'`.
      support: 'train' (LGSSL's published code) or 'train+valid'.
      split: the examples that are asked for.
      batch_size: over all devices.
      views: what differs from the training's data config.
      episodes: how many problems.
      ways: classes of each.
      shots, queries: support examples and queries of each class; all queries if there are fewer.
      average_features: False: the nearest support example decides instead of the nearest mean.
      seed: of the draws.
    """

    def __init__(
        self,
        *,
        feature: str | Sequence[str] = "image",
        data: str = "",
        train_split: str = "train",
        valid_split: str | None = None,
        support: str = "train",
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
        numbers = dict(episodes=episodes, ways=ways, shots=shots, queries=queries)
        for key, value in numbers.items():
            least = 2 if key == "ways" else 1
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"Evaluator {self.name}: {key}={value!r} must be a number from {least}."
                )
        self._options = dict(episodes=episodes, num_queries=queries, seed=seed)
        self._ways, self._shots, self._average = ways, shots, average_features
        self._features = (feature,) if isinstance(feature, str) else tuple(feature)
        common = dict(data=data, batch_size=batch_size, views=views)
        choose(f"support of evaluator {self.name}", support, {"train": 0, "train+valid": 0})
        if support == "train+valid" and not valid_split:
            raise UserError(f"Evaluator {self.name}: support='train+valid' needs valid_split=….")
        shown = (train_split, valid_split) if support == "train+valid" else (train_split,)
        self._support = [self.ask(self._features, split=part, **common) for part in shown]
        self._queries = self.ask(self._features, split=split, **common)

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        result = {}
        for name in self._features:
            parts = [
                self.store.get(state, one).labeled(name) for one in (*self._support, self._queries)
            ]
            if parts[0][1].ndim > 1:
                raise UserError(f"Evaluator {self.name}: few_shot needs data with single labels.")
            *known, asked = [(x.mean(axis=1), labels) for x, labels in parts]
            support = tuple(np.concatenate(several) for several in zip(*known, strict=True))
            found = accuracies(
                support,
                asked,
                classes=self._classes(support[1], asked[1], name),
                ways=self._ways,
                shots=self._shots,
                average=self._average,
                **self._options,
            )
            result[f"{name}/top1"] = float(found.mean())
            result[f"{name}/top1{CHANCE}"] = 1 / self._ways
            result[f"{name}/top1{CONFIDENCE}"] = metrics.half_width(found)
            result[f"{name}/top1{DEVIATION}"] = float(found.std())
        return result

    def _classes(self, labels: np.ndarray, asked: np.ndarray, name: str) -> np.ndarray:
        """The classes to draw from."""
        classes = np.unique(np.concatenate([labels, asked]))
        counts = np.bincount(labels, minlength=classes[-1] + 1)[classes]
        kept = (counts >= self._shots) & np.isin(classes, asked)
        if not kept.all():
            logging.warning(
                "%s: %d of %d classes have fewer than %d support examples or no query and are "
                "left out: %s%s",
                self.name,
                (~kept).sum(),
                len(kept),
                self._shots,
                ", ".join(map(str, classes[~kept][:20])),
                " …" if (~kept).sum() > 20 else "",
            )
        if kept.sum() < self._ways:
            raise UserError(
                f"Evaluator {self.name}: {kept.sum()} classes have at least shots={self._shots} "
                f"support examples of {name!r} and a query; ways={self._ways} are needed."
            )
        return classes[kept]
