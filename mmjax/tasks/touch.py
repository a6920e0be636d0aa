"""`--task=touch`: aligns a touch encoder with image and text towers.

Source: Fu et al. 2024, "A Touch, Vision, and Language Dataset for Multimodal Alignment", arXiv
2402.13232 (TVL). Each tower can be frozen or trained (`config.optimizer.frozen`). Two or three of
touch, image and text are compared.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mmjax import config, registry
from mmjax.checkpoints.checksums import fingerprint
from mmjax.config import Config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.losses import contrastive
from mmjax.models import tvl
from mmjax.preprocess.inputs import Inputs
from mmjax.state import ModelDef
from mmjax.tasks.feature_maps import predict_maps
from mmjax.tasks.pairs import fit_vocabulary, frozen_towers, parse_weights, present, thumbnails

_LOSSES = {
    "info_nce": contrastive.info_nce,
    "soft_nce": contrastive.soft_nce,
    "sigmoid": contrastive.sigmoid_loss,
}
# Arguments of the losses that the task provides.
_PROVIDED = ("anchor", "positive", "mask", "logit_scale", "logit_bias")
MAX_LOGIT_SCALE = 100.0  # default, as in CLIP


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Keys of the section `loss` besides `name` and the keywords of that loss.

    Attributes:
      weights: {'touch_image': 1.0, …}, in any order of a pair. Missing pairs and weights of 0 are
        not compared. None compares all pairs with weight 1.
      touch_text: Another loss for this pair: a name, or a dict of `name` and keywords. TVL's soft
        labels are 'soft_nce'.
      mean_over: 'weights' divides the sum of losses by the sum of weights; 'pairs' by the number of
        pairs of the model, including those that are not compared, as TVL's published code does.
      max_logit_scale: Upper limit of the logit scale; 0 is no limit, as in TVL.
      groups: Number of equal parts of the batch; examples are compared within a part. TVL's
        published code compares within a device.
    """

    weights: dict[str, Any] | None = None
    touch_text: str | dict[str, Any] | None = None
    mean_over: Literal["weights", "pairs"] = "weights"
    max_logit_scale: float = MAX_LOGIT_SCALE
    groups: int = 1

    def __post_init__(self) -> None:
        if self.max_logit_scale < 0:
            raise UserError(
                f"config.loss.max_logit_scale must be at least 0; got {self.max_logit_scale:g}."
            )
        if self.groups < 1:
            raise UserError(f"config.loss.groups must be at least 1; got {self.groups}.")


class Touch:
    """Contrastive training on pairs of modalities with one learned logit scale.

    Config sections: `model` (keywords of `mmjax.models.tvl.make_model`); `augment` (of
    `mmjax.preprocess.inputs.Inputs`); `loss` (`LossOptions`, and the keywords of the loss).

    A tower with only frozen parameters runs as in evaluation, without a backward pass. With
    precomputed features (`config.data.image.features`) it does not run at all.

    Raises:
      UserError: The model or the data lack a pair or modality, or the vocabulary exceeds the token
        embedding.
    """

    def __init__(self, cfg: Config, data_spec: DataSpec):
        model = cfg.model
        if data_spec.vocab_size is not None:
            model = fit_vocabulary(model, data_spec.vocab_size)
        self.model = ModelDef(tvl.make_model(**model))
        self.dtype = model.get("dtype", "float32")
        modalities = self.model.module.modalities
        if data_spec.train and len(modalities) < 2:
            raise UserError(
                "--task=touch needs towers for at least two of touch, image and text; config.model "
                f"has {', '.join(modalities) or 'none'}. Set, for example, "
                "config.model.touch=vit_tiny_patch16_224 and config.model.text=clip_text_l14."
            )
        for modality in modalities:
            if modality not in data_spec.batch:
                raise UserError(
                    f"config.model.{modality} is set, but config.data.{modality} is not. Set "
                    f"config.data.{modality}, or config.model.{modality}=None."
                )
        if "text" in modalities and data_spec.batch["text"].shape[1] != 1:
            raise UserError(
                "--task=touch uses one caption per example. Set config.data.text.candidates=1; got "
                f"{data_spec.batch['text'].shape[1]}."
            )
        self._inputs = Inputs.from_config(cfg.augment, data_spec, towers=modalities)
        frozen = cfg.optimizer.get("frozen", ())
        self.frozen = frozen_towers(modalities, self.model.params, frozen)
        sections = {m: dict(cfg.data.get(m) or {}) for m in modalities}
        self._feature_dirs = {
            m: s.pop("features") for m, s in sections.items() if s.get("features")
        }
        self._sections = json.loads(json.dumps(sections))  # in the form of features.json
        for modality in self._feature_dirs:
            if modality not in self.frozen:
                raise UserError(
                    f"config.data.{modality}.features replaces a tower that is not frozen. Freeze "
                    f"it (config.optimizer.frozen=('^{modality}/',)), or set "
                    f"config.data.{modality}.features=''."
                )
        if data_spec.train:
            self._configure_loss(cfg.loss)
        self.predict = {
            "features": self._features,
            "inputs": thumbnails(modalities),
            **predict_maps(self.model, self._inputs),
        }

    def _configure_loss(self, section: Mapping[str, Any]) -> None:
        keys = [field.name for field in dataclasses.fields(LossOptions)]
        own = {key: value for key, value in section.items() if key in keys}
        options = LossOptions(**config.keywords(LossOptions, own, "loss"))
        self._max_scale, self._groups = options.max_logit_scale, options.groups
        pairs = list(itertools.combinations(self.model.module.modalities, 2))
        self._weights = _pair_weights(options.weights, pairs)
        all_pairs = options.mean_over == "pairs"
        self._divisor = len(pairs) if all_pairs else sum(self._weights.values())
        default = {key: value for key, value in section.items() if key not in keys}
        self._losses = dict.fromkeys(self._weights, _make_loss(default, "loss"))
        if (touch_text := options.touch_text) is not None:
            if ("touch", "text") not in self._losses:
                raise UserError(
                    "config.loss.touch_text is set, but config.loss.weights does not compare touch "
                    "and text. Set config.loss.weights.touch_text, or config.loss.touch_text=None."
                )
            spec = {"name": touch_text} if isinstance(touch_text, str) else touch_text
            self._losses["touch", "text"] = _make_loss(spec, "loss.touch_text")

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        """Returns randomly initialized `(params, extra)`."""
        return self.model.init(key)

    def check(self, params: dict) -> None:
        """Checks that precomputed features were computed by the towers of this model.

        Raises:
          UserError: They are of another tower, or of inputs with other options.
        """
        from mmjax.data.pipeline import precomputed_features  # imports TensorFlow

        for modality, directories in self._feature_dirs.items():
            own, section = fingerprint(params[modality]), self._sections[modality]
            for directory in (directories,) if isinstance(directories, str) else directories:
                description = precomputed_features.read_description(directory) or {}
                tower = description.get("towers", {}).get(modality)
                if tower != own:
                    raise UserError(
                        f"config.data.{modality}.features={directory} were computed by another "
                        f"tower (fingerprint {tower or 'unknown'}) than that of this run ({own}): "
                        "weights, options or dtype differ. Compute them again with this recipe and "
                        "the weights of config.init_from (`mmjax embed`)."
                    )
                inputs = description.get("inputs", {}).get(modality)
                if inputs is not None and inputs != section:
                    raise UserError(
                        f"config.data.{modality}.features={directory} were computed with "
                        f"data.{modality}={inputs}, but this config has {section}. Compute them "
                        "again with this recipe (`mmjax embed`), or set the same options."
                    )

    def encode(self, params, extra, batch, key):
        """Returns {modality: [B, D]}, the pooled outputs of the towers."""
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
        """Returns the weighted loss of all pairs. Examples that lack one of a pair are ignored."""
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

    def flops(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Returns the operations of one training step.

        Frozen towers have no backward pass; precomputed features need no operations.
        """
        shapes = self._inputs.shapes(batch)
        batch_size = next(iter(shapes.values()))[0]
        shapes = {m: s[1:] for m, s in shapes.items() if not _is_features(m, batch[m])}
        return batch_size * self.model.module.flops(shapes, train=True, frozen=self.frozen)

    def _features(self, params, extra, batch) -> dict[str, jax.Array]:
        """Returns {'touch': [B, V, D], 'touch/text': [B, V, d], …} of towers and heads."""
        module = self.model.bind(params, extra)
        modalities = module.modalities

        def pool(modality):
            def encode(x):
                return module.encode({modality: x}, key=None)[modality]

            return self._inputs.each_view(encode, batch, modality)

        out = {modality: pool(modality) for modality in modalities if modality in batch}
        flat = {modality: x.reshape(-1, x.shape[-1]) for modality, x in out.items()}
        embedded = module.project(flat)
        # A tower that is loaded without the others keeps the space in which it was trained.
        space = modalities if len(modalities) > 1 else tvl.MODALITIES
        for modality, other in itertools.permutations(space, 2):
            if modality in embedded:
                shape = (*out[modality].shape[:2], -1)
                out[f"{modality}/{other}"] = embedded[modality].reshape(shape)
        return out


def _pair_weights(
    weights: Mapping[str, float] | None, pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], float]:
    """Returns {pair: weight} in the order of modalities in `pairs`."""
    result: dict[tuple[str, str], float] = {}
    for pair, weight in parse_weights(weights or {"_".join(p): 1.0 for p in pairs}).items():
        name, pair = "_".join(pair), pair if pair in pairs else pair[::-1]
        if pair not in pairs:
            raise UserError(
                f"config.loss.weights.{name}: this model cannot compare these modalities. Valid "
                f"pairs: {', '.join('_'.join(p) for p in pairs)}."
            )
        if pair in result:
            raise UserError(
                f"config.loss.weights has both {'_'.join(pair)} and {'_'.join(pair[::-1])}. Remove "
                "one of them."
            )
        result[pair] = weight
    return result


def _make_loss(spec: dict[str, Any], where: str):
    """Returns `(loss, whether it takes a bias)` of a section with `name` and keywords."""
    spec = dict(spec)
    name = spec.pop("name", "info_nce")
    function = registry.resolve(f"config.{where}.name", name, _LOSSES)
    keywords = config.keywords(function, spec, where, provided=_PROVIDED, owner=name)
    return functools.partial(function, **keywords), function is contrastive.sigmoid_loss


def _in_groups(loss, rows, groups: int, options: Mapping[str, Any]) -> jax.Array:
    """Returns the mean loss of `groups` equal, consecutive parts of the batch."""
    if groups == 1:
        return loss(rows[0], rows[1], mask=rows[2], **options)
    if len(rows[0]) % groups:
        raise UserError(
            f"config.loss.groups={groups} must divide the batch of {len(rows[0])} examples."
        )
    parts = [x.reshape(groups, -1, *x.shape[1:]) for x in rows]
    return jax.vmap(lambda a, b, mask: loss(a, b, mask=mask, **options))(*parts).mean()


def _is_features(modality: str, x: Any) -> bool:
    """Returns whether a field holds features of the tower instead of images or tokens."""
    images = modality != "text" and x.ndim > 2
    return not images and jnp.issubdtype(x.dtype, jnp.floating)
