"""`--task=pretrain`: contrastive pretraining of towers of several modalities.

Each modality has a tower. A head maps the outputs of the towers into spaces in which two modalities
are compared. The loss is a contrastive loss per pair of modalities over the global batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mmjax import config, registry
from mmjax.config import Config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
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
# Arguments of the losses that the task provides.
_PROVIDED = ("anchor", "candidates", "mask", "candidate_mask", "anchor_mask")


class Pretrain:
    """Contrastive pretraining on pairs of modalities.

    Config sections: `model` (keywords of `mmjax.models.vatt.make_model`); `augment` (of
    `mmjax.preprocess.inputs.Inputs`); `loss`: `name` of a loss or `package.module:Name`, `weights`
    ({'video_text': 1.0, …}; the first modality of a pair is the anchor), and the keywords of the
    loss.

    Attributes:
      temperature: Divisor of the similarities in the loss; None if the loss has none.

    Raises:
      UserError: The head or the data lack a pair, or the vocabulary exceeds the token embedding.
    """

    def __init__(self, cfg: Config, data_spec: DataSpec):
        model = cfg.model
        if data_spec.vocab_size is not None:
            model = fit_vocabulary(model, data_spec.vocab_size)
        self.model = ModelDef(vatt.make_model(**model))
        self.dtype = model.get("dtype", "float32")
        towers = self.model.module.modalities
        self._inputs = Inputs.from_config(cfg.augment, data_spec, towers=towers)

        loss = dict(cfg.loss)
        name = loss.pop("name", "asymmetric_nce")
        self._loss = registry.resolve("config.loss.name", name, _LOSSES)
        weights = loss.pop("weights", {"video_text": 1.0, "video_audio": 1.0})
        self._loss_keywords = config.keywords(
            self._loss, loss, "loss", provided=_PROVIDED, owner=name
        )
        self._pairs = parse_weights(weights)
        parameter = config.parameters(self._loss).get("temperature")
        self.temperature = self._loss_keywords.get("temperature", parameter and parameter.default)
        if data_spec.train:
            self._check_pairs(data_spec)
        self.predict = {"features": self._features}

    def _check_pairs(self, data_spec: DataSpec) -> None:
        compared = self._compared()
        for pair in self._pairs:
            name = "_".join(pair)
            if pair not in compared:
                pairs = ", ".join("_".join(p) for p in compared)
                raise UserError(
                    f"config.loss.weights.{name}: the head does not compare these modalities. "
                    f"Valid pairs: {pairs}. config.model.head=joint compares all."
                )
            for modality in pair:
                if modality not in data_spec.batch:
                    raise UserError(
                        f"config.loss.weights.{name} needs {modality}. Set config.data.{modality}, "
                        "or remove the pair."
                    )

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        """Returns randomly initialized `(params, extra)`."""
        return self.model.init(key)

    def encode(self, params, extra, batch, key):
        """Returns {modality: [B, D], or [B, L, D] for text}, the pooled outputs of the towers."""
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
        """Returns the weighted mean of the losses of all pairs, as in VATT."""
        module = self.model.bind(params, extra)
        projected = self._project(module, features, train=True)
        total, metrics = jnp.float32(0), {}
        for (anchor, other), weight in self._pairs.items():
            first, second = projected[f"{anchor}/{other}"], projected[f"{other}/{anchor}"]
            masks = self._masks(batch, anchor, other)
            value = self._loss(first, second, **masks, **self._loss_keywords)
            total += weight * value
            metrics[f"loss_{anchor}_{other}"] = (value, jnp.float32(1))
            if (anchors := masks.pop("anchor_mask")) is not None:
                anchors = anchors.reshape(len(anchors), -1).max(axis=1)
                masks["mask"] = anchors if masks["mask"] is None else anchors * masks["mask"]
            metrics[f"top1_{anchor}_{other}"] = contrastive.batch_top1(
                first, second, **masks, chunk_size=self._loss_keywords.get("chunk_size")
            )
        total /= sum(self._pairs.values())
        return total, (self.model.extra_of(module), metrics)

    def flops(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Returns the operations of one training step: forward, and twice as many backward."""
        shapes = self._inputs.shapes(batch)
        batch_size = next(iter(shapes.values()))[0]
        return batch_size * self.model.module.flops(
            {m: s[1:] for m, s in shapes.items()}, train=True
        )

    def _compared(self) -> list[tuple[str, str]]:
        """Returns the pairs of modalities that the head can compare."""
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
        """Returns the outputs of the head; those of captions are [B, L, d]."""
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
        """Returns masks of the anchors, the other modality and its candidates."""
        anchor_mask, mask = batch.get(f"{anchor}_mask"), batch.get(f"{other}_mask")
        candidates = mask if mask is not None and mask.ndim == 2 else None
        return {
            "anchor_mask": anchor_mask,
            "mask": None if candidates is not None else mask,
            "candidate_mask": candidates,
        }

    def _features(self, params, extra, batch) -> dict[str, jax.Array]:
        """Returns {'video': [B, V, D], 'video/text': [B, V, d], …} of towers and head."""
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
