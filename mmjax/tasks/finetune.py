"""`--task=finetune`: a tower with a classifier on labeled video, images or audio."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mmjax import config
from mmjax.config import Config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.losses import classification
from mmjax.models import vatt
from mmjax.preprocess.inputs import Inputs
from mmjax.preprocess.mixup import mixup
from mmjax.state import ModelDef


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOptions:
    """The section `loss`.

    Attributes:
      label_smoothing: Label smoothing, for one label per example.
      balance: With several labels per example, whether to weight an example by the inverse
        frequency of its classes in the batch, as VATT does.
      groups: Number of parts of the batch in which frequencies are counted; VATT counts per
        replica.
    """

    label_smoothing: float = 0.0
    balance: bool = True
    groups: int = 1


class Finetune:
    """Classification with a pretrained or randomly initialized tower.

    Config sections: `model` (keywords of `mmjax.models.vatt.classifier`); `augment` (of
    `mmjax.preprocess.inputs.Inputs`, and `mixup`, the Beta parameter α; 0 is off); `loss`
    (`LossOptions`).

    The parameter paths of the tower are those of pretraining, so `init_from` of a pretraining run
    needs no map. The recipes allow the new classifier and the unused parameters.

    Raises:
      UserError: The data have no labels, or lack the modality of the tower.
    """

    separable = True  # the loss is a mean over examples: `clip_shards` is allowed

    def __init__(self, cfg: Config, data_spec: DataSpec):
        if data_spec.num_classes is None:
            raise UserError("--task=finetune needs labels. Set config.data.label.")
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
                f"config.model.backbone needs {self.modality}. Set config.data.{self.modality}, or "
                "choose a backbone of another modality."
            )
        self._inputs = Inputs.from_config(augment, data_spec, towers=(self.modality,))

        self._loss = LossOptions(**config.keywords(LossOptions, cfg.loss, "loss"))
        if self._loss.label_smoothing and self._multi_label:
            raise UserError(
                f"config.loss.label_smoothing={self._loss.label_smoothing} needs one label per "
                "example. Set it to 0."
            )
        self.predict = {"logits": self._logits, "features": self._features}

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        """Returns randomly initialized `(params, extra)`."""
        return self.model.init(key)

    def encode(self, params, extra, batch, key):
        """Returns pooled features [B, D] and targets [B, C] (smoothed, mixed)."""
        inputs_key, mixup_key, model_key = jax.random.split(key, 3)
        x = self._inputs(batch, inputs_key, train=True)[self.modality]
        targets = self._targets(batch["label"])
        if self._loss.label_smoothing:
            targets = classification.smooth_labels(targets, self._loss.label_smoothing)
        if self._mixup:
            x, targets = mixup(mixup_key, (x, targets), alpha=self._mixup)
        module = self.model.bind(params, extra)
        pooled = module.encode({self.modality: x}, key=model_key, train=True)
        return {"pooled": pooled, "targets": targets}, self.model.extra_of(module)

    def objective(self, params, extra, features, batch, key):
        """Returns the cross-entropy. Ignores examples without a label or without the modality."""
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
                logits,
                targets,
                mask=known,
                balance=self._loss.balance,
                groups=self._loss.groups,
            )
            metrics = {}
        else:
            loss = classification.softmax_cross_entropy(logits, targets, mask=known)
            hits = (logits.argmax(-1) == label) * known
            metrics = {"top1": (hits.sum(), known.sum())}
        return loss, (self.model.extra_of(module), metrics)

    def flops(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Returns the operations of one training step."""
        shape = self._inputs.shapes(batch)[self.modality]
        return shape[0] * self.model.module.flops({self.modality: shape[1:]}, train=True)

    def _targets(self, label: jax.Array) -> jax.Array:
        """Returns targets [B, C], float32."""
        if self._multi_label:
            return label.astype(jnp.float32)
        return jax.nn.one_hot(label, self._num_classes, dtype=jnp.float32)

    def _pooled(self, module, batch) -> jax.Array:
        """Returns pooled features [B, V, D]."""

        def encode(x):
            return module.encode({self.modality: x}, key=None, train=False)

        return self._inputs.each_view(encode, batch, self.modality)

    def _logits(self, params, extra, batch) -> dict[str, jax.Array]:
        """Returns logits [B, C] averaged over views, as in VATT."""
        module = self.model.bind(params, extra)
        logits = module.classify(self._pooled(module, batch), key=None, train=False)
        return {"logits": logits.astype(jnp.float32).mean(axis=1)}

    def _features(self, params, extra, batch) -> dict[str, jax.Array]:
        return {self.modality: self._pooled(self.model.bind(params, extra), batch)}
