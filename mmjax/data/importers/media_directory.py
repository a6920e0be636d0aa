"""Finds media by name, whatever their suffix and subfolder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from mmjax.data.storage import directories
from mmjax.errors import UserError

VIDEO = (
    *(".mp4", ".mkv", ".webm", ".avi", ".mov", ".flv", ".m4v", ".mpg", ".mpeg", ".wmv"),
    *(".3gp", ".ogv"),
)
AUDIO = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac")
PICTURES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")


class MediaDir:
    """The films and sounds below a folder.

    Args:
      root: the folder; it is listed once, when the first file is looked for.
      loose: if there is no file of a name, take one whose name differs in case, or in characters
        that are neither letters nor digits (which some unpackers replace).

    Attributes:
      root: as given.
      several: what `find` took where there was a choice, by name: [taken, others …].
    """

    def __init__(self, root: str, *, loose: bool = False):
        self.root, self._loose = os.path.expanduser(root), loose
        if not os.path.isdir(self.root):
            raise UserError(f"There is no media folder {root}.")
        self.several: dict[str, list[str]] = {}
        self._index: dict[str, list[str]] | None = None
        self._by_plain: dict[str, list[str]] = {}

    def find(self, name: str, *, hints: Sequence[str] = ()) -> str | None:
        """The path, relative to the root, of a file of this name; None if there is none.

        Args:
          name: without suffix.
          hints: names of folders, such as the class or the split: of several files the one that
            lies in most of them is taken, and a film rather than a sound.
        """
        if self._index is None:
            self._index = self._list()
        paths = self._index.get(name) or self._by_plain.get(_plain(name), [])
        if len(paths) <= 1:
            return paths[0] if paths else None
        wanted = {_plain(hint) for hint in hints}

        def rank(path: str) -> tuple[int, bool]:
            directories = {_plain(directory) for directory in path.split(os.sep)[:-1]}
            return -len(wanted & directories), path.lower().endswith(AUDIO)

        ranked = sorted(paths, key=lambda path: (rank(path), path))
        if rank(ranked[0]) == rank(ranked[1]):
            self.several[name] = ranked
        return ranked[0]

    def _list(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for directory, _, files in directories.walk(self.root):
            below = os.path.relpath(directory, self.root)
            for file in files:
                if (name := _stem(file)) is not None:
                    path = file if below == "." else os.path.join(below, file)
                    index.setdefault(name, []).append(path)
        if self._loose:
            for name, paths in index.items():
                self._by_plain.setdefault(_plain(name), []).extend(paths)
        return index


def _stem(file: str) -> str | None:
    """The name without its suffix, or two of them (`x.mp4.webm`); None if it is not of media."""
    name, suffix = os.path.splitext(file)
    if suffix.lower() not in VIDEO + AUDIO or file.startswith("."):
        return None
    inner, suffix = os.path.splitext(name)
    return inner if suffix.lower() in VIDEO + AUDIO else name


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name).lower()
