"""Towers by name: built-in entries, and classes from other packages.

A tower encodes one modality. The config selects it by a name in `TOWERS`, or by
`package.module:Name` for a class outside this package. It is a string, or a dict of `name` and
options:

    --config.model.video=vit_base
    --config.model.video.name=my_towers:MeanColor --config.model.video.width=64

The class of a tower is an `nnx.Module` with this interface:

* `modality`: Class attribute; the modality that it encodes, one of `mmjax.modalities.INPUTS`.
  Single images are interchangeable: an 'image' tower also encodes 'touch'. Built-in towers declare
  it in `TOWERS` instead.
* `__init__(*, rngs, …)`: All other parameters are options, that is, keys of the tower's config
  section. Unknown keys are refused, and values are checked against the annotations. The fields of
  `EncoderConfig` are options too if there is a parameter `encoder: EncoderConfig`. If the
  constructor passes `**options` to a base class, so are the parameters of the base class, except
  for those in the class attribute `FIXED_OPTIONS` that the constructor does not have itself.
* `input_ndim`: Number of axes of one input, without batch.
* `out_features`: Width of the pooled features.
* `__call__(x, *, key=None)`: Encodes [N, …]; returns pooled features, float32 [N, out_features],
  and tokens [N, …, D]. `key` is a random key in training and None in evaluation. Modules must not
  store random number generators.
* `feature_maps(x, *, train=False)`: Optional, for images: {name: [N, h, w, C]} of images of any
  size. The names are `conv` and `block1` to `block4` (1/2 to 1/32 of the image), or `grid` for the
  patches of a transformer. Heads for end tasks on pixels need them.
* `flops(shape, *, train=False)`: Returns the forward floating-point operations for one input.

Options such as `config.model.dtype` and `config.model.remat` apply to all towers of a model. They
are refused unless every tower of the model has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from flax import nnx

from mmjax import config, registry
from mmjax.errors import UserError, check_choice, unknown
from mmjax.modalities import IMAGES, INPUTS
from mmjax.models.blocks.transformer import EncoderConfig
from mmjax.models.towers import audio, clip, i3d, image_resnet, mobilenet, resnet, text, video, vit

Spec = str | Mapping[str, Any]


class TowerEntry(NamedTuple):
    """A named tower.

    Attributes:
      modality: Modality that it encodes.
      cls: Class of the tower.
      options: Options that the name stands for.
    """

    modality: str
    cls: type[nnx.Module]
    options: Mapping[str, Any]


def _entries(modality: str, cls: type, configs: Mapping[str, Any]) -> dict[str, TowerEntry]:
    return {name: TowerEntry(modality, cls, options) for name, options in configs.items()}


TOWERS: dict[str, TowerEntry] = {
    **_entries("video", video.VideoTransformer, video.CONFIGS),
    **_entries("video", i3d.I3D, i3d.CONFIGS),
    **_entries("video", resnet.TemporalShiftResNet, resnet.TSM_CONFIGS),
    **_entries("audio", audio.WaveformTransformer, audio.WAVEFORM_CONFIGS),
    **_entries("audio", audio.SpectrogramTransformer, audio.SPECTROGRAM_CONFIGS),
    **_entries("audio", resnet.ResNet2D, resnet.RESNET_CONFIGS),
    **_entries("text", text.T5Text, text.T5_CONFIGS),
    **_entries("text", text.BertText, text.BERT_CONFIGS),
    **_entries("text", text.LinearText, text.LINEAR_CONFIGS),
    **_entries("text", clip.ClipText, clip.CONFIGS),
    **_entries("image", vit.ImageTransformer, vit.CLIP_CONFIGS),
    **_entries("image", vit.ImageTransformer, vit.IMAGE_CONFIGS),
    **_entries("image", image_resnet.ImageResNet, image_resnet.IMAGE_CONFIGS),
    **_entries("image", mobilenet.MobileNetV2, mobilenet.CONFIGS),
    **_entries("touch", vit.ImageTransformer, vit.TOUCH_CONFIGS),
    **_entries("touch", image_resnet.ImageResNet, image_resnet.TOUCH_CONFIGS),
}
ENCODER_OPTIONS = tuple(field.name for field in dataclasses.fields(EncoderConfig))


def as_dict(spec: Spec) -> dict[str, Any]:
    """Returns a spec as a dict with its name under 'name'."""
    return {"name": spec} if isinstance(spec, str) else dict(spec)


def find_tower(name: Any, where: str, modality: str | None = None) -> TowerEntry:
    """Returns the tower of a name in `TOWERS`, or of a reference `package.module:Name`.

    Args:
      name: The name.
      where: Config key of the tower without 'config.', for error messages.
      modality: If not None, the modality that the tower must encode.

    Raises:
      UserError: The tower does not exist or encodes another modality, or the class lacks a part of
        the interface.
    """
    if name is None:
        raise UserError(f"config.{where}.name is missing. Set it to the name of a tower.")
    accepted = INPUTS if modality is None else IMAGES if modality in IMAGES else (modality,)
    names = [name for name, entry in TOWERS.items() if entry.modality in accepted]
    if name in names:
        return TOWERS[name]
    if not registry.is_reference(name):
        description = "tower" if modality is None else f"{modality} tower"
        raise unknown(f"{description} of config.{where}:", name, [*names, "package.module:Name"])
    cls = registry.resolve(f"config.{where}", name, {})
    if not isinstance(cls, type) or not issubclass(cls, nnx.Module):
        raise UserError(
            f"config.{where}={name} must be a subclass of flax.nnx.Module; got {cls!r}."
        )
    attributes = {attribute for base in cls.__mro__ for attribute in vars(base)}
    _check_interface(name, where, {"modality", "__call__", "flops"} - attributes)
    check_choice(f"modality of {name}:", cls.modality, INPUTS)
    if cls.modality not in accepted:
        raise UserError(f"config.{where}={name} encodes {cls.modality}, not {modality}.")
    return TowerEntry(cls.modality, cls, {})


def _check_interface(name: str, where: str, missing: Collection[str]) -> None:
    if missing:
        raise UserError(
            f"config.{where}={name}: the class does not define {', '.join(sorted(missing))}. The "
            "interface of a tower is described in mmjax/models/towers/registry.py."
        )


def _has_encoder(cls: type) -> bool:
    return "encoder" in config.parameters(cls)


def _fixed_options(cls: type) -> set[str]:
    """Returns the parameters of base classes that the class sets itself."""
    return set(getattr(cls, "FIXED_OPTIONS", ())) - set(config.parameters(cls.__init__))


def tower_options(cls: type) -> list[str]:
    """Returns the names of all options of a tower class, including those of its encoder."""
    names = set(config.parameters(cls)) - {"rngs", "encoder"} - _fixed_options(cls)
    if _has_encoder(cls):
        names.update(ENCODER_OPTIONS)
    return sorted(names)


def _check_keys(entry: TowerEntry, name: str, options: Collection[str], where: str) -> None:
    for key in options:
        if key in _fixed_options(entry.cls):
            raise UserError(f"config.{where}.{key} cannot be changed: {name!r} sets it. Remove it.")
    config.check_keys(options, tower_options(entry.cls), where, owner=name)


def _check_shared_encoder(
    entry: TowerEntry, name: str, options: Collection[str], where: str
) -> None:
    """Raises UserError if a tower with these options cannot use an encoder of the model."""
    if "own_encoder" not in config.parameters(entry.cls):
        valid = [n for n, e in TOWERS.items() if "own_encoder" in config.parameters(e.cls)]
        names = [n for n in valid if TOWERS[n].modality == entry.modality]
        raise UserError(
            f"config.{where}: the tower {name!r} cannot share an encoder with other modalities. "
            f"{entry.modality} towers that can: {', '.join(names) or 'none'}."
        )
    for key in options:
        if key in ENCODER_OPTIONS:
            raise UserError(
                f"config.{where}.{key}: all modalities share one encoder. Set config.model.{key} "
                "instead."
            )


def _checked(
    entry: TowerEntry, name: str, options: Mapping[str, Any], where: str, *, filled: Collection[str]
) -> dict[str, Any]:
    """Returns the options of a tower and of its encoder with checked types.

    Args:
      entry: The tower.
      name: Its name, for error messages.
      options: Options by name.
      where: Their config section, for error messages.
      filled: Required options that may be missing.
    """
    encoder_keys = ENCODER_OPTIONS if _has_encoder(entry.cls) else ()
    result = config.keywords(
        entry.cls,
        {key: value for key, value in options.items() if key not in encoder_keys},
        where,
        provided={"rngs", "encoder", "own_encoder", *_fixed_options(entry.cls)},
        filled=filled,
        owner=name,
    )
    if encoder_keys:
        own = {key: value for key, value in options.items() if key in encoder_keys}
        result |= config.keywords(EncoderConfig, own, where, filled=filled, owner=name)
    return result


def build_tower(
    spec: Spec,
    *,
    rngs: nnx.Rngs,
    where: str = "",
    modality: str | None = None,
    encoder: EncoderConfig | None = None,
    shared: Mapping[str, Any] | None = None,
) -> nnx.Module:
    """Returns a tower.

    Args:
      spec: A name in `TOWERS` or `package.module:Name`, or a dict of `name` and options, which
        override those of the name.
      rngs: Random number generators for initialization.
      where: Config key of the tower without 'config.', for error messages; by default that of its
        modality.
      modality: If not None, the modality that the tower must encode.
      encoder: Options of an encoder of the model that this tower shares. None gives the tower its
        own encoder.
      shared: Options that apply to all towers of a model; `spec` overrides them.

    Raises:
      UserError: An unknown tower, or an unknown or invalid option.
    """
    own, shared = as_dict(spec), shared or {}
    name = own.pop("name", None)
    entry = find_tower(name, where or f"model.{modality or 'tower'}", modality)
    where = where or f"model.{modality or entry.modality}"
    if encoder is not None:
        _check_shared_encoder(entry, name, own, where)
    options = dict(entry.options)
    for section, key in ((shared, "model"), (own, where)):
        _check_keys(entry, name, section, key)
        every = (*config.parameters(entry.cls), *ENCODER_OPTIONS)
        options |= _checked(entry, name, section, key, filled=every)
    if encoder is not None:
        options = {key: value for key, value in options.items() if key not in ENCODER_OPTIONS}
    filled = () if encoder is None else ENCODER_OPTIONS
    options = _checked(entry, name, options, where, filled=filled)
    try:
        if encoder is not None:
            options |= dict(encoder=encoder, own_encoder=False)
        elif _has_encoder(entry.cls):
            own_encoder = {key: options.pop(key) for key in ENCODER_OPTIONS if key in options}
            options["encoder"] = EncoderConfig(**own_encoder)
        tower = entry.cls(rngs=rngs, **options)
    except UserError as error:
        raise UserError(f"config.{where} ({name!r}): {error}") from None
    missing = [name for name in ("input_ndim", "out_features") if not hasattr(tower, name)]
    _check_interface(name, where, missing)
    return tower
