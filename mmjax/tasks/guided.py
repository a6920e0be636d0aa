"""`--task=guided`: images learned from their captions' neighbors, and the methods it is compared
with.

Source: El Banani et al. 2023, Learning Visual Representations via Language-Guided Sampling, arXiv
2302.12248 (LGSSL). A method is a sum of terms (`mmjax.tasks.guided_terms`), each with the heads it
takes (`config.loss`, `config.model.heads`): SimCLR, SimSiam, NNCLR, SwAV, CLIP, DeCLIP's nearest
neighbors, and SLIP, which adds two of them. Whether the views of an example are crops of one
image or of an image and its neighbor is decided by the data (`config.data.pairs`): LGSimCLR is
SimCLR on pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.losses.similarity import normalize
from mmjax.models import guided
from mmjax.preprocess.inputs import Inputs
from mmjax.state import ModelDef
from mmjax.tasks.guided_terms import TERMS, Embedded, memories, parse
from mmjax.tasks.pairs import fit_vocabulary, present


class Guided:
    """Self-supervised and language-guided learning of images.

    Config sections: `model` (keywords of `mmjax.models.guided.make_model`), `augment` (of
    `mmjax.preprocess.inputs.Inputs`; `image` may be several sections, one for each view), `loss`: a
    section for each term of the method, `{term: dict(weight=1.0, …keywords of that function)}`,
    None for none. Without a term nothing can be trained, but evaluated.

    Texts may come as the features of a frozen encoder (`config.data.text.features`): then there is
    no tower for them, and `config.model.text_features` is the features' width.

    Raises:
      UserError: a term without its heads, views or texts.
    """

    def __init__(self, cfg: Any, data_spec: DataSpec):
        model = cfg.model
        if data_spec.vocab_size is not None and model.get("text") is not None:
            model = fit_vocabulary(model, data_spec.vocab_size)
        self.dtype = model.get("dtype", "float32")
        self._terms = parse(cfg.loss)
        image, text = data_spec.batch.get("image"), data_spec.batch.get("text")
        if image is None:
            raise UserError(
                "--task=guided learns images: set config.data.image, e.g. "
                "dict(size=224, crops=((0.2, 1.0), (0.2, 1.0)))."
            )
        self._num_views = image.shape[1] if image.ndim == 5 else 1
        self._text_is_given = text is not None and jnp.issubdtype(text.dtype, jnp.floating)
        self.model = ModelDef(guided.make_model(**model, **memories(self._terms)))
        if self._text_is_given and model.get("text_features", 0) != text.shape[-1]:
            raise UserError(
                f"config.data.text.features have {text.shape[-1]} numbers each: set "
                f"config.model.text_features={text.shape[-1]}, not "
                f"{model.get('text_features', 0)}."
            )
        self._check_terms(text)
        self._inputs = Inputs.from_config(
            cfg.augment, data_spec, towers=(*self.model.module.modalities, "text"), views=True
        )
        self.predict = {"features": self._features}

    def _check_terms(self, text: jax.ShapeDtypeStruct | None) -> None:
        module = self.model.module
        if text is not None and "text" not in module.heads:
            raise UserError(
                "config.data loads texts, for which config.model.heads has no head 'text': set "
                "config.data.text=None."
            )
        used: set[str] = set()
        for name, (_, keywords) in self._terms.items():
            where = f"config.loss.{name}"
            heads = TERMS[name].heads_of(keywords)
            used.update(heads)
            widths = {head: module.width_of(head, where) for head in heads}
            if len(set(widths.values())) > 1:
                raise UserError(
                    f"{where} compares embeddings of different widths: "
                    f"{', '.join(f'{head} {width}' for head, width in widths.items())} "
                    "(config.model.heads)."
                )
            views = [keywords["view"]] if "view" in keywords else list(keywords["views"])
            for view in views:
                if view >= self._num_views:
                    raise UserError(
                        f"{where} compares view {view}, but an example has {self._num_views} "
                        "(counted from 0): set config.data.image.crops, an area for each view, "
                        "such as ((0.2, 1.0), (0.2, 1.0))."
                    )
            if name == "swav" and not hasattr(module, "prototypes"):
                raise UserError(f"{where} needs config.model.prototypes, a number (LGSSL: 3000).")
            if "view" in keywords:
                if text is None:
                    raise UserError(f"{where} compares images with texts: set config.data.text.")
                if text.shape[1] != 1:
                    raise UserError(
                        f"{where} compares one caption of an example: set "
                        f"config.data.text.candidates=1, not {text.shape[1]}."
                    )
        idle = [f"config.model.heads.{head}" for head in module.heads if head not in used]
        if hasattr(module, "prototypes") and "swav" not in self._terms:
            idle.append("config.model.prototypes")
        if self._terms and idle:
            logging.warning(
                "No term of config.loss learns %s: only weight decay acts there.", ", ".join(idle)
            )

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        return self.model.init(key)

    def encode(self, params, extra, batch, key):
        """{'image': [B, V, D], 'text': [B, D]}, the towers' pooled outputs.

        Views go through the backbone one after the other: BatchNorm sees each alone, as in LGSSL.
        """
        if not self._terms:
            raise UserError(
                "config.loss has no term: there is nothing to train. Give one of "
                f"{', '.join(TERMS)}, e.g. config.loss=dict(simclr=dict())."
            )
        inputs_key, model_key = jax.random.split(key)
        inputs = self._inputs(batch, inputs_key, train=True)
        module = self.model.bind(params, extra)
        images = inputs["image"]
        if images.ndim == 4:
            images = images[:, None]
        views = [
            module.encode({"image": images[:, view]}, key=jax.random.fold_in(model_key, view))
            for view in range(self._num_views)
        ]
        features = {"image": jnp.stack([view["image"] for view in views], axis=1)}
        if "text" in inputs:
            text = inputs["text"][:, 0]
            if not self._text_is_given:
                text_key = jax.random.fold_in(model_key, self._num_views)
                text = module.encode({"text": text}, key=text_key)["text"]
            features["text"] = text
        return features, self.model.extra_of(module)

    def objective(self, params, extra, features, batch, key):
        """The weighted sum of the terms, as in LGSSL."""
        del key
        module = self.model.bind(params, extra)
        mask = {name: present(batch, name) for name in features}
        seen = Embedded(module, features, mask)
        total, metrics = jnp.float32(0), {}
        for name, (weight, keywords) in self._terms.items():
            value, more = TERMS[name].loss(seen, **keywords)
            total += weight * value
            metrics[f"loss_{name}"] = (value, jnp.float32(1))
            metrics |= {f"{metric}_{name}": number for metric, number in more.items()}
        for view in range(self._num_views):
            metrics[f"spread_{view}"] = (_spread(features["image"][:, view]), jnp.float32(1))
        return total, (self.model.extra_of(module), metrics)

    def flops(self, spec: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Operations of a training step: forward, and twice that backward."""
        shapes = self._inputs.shapes(spec)
        batch_size = next(iter(shapes.values()))[0]
        shapes = {modality: shape[1:] for modality, shape in shapes.items()}
        return batch_size * self.model.module.flops(shapes, train=True)

    def _features(self, params, extra, batch) -> dict[str, jax.Array]:
        """The backbone's and heads' outputs: {'image': [B, V, D], 'image/text': [B, V, d], …}."""
        module = self.model.bind(params, extra)
        out = {}
        for modality in module.modalities:
            if modality in batch:
                tower = getattr(module, modality)
                out[modality] = self._inputs.each_view(lambda x, t=tower: t(x)[0], batch, modality)
        heads = {"image": self._image_head(), "text": "text"}
        for modality, other in (("image", "text"), ("text", "image")):
            head = heads[modality]
            if modality in out and head in module.heads and "text" in module.heads:
                flat = out[modality].reshape(-1, out[modality].shape[-1])
                embedded = normalize(module.heads[head](flat, train=False))
                out[f"{modality}/{other}"] = embedded.reshape(*out[modality].shape[:2], -1)
        return out

    def _image_head(self) -> str:
        """The head whose embeddings of images are compared with texts."""
        for name in ("clip", "clip_neighbors"):
            if name in self._terms:
                return self._terms[name][1]["head"]
        return "clip"


def _spread(features: jax.Array) -> jax.Array:
    """How far unit features spread over the batch: 0 where all are the same, 1 at random ones."""
    x = normalize(features)
    return jnp.std(x, axis=0).mean() * jnp.sqrt(jnp.float32(x.shape[-1]))
