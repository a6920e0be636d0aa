"""`--task=segment`: semantic segmentation, trained with cross entropy and diagnostic texts.

A text that says how a predicted mask differs from the true one is written for pairs of an image and
a class, by a rule-based describer or a vision-language model, and embedded by FLAIR. It weights the
pixels of the cross entropy, or is compared with the bottleneck of the model by a contrastive loss.
docs/segment.md is the guide.

Source: the published code of "Training Vision Tasks Using Diagnostic Text Description Loss" (TTDL).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax import config
from mmjax.config import Config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.losses.classification import masked_mean
from mmjax.losses.end_task import cross_entropies
from mmjax.models.decoders.resize import resize_nearest
from mmjax.models.segmentation.adapters import Adapter
from mmjax.models.segmentation.registry import build_segmentation
from mmjax.preprocess.color import normalize, to_float
from mmjax.state import ModelDef
from mmjax.tasks import segment_text
from mmjax.tasks.segment_text import TextLoss

IGNORED = 255  # value of pixels without a class
SCALE, CONCAT = "text_scale", "concat_adapter"  # parts of the parameters besides the model's


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOptions:
    """The section `loss`.

    Attributes:
      text: See `mmjax.tasks.segment_text.TextLoss`.
      aux_weight: Weight of the cross entropy of the model's auxiliary head.
    """

    text: TextLoss = TextLoss()
    aux_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.aux_weight < 0:
            raise UserError(f"config.loss.aux_weight={self.aux_weight} must be at least 0.")


class Segment:
    """Segmentation of images uint8 [B, H, W, 3] with masks uint8 [B, H, W].

    Config sections: `model` (`name` and options of `mmjax.models.segmentation.registry`); `loss`
    (`LossOptions`); `text` (options of `mmjax.text_stage`, if `loss.text` uses texts).

    Raises:
      UserError: The data have no masks, or the loss does not fit the model.
    """

    def __init__(self, cfg: Config, data_spec: DataSpec):
        self.loss = LossOptions(**config.keywords(LossOptions, cfg.loss, "loss"))
        model = dict(cfg.model)
        if data_spec.train and "segmentation" not in data_spec.batch:
            raise UserError("--task=segment needs images with masks. Set config.data.segmentation.")
        self.num_classes = model.pop("num_classes", None) or data_spec.num_classes
        if not self.num_classes:
            raise UserError("The number of classes is unknown. Set config.model.num_classes.")
        if data_spec.train and data_spec.num_classes not in (None, self.num_classes):
            raise UserError(
                f"config.model.num_classes={self.num_classes}, but the masks have "
                f"{data_spec.num_classes} classes. Remove config.model.num_classes."
            )
        self.class_names = data_spec.mask_classes
        self.dtype = model.get("dtype", "float32")
        self.model = ModelDef(
            lambda rngs: build_segmentation(num_classes=self.num_classes, rngs=rngs, **model)
        )
        self._check_text(cfg)
        self.predict = {"logits": self._logits}

    def _check_text(self, cfg: Config) -> None:
        text = self.loss.text
        if text.contrastive and not hasattr(self.model.module, "adapter"):
            raise UserError(
                f"config.loss.text.name={text.name!r} compares the bottleneck of the model with "
                "texts through an adapter. Set config.model.adaptation, for example "
                "'contrastive_global'."
            )
        if text.contrastive:
            self._check_adapter(self.model.module.adapter)
        if text.name != "none" and not cfg.text:
            raise UserError(
                f"config.loss.text.name={text.name!r} needs texts. Set config.text.encoder to a "
                "run of --task=flair."
            )
        if self.loss.aux_weight and not hasattr(self.model.module, "aux_head"):
            raise UserError(
                f"config.loss.aux_weight={self.loss.aux_weight}, but the model has no auxiliary "
                "head. Set it to 0."
            )

    def _check_adapter(self, adapter: Adapter) -> None:
        text = self.loss.text
        if adapter.needs_query and text.per_image:
            raise UserError(
                f"config.loss.text.name={text.name!r} has one vector per image, but "
                "config.model.adaptation pools by texts. Use another of both, for example "
                "loss 'grouped' or adaptation 'contrastive_global'."
            )
        if text.fuse_prediction and adapter.out_features != adapter.width:
            raise UserError(
                "config.loss.text.fuse_prediction=True needs an adapter whose output has the "
                f"width of texts, {adapter.width}; that of config.model.adaptation has "
                f"{adapter.out_features}. Use for example 'contrastive_diff'."
            )

    @property
    def enricher(self) -> str | None:
        """What adds diagnostic texts to batches; None if the loss needs none."""
        return None if self.loss.text.name == "none" else "mmjax.text_stage.stage:TextStage"

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        """Returns randomly initialized `(params, extra)`."""
        params, extra = self.model.init(key)
        text = self.loss.text
        if text.contrastive and text.learn_scale:
            log_scale, bias = jnp.log(jnp.float32(text.scale)), jnp.float32(text.bias)
            params = {**params, SCALE: {"log_scale": log_scale, "bias": bias}}
        if text.fuse_prediction:
            width = self.model.module.adapter.out_features
            init = jax.nn.initializers.glorot_uniform()
            kernel = init(jax.random.fold_in(key, 1), (2 * width, width))
            params = {**params, CONCAT: {"kernel": kernel}}
        return params, extra

    def encode(self, params, extra, batch, key):
        """Returns {'logits': [B, H, W, C], 'bottleneck': [B, h, w, F], 'aux'}."""
        module = self.model.bind(_of_model(params), extra)
        output = module(self._pixels(batch["image"]), train=True, key=key)
        features = {name: x for name, x in output._asdict().items() if x is not None}
        return features, self.model.extra_of(module)

    def objective(self, params, extra, features, batch, key):
        """Returns the cross entropy, rescaled or mixed with a contrastive loss of texts.

        Metrics: `loss_ce`, `loss_text`, `loss_aux`, `pixel_accuracy`, and with a contrastive loss
        `text_share`, the loss of texts over the cross entropy after weighting.
        """
        del key
        text, one = self.loss.text, jnp.float32(1)
        module = self.model.bind(_of_model(params), extra)
        target = _target(batch["segmentation"])
        logits = features["logits"]
        values, labels, valid = cross_entropies(logits, target)
        cross_entropy = masked_mean(values, valid)
        metrics = {"loss_ce": (cross_entropy, one)}
        hits = valid & (logits.argmax(-1) == labels)
        metrics["pixel_accuracy"] = (hits.sum().astype(jnp.float32), valid.sum() * one)
        loss = cross_entropy
        if text.name == "rescale":
            loss = segment_text.rescaled(text, logits, target, batch)
            metrics["loss_text"] = (loss, one)
        elif text.contrastive:
            value = segment_text.contrastive(
                text,
                module.adapter,
                features["bottleneck"],
                batch,
                **self._scale(params),
                fuse=params[CONCAT]["kernel"] if text.fuse_prediction else None,
            )
            weight = 1.0 - text.weight if text.convex else 1.0
            loss = weight * cross_entropy + text.weight * value
            metrics["loss_text"] = (value, one)
            share = text.weight * value / jnp.maximum(weight * cross_entropy, 1e-9)
            metrics["text_share"] = (jax.lax.stop_gradient(share), one)
        if self.loss.aux_weight:
            values, _, valid = cross_entropies(features["aux"], target)
            aux = masked_mean(values, valid)
            metrics["loss_aux"] = (aux, one)
            loss += self.loss.aux_weight * aux
        return loss, (self.model.extra_of(module), metrics)

    def _scale(self, params: Mapping[str, Any]) -> dict[str, jax.Array | float]:
        if not self.loss.text.learn_scale:
            return {"scale": self.loss.text.scale, "bias": self.loss.text.bias}
        learned = params[SCALE]
        return {"scale": jnp.exp(learned["log_scale"]), "bias": learned["bias"]}

    def flops(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Returns the operations of one training step, without those of texts."""
        size, *shape = batch["image"].shape
        return 3 * size * self.model.module.flops(shape)

    def masks(self, params, extra, batch, size: int) -> jax.Array:
        """Returns the classes that the model predicts in a training step, uint8 [B, size, size].

        As in TTDL, BatchNorm uses the batch, and masks are resized to the pixel at the floor of the
        scaled position. Statistics are not updated.
        """
        module = self.model.bind(_of_model(params), extra)
        output = module(self._pixels(batch["image"]), train=True, key=None)
        classes = output.logits.argmax(-1).astype(jnp.uint8)
        return resize_nearest(classes[..., None], (size, size))[..., 0]

    def _logits(self, params, extra, batch) -> dict[str, jax.Array]:
        """Returns {'logits': float32 [B, H, W, C]}."""
        module = self.model.bind(_of_model(params), extra)
        return {"logits": module(self._pixels(batch["image"]), train=False).logits}

    def _pixels(self, images: jax.Array) -> jax.Array:
        return normalize(to_float(images), self.model.module.mean, self.model.module.std)


def _of_model(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in params.items() if name not in (SCALE, CONCAT)}


def _target(masks: jax.Array) -> jax.Array:
    """Returns classes int32 [B, H, W, 1] of masks uint8 [B, H, W]; -1 for ignored pixels."""
    classes = masks.astype(jnp.int32)
    return jnp.where(classes == IGNORED, -1, classes)[..., None]
