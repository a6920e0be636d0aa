"""How near two modalities of the same and of other examples are, as numbers and as a figure."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from mmjax.errors import UserError
from mmjax.evals import affinity_figure, captions, metrics
from mmjax.evals.base import Evaluator
from mmjax.evals.features.store import Features, Request
from mmjax.evals.features.views import merge
from mmjax.evals.semantic_retrieval import vectors


class Affinity(Evaluator):
    """Mean cosine of matching and of other examples, and a figure of some of them.

    The metrics are of all examples of the split that have both modalities: `diagonal`, the mean
    cosine of the two modalities of one example, and `off_diagonal`, that of different examples.
    The figure, `figures/<evaluator>-<step>.png` of the run directory, shows a few of them, the same
    at every step: their cosines, what stands at rows and columns, and an outline of the cells that
    belong together.

    Args:
      query: modality of the columns.
      target: modality of the rows.
      num_examples: examples in the figure. Above 32 it has neither images nor captions.
      seed: draws those examples.
      threshold: cosine that the captions of outlined cells exceed, for a text tower that is known
        (OpenCLIP's, TVL: 0.636); 0 outlines the diagonal.
      path: folder of the figure instead of `figures` in the run directory.
      data: dataset; default the one of training.
      split: of the dataset.
      batch_size: over all devices.
      views: what differs from the training's data config.
      limit: only the first so many examples (0: all).
    """

    def __init__(
        self,
        *,
        query: str = "touch",
        target: str = "image",
        num_examples: int = 10,
        seed: int = 0,
        threshold: float = 0.0,
        path: str = "",
        data: str = "",
        split: str = "test",
        batch_size: int = 64,
        views: Mapping[str, Any] | None = None,
        limit: int = 0,
        **common: Any,
    ):
        super().__init__(**common)
        if query == target or num_examples < 1:
            raise UserError(
                f"Evaluator {self.name}: query={query!r} and target={target!r} must be two "
                f"modalities, and num_examples={num_examples} at least 1."
            )
        self._query, self._target, self._split = query, target, split
        self._num_examples, self._seed, self._threshold = num_examples, seed, threshold
        self._path = pathlib.Path(path) if path else self.directory / "figures"
        self._has_text = merge(self.store.data_cfg, views or {}).get("text") is not None
        self._text = f"text/{target if query == 'text' else query}"  # whose cosines are compared
        common = dict(data=data, split=split, batch_size=batch_size, views=views, limit=limit)
        names = [f"{query}/{target}", f"{target}/{query}", *([self._text] * self._has_text)]
        self._request = self.ask(names, **common)
        self._inputs: Request | None = None
        if num_examples <= affinity_figure.MAX_DETAILED:
            shown = [query, target, *(["text"] * self._has_text)]
            self._inputs = self.ask(shown, predict="inputs", **common)

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        features = self.store.get(state, self._request)
        present = np.flatnonzero(features.having(self._query, self._target, who=self.name))
        query, target = (
            vectors(features, *names)[present]
            for names in ((self._query, self._target), (self._target, self._query))
        )
        count = min(self._num_examples, len(present))
        chosen = np.random.default_rng(self._seed).choice(len(present), count, replace=False)
        chosen = np.sort(chosen)
        self._draw(state, features, present[chosen], target[chosen] @ query[chosen].T)
        matching = np.sum(query * target, axis=1, dtype=np.float64)
        result = {"diagonal": float(matching.mean())}
        if (size := len(present)) > 1:
            both = query.sum(axis=0, dtype=np.float64) @ target.sum(axis=0, dtype=np.float64)
            result["off_diagonal"] = float((both - matching.sum()) / (size * (size - 1)))
        return result

    def _draw(
        self,
        state: Mapping[str, Any],
        features: Features,
        examples: np.ndarray,
        cosines: np.ndarray,
    ) -> None:
        """The figure of these examples [n], with cosines [n, n] of target and query."""
        own = np.eye(len(examples), dtype=bool)
        alike, outlined = own, ""
        if self._has_text and self._threshold:
            captions_of = vectors(features, "text", self._text.split("/")[1])[examples]
            has_caption = features.present("text")[examples].any(axis=1)
            alike = (captions_of @ captions_of.T > self._threshold) & np.outer(
                has_caption, has_caption
            ) | own
            outlined = f" Outlined: captions with a cosine above {self._threshold:.3g}"
            by_caption = "text" in (self._query, self._target)
            outlined += ", which count as right." if by_caption else "; the diagonal is right."
        right = alike if "text" in (self._query, self._target) else own
        there, back = (metrics.top_k_any(x, right) for x in (cosines.T, cosines))
        rows, columns = self._sides(state, features.example_id[examples])
        if jax.process_index():
            return
        path = self._path / f"{self.name}-{self.step:08d}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            affinity_figure.draw(
                cosines,
                path,
                rows=rows,
                columns=columns,
                title=f"{self.name} · step {self.step} · {self._query} × {self._target}",
                subtitle=f"{len(examples)} of {len(features)} examples of {features.info.name}, "
                f"{self._split}. Top-1 among them: {self._query} → {self._target} {there:.0%}, "
                f"{self._target} → {self._query} {back:.0%}.{outlined}",
                outlined=alike,
            )
        except OSError as error:
            logging.warning("%s: no figure, %s cannot be written: %s", self.name, path, error)
        else:
            logging.info("%s: %s", self.name, path)

    def _sides(
        self, state: Mapping[str, Any], ids: np.ndarray
    ) -> tuple[affinity_figure.Side, affinity_figure.Side]:
        """What stands at the rows (targets) and columns (queries) of the figure."""
        if self._inputs is None:
            return affinity_figure.Side(self._target), affinity_figure.Side(self._query)
        inputs = self.store.pick(state, self._inputs, ids)
        sides = {}
        texts = captions.decode(inputs) if self._has_text else None
        for modality in (self._target, self._query):
            images = None
            if modality != "text":
                first = inputs.arrays[modality][:, 0]  # of the views
                images = np.clip(np.round(first), 0, 255).astype(np.uint8)
            # The captions of a pair without text stand beside the rows.
            shown = modality == "text" or (modality == self._target and self._query != "text")
            sides[modality] = affinity_figure.Side(modality, images, texts if shown else None)
        return sides[self._target], sides[self._query]
