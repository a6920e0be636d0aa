"""Zero-shot classification: the class whose text embedding is nearest to that of an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from absl import logging

from mmjax.errors import UserError
from mmjax.evals import captions, classification, metrics
from mmjax.evals.base import Evaluator, names_tuple, with_chance
from mmjax.evals.features.arrays import Features, Request
from mmjax.evals.features.embeddings import aggregate_views, normalize
from mmjax.evals.features.views import leave_out

TEMPLATES = ("{}.",)
_BLOCK = 64  # texts that the model encodes at once


def zero_shot_weights(
    classes: Sequence[str],
    embed_text: Callable[[list[str]], np.ndarray],
    *,
    templates: Sequence[str] = TEMPLATES,
) -> np.ndarray:
    """Returns a weight vector per class: the normalized mean of the embeddings of its prompts.

    Args:
      classes: Class names.
      embed_text: Maps texts to embeddings [texts, D], which are normalized here.
      templates: Prompts in which {} is replaced by the class name.

    Returns:
      float32 [C, D].

    Raises:
      UserError: There are no classes or templates, or a template has no {}.
    """
    if not classes or not templates or any("{}" not in template for template in templates):
        raise UserError(
            f"Zero-shot classification needs at least one class (classes has {len(classes)}) and "
            f"templates that contain {{}} for the class name; got templates={tuple(templates)}."
        )
    texts = [template.replace("{}", name) for name in classes for template in templates]
    embeddings = normalize(np.asarray(embed_text(texts), np.float32))
    return normalize(embeddings.reshape(len(classes), len(templates), -1).mean(axis=1))


def classify(embeddings: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the cosines [N, C] of embeddings [N, D] with `zero_shot_weights` [C, D]."""
    return normalize(np.asarray(embeddings, np.float32)) @ weights.T


class ZeroShot(Evaluator):
    """Top-1 and top-5 of zero-shot classification with text prompts.

    Metrics are called `touch/top1`. Single-label data have `top1`, `top5` and `mean_class_top1`. If
    an example can have several classes, `top1` and `top5` require one of them, and `mAP` is the
    mean of the classes' average precision. Examples without a class are skipped.

    Args:
      modality: Modality to classify, one or several. It is compared with text by the task's outputs
        'modality/text' and 'text/modality'.
      truth: 'label' uses the dataset's labels, 'keywords' the keywords of each example's caption.
      classes: Class names. The default is the dataset's class names, or all keywords of the split;
        the latter needs a tokenizer that keeps commas. With truth='label', there must be one name
        for each class of the dataset, in its order.
      templates: Prompts with {} for the class name; their embeddings are averaged.
      data: Dataset; '' for the training dataset.
      split: Split of the dataset.
      batch_size: Number of examples in a batch, over all devices.
      views: Changes of the data config.
      limit: Number of leading examples to use; 0 for all.
    """

    def __init__(
        self,
        *,
        modality: str | Sequence[str] = "touch",
        truth: Literal["label", "keywords"] = "label",
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
        self._modalities, self._templates = names_tuple(modality), names_tuple(templates)
        self._classes, self._use_labels = tuple(classes), truth == "label"
        if not self._templates or any("{}" not in template for template in self._templates):
            raise UserError(
                f"{self.key('templates')} must be prompts that contain {{}} for the class name, "
                f"for example ('a photo of a {{}}.',); got {self._templates}."
            )
        common = dict(data=data, split=split, batch_size=batch_size, limit=limit)
        names = [f"{modality}/text" for modality in self._modalities]
        self._request = self.add_request(names, views=views, **common)
        self._captions: Request | None = None
        if not self._use_labels:
            views = {**(views or {}), **leave_out(self.store.data_cfg, "text")}
            self._captions = self.add_request(["text"], predict="inputs", views=views, **common)

    def check(self, state: Mapping[str, Any]) -> None:
        """Also checks that the data have a tokenizer; see `Evaluator.check`."""
        super().check(state)
        self._check_tokenizer(self.store.tokenizer(self._request))

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics of each modality."""
        features = self.store.get(state, self._request)
        self._check_tokenizer(features.tokenizer)
        if self._use_labels:
            classes, truth = self._label_truth(features)
        else:
            classes, truth = self._keyword_truth(state, features)
        result = {}
        for modality in self._modalities:
            weights = zero_shot_weights(
                classes,
                lambda texts, modality=modality: self._embed(state, features, texts, modality),
                templates=self._templates,
            )
            values = self._evaluate_modality(features, modality, weights, truth, classes)
            result |= {f"{modality}/{metric}": value for metric, value in values.items()}
        return result

    def _check_tokenizer(self, tokenizer: Any) -> None:
        if tokenizer is None:
            raise UserError(
                f"config.{self.section}: zero-shot classification encodes class names as text, but "
                "config.data.text is None. Add a config.data.text section, or remove this "
                f"evaluator with --config.{self.section}=None."
            )

    def _label_truth(self, features: Features) -> tuple[list[str], np.ndarray]:
        """Returns class names, and labels as int [N] (-1: unlabeled) or bool [N, C]."""
        info, labels = features.info, features.label
        if labels is None:
            raise UserError(
                f"config.{self.section}: {features.source} has no labels. Set config.data.label if "
                f"the dataset has some, or set {self.key('truth')}='keywords' to use the keywords "
                "of the captions."
            )
        names = self._classes or [name.replace("_", " ") for name in info.class_names]
        num_classes = labels.shape[1] if labels.ndim > 1 else int(labels.max()) + 1
        num_classes = max(num_classes, info.num_classes)
        if len(names) < num_classes:
            raise UserError(
                f"config.{self.section}: {features.source} has {num_classes} classes, but there "
                f"are {len(names)} class names. Set {self.key('classes')} to one name per class, "
                "in the order of the labels."
            )
        return list(names), labels if labels.ndim == 1 else labels > 0.5

    def _keyword_truth(
        self, state: Mapping[str, Any], features: Features
    ) -> tuple[list[str], np.ndarray]:
        """Returns class names, and which of them are in the captions, bool [N, C]."""
        inputs = self.store.get(state, self._captions)
        texts = dict(zip(inputs.example_id.tolist(), captions.decode(inputs), strict=True))
        texts = [texts.get(example_id, "") for example_id in features.example_id.tolist()]
        if not captions.keeps_commas(inputs.tokenizer):
            if not self._classes:
                raise UserError(
                    f"config.{self.section}: config.data.text.tokenizer removes commas, so "
                    "captions cannot be split into keywords. List the keywords to classify in "
                    f"{self.key('classes')}, or use a tokenizer that keeps commas."
                )
            return list(self._classes), captions.mention_table(texts, self._classes)
        names = list(self._classes) or captions.all_keywords(texts)
        return names, captions.keyword_table(texts, names)

    def _embed(
        self, state: Mapping[str, Any], features: Features, texts: list[str], modality: str
    ) -> np.ndarray:
        """Returns embeddings [texts, D], computed in blocks of one size."""
        ids = features.tokenizer.encode(texts)
        results = []
        for start in range(0, len(ids), _BLOCK):
            block = ids[start : start + _BLOCK]
            tokens = np.pad(block, ((0, _BLOCK - len(block)), (0, 0)))[:, None]  # [B, 1, tokens]
            fields = {"text": tokens, "text_mask": np.ones(tokens.shape[:2], np.float32)}
            embeddings = self.store.apply(state, fields, f"text/{modality}", "features")
            results.append(embeddings[: len(block), 0])
        return np.concatenate(results)

    def _evaluate_modality(
        self,
        features: Features,
        modality: str,
        weights: np.ndarray,
        truth: np.ndarray,
        classes: Sequence[str],
    ) -> dict[str, float]:
        has_class = truth >= 0 if truth.ndim == 1 else truth.any(axis=1)
        keep = features.with_modalities(modality, section=self.section) & has_class
        if not keep.any():
            raise UserError(
                f"config.{self.section}: no example with {modality} in {features.source} has one "
                f"of the {len(classes)} classes: "
                f"{classification.name_list(classes)}. Check {self.key('classes')} and the "
                f"{'labels' if self._use_labels else 'captions'} of the dataset."
            )
        if not has_class.all():
            logging.info(
                "config.%s: %d of %d examples of %s have none of the classes and are skipped.",
                self.section,
                (~has_class).sum(),
                len(has_class),
                features.source,
            )
        embeddings = aggregate_views(features.arrays[f"{modality}/text"][keep], "embd")
        scores, truth = classify(embeddings, weights), truth[keep]
        if truth.ndim > 1:
            return _multi_label_metrics(scores, truth)
        values = metrics.classification_metrics(scores, truth)
        del values["loss"]  # cosines are not logits
        return with_chance(values, metrics.classification_chance(len(weights)))


def _multi_label_metrics(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Returns metrics of scores [N, C] for examples with one or more classes, bool [N, C]."""
    size, positives = scores.shape[1], truth.sum(axis=1)
    ks = (1, 5) if size > 5 else (1,)
    values = {f"top{k}": metrics.top_k_any(scores, truth, k) for k in ks}
    chance = {f"top{k}": metrics.any_chance(positives, size, k) for k in ks}
    usable = truth.any(axis=0) & ~truth.all(axis=0)
    if usable.any():
        result = metrics.multi_label_metrics(scores[:, usable], truth[:, usable])
        values["mAP"] = result.means()["mAP"]
        chance["mAP"] = float(truth[:, usable].mean())
    return with_chance(values, chance)
