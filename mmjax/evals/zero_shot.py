"""Zero-shot classification: the class whose words are nearest to what is touched or seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from mmjax.errors import UserError, choose
from mmjax.evals import captions, metrics
from mmjax.evals.base import Evaluator, with_chance
from mmjax.evals.features.store import Features, Request
from mmjax.evals.features.views import leave_out
from mmjax.evals.retrieval import aggregate_views, normalize

TEMPLATES = ("{}.",)
_BLOCK = 64  # texts that go through the model at once


def zero_shot_weights(
    classes: Sequence[str],
    embed_text: Callable[[list[str]], np.ndarray],
    *,
    templates: Sequence[str] = TEMPLATES,
) -> np.ndarray:
    """float32 [C, D]: for each class the normalized mean of the embeddings of its sentences.

    Args:
      classes: names.
      embed_text: texts → embeddings [texts, D]; they are normalized here.
      templates: sentences with {} where the name goes.

    Raises:
      UserError: no class, or a template without {}.
    """
    if not classes or not templates or any("{}" not in template for template in templates):
        raise UserError(
            f"Zero-shot classification needs classes ({len(classes)} given) and templates with "
            f"{{}} for their names, not {tuple(templates)}."
        )
    texts = [template.replace("{}", name) for name in classes for template in templates]
    embedded = normalize(np.asarray(embed_text(texts), np.float32))
    return normalize(embedded.reshape(len(classes), len(templates), -1).mean(axis=1))


def classify(embeddings: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cosines [N, C] of embeddings [N, D] with the `zero_shot_weights` [C, D] of classes."""
    return normalize(np.asarray(embeddings, np.float32)) @ weights.T


class ZeroShot(Evaluator):
    """Top-1 and top-5 of classification by words, without a trained classifier.

    Metrics are called `touch/top1`. With single labels there are `top1`, `top5` and
    `mean_class_top1`. Where an example can have several classes, `top1` and `top5` ask for one of
    them, and `mAP` is the mean of the classes' average precision. Examples without a class are left
    out.

    Args:
      modality: what is classified, one or several; compared by the task's outputs
        'modality/text' and 'text/modality'.
      truth: 'label', the dataset's labels, or 'keywords', the parts of each example's caption.
      classes: names; default those of the dataset, or all keywords of the split, which a tokenizer
        that leaves out commas ('word') cannot tell. With 'label', one for each class of the
        dataset, in its order.
      templates: sentences with {} where the name goes; their embeddings are averaged.
      data: dataset; default the one of training.
      split: of the dataset.
      batch_size: over all devices.
      views: what differs from the training's data config.
      limit: only the first so many examples (0: all).
    """

    def __init__(
        self,
        *,
        modality: str | Sequence[str] = "touch",
        truth: str = "label",
        classes: Sequence[str] = (),
        templates: str | Sequence[str] = TEMPLATES,
        data: str = "",
        split: str = "test",
        batch_size: int = 64,
        views: Mapping[str, Any] | None = None,
        limit: int = 0,
        **common: Any,
    ):
        super().__init__(**common)
        choose("truth", truth, {"label": 0, "keywords": 0})
        self._modalities = (modality,) if isinstance(modality, str) else tuple(modality)
        self._templates = (templates,) if isinstance(templates, str) else tuple(templates)
        self._classes, self._by_label = tuple(classes), truth == "label"
        common = dict(data=data, split=split, batch_size=batch_size, limit=limit)
        names = [f"{modality}/text" for modality in self._modalities]
        self._request = self.ask(names, views=views, **common)
        self._captions: Request | None = None
        if not self._by_label:
            views = {**(views or {}), **leave_out(self.store.data_cfg, "text")}
            self._captions = self.ask(["text"], predict="inputs", views=views, **common)

    def check(self, state: Mapping[str, Any]) -> None:
        super().check(state)
        if self.store.tokenizer(self._request) is None:
            raise UserError(
                f"Evaluator {self.name} classifies by words: it needs config.data.text."
            )

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        features = self.store.get(state, self._request)
        if self._by_label:
            classes, truth = self._labels(features)
        else:
            classes, truth = self._keywords(state, features)
        result = {}
        for modality in self._modalities:
            weights = zero_shot_weights(
                classes,
                lambda texts, modality=modality: self._embed(state, features, texts, modality),
                templates=self._templates,
            )
            found = self._judge(features, modality, weights, truth)
            result |= {f"{modality}/{metric}": value for metric, value in found.items()}
        return result

    def _labels(self, features: Features) -> tuple[list[str], np.ndarray]:
        """Names, and labels int [N] (-1: none) or bool [N, C]."""
        info, labels = features.info, features.label
        if labels is None:
            raise UserError(
                f"Evaluator {self.name}: {info.name} has no labels; truth='keywords' takes "
                "captions for the truth."
            )
        names = self._classes or [name.replace("_", " ") for name in info.class_names]
        needed = labels.shape[1] if labels.ndim > 1 else int(labels.max()) + 1
        if len(names) < max(needed, info.num_classes):
            raise UserError(
                f"Evaluator {self.name}: {info.name} has {max(needed, info.num_classes)} classes "
                f"but {len(names)} names: give one for each with classes=(…)."
            )
        return list(names), labels if labels.ndim == 1 else labels > 0.5

    def _keywords(
        self, state: Mapping[str, Any], features: Features
    ) -> tuple[list[str], np.ndarray]:
        """Names, and which of them [N, C] are in the captions."""
        read = self.store.get(state, self._captions)
        texts = dict(zip(read.example_id.tolist(), captions.decode(read), strict=True))
        texts = [texts.get(number, "") for number in features.example_id.tolist()]
        if not captions.keep_commas(read.tokenizer):
            if not self._classes:
                raise UserError(
                    f"Evaluator {self.name}: config.data.text.tokenizer leaves out commas, between "
                    "which keywords stand: name those that matter, classes=(…)."
                )
            return list(self._classes), captions.mentions(texts, self._classes)
        names = list(self._classes) or captions.all_keywords(texts)
        return names, captions.table(texts, names)

    def _embed(
        self, state: Mapping[str, Any], features: Features, texts: list[str], modality: str
    ) -> np.ndarray:
        """Embeddings [texts, D], in blocks of one size."""
        if features.tokenizer is None:
            raise UserError(
                f"Evaluator {self.name} classifies by words: it needs config.data.text."
            )
        ids = features.tokenizer.encode(texts)
        made = []
        for start in range(0, len(ids), _BLOCK):
            rows = ids[start : start + _BLOCK]
            batch = np.pad(rows, ((0, _BLOCK - len(rows)), (0, 0)))[:, None]  # [B, 1, W]
            fields = {"text": batch, "text_mask": np.ones(batch.shape[:2], np.float32)}
            embedded = self.store.apply(state, fields, f"text/{modality}", "features")
            made.append(embedded[: len(rows), 0])
        return np.concatenate(made)

    def _judge(
        self, features: Features, modality: str, weights: np.ndarray, truth: np.ndarray
    ) -> dict[str, float]:
        known = truth >= 0 if truth.ndim == 1 else truth.any(axis=1)
        keep = features.having(modality, who=self.name) & known
        if not keep.any():
            raise UserError(f"Evaluator {self.name}: no example with {modality} has a class.")
        if not known.all():
            logging.info(
                "%s: %d of %d examples have none of the classes and are left out.",
                self.name,
                (~known).sum(),
                len(known),
            )
        embeddings = aggregate_views(features.arrays[f"{modality}/text"][keep], "embd")
        scores, truth = classify(embeddings, weights), truth[keep]
        if truth.ndim > 1:
            return _multi_label(scores, truth)
        found = metrics.classification_metrics(scores, truth)
        del found["loss"]  # cosines are no logits
        return with_chance(found, metrics.classification_chance(len(weights)))


def _multi_label(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Metrics of scores [N, C] where each example has one or more right classes, bool [N, C]."""
    size, positives = scores.shape[1], truth.sum(axis=1)
    ks = (1, 5) if size > 5 else (1,)
    found = {f"top{k}": metrics.top_k_any(scores, truth, k) for k in ks}
    chance = {f"top{k}": metrics.any_chance(positives, size, k) for k in ks}
    usable = truth.any(axis=0) & ~truth.all(axis=0)
    if usable.any():
        judged = metrics.multi_label_metrics(scores[:, usable], truth[:, usable])
        found["mAP"] = judged.means()["mAP"]
        chance["mAP"] = float(truth[:, usable].mean())
    return with_chance(found, chance)
