"""`--task=guided`: image encoders trained with language-guided and self-supervised losses.

Source: El Banani et al. 2023, Learning Visual Representations via Language-Guided Sampling, arXiv
2302.12248 (LGSSL). A method is a sum of terms (`mmjax.tasks.guided_terms`) with their heads
(`config.loss`, `config.model.heads`): SimCLR, SimSiam, NNCLR, SwAV, CLIP, DeCLIP's nearest
neighbors, and SLIP, which adds two of them. The data determine whether the views of an example are
crops of one image or of an image and its nearest neighbor (`config.data.pairs`): LGSimCLR is SimCLR
on pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from absl import logging

from mmjax.config import Config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.losses.similarity import normalize
from mmjax.models import guided
from mmjax.preprocess.inputs import Inputs
from mmjax.state import ModelDef
from mmjax.tasks.feature_maps import predict_maps
from mmjax.tasks.guided_terms import CLIP, TERMS, Embeddings, SwAV, Term, make_terms, memory_options
from mmjax.tasks.pairs import fit_vocabulary, present


class Guided:
    """Self-supervised and language-guided training of image encoders.

    Config sections: `model` (keywords of `mmjax.models.guided.make_model`); `augment` (of
    `mmjax.preprocess.inputs.Inputs`; `image` may be several sections, one per view); `loss`: one
    section per term of the method (`mmjax.tasks.guided_terms`), None to omit it. A config without
    terms can be evaluated but not trained.

    Texts may be features of a frozen encoder (`config.data.text.features`). Then the model has no
    text tower, and `config.model.text_features` is the width of the features.

    Raises:
      UserError: A term needs a head, view or text that the model or the data lack.
    """

    def __init__(self, cfg: Config, data_spec: DataSpec):
        model = cfg.model
        if data_spec.vocab_size is not None and model.get("text") is not None:
            model = fit_vocabulary(model, data_spec.vocab_size)
        self.dtype = model.get("dtype", "float32")
        self._terms = make_terms(cfg.loss)
        image, text = data_spec.batch.get("image"), data_spec.batch.get("text")
        if image is None:
            raise UserError(
                "--task=guided trains on images. Set config.data.image, for example to "
                "dict(size=224, crops=((0.2, 1.0), (0.2, 1.0)))."
            )
        self._num_views = image.shape[1] if image.ndim == 5 else 1
        self._text_is_features = text is not None and jnp.issubdtype(text.dtype, jnp.floating)
        memory = memory_options(self._terms) if data_spec.train else {}
        self.model = ModelDef(guided.make_model(**model, **memory))
        if self._text_is_features and model.get("text_features", 0) != text.shape[-1]:
            raise UserError(
                f"config.data.text.features have width {text.shape[-1]}, but "
                f"config.model.text_features={model.get('text_features', 0)}. Set "
                f"config.model.text_features={text.shape[-1]}."
            )
        if data_spec.train:
            self._check_terms(text)
        self._inputs = Inputs.from_config(
            cfg.augment, data_spec, towers=(*self.model.module.modalities, "text"), views=True
        )
        self.predict = {"features": self._features, **predict_maps(self.model, self._inputs)}

    def _check_terms(self, text: jax.ShapeDtypeStruct | None) -> None:
        """Raises UserError unless the model and the data have what the terms use."""
        module = self.model.module
        if text is not None and "text" not in module.heads:
            raise UserError(
                "config.data.text is set, but config.model.heads has no head 'text'. Set "
                "config.data.text=None, or add the head."
            )
        for term in self._terms.values():
            self._check_term(term, text)
        used = {head for term in self._terms.values() for head in term.heads}
        unused = [f"config.model.heads.{head}" for head in module.heads if head not in used]
        has_swav = any(isinstance(term, SwAV) for term in self._terms.values())
        if hasattr(module, "prototypes") and not has_swav:
            unused.append("config.model.prototypes")
        if self._terms and unused:
            logging.warning(
                "No term of config.loss uses %s. Only weight decay changes these parameters.",
                ", ".join(unused),
            )

    def _check_term(self, term: Term, text: jax.ShapeDtypeStruct | None) -> None:
        module, where = self.model.module, f"config.loss.{term.name}"
        widths = {head: module.width_of(head, where) for head in term.heads}
        if len(set(widths.values())) > 1:
            raise UserError(
                f"{where} compares embeddings of different widths: "
                f"{', '.join(f'{head} {width}' for head, width in widths.items())}. Make the "
                "widths in config.model.heads equal."
            )
        for view in term.image_views:
            if view >= self._num_views:
                raise UserError(
                    f"{where} uses view {view}, but an example has {self._num_views} (indices "
                    "start at 0). Set config.data.image.crops to one area range per view, for "
                    "example ((0.2, 1.0), (0.2, 1.0))."
                )
        if isinstance(term, SwAV) and not hasattr(module, "prototypes"):
            raise UserError(
                f"{where} needs prototypes. Set config.model.prototypes to their number (LGSSL: "
                "3000)."
            )
        if "text" in term.heads:
            if text is None:
                raise UserError(f"{where} compares images with texts. Set config.data.text.")
            if text.shape[1] != 1:
                raise UserError(
                    f"{where} uses one caption per example. Set config.data.text.candidates=1; got "
                    f"{text.shape[1]}."
                )

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        return self.model.init(key)

    def encode(self, params, extra, batch, key):
        """Returns {'image': [B, V, D], 'text': [B, D]}, the pooled outputs of the towers.

        Views are encoded one after another, so BatchNorm normalizes each separately, as in LGSSL.
        """
        if not self._terms:
            raise UserError(
                "config.loss has no term, so nothing can be trained. Add a term, for example "
                f"config.loss=dict(simclr=dict()). Valid terms: {', '.join(TERMS)}."
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
            if not self._text_is_features:
                text_key = jax.random.fold_in(model_key, self._num_views)
                text = module.encode({"text": text}, key=text_key)["text"]
            features["text"] = text
        return features, self.model.extra_of(module)

    def objective(self, params, extra, features, batch, key):
        """Returns the weighted sum of the terms, as in LGSSL."""
        del key
        module = self.model.bind(params, extra)
        mask = {name: present(batch, name) for name in features}
        embeddings = Embeddings(module, features, mask)
        total, metrics = jnp.float32(0), {}
        for name, term in self._terms.items():
            value, term_metrics = term.loss(embeddings)
            total += term.weight * value
            metrics[f"loss_{name}"] = (value, jnp.float32(1))
            metrics |= {f"{key}_{name}": metric for key, metric in term_metrics.items()}
        for view in range(self._num_views):
            std = feature_std(features["image"][:, view])
            metrics[f"feature_std_{view}"] = (std, jnp.float32(1))
        return total, (self.model.extra_of(module), metrics)

    def flops(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Returns the operations of a training step: forward, and twice as many backward."""
        shapes = self._inputs.shapes(batch)
        batch_size = next(iter(shapes.values()))[0]
        shapes = {modality: shape[1:] for modality, shape in shapes.items()}
        return batch_size * self.model.module.flops(shapes, train=True)

    def _features(self, params, extra, batch) -> dict[str, jax.Array]:
        """Returns {'image': [B, V, D], 'image/text': [B, V, d], …} of backbone and heads."""
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
        """Returns the head whose image embeddings are compared with texts."""
        heads = [term.head for term in self._terms.values() if isinstance(term, CLIP)]
        return heads[0] if heads else "clip"


def feature_std(features: jax.Array) -> jax.Array:
    """Returns the standard deviation of normalized features [B, D] over the batch, times sqrt(D).

    It is 0 for collapsed features, and 1 for random ones.
    """
    x = normalize(features)
    return jnp.std(x, axis=0).mean() * jnp.sqrt(jnp.float32(x.shape[-1]))
