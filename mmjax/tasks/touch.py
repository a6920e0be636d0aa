"""`--task=touch`: a touch encoder that learns the space of frozen image and text towers.

Source: Fu et al. 2024, "A Touch, Vision, and Language Dataset for Multimodal Alignment", arXiv
2402.13232 (TVL). Any of the towers may be frozen or trained (`config.optimizer.frozen`), and any
two or three of touch, image and text take part.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax import config, tree
from mmjax.checkpoints.manager import fingerprint
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError, choose
from mmjax.losses import contrastive
from mmjax.models import tvl
from mmjax.preprocess.inputs import Inputs
from mmjax.state import ModelDef
from mmjax.tasks.pairs import fit_vocabulary, parse_weights, present

_LOSSES = {
    "info_nce": contrastive.info_nce,
    "soft_nce": contrastive.soft_nce,
    "sigmoid": contrastive.sigmoid_loss,
}
# Arguments of the losses that the task gives.
_GIVEN = ("anchor", "positive", "mask", "logit_scale", "logit_bias")
_THUMBNAIL = 96  # pixels
MAX_LOGIT_SCALE = 100.0  # by default, as CLIP


class Touch:
    """Pairs of modalities compared by their cosines, with one learned scale for all.

    Config sections: `model` (keywords of `mmjax.models.tvl.make_model`), `augment` (of
    `mmjax.preprocess.inputs.Inputs`), `loss`:

      name: 'info_nce' (CLIP's loss), 'soft_nce' or 'sigmoid'; further keys are its keywords.
      weights: {'touch_image': 1.0, …}, in any order of a pair; one that is left out or 0 is not
        compared. Default: all pairs of the model, each 1.
      touch_text: another loss for this pair alone: a name, or a dict of `name` and keywords (TVL's
        option of soft labels is 'soft_nce').
      mean_over: 'weights' divides the sum by that of the weights; 'pairs' by the number of all
        pairs of the model, whether they are compared or not, as TVL's published code does.
      max_logit_scale: the scale does not go beyond it; 0: no limit, as in TVL. CLIP's is 100.
      groups: compare within each of so many equal parts of the batch, as TVL's published code does
        on so many devices. 1: all of the batch.

    Towers whose every parameter is frozen run as in evaluation and need no backward pass. A
    modality may come as the features of its tower (`config.data.image.features`), which then does
    not run at all.

    Raises:
      UserError: a pair or modality that the model or the data do not have, or a vocabulary larger
        than the table.
    """

    def __init__(self, cfg: Any, data_spec: DataSpec):
        model = cfg.model
        if data_spec.vocab_size is not None:
            model = fit_vocabulary(model, data_spec.vocab_size)
        self.model = ModelDef(tvl.make_model(**model))
        self.dtype = model.get("dtype", "float32")
        modalities = self.model.module.modalities
        if len(modalities) < 2:
            raise UserError(
                "--task=touch compares at least two of touch, image and text; config.model has "
                f"{', '.join(modalities) or 'none'}. Name a tower: config.model.touch="
                "vit_tiny_patch16_224, config.model.text=clip_text_l14, …"
            )
        for modality in modalities:
            if modality not in data_spec.batch:
                raise UserError(
                    f"config.model has a tower for {modality}, which config.data does not load: "
                    f"set config.data.{modality}, or config.model.{modality}=None."
                )
        if "text" in modalities and data_spec.batch["text"].shape[1] != 1:
            raise UserError(
                "--task=touch compares one caption of an example: set "
                f"config.data.text.candidates=1, not {data_spec.batch['text'].shape[1]}."
            )
        self._inputs = Inputs.from_config(cfg.augment, data_spec, towers=modalities)
        frozen = cfg.optimizer.get("frozen", ())
        self.frozen = _frozen_towers(modalities, self.model.params, frozen)
        sections = {m: dict(cfg.data.get(m) or {}) for m in modalities}
        self._directories = {m: s.pop("features") for m, s in sections.items() if s.get("features")}
        self._sections = json.loads(json.dumps(sections))  # as features.json has them
        for modality in self._directories:
            if modality not in self.frozen:
                raise UserError(
                    f"config.data.{modality}.features take the place of a tower that is trained. "
                    f"Freeze it (config.optimizer.frozen=('^{modality}/',)) or leave them out."
                )
        self._configure_loss(cfg.loss)
        self.predict = {"features": self._features, "inputs": self._thumbnails}

    def _configure_loss(self, loss: dict[str, Any]) -> None:
        own = dict(loss)
        weights = own.pop("weights", None)
        touch_text = own.pop("touch_text", None)
        mean_over = own.pop("mean_over", "weights")
        self._max_scale = float(own.pop("max_logit_scale", MAX_LOGIT_SCALE))
        self._groups = own.pop("groups", 1)
        if self._max_scale < 0 or not isinstance(self._groups, int) or self._groups < 1:
            raise UserError(
                f"config.loss: max_logit_scale={self._max_scale:g} must be at least 0 and "
                f"groups={self._groups!r} a number from 1."
            )
        choose("config.loss.mean_over", mean_over, {"weights": 0, "pairs": 0})
        pairs = list(itertools.combinations(self.model.module.modalities, 2))
        given = parse_weights(weights or {"_".join(pair): 1.0 for pair in pairs})
        self._weights = {}
        for pair, weight in given.items():
            pair = pair if pair in pairs else pair[::-1]
            if pair not in pairs:
                raise UserError(
                    f"config.loss.weights: {'_'.join(pair[::-1])} is no pair of this model. Pairs: "
                    f"{', '.join('_'.join(p) for p in pairs)}."
                )
            if pair in self._weights:
                raise UserError(
                    f"config.loss.weights gives {'_'.join(pair)} twice, in both orders: leave one "
                    "out."
                )
            self._weights[pair] = weight
        self._divisor = len(pairs) if mean_over == "pairs" else sum(self._weights.values())
        default = _make_loss(own, "loss")
        self._losses = dict.fromkeys(self._weights, default)
        if touch_text is not None:
            if ("touch", "text") not in self._losses:
                raise UserError("config.loss.touch_text is set, but touch_text is not compared.")
            spec = {"name": touch_text} if isinstance(touch_text, str) else dict(touch_text)
            self._losses["touch", "text"] = _make_loss(spec, "loss.touch_text")

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        return self.model.init(key)

    def check(self, params: dict) -> None:
        """Raises unless given features are of the towers that the model has.

        Raises:
          UserError: they are another tower's, or of other inputs than this run's config makes.
        """
        from mmjax.data.pipeline import precomputed_features  # imports TensorFlow

        for modality, directories in self._directories.items():
            own, section = fingerprint(params[modality]), self._sections[modality]
            for directory in (directories,) if isinstance(directories, str) else directories:
                made = precomputed_features.read_description(directory) or {}
                made_by = made.get("towers", {}).get(modality)
                if made_by != own:
                    raise UserError(
                        f"config.data.{modality}.features={directory} were computed by another tower "
                        f"({made_by or 'it does not say which'}) than this run's ({own}): its "
                        "weights, its options or their type differ. Compute them again from "
                        "config.init_from with this recipe (`mmjax embed`)."
                    )
                of = made.get("inputs", {}).get(modality)
                if of is not None and of != section:
                    raise UserError(
                        f"config.data.{modality}.features={directory} were computed with "
                        f"data.{modality}={of}, which is here {section}. Compute them again with "
                        "this recipe (`mmjax embed`), or set the same options."
                    )

    def encode(self, params, extra, batch, key):
        """{modality: [B, D]}, the towers' pooled outputs."""
        inputs_key, model_key = jax.random.split(key)
        inputs = self._inputs(batch, inputs_key, train=True)
        if "text" in inputs:
            inputs["text"] = inputs["text"][:, 0]
        ready = {m: x for m, x in inputs.items() if _is_features(m, x)}
        module = self.model.bind(params, extra)
        rest = {m: x for m, x in inputs.items() if m not in ready}
        pooled = module.encode(rest, key=model_key, frozen=self.frozen)
        return pooled | ready, self.model.extra_of(module)

    def objective(self, params, extra, features, batch, key):
        """The weighted sum of the pairs' losses; examples that lack one of a pair do not count."""
        del key
        module = self.model.bind(params, extra)
        projected = module.project(features)
        scale = contrastive.clamped_scale(module.logit_scale[...], self._max_scale)
        bias = getattr(module, "logit_bias", None)
        total, metrics = jnp.float32(0), {"logit_scale": (scale, jnp.float32(1))}
        for (a, b), weight in self._weights.items():
            loss, takes_bias = self._losses[a, b]
            options = {"logit_scale": scale}
            if takes_bias and bias is not None:
                options["logit_bias"] = bias[...]
            mask = present(batch, a) * present(batch, b)
            rows = (projected[a], projected[b], mask)
            value = _in_groups(loss, rows, self._groups, options)
            total += weight * value
            metrics[f"loss_{a}_{b}"] = (value, jnp.float32(1))
            metrics[f"top1_{a}_{b}"] = contrastive.batch_top1(
                projected[a], projected[b], mask=mask, candidate_mask=None
            )
        return total / self._divisor, (self.model.extra_of(module), metrics)

    def flops(self, spec: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Operations of a training step: frozen towers only go forward, given features not even."""
        shapes = self._inputs.shapes(spec)
        batch_size = next(iter(shapes.values()))[0]
        shapes = {m: s[1:] for m, s in shapes.items() if not _is_features(m, spec[m])}
        return batch_size * self.model.module.flops(shapes, train=True, frozen=self.frozen)

    def _features(self, params, extra, batch) -> dict[str, jax.Array]:
        """Towers' outputs and embeddings: {'touch': [B, V, D], 'touch/text': [B, V, d], …}."""
        module = self.model.bind(params, extra)
        modalities = module.modalities

        def pool(modality):
            def encode(x):
                return module.encode({modality: x}, key=None)[modality]

            return self._inputs.each_view(encode, batch, modality)

        out = {modality: pool(modality) for modality in modalities if modality in batch}
        flat = {modality: x.reshape(-1, x.shape[-1]) for modality, x in out.items()}
        embedded = module.project(flat)
        for modality, other in itertools.permutations(modalities, 2):
            if modality in embedded:
                shape = (*out[modality].shape[:2], -1)
                out[f"{modality}/{other}"] = embedded[modality].reshape(shape)
        return out

    def _thumbnails(self, params, extra, batch) -> dict[str, jax.Array]:
        """What was looked at: images [B, V, h, w, 3] in [0, 255], at most 96 pixels high, and
        ids of words [B, L, W]; all float32."""
        del params, extra
        out = {}
        for modality in self.model.module.modalities:
            if modality not in batch:
                continue
            x = batch[modality].astype(jnp.float32)
            if modality != "text":
                size = min(_THUMBNAIL, x.shape[-2])
                x = jax.image.resize(x, (*x.shape[:2], size, size, 3), "linear")
            out[modality] = x
        return out


def _make_loss(spec: dict[str, Any], where: str):
    """`(loss, whether it takes a bias)` of a section: `name` and keywords."""
    spec = dict(spec)
    function = choose(f"config.{where}.name", spec.pop("name", "info_nce"), _LOSSES)
    keywords = config.keywords(function, spec, where, provided=_GIVEN)
    return functools.partial(function, **keywords), function is contrastive.sigmoid_loss


def _in_groups(loss, rows, groups: int, options: Mapping[str, Any]) -> jax.Array:
    """The mean of the losses of `groups` equal, consecutive parts of the batch."""
    if groups == 1:
        return loss(rows[0], rows[1], mask=rows[2], **options)
    if len(rows[0]) % groups:
        raise UserError(
            f"config.loss.groups={groups} does not divide the batch of {len(rows[0])} examples."
        )
    parts = [x.reshape(groups, -1, *x.shape[1:]) for x in rows]
    return jax.vmap(lambda a, b, mask: loss(a, b, mask=mask, **options))(*parts).mean()


def _frozen_towers(modalities, params: dict, patterns) -> tuple[str, ...]:
    """The modalities whose tower has no parameter that is trained."""
    paths = list(tree.flatten(params))
    matched = tree.first_match(patterns, paths, what="config.optimizer.frozen")
    trained = {path.split("/")[0] for path in paths if matched[path] is None}
    return tuple(modality for modality in modalities if modality not in trained)


def _is_features(modality: str, x: Any) -> bool:
    """Whether a field holds the tower's outputs instead of images or words."""
    images = modality != "text" and x.ndim > 2
    return not images and jnp.issubdtype(x.dtype, jnp.floating)
