"""The section `data` of a recipe: its keys, their types and defaults."""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping
from typing import Any

from mmjax.data import modalities, stills, stored
from mmjax.data.pairs import PairsConfig
from mmjax.errors import UserError, unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The section `data`.

    Attributes:
      train: where training examples come from, one specification of `sources.open_source` or
        several.
      split: of all of them.
      weights: shares of several; () is equal shares.
      limit: train on this many examples of each source, evenly spread over it; 0 is all.
      corrupt: 'fail' at a record that cannot be used, or 'skip' it: in training the next record
        takes its place, in evaluation it gets mask 0; counted, logged, limited.
      max_corrupt: with 'skip', so many records are too many.
      check_crc: check the CRC of each record read.
      read: 'pread' or 'tf', `pipeline.reader` or `pipeline.pure_reader`.
      threads: of the input pipeline; 0 is one per CPU core.
      prefetch: batches made ahead.
      video, audio, image, text, label, touch: options of each modality; None leaves it out.
      pairs: train on pairs of records: the second of `data.image.crops` is of the neighbour's
        picture, all else of the record's own; None is off.
    """

    train: str | tuple[str, ...] = "world"
    split: str = "train"
    weights: tuple[float, ...] = ()
    limit: int = 0
    corrupt: str = "fail"
    max_corrupt: int = 100
    check_crc: bool = True
    read: str = "pread"
    threads: int = 0
    prefetch: int = 2
    video: modalities.Video | None = None
    audio: modalities.Audio | None = None
    image: stills.Picture | None = None
    text: modalities.Text | None = None
    label: modalities.Label | None = None
    touch: stills.Touch | None = None
    pairs: PairsConfig | None = None

    def __post_init__(self):
        if self.corrupt not in ("fail", "skip"):
            raise unknown("data.corrupt", self.corrupt, ("fail", "skip"))
        if self.read not in ("pread", "tf"):
            raise unknown("data.read", self.read, ("pread", "tf"))
        if self.limit < 0:
            raise UserError(f"data.limit must be at least 0 (all), not {self.limit}.")
        if not any((self.video, self.audio, self.image, self.text, self.touch)):
            raise UserError(
                "The section data asks for no modality: set data.video, audio, image, text or "
                "touch."
            )
        if self.pairs and len(self.image.crops if self.image else ()) < 2:
            raise UserError(
                "data.pairs shows a crop of the neighbour's picture beside one of the example's "
                "own: set data.image.crops=((0.5, 1.0), (0.5, 1.0)), two or more, or "
                "data.pairs=None."
            )

    @property
    def specs(self) -> tuple[str, ...]:
        """`train` as a tuple."""
        return (self.train,) if isinstance(self.train, str) else self.train


def for_evaluation(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section `data` without the files that only training needs: without pairs, and without
    the features of frozen towers that are not there (evaluation runs the towers)."""
    kept = {key: value for key, value in section.items() if key != "pairs"}
    for name, options in section.items():
        folders = options.get("features") if isinstance(options, Mapping) else ""
        paths = [
            stored.features_path(folder, section.get("split", "train"), name)
            for folder in ((folders,) if isinstance(folders, str) else folders or ())
            if folder
        ]
        if not all(map(os.path.exists, paths)):
            kept[name] = {**options, "features": ""}
    return kept


def parse_config(section: Mapping[str, Any]) -> DataConfig:
    """The section `data` of a recipe, checked.

    Raises:
      UserError: an unknown key, or a value of another type or out of range, by its full name.
    """
    return _checked(DataConfig, section, "data")


def _checked(cls: type, section: Mapping[str, Any], where: str):
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in section.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.5)
            hint = f" Did you mean {where}.{near[0]}?" if near else ""
            raise UserError(f"Unknown config key {where}.{key}.{hint} Valid: {', '.join(hints)}.")
        values[key] = _value(hints[key], value, f"{where}.{key}")
    return cls(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint` allows; ints pass for floats, lists for tuples, nothing else changes."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is type(None) and value is None:
            return None
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return _checked(option, value, where)
        if typing.get_origin(option) is tuple and isinstance(value, tuple | list):
            (item, _) = typing.get_args(option)
            return tuple(_value(item, v, f"{where}[{n}]") for n, v in enumerate(value))
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (int, str, bool) and type(value) is option:
            return value
    names = " or ".join(_name(option) for option in options)
    raise UserError(f"{where} must be {names}, not {value!r} ({type(value).__name__}).")


def _name(option: Any) -> str:
    if option is type(None):
        return "None"
    return (
        "a section (dict)"
        if dataclasses.is_dataclass(option)
        else getattr(option, "__name__", str(option))
    )
