"""`--task=flair`: fine-tunes FLAIR on images and captions.

Sources: Xiao et al. 2024, "FLAIR: VLM with Fine-grained Language-informed Image Representations",
arXiv 2412.03561; fine-tuning as in the published code of "Training Vision Tasks Using Diagnostic
Text Description Loss" (TTDL). Any part can be frozen or trained (`config.optimizer.frozen`).

With `config.data.reference`, captions describe the difference between two images, which the
model's `concat_adapter` fuses: the reference first. In TTDL, these are overlays of the true and of
the predicted mask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mmjax import config, tree
from mmjax.config import Config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.losses import contrastive
from mmjax.losses.flair import multi_positive_sigmoid, text_conditioned_sigmoid
from mmjax.losses.similarity import normalize
from mmjax.models import flair
from mmjax.preprocess.inputs import Inputs
from mmjax.state import ModelDef
from mmjax.tasks.feature_maps import predict_maps
from mmjax.tasks.pairs import fit_vocabulary, frozen_towers, present, thumbnails

REFERENCE, CONCAT = "reference", "concat_adapter"
_FIELDS = (*flair.MODALITIES, REFERENCE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOptions:
    """The section `loss`.

    Attributes:
      multi_positive: Whether to add SigLIP's loss of the pooled image, and take the mean of both.
      max_logit_scale: Upper limit of the logit scale; 0 is no limit.
      min_logit_scale: Lower limit of the logit scale; 0 is no limit.
      chunk_size: Number of images that are compared with all texts at once, to save memory; must
        divide the batch. None compares all at once.
    """

    multi_positive: bool = True
    max_logit_scale: float = 100.0
    min_logit_scale: float = 1.0
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        if self.min_logit_scale < 0 or 0 < self.max_logit_scale < self.min_logit_scale:
            raise UserError(
                f"config.loss.min_logit_scale={self.min_logit_scale:g} must be at least 0 and at "
                f"most config.loss.max_logit_scale={self.max_logit_scale:g}."
            )


class Flair:
    """Contrastive training on images and captions with FLAIR's loss.

    Config sections: `model` (keywords of `mmjax.models.flair.make_model`); `augment` (of
    `mmjax.preprocess.inputs.Inputs`); `loss` (`LossOptions`).

    A tower with only frozen parameters runs as in evaluation, without a backward pass.

    Raises:
      UserError: The data lack images or text, or do not fit the adapters of the model, or the
        vocabulary exceeds the token embedding.
    """

    def __init__(self, cfg: Config, data_spec: DataSpec):
        model = {"image": flair.IMAGE_TOWER, "text": flair.TEXT_TOWER, **cfg.model}
        if data_spec.vocab_size is not None:
            model = fit_vocabulary(model, data_spec.vocab_size)
        self.model = ModelDef(flair.make_model(**model))
        self.dtype = model.get("dtype", "float32")
        self._has_reference = REFERENCE in data_spec.batch
        frozen = cfg.optimizer.get("frozen", ())
        self.frozen = frozen_towers(flair.MODALITIES, self.model.params, frozen)
        self._check_data(data_spec, frozen)
        self._inputs = Inputs.from_config(cfg.augment, data_spec, towers=_FIELDS)
        self._loss = LossOptions(**config.keywords(LossOptions, cfg.loss, "loss"))
        self.predict = {
            "features": self._features,
            "inputs": thumbnails(_FIELDS),
            **predict_maps(self.model, self._inputs),
        }

    def _check_data(self, data_spec: DataSpec, frozen: tuple[str, ...]) -> None:
        fields = flair.MODALITIES if data_spec.train else ()
        for name in fields:
            if name not in data_spec.batch:
                raise UserError(
                    f"--task=flair trains on images and captions, but config.data.{name} is not "
                    f"set. Set config.data.{name}."
                )
            if name == "image" and data_spec.batch[name].ndim == 2:
                raise UserError(
                    "--task=flair needs the patches of images, not precomputed features. Set "
                    "config.data.image.features=''."
                )
        if self._has_reference and CONCAT not in self.model.module.adapters:
            raise UserError(
                f"config.data.reference is set, but the model has no {CONCAT}, which fuses an "
                f"image with its reference. Add {CONCAT!r} to config.model.adapters, or set "
                "config.data.reference=None."
            )
        path = f"{CONCAT}/kernel"
        trained = tree.flatten(self.model.params).keys() & {path}
        matched = tree.first_match(
            frozen, list(trained), what="config.optimizer.frozen", every_pattern=False
        )
        if data_spec.train and not self._has_reference and None in matched.values():
            raise UserError(
                f"{CONCAT} of config.model.adapters fuses an image with its reference, but "
                "config.data.reference is not set, so it cannot be trained. Set "
                f"config.data.reference, or freeze it (config.optimizer.frozen=('^{CONCAT}/', …))."
            )

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        """Returns randomly initialized `(params, extra)`."""
        return self.model.init(key)

    def encode(self, params, extra, batch, key):
        """Returns embeddings: {'image': [B, D], 'tokens': [B, N, D], 'text': [B, K, D]}."""
        inputs_key, model_key = jax.random.split(key)
        inputs = self._inputs(batch, inputs_key, train=True)
        module = self.model.bind(params, extra)
        images, text = inputs["image"][:, None], inputs["text"]
        if self._has_reference:  # side by side, so that a device keeps its examples
            images = jnp.concatenate([inputs[REFERENCE][:, None], images], axis=1)
        flat = {"image": images, "text": text}
        flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in flat.items()}
        outputs = module.run(flat, model_key, frozen=self.frozen)
        outputs = [
            {
                name: jax.lax.stop_gradient(x) if name in self.frozen else x
                for name, x in out.items()
            }
            for out in outputs
        ]
        image = flair.Encoded(*(module.project("image", out["image"]) for out in outputs))
        image = jax.tree.map(lambda x: x.reshape(*images.shape[:2], *x.shape[1:]), image)
        first, last = (jax.tree.map(lambda x, i=i: x[:, i], image) for i in (0, -1))
        image = module.fuse(first, last) if self._has_reference else last
        captions = module.project("text", outputs[0]["text"]).reshape(*text.shape[:2], -1)
        features = {"image": image.pooled, "tokens": image.tokens, "text": captions}
        return features, self.model.extra_of(module)

    def objective(self, params, extra, features, batch, key):
        """Returns FLAIR's loss. Examples that lack an image or all captions are ignored."""
        module, options = self.model.bind(params, extra), self._loss
        scale = contrastive.clamped_scale(
            module.logit_scale[...], options.max_logit_scale, options.min_logit_scale
        )
        mask = present(batch, "image")[:, None]
        if self._has_reference:
            mask = mask * present(batch, REFERENCE)[:, None]
        mask = mask * batch.get("text_mask", jnp.ones(features["text"].shape[:2]))
        arguments = dict(
            logit_scale=scale,
            logit_bias=module.logit_bias[...],
            mask=mask,
            chunk_size=options.chunk_size,
        )
        losses = {
            "text_conditioned": text_conditioned_sigmoid(
                features["tokens"],
                features["text"],
                lambda queries, tokens: module.pool(tokens, queries)[0],
                key=key,
                **arguments,
            )
        }
        if options.multi_positive:
            losses["multi_positive"] = multi_positive_sigmoid(
                features["image"], features["text"], **arguments
            )
        one = jnp.float32(1)
        metrics = {f"loss_{name}": (value, one) for name, value in losses.items()}
        metrics |= {
            "logit_scale": (scale, one),
            "top1_image_text": contrastive.batch_top1(
                features["image"], features["text"], candidate_mask=mask
            ),
        }
        return sum(losses.values()) / len(losses), (self.model.extra_of(module), metrics)

    def flops(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Returns the operations of one training step. Frozen towers have no backward pass."""
        shapes = self._inputs.shapes(batch)
        batch_size, num_captions = shapes["text"][:2]
        image = shapes["image"][1:]
        return batch_size * self.model.module.flops(
            {"image": (2, *image) if self._has_reference else image, "text": shapes["text"][1:]},
            train=True,
            frozen=self.frozen,
            num_queries=batch_size + num_captions - 1,
            fused=self._has_reference,
        )

    def _features(self, params, extra, batch) -> dict[str, jax.Array]:
        """Returns {'image': [B, V, F], 'image/text': [B, V, D], …} of towers and projections.

        Images are pooled without a text. A model with a reference compares the fused images, if
        the batch has both.
        """
        module = self.model.bind(params, extra)

        def encode(field):
            tower = "text" if field == "text" else "image"
            return self._inputs.each_view(
                lambda x: module.run({tower: x}, None)[0][tower], batch, field
            )

        out = {name: encode(name) for name in flair.MODALITIES if name in batch}
        embedded = {name: module.project(name, x) for name, x in out.items()}
        if self._has_reference and "image" in embedded:
            image = embedded.pop("image")
            if REFERENCE in batch:
                embedded["image"] = module.fuse(module.project("image", encode(REFERENCE)), image)
        others = {"image": "text", "text": "image"}
        return out | {f"{name}/{others[name]}": normalize(x) for name, x in embedded.items()}
