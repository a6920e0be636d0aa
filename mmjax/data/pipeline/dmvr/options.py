"""The section `data.dmvr`, and the keywords of a factory that correspond to the section `data`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmjax.errors import UserError

if TYPE_CHECKING:
    from mmjax.data.pipeline.config import DataConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dmvr:
    """The section `data.dmvr`: options of a factory, for `data.train='dmvr:…'`.

    Attributes:
      build: Further keyword arguments of the factory's `_build` (or `configure`), which replace
        those that follow from the section `data`.
      tune: Keyword arguments of the factory's `tune`, for example {'shuffle_buffer': 64}.
      ignore: Config keys that the factory need not follow, for example ('data.video.stride',).
      zero_centered: Whether the factory returns frames in [-1, 1] instead of [0, 1].
      deterministic: Whether to make DMVR's shuffling and augmentation a function of the seed, with
        TensorFlow's op determinism. It applies to the whole process and is slower.
    """

    build: dict[str, Any] = dataclasses.field(default_factory=dict)
    tune: dict[str, Any] = dataclasses.field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    zero_centered: bool = False
    deterministic: bool = False


_CHECKED: Any = object()  # the batches show whether an option was followed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirement:
    """An option of the config that a factory should follow.

    Attributes:
      key: The config key.
      value: Its value, for messages.
      names: Alternative keywords of factories, each a dict of keywords with values. The first is
        VATT's or DMVR's own.
      neutral: The value that factories without such a keyword follow. With another value, they
        cannot be used. By default, any value is possible, because batches are checked.
    """

    key: str
    value: Any
    names: tuple[Mapping[str, Any], ...] = ()
    neutral: Any = _CHECKED

    @property
    def needed(self) -> bool:
        """Whether a factory must have such a keyword."""
        return self.neutral is not _CHECKED and self.value != self.neutral


def requirements(cfg: DataConfig, *, train: bool) -> list[Requirement]:
    """Returns what the section `data` requires of a factory."""
    found = [
        Requirement(key="is_training", value=train, names=({"is_training": train},)),
        *_general(cfg, train=train),
        *_clips(cfg, train=train),
    ]
    if cfg.video or cfg.image:
        centered = bool(cfg.dmvr and cfg.dmvr.zero_centered)
        names = ({"zero_centering_image": centered},)
        found.append(Requirement(key="data.dmvr.zero_centered", value=centered, names=names))
    if cfg.video:
        found += _video(cfg.video, train=train)
    for name in ("image", "touch"):
        if options := getattr(cfg, name):
            found += _image(name, options, train=train)
    if cfg.audio:
        found += [
            _requirement("data.audio.num_samples", cfg.audio.num_samples, "num_samples"),
            _requirement("data.audio.stride", cfg.audio.stride, "audio_stride", neutral=1),
        ]
    if cfg.text:
        found += _text(cfg.text)
    if cfg.label:
        names = ({"one_hot_label": cfg.label.multi_label or not cfg.label.num_classes},)
        found.append(
            Requirement(key="data.label.multi_label", value=cfg.label.multi_label, names=names)
        )
    return found


def _requirement(key: str, value: Any, *names: str, neutral: Any = _CHECKED) -> Requirement:
    """Returns the requirement for an option that factories know under these names."""
    return Requirement(
        key=key, value=value, names=tuple({n: value} for n in names), neutral=neutral
    )


def _unsupported(section: str, options: Any, neutral: Mapping[str, Any]) -> list[Requirement]:
    """Returns the requirements for options that no factory has, if they are not `neutral`."""
    return [
        _requirement(f"{section}.{key}", getattr(options, key), neutral=value)
        for key, value in neutral.items()
        if getattr(options, key, value) != value
    ]


def _general(cfg: DataConfig, *, train: bool) -> list[Requirement]:
    """Returns the requirements for options of the whole section."""
    neutral: dict[str, Any] = {"corrupt": "fail", "check_crc": True, "read": "pread"}
    neutral |= {"threads": 0, "prefetch": 2}
    if train:
        neutral |= {"limit": 0, "weights": (), "pairs": None, "reference": None}
    return _unsupported("data", cfg, neutral)


def _video(video: Any, *, train: bool) -> list[Requirement]:
    style = {"vgg": "VGG", "inception": "Inception"}[video.crop]
    found = [
        _requirement("data.video.num_frames", video.num_frames, "num_frames", "frame_count"),
        _requirement("data.video.stride", video.stride, "stride", neutral=1),
        *_size("video", video.size, video.min_resize),
        Requirement(
            key="data.video.crop",
            value=video.crop,
            names=({"crop_resize_style": style},),
            neutral="vgg" if train else video.crop,
        ),
        # Color is augmented on the device (config.augment.color_jitter), not twice.
        _requirement("color_augmentation", False, "color_augmentation"),
        *_unsupported("data.video", video, {"fps": 0.0, "dct": "fast"}),
    ]
    for key, name in (("area", "area_ratio"), ("aspect", "aspect_ratio")):
        low, high = getattr(video, key)
        inception = train and video.crop == "inception"
        found.append(
            Requirement(
                key=f"data.video.{key}",
                value=(low, high),
                names=({f"min_{name}": low, f"max_{name}": high},),
                neutral=None if inception else (low, high),
            )
        )
    if train:
        found += [
            _requirement("data.video.flip", video.flip, "random_flip", neutral=True),
            *_unsupported("data.video", video, {"exact": False}),
        ]
    return found


def _size(name: str, size: int, min_resize: int) -> list[Requirement]:
    resize = min_resize or size
    return [
        Requirement(
            key=f"data.{name}.size",
            value=size,
            names=({"crop_size": size}, {"frame_height": size, "frame_width": size}),
        ),
        _requirement(f"data.{name}.min_resize", resize, "min_resize", neutral=size),
    ]


def _image(name: str, options: Any, *, train: bool) -> list[Requirement]:
    """Returns the requirements for single images; for DMVR, an image is a clip of one frame."""
    neutral = {"quarter_turns": 0, "resize": "bilinear", "features": "", "background": ""}
    if train:
        neutral |= {"jitter": 0.0, "crops": ()}
    return [
        _requirement(f"data.{name}.num_frames", 1, "num_frames"),
        *_size(name, options.size, 0),
        *_unsupported(f"data.{name}", options, neutral),
    ]


def _clips(cfg: DataConfig, *, train: bool) -> list[Requirement]:
    """Returns the requirements for views: factories have one number of clips for all modalities."""
    sections = [name for name in ("video", "audio") if getattr(cfg, name)]
    counts = {name: 1 if train else getattr(cfg, name).num_clips for name in sections}
    if not counts:
        return []
    name = max(counts, key=lambda name: counts[name])
    multi_crop = bool(cfg.video and cfg.video.multi_crop and not train)
    return [
        _requirement(f"data.{name}.num_clips", counts[name], "num_test_clips", neutral=1),
        _requirement("data.video.multi_crop", multi_crop, "multi_crop", neutral=False),
    ]


def _text(text: Any) -> list[Requirement]:
    neutral = {"keywords": None, "features": "", "require_text": False}
    captions = ("max_context_sentences", "max_num_captions")
    return [
        _requirement("data.text.max_tokens", text.max_tokens, "max_num_words", "max_num_tokens"),
        _requirement("data.text.candidates", text.candidates, *captions),
        *_unsupported("data.text", text, neutral),
    ]


def refuse(name: str, missing: list[Requirement], accepted: str, cfg: DataConfig) -> None:
    """Raises UserError with a table of the options that a factory does not take."""
    ignored = cfg.dmvr.ignore if cfg.dmvr else ()
    rows = [
        requirement
        for requirement in missing
        if requirement.needed and requirement.key not in ignored
    ]
    if not rows:
        return
    lines = [("config", "keyword of the factory", "or set")]
    lines += [
        (
            f"{requirement.key}={requirement.value!r}",
            " or ".join(", ".join(names) for names in requirement.names) or "(none)",
            ""
            if requirement.neutral is None and requirement.names
            else f"{requirement.key}={requirement.neutral!r}",
        )
        for requirement in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = "\n".join(
        "  "
        + "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    keys = tuple(requirement.key for requirement in rows if requirement.names)
    advice = "Set these keys, or train on a dataset folder (`mmjax build`)."
    if keys:
        advice = (
            "Set the keys, add the keywords to its _build(), or accept the difference with "
            f"config.data.dmvr.ignore={keys!r}."
        )
    raise UserError(
        f"{name} does not take these options of the config:\n{table}\nIt takes {accepted}. {advice}"
    )
