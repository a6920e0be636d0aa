"""The registry of file kinds for the fuzzer, and a fingerprint of what was read."""

import dataclasses
import hashlib
import importlib
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

MODULES = ("arrays", "checkpoints", "data", "media", "texts")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file that mmjax reads.

    Attributes:
      name: Its name.
      make: Function that writes intact files into an empty directory, and returns the function that
        reads them from any directory, as mmjax does.
      uncovered: {pattern of file names: why a change may remain unnoticed}. A change of any other
        file that gives another result is a silent acceptance.
    """

    name: str
    make: Callable[[pathlib.Path], Callable[[pathlib.Path], Any]]
    uncovered: Mapping[str, str]

    def excuse(self, file: pathlib.PurePath) -> str:
        """Returns why a change of a file may remain unnoticed; '' if it must be found."""
        return next((why for glob, why in self.uncovered.items() if file.match(glob)), "")


KINDS: dict[str, Kind] = {}


def kind(uncovered: Mapping[str, str] | None = None):
    """Registers a function as `Kind.make`, under its name."""

    def register(function):
        KINDS[function.__name__] = Kind(function.__name__, function, uncovered or {})
        return function

    return register


def load() -> dict[str, Kind]:
    """Returns all kinds."""
    for module in MODULES:
        importlib.import_module(f"tests.drills.{module}")
    return KINDS


class Refused(Exception):
    """For readers that log a damaged file and do without it."""


def digest(value: Any) -> str:
    """Returns a hash of what was read: arrays, containers, dataclasses, text and numbers."""
    hasher = hashlib.sha256()
    _update(hasher, value)
    return hasher.hexdigest()


def _update(hasher, value: Any) -> None:
    if isinstance(value, np.ndarray):
        hasher.update(f"{value.dtype}{value.shape}".encode())
        hasher.update(value.tobytes() if value.dtype != object else repr(value.tolist()).encode())
    elif isinstance(value, bytes | bytearray | memoryview):
        hasher.update(value)
    elif dataclasses.is_dataclass(value):
        _update(hasher, vars(value))
    elif isinstance(value, Mapping):
        for key in value:
            _update(hasher, key)
            _update(hasher, value[key])
    elif isinstance(value, Iterable) and not isinstance(value, str):
        hasher.update(b"(")
        for item in value:
            _update(hasher, item)
        hasher.update(b")")
    else:
        hasher.update(repr(value).encode("utf-8", "backslashreplace"))
    hasher.update(b",")
