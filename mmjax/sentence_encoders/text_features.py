"""The file of caption vectors of one split, FEATURES/SPLIT/text.npy, and its description."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from mmjax import files
from mmjax.data.pipeline import precomputed_features
from mmjax.data.sources import captions
from mmjax.errors import UserError
from mmjax.formats import npy

if TYPE_CHECKING:
    from mmjax.data.sources.base import Source

CHUNK = 8192  # records per step; progress is saved after each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Caption vectors that were written.

    Attributes:
      path: The file.
      shape: Its shape, [N, D] or [N, K, D].
      notices: Sentences about records without vectors.
    """

    path: str
    shape: list[int]
    notices: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """The caption vectors of a split. Other splits and modalities in the directory are kept.

    Attributes:
      source: The records.
      split: Name of the split.
      out: The directory of features.
      progress: Whether to show a progress bar.

    Raises:
      UserError: The directory contains features of another dataset.
    """

    source: Source
    split: str
    out: str
    progress: bool = True

    def __post_init__(self):
        before = precomputed_features.read_description(self.out)
        if before is not None and before["dataset"] != self.source.info.name:
            raise UserError(
                f"--out {self.out} contains features of the dataset {before['dataset']}, not of "
                f"{self.source.info.name}. Pass another directory."
            )
        os.makedirs(os.path.dirname(self.path), exist_ok=True)

    @property
    def path(self) -> str:
        """The file of the vectors."""
        return precomputed_features.features_path(self.out, self.split, "text")

    @property
    def partial_path(self) -> str:
        """The file that is written before it is renamed to `path`."""
        return f"{self.path}.partial"

    @property
    def _state_path(self) -> str:
        return f"{self.path}.partial.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing the same file.

        Raises:
          UserError: Another process is writing it.
        """
        # The lock is on the directory, so it leaves no file behind.
        descriptor = os.open(os.path.dirname(self.path), os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise UserError(
                        f"Another `mmjax sentences` is writing {self.path}. Wait until it has "
                        "finished, or pass another --out."
                    ) from error
            yield
        finally:
            os.close(descriptor)

    def bar(self, description: str, *, initial: int = 0) -> tqdm:
        """Returns a progress bar over the records."""
        return tqdm(
            total=self.source.num_examples,
            initial=initial,
            desc=description,
            disable=not self.progress,
        )

    def read(self, records: Sequence[int]) -> list[list[str]]:
        """Returns the captions of records."""
        return captions.read_captions(self.source, records)

    def read_all(self, description: str) -> Iterator[list[str]]:
        """Yields the captions of each record of the split.

        Args:
          description: Label of the progress bar.
        """
        count = self.source.num_examples
        with self.bar(description) as bar:
            for first in range(0, count, CHUNK):
                texts = self.read(range(first, min(first + CHUNK, count)))
                yield from texts
                bar.update(len(texts))

    def open_partial(
        self, job: Mapping[str, Any], counters: Sequence[str]
    ) -> tuple[np.memmap, dict[str, Any]]:
        """Opens the partial file of an interrupted run with the same job, or creates it.

        Args:
          job: Everything that the vectors depend on, and their `shape`.
          counters: Names of counters in the state.

        Returns:
          `(vectors, state)`: the array, and the job, the number of records that are `done`, and
          the counters.
        """
        with contextlib.suppress(UserError, OSError, ValueError, KeyError, TypeError):
            state = files.read_json(self._state_path)
            vectors = npy.open_array(self.partial_path)
            fits = vectors.shape == tuple(job["shape"]) and vectors.dtype == np.float32
            if state["job"] == job and {"done", *counters} <= state.keys() and fits:
                return np.lib.format.open_memmap(self.partial_path, "r+"), state
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._state_path)
        vectors = precomputed_features.create_array(self.partial_path, job["shape"])
        return vectors, {"job": job, "done": 0, **dict.fromkeys(counters, 0)}

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Records how many vectors of the partial file are done."""
        files.write_json(self._state_path, state)

    def finish(self, made: Mapping[str, Any]) -> None:
        """Renames the partial file and adds the split to features.json.

        Args:
          made: How the vectors were made.
        """
        os.replace(self.partial_path, self.path)
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._state_path)
        before = precomputed_features.read_description(self.out) or {}
        kept = {k: v for k, v in before.items() if k not in ("dataset", "num_examples", "made")}
        if "text" in kept.get("towers", {}):  # the features replace those of a tower
            kept["towers"] = {k: v for k, v in kept["towers"].items() if k != "text"}
        precomputed_features.write_description(
            self.out,
            dataset=self.source.info.name,
            num_examples=before.get("num_examples", {}) | {self.split: self.source.num_examples},
            made=before.get("made", {}) | {f"{self.split}/text": dict(made)},
            **kept,
        )
