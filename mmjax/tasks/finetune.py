"""`--task=finetune`: a tower and a classifier on labeled video, images or audio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax import config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.losses import classification
from mmjax.models import vatt
from mmjax.preprocess import video as preprocess
from mmjax.preprocess.inputs import Inputs
from mmjax.state import ModelDef


class Finetune:
    """Classification with `cfg.model` (keywords of `mmjax.models.vatt.classifier`).

    Other config sections: `augment` (of `mmjax.preprocess.inputs.Inputs`, and `mixup`: the Beta
    parameter α, 0 is off) and `loss`: `label_smoothing` for single labels; `balance` for several
    labels weighs an example by the inverse occurrence of its classes in the batch, as VATT does,
    or in each of `groups` parts of it, as VATT does on so many replicas.

    The parameters of the tower have the paths they have in pretraining, so `init_from` a
    pretraining run directory needs no map; the recipes allow what is new (the classifier) and what
    is left over.

    Raises:
      UserError: no labels in the data, or the tower's modality is not loaded.
    """

    separable = True  # the loss is a mean over examples: `clip_shards` is allowed

    def __init__(self, cfg: Any, data_spec: DataSpec):
        if data_spec.num_classes is None:
            raise UserError("--task=finetune needs labels: set config.data.label.")
        self._num_classes = data_spec.num_classes
        self._multi_label = len(data_spec.batch["label"].shape) == 2
        augment = dict(cfg.augment)
        self._mixup = augment.pop("mixup", 0.0)
        model = {"name": "classifier", **cfg.model, "num_classes": data_spec.num_classes}
        self.model = ModelDef(vatt.make_model(**model))
        self.dtype = model.get("dtype", "float32")
        self.modality = self.model.module.modality
        if self.modality not in data_spec.batch:
            raise UserError(
                f"config.model.backbone takes {self.modality}, which config.data does not load."
            )
        self._inputs = Inputs.from_config(augment, data_spec, towers=(self.modality,))

        def loss_keywords(*, label_smoothing: float = 0.0, balance: bool = True, groups: int = 1):
            return label_smoothing, dict(balance=balance, groups=groups)

        self._smoothing, self._weighing = loss_keywords(
            **config.keywords(loss_keywords, cfg.loss, "loss")
        )
        if self._smoothing and self._multi_label:
            raise UserError("config.loss.label_smoothing is for single labels; set it to 0.")
        self.predict = {"logits": self._logits, "features": self._features}

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        return self.model.init(key)

    def encode(self, params, extra, batch, key):
        """Pooled features [B, D] and targets [B, C] (smoothed, mixed)."""
        inputs_key, mixup_key, model_key = jax.random.split(key, 3)
        x = self._inputs(batch, inputs_key, train=True)[self.modality]
        targets = self._targets(batch["label"])
        if self._smoothing:
            targets = classification.smooth_labels(targets, self._smoothing)
        if self._mixup:
            x, targets = preprocess.mixup(mixup_key, (x, targets), alpha=self._mixup)
        module = self.model.bind(params, extra)
        pooled = module.encode({self.modality: x}, key=model_key, train=True)
        return {"pooled": pooled, "targets": targets}, self.model.extra_of(module)

    def objective(self, params, extra, features, batch, key):
        """Cross entropy; examples without a label (−1, or no class at all) or without the modality
        count nothing."""
        module = self.model.bind(params, extra)
        logits = module.classify(features["pooled"], key=jax.random.fold_in(key, 1), train=True)
        targets = jax.lax.stop_gradient(features["targets"])
        label = batch["label"]
        known = (label.max(axis=-1) > 0) if self._multi_label else (label >= 0)
        known = known.astype(jnp.float32)
        if (present := batch.get(f"{self.modality}_mask")) is not None:
            known *= present
        if self._multi_label:
            loss = classification.sigmoid_cross_entropy(
                logits, targets, mask=known, **self._weighing
            )
            metrics = {}
        else:
            loss = classification.softmax_cross_entropy(logits, targets, mask=known)
            right = (logits.argmax(-1) == label) * known
            metrics = {"top1": (right.sum(), known.sum())}
        return loss, (self.model.extra_of(module), metrics)

    def flops(self, spec: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        shape = self._inputs.shapes(spec)[self.modality]
        return shape[0] * self.model.module.flops({self.modality: shape[1:]}, train=True)

    def _targets(self, label: jax.Array) -> jax.Array:
        """[B, C] float32."""
        if self._multi_label:
            return label.astype(jnp.float32)
        return jax.nn.one_hot(label, self._num_classes, dtype=jnp.float32)

    def _pooled(self, module, batch) -> jax.Array:
        """[B, V, D]."""

        def encode(x):
            return module.encode({self.modality: x}, key=None, train=False)

        return self._inputs.each_view(encode, batch, self.modality)

    def _logits(self, params, extra, batch) -> dict[str, jax.Array]:
        """[B, C]: logits averaged over views, before any softmax or sigmoid, as in VATT."""
        module = self.model.bind(params, extra)
        logits = module.classify(self._pooled(module, batch), key=None, train=False)
        return {"logits": logits.astype(jnp.float32).mean(axis=1)}

    def _features(self, params, extra, batch) -> dict[str, jax.Array]:
        return {self.modality: self._pooled(self.model.bind(params, extra), batch)}
