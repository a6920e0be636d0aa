"""Cosines between two modalities of the same and of different examples, as metrics and a figure."""

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
from mmjax.evals.features.arrays import Features, Request
from mmjax.evals.features.embeddings import example_vectors
from mmjax.evals.features.views import merge


class Affinity(Evaluator):
    """Mean cosine of matching and of other pairs of examples, and a figure of some examples.

    The metrics use all examples of the split that have both modalities: `diagonal` is the mean
    cosine of the two modalities of one example, `off_diagonal` that of different examples. The
    figure, `figures/<evaluator>-<step>.png` in the run directory, shows the cosines of a few
    examples, the same ones at every step. Images and captions label the axes; the cells of
    positives are outlined.

    Args:
      query: Modality on the columns.
      target: Modality on the rows.
      num_examples: Number of examples in the figure. Above 32 it has no images and captions.
      seed: Seed of the sample of examples.
      threshold: Cosine above which two captions are similar and their cells outlined. It depends on
        the text tower (OpenCLIP's, TVL: 0.636). 0 outlines only the diagonal.
      path: Directory of the figure; '' for `figures` in the run directory.
      data: Dataset; '' for the training dataset.
      split: Split of the dataset.
      batch_size: Number of examples in a batch, over all devices.
      views: Changes of the data config.
      limit: Number of leading examples to use; 0 for all.
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
        self.check_minimum(1, num_examples=num_examples)
        if query == target:
            raise UserError(
                f"{self.key('query')} and {self.key('target')} must be different modalities; both "
                f"are {query!r}."
            )
        self._query, self._target, self._split = query, target, split
        self._num_examples, self._seed, self._threshold = num_examples, seed, threshold
        self._path = pathlib.Path(path) if path else self.directory / "figures"
        data_cfg = merge(self.store.data_cfg, views or {}, key=self.key("views"))
        self._has_text = data_cfg.get("text") is not None
        self._text = f"text/{target if query == 'text' else query}"  # embeddings of the captions
        common = dict(data=data, split=split, batch_size=batch_size, views=views, limit=limit)
        names = [f"{query}/{target}", f"{target}/{query}", *([self._text] * self._has_text)]
        self._request = self.add_request(names, **common)
        self._inputs: Request | None = None
        if num_examples <= affinity_figure.MAX_DETAILED:
            shown = [query, target, *(["text"] * self._has_text)]
            self._inputs = self.add_request(shown, predict="inputs", **common)

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Returns the mean cosines, and draws the figure."""
        features = self.store.get(state, self._request)
        present = np.flatnonzero(
            features.with_modalities(self._query, self._target, section=self.section)
        )
        query, target = (
            example_vectors(features, *names)[present]
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
        """Draws the figure of examples [n] with their cosines [n targets, n queries]."""
        similar, legend = self._similar(features, examples)
        with_text = "text" in (self._query, self._target)
        positives = similar if with_text else np.eye(len(examples), dtype=bool)
        forward, backward = (metrics.top_k_any(x, positives) for x in (cosines.T, cosines))
        rows, columns = self._axes(state, features.example_id[examples])
        if jax.process_index():
            return
        path = self._path / f"{self.name}-{self.step:08d}.png"
        try:
            affinity_figure.draw(
                cosines,
                path,
                rows=rows,
                columns=columns,
                title=f"{self.name} · step {self.step} · {self._query} × {self._target}",
                subtitle=f"{len(examples)} of {len(features)} examples of {features.info.name}, "
                f"{self._split}. Top-1 among them: {self._query} → {self._target} {forward:.0%}, "
                f"{self._target} → {self._query} {backward:.0%}.{legend}",
                outlined=similar,
            )
        except OSError as error:
            logging.warning("%s: cannot write the figure %s: %s", self.name, path, error)
        else:
            logging.info("%s: wrote %s", self.name, path)

    def _similar(self, features: Features, examples: np.ndarray) -> tuple[np.ndarray, str]:
        """Returns which pairs of examples have similar captions, bool [n, n], and a legend."""
        own = np.eye(len(examples), dtype=bool)
        if not (self._has_text and self._threshold):
            return own, ""
        vectors = example_vectors(features, "text", self._text.split("/")[1])[examples]
        has_caption = features.present("text")[examples].any(axis=1)
        similar = vectors @ vectors.T > self._threshold
        similar = similar & np.outer(has_caption, has_caption) | own
        legend = f" Outlined: captions with a cosine above {self._threshold:.3g}"
        if "text" in (self._query, self._target):
            return similar, f"{legend}, which count as positives."
        return similar, f"{legend}. Positives are on the diagonal."

    def _axes(
        self, state: Mapping[str, Any], ids: np.ndarray
    ) -> tuple[affinity_figure.Axis, affinity_figure.Axis]:
        """Returns the labels of the rows (targets) and of the columns (queries)."""
        if self._inputs is None:
            return affinity_figure.Axis(self._target), affinity_figure.Axis(self._query)
        inputs = self.store.get_examples(state, self._inputs, ids)
        axes = {}
        texts = captions.decode(inputs) if self._has_text else None
        for modality in (self._target, self._query):
            images = None
            if modality != "text":
                first = inputs.arrays[modality][:, 0]  # the first view
                images = np.clip(np.round(first), 0, 255).astype(np.uint8)
            # Without text in the pair, captions label the rows.
            shown = modality == "text" or (modality == self._target and self._query != "text")
            axes[modality] = affinity_figure.Axis(modality, images, texts if shown else None)
        return axes[self._target], axes[self._query]
