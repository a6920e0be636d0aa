"""Finds video and audio files by name, with any suffix and in any subdirectory."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from mmjax.data.storage import directories
from mmjax.errors import UserError

VIDEO_SUFFIXES = (
    *(".mp4", ".mkv", ".webm", ".avi", ".mov", ".flv", ".m4v", ".mpg", ".mpeg", ".wmv"),
    *(".3gp", ".ogv"),
)
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac")


class MediaDir:
    """An index of the video and audio files below a directory.

    Args:
      root: The directory. It is listed at the first call of `find`.
      fuzzy: Whether to ignore case and characters other than letters and digits if no file has
        exactly the requested name. Some unpackers replace such characters.

    Attributes:
      root: The directory, with '~' expanded.
      ambiguous: For each name with several equally suitable files: [the file used, the others …].

    Raises:
      UserError: The directory does not exist.
    """

    def __init__(self, root: str, *, fuzzy: bool = False):
        self.root, self._fuzzy = os.path.expanduser(root), fuzzy
        if not os.path.isdir(self.root):
            raise UserError(f"--media {root}: no such directory.")
        self.ambiguous: dict[str, list[str]] = {}
        self._index: dict[str, list[str]] | None = None
        self._by_simplified: dict[str, list[str]] = {}

    def find(self, name: str, *, hints: Sequence[str] = ()) -> str | None:
        """Returns the path of the file with this name, relative to the root, or None.

        Args:
          name: File name without suffix.
          hints: Directory names, such as the class or the split. Among several files, the one with
            the most hints in its path is used, and video is preferred to audio.
        """
        if self._index is None:
            self._index = self._list()
        paths = self._index.get(name) or self._by_simplified.get(_simplify(name), [])
        if len(paths) <= 1:
            return paths[0] if paths else None
        expected = {_simplify(hint) for hint in hints}

        def rank(path: str) -> tuple[int, bool]:
            parents = {_simplify(parent) for parent in path.split(os.sep)[:-1]}
            return -len(expected & parents), path.lower().endswith(AUDIO_SUFFIXES)

        ranked = sorted(paths, key=lambda path: (rank(path), path))
        if rank(ranked[0]) == rank(ranked[1]):
            self.ambiguous[name] = ranked
        return ranked[0]

    def _list(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for directory, _, files in directories.walk(self.root):
            relative = os.path.relpath(directory, self.root)
            for file in files:
                if (name := _stem(file)) is not None:
                    path = file if relative == "." else os.path.join(relative, file)
                    index.setdefault(name, []).append(path)
        if self._fuzzy:
            for name, paths in index.items():
                self._by_simplified.setdefault(_simplify(name), []).extend(paths)
        return index


def _stem(file: str) -> str | None:
    """Returns a media file's name without its suffix or suffixes (`x.mp4.webm`), else None."""
    suffixes = VIDEO_SUFFIXES + AUDIO_SUFFIXES
    name, suffix = os.path.splitext(file)
    if suffix.lower() not in suffixes or file.startswith("."):
        return None
    inner, suffix = os.path.splitext(name)
    return inner if suffix.lower() in suffixes else name


def _simplify(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name).lower()
