"""Retrieval in which every example with a similar caption is a positive, as in TVL.

See Fu et al. 2024, "A Touch, Vision, and Language Dataset for Multimodal Alignment",
arXiv 2402.13232.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.evals import metrics
from mmjax.evals.base import CHANCE, CONFIDENCE, DEVIATION, Evaluator, names_tuple
from mmjax.evals.blocks import map_blocks
from mmjax.evals.features.arrays import Features
from mmjax.evals.features.embeddings import example_vectors
from mmjax.evals.features.views import leave_out
from mmjax.evals.retrieval import TIE, count_better

# TVL's thresholds: quartiles (minimum, 25, 50, 75 %) of the cosines between touch adjectives and
# their synonyms in the text embedding space of OpenCLIP ViT-L-14.
THRESHOLDS = (0.6356450319, 0.8591097295, 0.8927201033, 0.9208499491)
_KS = (1, 5)


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of targets that determine whether a query is a hit, int [Q] each.

    Attributes:
      above: Negatives above the best positive.
      tied: Positives with the score of the best positive, including it.
      tied_others: Negatives with the score of the best positive.
      positives: All positives.
    """

    above: np.ndarray
    tied: np.ndarray
    tied_others: np.ndarray
    positives: np.ndarray

    def hits(self, k: int) -> np.ndarray:
        """Returns the probability [Q] of a positive among the first k, ties in random order."""
        return metrics.any_hits(self.above, self.tied, self.tied_others, k)


@jax.jit
def _count_block(queries, captions, targets, target_captions, thresholds):
    highest = jax.lax.Precision.HIGHEST  # else accelerators round cosines to three digits
    scores = jnp.matmul(queries, targets.T, precision=highest)
    similarity = jnp.matmul(captions, target_captions.T, precision=highest)

    def count(threshold):
        positive = similarity > threshold
        best = jnp.max(jnp.where(positive, scores, -jnp.inf), axis=1, keepdims=True)
        tied = jnp.abs(scores - best) <= TIE
        masks = (scores > best + TIE, tied & positive, tied & ~positive, positive)
        return tuple(jnp.sum(mask, axis=1) for mask in masks)

    counts = jax.lax.map(count, thresholds)  # [T, Q] each
    return tuple(count.T for count in counts)


def count_similar(
    queries: np.ndarray,
    targets: np.ndarray,
    captions: np.ndarray,
    thresholds: Sequence[float],
) -> list[Counts]:
    """Returns counts for each threshold, where similar captions make a target a positive.

    Args:
      queries: float [N, D], compared by inner product.
      targets: float [N, D], of the same examples.
      captions: float [N, D'], normalized embeddings of the examples' captions.
      thresholds: Target j is a positive of query i if the cosine of captions i and j is above the
        threshold.
    """
    targets, limits = jnp.asarray(targets, jnp.float32), jnp.asarray(thresholds, jnp.float32)
    target_captions = jnp.asarray(captions, jnp.float32)
    counts = map_blocks(
        lambda x, texts: _count_block(x, texts, targets, target_captions, limits),
        [np.asarray(x, np.float32) for x in (queries, captions)],
        num_targets=len(targets),
    )
    return [Counts(*(count[:, t] for count in counts)) for t in range(len(thresholds))]


def count_exact(queries: np.ndarray, targets: np.ndarray) -> Counts:
    """Returns counts where only a query's own example is a positive; both [N, D]."""
    ids = np.arange(len(queries))
    greater, ties = count_better(queries, ids, targets, ids)
    ones = np.ones_like(ids)
    return Counts(above=greater, tied=ones, tied_others=ties, positives=ones)


class SemanticRetrieval(Evaluator):
    """Top-1 and top-5 retrieval among all examples of a split, TVL's accuracy.

    For a pair with text, a retrieved example is a hit if the cosine between its caption and the
    query's caption is above a threshold. For other pairs, only the query's own example is. Metrics:
    `touch_text@0.636/top1` is the mean of both directions, `touch_to_text@0.636/top1` one of them,
    `ssvtp/touch_text@0.636/top1` the accuracy of the queries of a subset (among all examples). Each
    has its chance level and the half width of its 95 % confidence interval. Ties count as in random
    order; TVL's published code takes the first of them.

    Args:
      pairs: Pairs of modalities, such as 'touch_text'. The embeddings are the task's outputs 'a/b'
        and 'b/a'.
      thresholds: Cosines of captions; the default is TVL's four.
      trials: Number of further evaluations with a random part of each caption's keywords
        (`data.text.keywords`), as in TVL. `touch_text@0.636_random/top1` is their mean, with the
        standard deviation over the trials. Only text is encoded again.
      subsets: Maximum number of subsets to report separately. Subsets are the first parts of the
        class names. 0 reports none.
      data: Dataset; '' for the training dataset.
      split: Split of the dataset.
      batch_size: Number of examples in a batch, over all devices; does not change the results.
      views: Changes of the data config.
      limit: Number of leading examples to use; 0 for all.
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
        thresholds = (thresholds,) if isinstance(thresholds, int | float) else tuple(thresholds)
        self._pairs = self._checked_pairs(names_tuple(pairs))
        self._thresholds = self._checked_thresholds(thresholds)
        self._max_subsets = subsets
        self.check_minimum(0, trials=trials, subsets=subsets)
        if trials and not any("text" in pair for pair in self._pairs):
            raise UserError(
                f"{self.key('trials')}={trials} samples parts of captions, but no pair in "
                f"{self.key('pairs')}={names_tuple(pairs)} has text. Add a pair such as "
                "'touch_text', or set trials=0."
            )
        common = dict(data=data, split=split, batch_size=batch_size, limit=limit)
        names = [name for a, b in self._pairs for name in (f"{a}/{b}", f"{b}/{a}")]
        self._request = self.add_request(names, views=views, **common)
        self._trials = [
            self.add_request(
                [name for name in names if name.startswith("text/")],
                views=self._trial_views(views or {}, seed),
                **common,
            )
            for seed in range(trials)
        ]

    def _checked_pairs(self, names: Sequence[str]) -> list[tuple[str, str]]:
        pairs = [tuple(name.split("_")) for name in names]
        if not pairs or any(len(pair) != 2 or len(set(pair)) != 2 for pair in pairs):
            raise UserError(
                f"{self.key('pairs')} must be pairs of different modalities, such as 'touch_text'; "
                f"got {names!r}."
            )
        return pairs

    def _checked_thresholds(self, thresholds: Sequence[float]) -> dict[str, float]:
        """Returns {suffix of the metric name: threshold}."""
        if not thresholds or not all(-1 <= t < 1 for t in thresholds):
            raise UserError(
                f"{self.key('thresholds')} must be one or more cosines in [-1, 1); got "
                f"{thresholds}."
            )
        named = {f"@{t:.3g}": float(t) for t in thresholds}
        if len(named) != len(thresholds):
            raise UserError(
                f"{self.key('thresholds')} must differ in their first three digits, which are part "
                f"of the metric names; got {thresholds}."
            )
        return named

    def _trial_views(self, views: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Returns the views of a trial: only text, with a random part of the keywords."""
        text = dict(views.get("text") or {})
        default = (self.store.data_cfg.get("text") or {}).get("keywords")
        if text.get("keywords", default) is None:
            raise UserError(
                f"{self.key('trials')} samples a part of each caption's keywords, but "
                "config.data.text.keywords is None. Set config.data.text.keywords={} if captions "
                "are lists of keywords, or set trials=0."
            )
        text["keywords"] = {**(text.get("keywords") or {}), "eval_subset": True, "seed": seed}
        return {**views, "text": text, **leave_out(self.store.data_cfg, "text")}

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Returns the accuracies of all pairs, thresholds, subsets and trials."""
        features, result = self.store.get(state, self._request), {}
        for pair in self._pairs:
            result |= self._evaluate_pair(features, *pair)
        trials = []
        for request in self._trials:
            mixed = _with_captions(features, self.store.get(state, request))
            values = {}
            for pair in self._pairs:
                if "text" in pair:
                    values |= self._evaluate_pair(mixed, *pair)
            trials.append(values)
        return result | _over_trials(trials)

    def _evaluate_pair(self, features: Features, first: str, second: str) -> dict[str, float]:
        present = features.with_modalities(first, second, section=self.section)
        counts = self._count(features, first, second, present)
        subsets = _subsets(features, present)
        if not 2 <= len(subsets) <= self._max_subsets:
            subsets = {}
        num_targets = int(present.sum())
        result = {}
        for n, suffix in enumerate(self._thresholds if "text" in (first, second) else [""]):
            forward, backward = (direction[n] for direction in counts)
            positives = forward.positives  # the same in both directions
            hits = {k: (forward.hits(k), backward.hits(k)) for k in _KS}
            mean = {k: (a + b) / 2 for k, (a, b) in hits.items()}
            names = {
                f"{first}_{second}{suffix}": mean,
                f"{first}_to_{second}{suffix}": {k: both[0] for k, both in hits.items()},
                f"{second}_to_{first}{suffix}": {k: both[1] for k, both in hits.items()},
            }
            for name, values in names.items():
                result |= _accuracies(name, values, positives, num_targets)
            for subset, queries in subsets.items():
                name = f"{subset}/{first}_{second}{suffix}"
                values = {k: value[queries] for k, value in mean.items()}
                result |= _accuracies(name, values, positives[queries], num_targets)
        return result

    def _count(
        self, features: Features, first: str, second: str, present: np.ndarray
    ) -> tuple[list[Counts], list[Counts]]:
        """Returns the counts per threshold for `first` → `second` and `second` → `first`."""
        vectors = {
            modality: example_vectors(features, modality, other)[present]
            for modality, other in ((first, second), (second, first))
        }

        def count(query: str, target: str) -> list[Counts]:
            if "text" not in vectors:
                return [count_exact(vectors[query], vectors[target])]
            limits = list(self._thresholds.values())
            return count_similar(vectors[query], vectors[target], vectors["text"], limits)

        return count(first, second), count(second, first)


def _subsets(features: Features, present: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {subset: bool [M]} by the first part of the class names."""
    names, labels = features.info.class_names, features.label
    if labels is None or labels.ndim > 1 or not names:
        return {}
    prefixes = np.array([*(name.split("/")[0] for name in names), ""])  # -1 selects the last
    own = prefixes[labels[present]]
    return {p: own == p for p in dict.fromkeys(prefixes) if p and (own == p).any()}


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
    """Returns the examples of `features` that are in `captions`, with the text of the latter."""
    _, kept, others = np.intersect1d(
        features.example_id, captions.example_id, assume_unique=True, return_indices=True
    )
    arrays = {name: value[kept] for name, value in features.arrays.items()}
    masks = {name: value[kept] for name, value in features.masks.items()}
    return dataclasses.replace(
        features,
        arrays=arrays | {name: value[others] for name, value in captions.arrays.items()},
        masks=masks | {name: value[others] for name, value in captions.masks.items()},
        label=None if features.label is None else features.label[kept],
        example_id=features.example_id[kept],
    )


def _over_trials(trials: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean and standard deviation of accuracies over trials, and the mean chance."""
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
