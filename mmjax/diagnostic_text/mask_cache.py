"""Cache of the last described mask of each pair, and of its text.

On disk and in checkpoints, masks are arrays of bits and everything else is JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax import files
from mmjax.errors import UserError, about
from mmjax.formats import safetensors

_INDEX = "cache.json"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Entry:
    """A described pair.

    Attributes:
      bits: The predicted mask, packed by `numpy.packbits`.
      text: Its text; '' if only the mask is known, as after `mmjax prefill`.
    """

    bits: np.ndarray
    text: str


class MaskCache:
    """Maps keys of pairs to masks of one size and texts, in the order of insertion.

    Args:
      size: Side of the masks in pixels.
    """

    def __init__(self, size: int = 224):
        self.size = size
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def mask(self, key: str) -> np.ndarray | None:
        """Returns the mask of a pair, bool [S, S], or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        bits = np.unpackbits(entry.bits, count=self.size**2)
        return bits.reshape(self.size, self.size).astype(bool)

    def text(self, key: str) -> str:
        """Returns the text of a pair; '' if it has none."""
        entry = self._entries.get(key)
        return "" if entry is None else entry.text

    def set(self, key: str, mask: np.ndarray, text: str) -> None:
        """Stores the mask, bool [S, S], and text of a pair."""
        if mask.shape != (self.size, self.size):
            raise ValueError(f"mask of {key}: shape {mask.shape}, expected side {self.size}")
        self._entries[key] = Entry(np.packbits(mask.astype(bool)), text)

    def delete(self, keys: Sequence[str]) -> None:
        """Removes pairs; keys that are not stored are ignored."""
        for key in keys:
            self._entries.pop(key, None)

    def nbytes(self) -> int:
        """Returns the memory of masks and texts in bytes."""
        return sum(entry.bits.nbytes + len(entry.text) for entry in self._entries.values())

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns `(arrays, JSON object)` that `restore` takes: masks, uint8 [N, bytes], the rest.

        The arrays do not change when the cache does.
        """
        row_bytes = (self.size**2 + 7) // 8
        rows = [entry.bits for entry in self._entries.values()]
        masks = np.stack(rows) if rows else np.zeros((0, row_bytes), np.uint8)
        texts = [entry.text for entry in self._entries.values()]
        values = dict(version=_VERSION, size=self.size, keys=list(self._entries), texts=texts)
        return {"masks": masks}, values

    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Replaces the content by that of another cache's `state`.

        Raises:
          UserError: The masks have another size, or arrays and JSON do not fit together.
        """
        if values.get("version") != _VERSION or values.get("size") != self.size:
            raise UserError(
                f"The cache has version {values.get('version')} and masks with a side of "
                f"{values.get('size')} pixels; expected version {_VERSION} and {self.size} pixels. "
                "Create it again with `mmjax prefill`."
            )
        keys, texts = values.get("keys"), values.get("texts")
        masks = np.asarray(arrays.get("masks"))
        expected = (len(keys or ()), (self.size**2 + 7) // 8)
        lists = isinstance(keys, list) and isinstance(texts, list) and len(texts) == len(keys)
        if not lists or masks.dtype != np.uint8 or masks.shape != expected:
            raise UserError(
                f"The cache is damaged: {len(keys or ())} keys, {len(texts or ())} texts and masks "
                f"of shape {masks.shape}. Create it again with `mmjax prefill`."
            )
        rows = zip(keys, masks, texts, strict=True)
        self._entries = {key: Entry(np.array(bits), text) for key, bits, text in rows}

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the cache to a directory; an interruption leaves the earlier content readable."""
        directory = pathlib.Path(directory)
        arrays, values = self.state()
        digest = hashlib.blake2b(arrays["masks"].tobytes(), digest_size=8).hexdigest()
        name = f"masks-{digest}{safetensors.SUFFIX}"
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / name).exists():
            safetensors.write(directory / name, arrays)
        files.write_json(directory / _INDEX, values | {"masks": name})
        for path in directory.glob(f"masks-*{safetensors.SUFFIX}"):
            if path.name != name:
                files.remove(path)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> MaskCache:
        """Returns the cache that `save` has written to a directory.

        Raises:
          UserError: A file is missing or damaged.
        """
        path = pathlib.Path(directory, _INDEX)
        advice = "Pass a directory that `mmjax prefill` has written."
        values = files.read_object(path, advice)
        name, size = values.get("masks"), values.get("size")
        if not isinstance(name, str) or pathlib.Path(name).name != name or type(size) is not int:
            raise UserError(f"{path} is damaged: masks={name!r}, size={size!r}. {advice}")
        cache = cls(size)
        masks = path.with_name(name)
        if not masks.exists():
            raise UserError(f"{masks} does not exist, but {path} refers to it. {advice}")
        with about(masks):
            cache.restore(safetensors.read(masks), values)
        return cache
