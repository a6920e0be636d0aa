"""Towers by name, and several of them in one module: each with its own encoder, or one for all."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from mmjax.errors import UserError, choose, unknown
from mmjax.modalities import IMAGES
from mmjax.models.blocks.noise import split_key
from mmjax.models.blocks.transformer import Encoder, EncoderConfig
from mmjax.models.towers import audio, clip, i3d, image_resnet, mobilenet, resnet, text, video, vit

Spec = str | Mapping[str, Any]

# name → (modality, class, options)
TOWERS: dict[str, tuple[str, type, dict[str, Any]]] = {
    **{n: ("video", video.VideoTransformer, c) for n, c in video.CONFIGS.items()},
    **{n: ("video", i3d.I3D, c) for n, c in i3d.CONFIGS.items()},
    **{n: ("video", resnet.TemporalShiftResNet, c) for n, c in resnet.TSM_CONFIGS.items()},
    **{n: ("audio", audio.WaveformTransformer, c) for n, c in audio.WAVEFORM_CONFIGS.items()},
    **{n: ("audio", audio.SpectrogramTransformer, c) for n, c in audio.SPECTROGRAM_CONFIGS.items()},
    **{n: ("audio", resnet.ResNet2D, c) for n, c in resnet.RESNET_CONFIGS.items()},
    **{n: ("text", text.T5Text, c) for n, c in text.T5_CONFIGS.items()},
    **{n: ("text", text.BertText, c) for n, c in text.BERT_CONFIGS.items()},
    **{n: ("text", text.LinearText, c) for n, c in text.LINEAR_CONFIGS.items()},
    **{n: ("text", clip.ClipText, c) for n, c in clip.CONFIGS.items()},
    **{n: ("image", vit.ImageTransformer, c) for n, c in vit.CLIP_CONFIGS.items()},
    **{n: ("image", image_resnet.ImageResNet, c) for n, c in image_resnet.IMAGE_CONFIGS.items()},
    **{n: ("image", mobilenet.MobileNetV2, c) for n, c in mobilenet.CONFIGS.items()},
    **{n: ("touch", vit.ImageTransformer, c) for n, c in vit.TOUCH_CONFIGS.items()},
    **{n: ("touch", image_resnet.ImageResNet, c) for n, c in image_resnet.TOUCH_CONFIGS.items()},
}
ENCODER_OPTIONS = tuple(field.name for field in dataclasses.fields(EncoderConfig))


def as_dict(spec: Spec) -> dict[str, Any]:
    """A spec with its name as an entry."""
    return {"name": spec} if isinstance(spec, str) else dict(spec)


def keyword_options(function: Callable[..., Any]) -> set[str]:
    """The keyword-only arguments of a constructor that a config may set."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"rngs", "encoder"}


def tower_options(name: str) -> list[str]:
    """Every option of a tower, those of its encoder and of the classes it builds on among them."""
    tower = TOWERS[name][1]
    names = set()
    for cls in tower.__mro__:
        if "__init__" in vars(cls):
            names |= keyword_options(cls.__init__)
            kinds = {p.kind for p in inspect.signature(cls.__init__).parameters.values()}
            if inspect.Parameter.VAR_KEYWORD not in kinds:  # hands nothing on
                break
    names -= set(getattr(tower, "FIXED", ())) - keyword_options(tower.__init__)
    if _has_encoder(tower):
        names.update(ENCODER_OPTIONS)
    return sorted(names)


def _check_modality(modality: str, spec: Spec) -> None:
    """Raises UserError if the tower takes another modality's inputs."""
    # Single images of different modalities take each other's towers.
    kinds = IMAGES if modality in IMAGES else (modality,)
    name = as_dict(spec).get("name")
    names = [n for n, (kind, *_) in TOWERS.items() if kind in kinds]
    if name not in names:
        raise unknown(f"tower for {modality}:", name, names)


def _has_encoder(tower: type) -> bool:
    return "encoder" in inspect.signature(tower.__init__).parameters


def build_tower(
    spec: Spec, *, rngs: nnx.Rngs, encoder: EncoderConfig | None = None, **shared: Any
) -> nnx.Module:
    """A tower by name, with options changed.

    Args:
      spec: a name in `TOWERS`, or a dict of `name` and options that go before the named ones'.
      rngs: for initialization.
      encoder: of the module that this tower shares it with; None gives it its own.
      **shared: options for all towers of a model; those that a tower does not have are left out.

    Raises:
      UserError: an unknown name or option, or an option of an encoder that is not the tower's own.
    """
    own = as_dict(spec)
    name = own.pop("name", None)
    _, tower, defaults = choose("tower", name, TOWERS)
    valid = tower_options(name)
    if encoder is not None:
        if "own_encoder" not in getattr(tower, "FIXED", ()):
            raise UserError(f"The tower {name} cannot share its encoder.")
        valid = [option for option in valid if option not in ENCODER_OPTIONS]
    for key in own:
        if key in ENCODER_OPTIONS and encoder is not None:
            raise UserError(
                f"{key} of {name} is an option of the encoder that all modalities share: set "
                f"config.model.{key}."
            )
        if key not in valid:
            raise unknown(f"option of {name}:", key, valid)
    shared = {key: value for key, value in shared.items() if key in valid}
    options = {**defaults, **shared, **own}
    if _has_encoder(tower):
        of_encoder = {key: options.pop(key) for key in ENCODER_OPTIONS if key in options}
        if encoder is None:
            options["encoder"] = EncoderConfig(**of_encoder)
        else:
            options.update(encoder=encoder, own_encoder=False)
    return tower(rngs=rngs, **options)


class Towers(nnx.Module):
    """A tower for each modality.

    Each is an attribute, and so the first part of its parameters' paths, under its modality's name.

    Args:
      towers: {modality: spec of `build_tower`}.
      encoder: options of one encoder for all towers, the attribute `encoder`; None gives each its
        own.
      rngs: for initialization.
      **shared: options for all towers (dtype, remat, dropout_rate, …).

    Raises:
      UserError: what `build_tower` raises, a tower for another modality, or a shared option that no
        tower has.
    """

    # Keys of the config's section besides those of towers, for messages.
    OPTIONS: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        towers: Mapping[str, Spec],
        encoder: Mapping[str, Any] | None = None,
        rngs: nnx.Rngs,
        **shared: Any,
    ):
        self.modalities = tuple(towers)
        config = None
        if encoder is not None:
            config = EncoderConfig(**encoder)
            self.encoder = Encoder(config, rngs=rngs)
        for modality, spec in towers.items():
            _check_modality(modality, spec)
            tower = build_tower(spec, rngs=rngs, encoder=config, **shared)
            setattr(self, modality, tower)
        valid = {o for spec in towers.values() for o in tower_options(as_dict(spec)["name"])}
        for key in shared:
            if key not in valid:
                raise unknown("config key model", key, sorted(valid | set(self.OPTIONS)))

    def run(
        self,
        inputs: Mapping[str, jax.Array],
        key: jax.Array | None,
        *,
        frozen: Collection[str] = (),
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Pooled features {modality: float32 [N_m, D_m]} and tokens {modality: [N_m, …, D_m]}.

        Args:
          inputs: {modality: array [N_m, …]}.
          key: randomness of dropout and DropToken; None for evaluation.
          frozen: modalities whose own towers run as in evaluation whatever the key.

        Raises:
          UserError: a modality without a tower.
        """
        for modality in inputs:
            if modality not in self.modalities:
                raise unknown("modality", modality, self.modalities)
        each = split_key(key, len(self.modalities) + 1)
        keys = dict(zip((*self.modalities, "encoder"), each, strict=True))
        keys |= dict.fromkeys(frozen)
        if not hasattr(self, "encoder"):
            outputs = [getattr(self, m)(x, key=keys[m]) for m, x in inputs.items()]
        else:
            embedded = [getattr(self, m).embed(x, key=keys[m]) for m, x in inputs.items()]
            tokens, masks = zip(*embedded, strict=True)
            encoded = self.encoder.together(tokens, key_masks=masks, key=keys["encoder"])
            outputs = [getattr(self, m).finish(y) for m, y in zip(inputs, encoded, strict=True)]
        return tuple(dict(zip(inputs, part, strict=True)) for part in zip(*outputs, strict=True))

    def tower_flops(self, modality: str, shape: Sequence[int], *, train: bool) -> tuple[float, int]:
        """Forward operations for one example's input of this shape, and how many inputs that is:
        axes in front of the tower's own (views [V, …], captions [L, W]) multiply."""
        tower = getattr(self, modality)
        lead = len(shape) - tower.input_ndim
        if lead < 0:
            raise UserError(
                f"A tower got an input of shape {tuple(shape)}; it has {tower.input_ndim} axes."
            )
        count = math.prod(shape[:lead])
        return count * tower.flops(shape[lead:], train=train), count
