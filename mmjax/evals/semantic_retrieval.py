"""Retrieval among all examples of a split, where a similar caption is a right answer too (TVL)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.evals import metrics
from mmjax.evals.base import CHANCE, CONFIDENCE, DEVIATION, Evaluator
from mmjax.evals.features.store import Features
from mmjax.evals.features.views import leave_out
from mmjax.evals.retrieval import (
    TIE,
    aggregate_views,
    count_better,
    first_caption,
    normalize,
)

# TVL's thresholds: quartiles (minimum, 25, 50, 75 %) of the cosines between touch adjectives and
# their synonyms in the text space of OpenCLIP ViT-L-14 (Fu et al. 2024, arXiv 2402.13232).
THRESHOLDS = (0.6356450319, 0.8591097295, 0.8927201033, 0.9208499491)
_KS = (1, 5)
_MAX_SCORES = 2**24  # scores held at once
_MAX_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Counts:
    """What decides whether each of Q queries is answered, int [Q] each.

    Attributes:
      above: wrong targets above the best right one.
      tied, tied_others: right and wrong targets that score as the best right one.
      positives: right targets in all.
    """

    above: np.ndarray
    tied: np.ndarray
    tied_others: np.ndarray
    positives: np.ndarray

    def hits(self, k: int) -> np.ndarray:
        """Probability [Q] that a right target is among the first k, ties in random order."""
        return metrics.any_hits(self.above, self.tied, self.tied_others, k)


@jax.jit
def _count_block(queries, captions, targets, target_captions, thresholds):
    highest = jax.lax.Precision.HIGHEST  # else an accelerator rounds cosines to three digits
    scores = jnp.matmul(queries, targets.T, precision=highest)
    similarity = jnp.matmul(captions, target_captions.T, precision=highest)

    def count(threshold):
        positive = similarity > threshold
        best = jnp.max(jnp.where(positive, scores, -jnp.inf), axis=1, keepdims=True)
        tied = jnp.abs(scores - best) <= TIE
        kinds = (scores > best + TIE, tied & positive, tied & ~positive, positive)
        return tuple(jnp.sum(kind, axis=1) for kind in kinds)

    return jax.lax.map(count, thresholds)


def count_similar(
    queries: np.ndarray,
    targets: np.ndarray,
    captions: np.ndarray,
    thresholds: Sequence[float],
) -> list[Counts]:
    """Counts for each threshold; target j is right for query i if captions i, j are similar enough.

    Works on blocks of queries, so that no N × N matrix is stored.

    Args:
      queries: float [N, D], compared by inner product.
      targets: float [N, D], of the same examples.
      captions: float [N, D'], normalized embeddings of the examples' captions.
      thresholds: cosines that those of the captions must exceed.
    """
    size = len(queries)
    block = max(1, min(size, _MAX_BLOCK, _MAX_SCORES // size))
    targets, limits = jnp.asarray(targets, jnp.float32), jnp.asarray(thresholds, jnp.float32)
    target_captions = jnp.asarray(captions, jnp.float32)
    found = []
    for start in range(0, size, block):
        rows = [np.asarray(x[start : start + block], np.float32) for x in (queries, captions)]
        missing = block - len(rows[0])  # the last block is filled up: one shape, one compilation
        rows = [np.pad(x, ((0, missing), (0, 0))) for x in rows]
        counts = _count_block(*rows, targets, target_captions, limits)
        found.append([np.asarray(count)[:, : block - missing] for count in counts])
    joined = [np.concatenate(counts, axis=1) for counts in zip(*found, strict=True)]
    return [Counts(*(count[t] for count in joined)) for t in range(len(thresholds))]


def count_exact(queries: np.ndarray, targets: np.ndarray) -> Counts:
    """Counts where only a query's own example is right; arrays [N, D] of the same examples."""
    ids = np.arange(len(queries))
    greater, ties = count_better(queries, ids, targets, ids)
    ones = np.ones_like(ids)
    return Counts(above=greater, tied=ones, tied_others=ties, positives=ones)


class SemanticRetrieval(Evaluator):
    """Top-1 and top-5 retrieval among all examples of a split, the accuracy of TVL.

    For a pair with text, a retrieved example counts if the cosine between its caption and the
    query's own is above a threshold; for others only the query's own example counts. Metrics:
    `touch_text@0.636/top1` is the mean of both directions, `touch_to_text@0.636/top1` one of them,
    `ssvtp/touch_text@0.636/top1` that of the queries of a subset (among all examples). Each has
    its chance level and half of its 95 % confidence interval. Ties count as in random order; TVL's
    published code takes the first of them.

    Args:
      pairs: modalities that retrieve each other; embeddings are the task's outputs 'a/b', 'b/a'.
      thresholds: cosines of captions; default TVL's four.
      trials: so many times more, with a random part of each caption's keywords
        (`data.text.keywords`), as TVL evaluates:
        `touch_text@0.636_random/top1` is the mean and has a standard deviation over the trials.
        Only text is computed again.
      subsets: report the queries of each subset if the labels make two to so many; 0: never.
      data: dataset; default the one of training.
      split: of the dataset.
      batch_size: over all devices; results do not depend on it.
      views: what differs from the training's data config.
      limit: only the first so many examples (0: all).
    """

    def __init__(
        self,
        *,
        pairs: str | Sequence[str] = ("touch_text", "touch_image", "image_text"),
        thresholds: float | Sequence[float] = THRESHOLDS,
        trials: int = 0,
        subsets: int = 6,
        data: str = "",
        split: str = "test",
        batch_size: int = 64,
        views: Mapping[str, Any] | None = None,
        limit: int = 0,
        **common: Any,
    ):
        super().__init__(**common)
        pairs = (pairs,) if isinstance(pairs, str) else pairs
        thresholds = (thresholds,) if isinstance(thresholds, int | float) else thresholds
        self._pairs = [tuple(pair.split("_")) for pair in pairs]
        for pair in self._pairs:
            if len(set(pair)) != 2 or len(pair) != 2:
                raise UserError(
                    f"Evaluator {self.name}: pairs={pairs} must be pairs of different modalities, "
                    "such as 'touch_text'."
                )
        self._thresholds = {f"@{t:.3g}": float(t) for t in thresholds}
        if not (pairs and thresholds) or len(self._thresholds) != len(thresholds):
            raise UserError(
                f"Evaluator {self.name}: there must be pairs={pairs} and thresholds={thresholds}, "
                "different to three digits."
            )
        if not all(-1 <= t < 1 for t in thresholds):
            raise UserError(f"Evaluator {self.name}: thresholds={thresholds} must be in [-1, 1).")
        self._subsets = subsets
        with_text = [pair for pair in self._pairs if "text" in pair]
        if not isinstance(trials, int) or trials < 0 or (trials and not with_text):
            raise UserError(
                f"Evaluator {self.name}: trials={trials!r} must be a number of trials, for pairs "
                "with text."
            )
        common = dict(data=data, split=split, batch_size=batch_size, limit=limit)
        names = [name for a, b in self._pairs for name in (f"{a}/{b}", f"{b}/{a}")]
        self._request = self.ask(names, views=views, **common)
        self._trials = [
            self.ask(
                [name for name in names if name.startswith("text/")],
                views=self._trial_views(views or {}, seed),
                **common,
            )
            for seed in range(trials)
        ]

    def _trial_views(self, views: Mapping[str, Any], seed: int) -> dict[str, Any]:
        text = dict(views.get("text") or {})
        default = (self.store.data_cfg.get("text") or {}).get("keywords")
        if text.get("keywords", default) is None:
            raise UserError(
                f"Evaluator {self.name}: trials draw a part of each caption's keywords, but the "
                "captions are no keywords: set config.data.text.keywords={}, or trials=0."
            )
        text["keywords"] = {**(text.get("keywords") or {}), "eval_subset": True, "seed": seed}
        return {**views, "text": text, **leave_out(self.store.data_cfg, "text")}

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        features, result = self.store.get(state, self._request), {}
        for pair in self._pairs:
            result |= self._evaluate_pair(features, *pair)
        trials = []
        for request in self._trials:
            mixed = _with_captions(features, self.store.get(state, request))
            found = {}
            for pair in self._pairs:
                if "text" in pair:
                    found |= self._evaluate_pair(mixed, *pair)
            trials.append(found)
        return result | _over_trials(trials)

    def _evaluate_pair(self, features: Features, first: str, second: str) -> dict[str, float]:
        present = features.having(first, second, who=self.name)
        sides = {
            modality: vectors(features, modality, other)[present]
            for modality, other in ((first, second), (second, first))
        }
        counts = {
            direction: count_similar(
                sides[direction[0]],
                sides[direction[1]],
                sides["text"],
                [*self._thresholds.values()],
            )
            if "text" in direction
            else [count_exact(sides[direction[0]], sides[direction[1]])]
            for direction in ((first, second), (second, first))
        }
        subsets = _subsets(features, present)
        if not 2 <= len(subsets) <= self._subsets:
            subsets = {}
        result = {}
        for number, at in enumerate(self._thresholds if "text" in sides else [""]):
            there, back = (found[number] for found in counts.values())
            positives, size = there.positives, int(present.sum())  # the same in both directions
            hits = {k: (there.hits(k), back.hits(k)) for k in _KS}
            named = {f"{first}_{second}{at}": {k: (a + b) / 2 for k, (a, b) in hits.items()}}
            for (query, target), side in zip(counts, (0, 1), strict=True):
                named[f"{query}_to_{target}{at}"] = {k: both[side] for k, both in hits.items()}
            for name, values in named.items():
                result |= _accuracies(name, values, positives, size)
            for subset, rows in subsets.items():
                name = f"{first}_{second}{at}"
                values = {k: value[rows] for k, value in named[name].items()}
                result |= _accuracies(f"{subset}/{name}", values, positives[rows], size)
        return result


def vectors(features: Features, modality: str, other: str) -> np.ndarray:
    """Normalized embeddings [N, D]; of text, those of the first caption, zeros without one."""
    embeddings = features.arrays[f"{modality}/{other}"]
    if modality != "text":
        return aggregate_views(embeddings, "embd")
    first = first_caption(features.present("text"))
    return normalize(np.sum(embeddings * first[..., None], axis=1))


def _subsets(features: Features, present: np.ndarray) -> dict[str, np.ndarray]:
    """{name: bool [M]} by the first part of the class names."""
    names, labels = features.info.class_names, features.label
    if labels is None or labels.ndim > 1 or not names:
        return {}
    parts = np.array([*(name.split("/")[0] for name in names), ""])  # label -1 is the last
    of = parts[labels[present]]
    return {part: of == part for part in dict.fromkeys(parts) if part and (of == part).any()}


def _accuracies(
    name: str, values: Mapping[int, np.ndarray], positives: np.ndarray, num_targets: int
) -> dict[str, float]:
    result = {}
    for k, hits in values.items():
        metric = f"{name}/top{k}"
        result[metric] = float(hits.mean())
        result[metric + CHANCE] = metrics.any_chance(positives, num_targets, k)
        result[metric + CONFIDENCE] = metrics.half_width(hits)
    return result


def _with_captions(features: Features, captions: Features) -> Features:
    """The examples of `features` that `captions` has too, with the text of `captions`."""
    _, rows, others = np.intersect1d(
        features.example_id, captions.example_id, assume_unique=True, return_indices=True
    )
    arrays = {name: value[rows] for name, value in features.arrays.items()}
    masks = {name: value[rows] for name, value in features.masks.items()}
    return dataclasses.replace(
        features,
        arrays=arrays | {name: value[others] for name, value in captions.arrays.items()},
        masks=masks | {name: value[others] for name, value in captions.masks.items()},
        label=None if features.label is None else features.label[rows],
        example_id=features.example_id[rows],
    )


def _over_trials(trials: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean and standard deviation of the accuracies of random trials, and their mean chance."""
    result = {}
    for name in trials[0] if trials else ():
        if name.endswith(CONFIDENCE):
            continue
        head, _, metric = name.rpartition("/")
        values = [trial[name] for trial in trials]
        result[f"{head}_random/{metric}"] = float(np.mean(values))
        if not name.endswith(CHANCE):
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            result[f"{head}_random/{metric}{DEVIATION}"] = deviation
    return result
