"""`--task=pretrain`: towers of several modalities, trained to agree on what belongs together.

Each modality has a tower; a head maps the towers' outputs into spaces where two modalities are
compared; a contrastive loss per pair of modalities is taken over the global batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax import config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError, choose
from mmjax.losses import contrastive
from mmjax.modalities import INPUTS
from mmjax.models import vatt
from mmjax.preprocess.inputs import Inputs
from mmjax.state import ModelDef
from mmjax.tasks.pairs import fit_vocabulary, parse_weights

_LOSSES = {
    "asymmetric_nce": contrastive.asymmetric_nce,
    "symmetric_nce": contrastive.symmetric_nce,
}
# Arguments of the losses that come from the batch.
_ARRAYS = ("anchor", "other", "mask", "candidate_mask", "anchor_mask")


class Pretrain:
    """Contrastive pretraining of `cfg.model` on pairs of modalities.

    Config sections: `model` (keywords of `mmjax.models.vatt.make_model`), `augment` (of
    `mmjax.preprocess.inputs.Inputs`), `loss`: `name`, `weights` ({'video_text': 1.0, …}; the first of a
    pair is the anchor) and the keywords of that loss.

    Raises:
      UserError: a pair that the head or the data do not have, or a vocabulary larger than the
      table.
    """

    def __init__(self, cfg: Any, data_spec: DataSpec):
        model = cfg.model
        if data_spec.vocab_size is not None:
            model = fit_vocabulary(model, data_spec.vocab_size)
        self.model = ModelDef(vatt.make_model(**model))
        self.dtype = model.get("dtype", "float32")
        towers = self.model.module.modalities
        self._inputs = Inputs.from_config(cfg.augment, data_spec, towers=towers)

        loss = dict(cfg.loss)
        self._loss = choose("config.loss.name", loss.pop("name", "asymmetric_nce"), _LOSSES)
        weights = loss.pop("weights", {"video_text": 1.0, "video_audio": 1.0})
        self._loss_keywords = config.keywords(self._loss, loss, "loss", provided=_ARRAYS)
        self._pairs = parse_weights(weights)
        compared = self._compared()
        for pair in self._pairs:
            name = "_".join(pair)
            if pair not in compared:
                pairs = ", ".join("_".join(p) for p in compared)
                raise UserError(
                    f"config.loss.weights: the head does not compare {name}. Pairs: {pairs}. "
                    "config.model.head=joint compares all."
                )
            for modality in pair:
                if modality not in data_spec.batch:
                    raise UserError(
                        f"config.loss.weights: {name} needs {modality}, "
                        "which config.data does not load."
                    )
        self.predict = {"features": self._features}

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        return self.model.init(key)

    def encode(self, params, extra, batch, key):
        """{modality: [B, D] or, for text, [B, L, D]}, the towers' pooled outputs."""
        inputs_key, model_key = jax.random.split(key)
        inputs = self._inputs(batch, inputs_key, train=True)
        captions = inputs["text"].shape[:2] if "text" in inputs else None
        if captions:
            inputs["text"] = inputs["text"].reshape(-1, inputs["text"].shape[-1])  # [B·L, W]
        module = self.model.bind(params, extra)
        pooled = module.encode(inputs, key=model_key, train=True)
        if captions:
            pooled["text"] = pooled["text"].reshape(*captions, -1)
        return pooled, self.model.extra_of(module)

    def objective(self, params, extra, features, batch, key):
        """The weighted mean of the pairs' losses, as in VATT."""
        module = self.model.bind(params, extra)
        projected = self._project(module, features, train=True)
        total, metrics = jnp.float32(0), {}
        for (anchor, other), weight in self._pairs.items():
            first, second = projected[f"{anchor}/{other}"], projected[f"{other}/{anchor}"]
            masks = self._masks(batch, anchor, other)
            value = self._loss(first, second, **masks, **self._loss_keywords)
            total += weight * value
            metrics[f"loss_{anchor}_{other}"] = (value, jnp.float32(1))
            if (seen := masks.pop("anchor_mask")) is not None:
                seen = seen.reshape(len(seen), -1).max(axis=1)
                masks["mask"] = seen if masks["mask"] is None else seen * masks["mask"]
            metrics[f"top1_{anchor}_{other}"] = contrastive.batch_top1(
                first, second, **masks, chunk_size=self._loss_keywords.get("chunk_size")
            )
        total /= sum(self._pairs.values())
        return total, (self.model.extra_of(module), metrics)

    def flops(self, spec: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Operations of one training step: forward, and twice that backward."""
        shapes = self._inputs.shapes(spec)
        batch_size = next(iter(shapes.values()))[0]
        return batch_size * self.model.module.flops(
            {m: s[1:] for m, s in shapes.items()}, train=True
        )

    def _compared(self) -> list[tuple[str, str]]:
        """The pairs of modalities that the head embeds for each other."""
        module = self.model.module
        pooled = {
            modality: jax.ShapeDtypeStruct((2, getattr(module, modality).out_features), "float32")
            for modality in module.modalities
        }
        outputs = jax.eval_shape(
            lambda params, extra, x: self.model.bind(params, extra).project(x, train=False),
            self.model.params,
            self.model.extra,
            pooled,
        )
        pairs = [tuple(name.split("/")) for name in outputs]
        return [pair for pair in pairs if pair[::-1] in pairs]

    def _project(self, module, features, *, train: bool) -> dict[str, jax.Array]:
        """The head's outputs; captions are [B, L, d]."""
        text = features.get("text")
        flat = dict(features)
        if text is not None and text.ndim == 3:
            flat["text"] = text.reshape(-1, text.shape[-1])
        projected = module.project(flat, train=train)
        if text is not None and text.ndim == 3:
            for name, value in projected.items():
                if name.startswith("text/"):
                    projected[name] = value.reshape(*text.shape[:2], -1)
        return projected

    def _masks(self, batch, anchor: str, other: str) -> dict[str, jax.Array | None]:
        """Which examples have the anchor, the other modality, and which of its candidates."""
        anchor_mask, mask = batch.get(f"{anchor}_mask"), batch.get(f"{other}_mask")
        candidates = mask if mask is not None and mask.ndim == 2 else None
        return {
            "anchor_mask": anchor_mask,
            "mask": None if candidates is not None else mask,
            "candidate_mask": candidates,
        }

    def _features(self, params, extra, batch) -> dict[str, jax.Array]:
        """Towers' and head's outputs: {'video': [B, V, D], 'video/text': [B, V, d], …}."""
        module = self.model.bind(params, extra)

        def pool(modality):
            def encode(x):
                return module.encode({modality: x}, key=None, train=False)[modality]

            return self._inputs.each_view(encode, batch, modality)

        pooled = {modality: pool(modality) for modality in INPUTS if modality in batch}
        flat = {modality: x.reshape(-1, x.shape[-1]) for modality, x in pooled.items()}
        for name, value in module.project(flat, train=False).items():
            pooled[name] = value.reshape(*pooled[name.split("/")[0]].shape[:2], -1)
        return pooled
