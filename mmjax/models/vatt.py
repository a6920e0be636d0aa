"""VATT's models: towers and a projection head for pretraining; a tower and a classifier after it.

Source: Akbari et al. 2021, "VATT: Transformers for Multimodal Self-Supervised Learning from Raw
Video, Audio and Text", and its published code.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from mmjax.errors import UserError, choose, unknown
from mmjax.models import audio, text, video
from mmjax.models.heads import HEADS
from mmjax.models.patches import PatchTransformer
from mmjax.models.transformer import EncoderConfig, dropout, split_key

Spec = str | Mapping[str, Any]

# name → (modality, class, options)
TOWERS: dict[str, tuple[str, type, dict[str, Any]]] = {
    **{n: ("video", video.VideoTransformer, c) for n, c in video.CONFIGS.items()},
    **{n: ("audio", audio.WaveformTransformer, c) for n, c in audio.WAVEFORM_CONFIGS.items()},
    **{n: ("audio", audio.SpectrogramTransformer, c) for n, c in audio.SPECTROGRAM_CONFIGS.items()},
    **{n: ("text", text.T5Text, c) for n, c in text.T5_CONFIGS.items()},
    **{n: ("text", text.LinearText, c) for n, c in text.LINEAR_CONFIGS.items()},
}
# Published sizes of tx_fac: the first letter is the video tower's, then audio's, then text's.
SIZES: dict[str, dict[str, str]] = {
    "tiny": dict(video="vit_tiny", audio="wat_tiny", text="t5_tiny"),
    "bbs": dict(video="vit_base", audio="wat_base", text="t5_small"),
    "mbs": dict(video="vit_medium", audio="wat_base", text="t5_small"),
    "lbs": dict(video="vit_large", audio="wat_base", text="t5_small"),
}
_ENCODER_OPTIONS = tuple(field.name for field in dataclasses.fields(EncoderConfig))


def _keywords(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [
        p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("rngs", "encoder")
    ]


def _tower_options(tower: type) -> list[str]:
    """Every option a tower takes, those of its encoder and of the class it builds on among them."""
    names = set(_keywords(tower.__init__))
    if issubclass(tower, PatchTransformer):
        names.update(set(_keywords(PatchTransformer.__init__)) - set(tower.FIXED))
    if "encoder" in inspect.signature(tower.__init__).parameters:
        names.update(_ENCODER_OPTIONS)
    return sorted(names)


def build_tower(spec: Spec, *, rngs: nnx.Rngs, **shared: Any) -> nnx.Module:
    """A tower by name, with options changed.

    Args:
      spec: a name in `TOWERS`, or a dict of `name` and options that go before the named ones'.
      rngs: for initialisation.
      **shared: options for all towers of a model; those that a tower does not have are left out.

    Raises:
      UserError: an unknown name or option.
    """
    own = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = own.pop("name", None)
    _, tower, defaults = choose("tower", name, TOWERS)
    valid = _tower_options(tower)
    for key in own:
        if key not in valid:
            raise unknown(f"option of {name}:", key, valid)
    shared = {key: value for key, value in shared.items() if key in valid}
    options = {**defaults, **shared, **own}
    if "encoder" in inspect.signature(tower.__init__).parameters:
        encoder = {key: options.pop(key) for key in _ENCODER_OPTIONS if key in options}
        options["encoder"] = EncoderConfig(**encoder)
    return tower(rngs=rngs, **options)


def _flops(tower: nnx.Module, shape: Sequence[int], train: bool) -> float:
    """Forward operations of a tower; axes in front of its input's (views, captions) multiply."""
    lead = len(shape) - tower.input_ndim
    if lead < 0:
        raise UserError(
            f"A tower got an input of shape {tuple(shape)}; it has {tower.input_ndim} axes."
        )
    return math.prod(shape[:lead]) * tower.flops(shape[lead:], train=train)


class TxFac(nnx.Module):
    """A tower for each modality and a head that projects their pooled features.

    Each tower is an attribute, and so the first part of its parameters' paths, under its modality's
    name.

    Args:
      towers: {modality: spec of `build_tower`}.
      head: 'fac', 'joint', or a dict of `name` and options.
      rngs: for initialisation.
      **shared: options for all towers (dtype, remat, dropout_rate, …).
    """

    def __init__(
        self, *, towers: Mapping[str, Spec], head: Spec = "fac", rngs: nnx.Rngs, **shared: Any
    ):
        self.modalities = tuple(towers)
        widths = {}
        for modality, spec in towers.items():
            tower = build_tower(spec, rngs=rngs, **shared)
            setattr(self, modality, tower)
            widths[modality] = tower.out_features
        options = {"name": head} if isinstance(head, str) else dict(head)
        name = options.pop("name", "fac")
        cls = choose("head", name, HEADS)
        for key in options:
            if key not in (valid := [k for k in _keywords(cls.__init__) if k != "widths"]):
                raise unknown(f"option of the head {name}:", key, valid)
        self.head = cls(widths=widths, rngs=rngs, **options)

    def encode(
        self,
        inputs: Mapping[str, jax.Array],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        tokens: bool = False,
    ) -> Any:
        """Pooled features of each modality given.

        Args:
          inputs: {modality: array [N_m, …]}: video float [N, T, H, W, 3] in [-1, 1], audio float
            [N, S] or, for `spt_*`, [N, frames, bins], text int [N, W] (0 is padding). Batch sizes
            may differ.
          key: randomness of dropout and DropToken; needed when `train`.
          train: use them.
          tokens: also return every token.

        Returns:
          {modality: float32 [N_m, D_m]}; with `tokens`, a pair of that and {modality: [N_m, tokens,
          D_m]}.
        """
        for modality in inputs:
            if modality not in self.modalities:
                raise unknown("modality", modality, self.modalities)
        if train and key is None:
            raise TypeError("encode(train=True) needs a key.")
        keys = dict(
            zip(
                self.modalities,
                split_key(key if train else None, len(self.modalities)),
                strict=True,
            )
        )
        pooled, rest = {}, {}
        for modality, x in inputs.items():
            pooled[modality], rest[modality] = getattr(self, modality)(x, key=keys[modality])
        return (pooled, rest) if tokens else pooled

    def project(
        self, pooled: Mapping[str, jax.Array], *, train: bool = False
    ) -> dict[str, jax.Array]:
        """{'a/b': [N, d]}, features of a embedded for comparison with b; see the head's class."""
        return self.head(pooled, train=train)

    def flops(self, shapes: Mapping[str, Sequence[int]], *, train: bool = False) -> float:
        """Operations for one example.

        Args:
          shapes: {modality: shape of its input without batch}; axes in front (views [V, …],
            captions [L, W]) multiply.
          train: count forward and backward (three times forward) with DropToken; False: forward.
        """
        total = 0.0
        for modality, shape in shapes.items():
            tower = getattr(self, modality)
            lead = math.prod(shape[: len(shape) - tower.input_ndim])
            total += _flops(tower, shape, train) + lead * self.head.flops(modality)
        return 3 * total if train else total


class Classifier(nnx.Module):
    """A tower, dropout and a dense layer, for fine-tuning.

    The tower's parameters have the same paths as in `TxFac` (`video/…`), so a pretrained one loads
    by name.

    Args:
      backbone: spec of `build_tower`.
      num_classes: outputs.
      dropout_rate: before the dense layer; None is VATT's: 0.5 for video, 0 for others.
      rare_bias: start the bias at -ln(num_classes - 1), so that each sigmoid starts at 1 /
        num_classes (many labels, few true); None is VATT's: for audio alone.
      rngs: for initialisation.
      **shared: options for the tower (dtype, remat, …).
    """

    def __init__(
        self,
        *,
        backbone: Spec,
        num_classes: int,
        dropout_rate: float | None = None,
        rare_bias: bool | None = None,
        rngs: nnx.Rngs,
        **shared: Any,
    ):
        if num_classes < 2:
            raise UserError(f"num_classes must be at least 2, not {num_classes}.")
        name = backbone if isinstance(backbone, str) else backbone.get("name")
        self.modality = choose("tower", name, TOWERS)[0]
        tower = build_tower(backbone, rngs=rngs, **shared)
        setattr(self, self.modality, tower)
        is_video, is_audio = self.modality == "video", self.modality == "audio"
        self.dropout_rate = (0.5 if is_video else 0.0) if dropout_rate is None else dropout_rate
        start = (
            -math.log(num_classes - 1) if (is_audio if rare_bias is None else rare_bias) else 0.0
        )
        init = nnx.initializers.glorot_normal() if is_video else nnx.initializers.glorot_uniform()
        self.classifier = nnx.Linear(
            tower.out_features,
            num_classes,
            kernel_init=init,
            bias_init=nnx.initializers.constant(start),
            rngs=rngs,
        )

    def encode(
        self,
        inputs: Mapping[str, jax.Array],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Pooled features, float32 [N, D], of its modality; arguments as of `TxFac.encode`."""
        if train and key is None:
            raise TypeError("encode(train=True) needs a key.")
        if self.modality not in inputs:
            raise UserError(f"The backbone needs {self.modality}; the batch has {sorted(inputs)}.")
        return getattr(self, self.modality)(inputs[self.modality], key=key if train else None)[0]

    def classify(
        self, pooled: jax.Array, *, key: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Logits, float32 [N, num_classes]."""
        return self.classifier(dropout(pooled, self.dropout_rate, key if train else None))

    def flops(self, shapes: Mapping[str, Sequence[int]], *, train: bool = False) -> float:
        """Operations for one example, as `TxFac.flops`; other modalities are ignored."""
        shape, tower = shapes[self.modality], getattr(self, self.modality)
        lead = math.prod(shape[: len(shape) - tower.input_ndim])
        dense = 2.0 * self.classifier.in_features * self.classifier.out_features
        total = _flops(tower, shape, train) + lead * dense
        return 3 * total if train else total


def tx_fac(
    *,
    size: str = "mbs",
    video: Spec | None = "",
    audio: Spec | None = "",
    text: Spec | None = "",
    head: Spec = "fac",
    **shared: Any,
) -> Callable[[nnx.Rngs], TxFac]:
    """A constructor of `TxFac` from a published size and changes to it.

    Args:
      size: a key of `SIZES`.
      video, audio, text: the name of another tower, a dict of options to change (with `name`: of
        another tower), None to leave the modality out, '' for the size's own.
      head: see `TxFac`.
      **shared: options for all towers, e.g. dtype, remat, dropout_rate, scan_unroll.
    """
    towers: dict[str, Spec] = dict(choose("size of tx_fac", size, SIZES))
    for modality, spec in dict(video=video, audio=audio, text=text).items():
        if spec is None:
            del towers[modality]
        elif isinstance(spec, str):
            towers[modality] = spec or towers[modality]
        else:
            towers[modality] = {"name": towers[modality], **spec}
    _check_shared(shared)
    return lambda rngs: TxFac(towers=towers, head=head, rngs=rngs, **shared)


def classifier(
    *,
    backbone: Spec,
    num_classes: int,
    dropout_rate: float | None = None,
    rare_bias: bool | None = None,
    **shared: Any,
) -> Callable[[nnx.Rngs], Classifier]:
    """A constructor of `Classifier`; `dropout_rate` is before its dense layer, not the tower's."""
    _check_shared(shared)
    return lambda rngs: Classifier(
        backbone=backbone,
        num_classes=num_classes,
        dropout_rate=dropout_rate,
        rare_bias=rare_bias,
        rngs=rngs,
        **shared,
    )


MODELS = {"tx_fac": tx_fac, "classifier": classifier}


def _check_shared(shared: Mapping[str, Any]) -> None:
    for key in shared:
        if key not in _ENCODER_OPTIONS:
            raise unknown("config key model", key, [*_ENCODER_OPTIONS, "size", "video"])


def make_model(name: str = "tx_fac", **options: Any) -> Callable[[nnx.Rngs], nnx.Module]:
    """A constructor of the named model, for `mmjax.state.ModelDef`.

    Raises:
      UserError: an unknown model or option, by name.
    """
    return choose("model", name, MODELS)(**options)
