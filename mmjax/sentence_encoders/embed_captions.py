"""Embeddings of a dataset's captions: `mmjax sentences`.

Rows are written where they belong as they are made, so a run that was interrupted goes on where it
stopped, and memory holds a chunk of captions alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from mmjax.data.storage import metadata
from mmjax.errors import UserError, choose
from mmjax.neighbors import search_dataset

if TYPE_CHECKING:  # which imports TensorFlow
    from mmjax.data.sources.base import Source
    from mmjax.sentence_encoders.backends import Encoder

CHUNK = 8192  # records between two notes of how far it is
CAPTIONS = {
    "first": "the first caption",
    "mean": "the mean of all captions",
    "all": "each caption on its own, one of which training draws at each visit",
}


def embed_captions(
    dataset: str,
    out: str,
    *,
    encoder: str,
    split: str = "train",
    captions: str | None = None,
    ids: str | None = None,
    progress: bool = True,
    **options: Any,
) -> str:
    """Writes the embeddings of the captions of a split, or takes precomputed ones.

    Args:
      dataset: The dataset.
      out: Directory of features to write.
      encoder: A sentence encoder; see `mmjax.sentence_encoders.backends.make_encoder`.
        'npy:FILE' takes the vectors of a file.
      split: Split of the dataset.
      captions: A key of `CAPTIONS` (default: 'first').
      ids: With 'npy:FILE': a file with the file name of each vector, one per line.
      progress: Whether to show a progress bar.
      **options: Options of the encoder; None for its default.

    Returns:
      A description of the result for the user.

    Raises:
      UserError: The arguments do not fit together, or the captions cannot be embedded.
    """
    from mmjax.data.sources import registry as sources

    source = sources.open_source(dataset, split=split)
    job = Job(source=source, split=split, out=out, progress=progress)
    name, _, file = encoder.partition(":")
    if name == "npy":
        for option, value in {**options, "captions": captions}.items():
            if value is not None:
                flag = f"--{option.replace('_', '-')}"
                raise UserError(f"{flag} is not an option of --encoder npy:FILE. Remove it.")
        result = job.take(file, ids=ids)
    else:
        from mmjax.sentence_encoders import backends

        if ids:
            raise UserError(f"--ids is an option of --encoder npy:FILE, not {encoder}. Remove it.")
        made = backends.make_encoder(encoder, **options)
        result = job.embed(made, encoder, captions=captions or "first")
    lines = [
        f"{result.path}: float32 {result.shape} of {source.name} by {encoder}.",
        *result.notices,
    ]
    following = [f"--config.data.text.features={out} to train on them"]
    if len(result.shape) == 2:  # one vector per record has nearest neighbors
        following.insert(0, search_dataset.command(out, data=dataset, split=split))
    return "\n".join([*lines, f"Next: {', or '.join(following)}"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What was written: the file, its shape, and sentences about records without an embedding."""

    path: str
    shape: list[int]
    notices: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The embeddings of one split.

    Attributes:
      source: the records.
      split: of it.
      out: the folder of features; those of other splits and modalities in it stay.
      progress: show a bar.
    """

    source: Source
    split: str
    out: str
    progress: bool = True

    def __post_init__(self):
        from mmjax.data.pipeline import precomputed_features

        before = precomputed_features.read_description(self.out)
        if before is not None and before["dataset"] != self.source.info.name:
            raise UserError(
                f"--out {self.out} holds features of {before['dataset']}, not of "
                f"{self.source.info.name}: choose another folder."
            )
        os.makedirs(os.path.dirname(self.path), exist_ok=True)

    @property
    def path(self) -> str:
        """The file of the rows."""
        from mmjax.data.pipeline import precomputed_features

        return precomputed_features.features_path(self.out, self.split, "text")

    def embed(self, encoder: Encoder, name: str, *, captions: str = "first") -> Result:
        """Embeds the captions of all records.

        Args:
          encoder: of `mmjax.sentence_encoders.backends.make_encoder`.
          name: how the user calls it.
          captions: key of `CAPTIONS`.

        Raises:
          UserError: a record that cannot be read, or no caption at all.
        """
        choose("captions", captions, CAPTIONS)
        count, most = self.source.num_examples, 1
        if encoder.needs_all:
            encoder.prepare(
                text for texts in self._captions("words") for text in _chosen(texts, captions)
            )
        if captions == "all":
            most = max(len(texts) for texts in self._captions("captions")) or 1
        shape = (count, most, encoder.width) if captions == "all" else (count, encoder.width)
        made = {"encoder": name, "captions": captions, **encoder.describe()}
        of = [self.source.name, self.source.info.source.get("key")]
        rows, state = _open_partial(self.path, {"of": of, "shape": list(shape), "made": made})
        bar = tqdm(total=count, initial=state["done"], desc=name, disable=not self.progress)
        with bar:
            for first in range(state["done"], count, CHUNK):
                numbers = range(first, min(first + CHUNK, count))
                texts = [_chosen(each, captions) for each in self._read(numbers)]
                values, blank = _embedded(encoder, texts, shape[1:], mean=captions == "mean")
                rows[numbers.start : numbers.stop] = values
                rows.flush()
                state["done"] = numbers.stop
                state["without"] += sum(not each for each in texts)
                state["blank"] += blank
                metadata.write(_state_path(self.path), state)
                bar.update(len(numbers))
        if state["without"] == count:
            raise UserError(f"No record of {self.source.name} has a caption.")
        os.replace(f"{self.path}.partial", self.path)
        os.remove(_state_path(self.path))
        self._describe(made)
        notices = []
        if state["without"]:
            notices.append(f"{state['without']} records have no caption: their rows are zeros.")
        if state["blank"]:
            notices.append(
                f"{state['blank']} records have captions without a known word: their rows are "
                "zeros."
            )
        return Result(path=self.path, shape=list(shape), notices=notices)

    def take(self, file: str, *, ids: str | None = None) -> Result:
        """Takes rows that are there.

        Args:
          file: .npy, floating point [N, D] or [N, K, D].
          ids: a file with the file name of each row, one per line; None: rows are in the order of
            the records.

        Raises:
          UserError: a file that is missing or another one, numbers that are not finite, another
            number of rows than records, or ids that are not the records'.
        """
        from mmjax.data.pipeline import precomputed_features

        given = _rows_of(file)
        count = self.source.num_examples
        notices: list[str] = []
        if ids:
            places, notices = self._places(_lines(ids), len(given), file=file, ids=ids)
        elif len(given) != count:
            raise UserError(
                f"{file} has {len(given)} rows, but {self.source.name} {count} records. If the "
                "rows are of other records too, or in another order, give the file name of each "
                "with --ids FILE."
            )
        else:
            places = np.arange(count)
        shape = (count, *given.shape[1:])
        rows = precomputed_features.create_array(f"{self.path}.partial", shape)
        digest, bar = hashlib.sha256(), tqdm(total=count, desc=file, disable=not self.progress)
        with bar:
            for first in range(0, count, CHUNK):
                part = places[first : first + CHUNK]
                values = np.asarray(given[part], np.float32)
                values[part < 0] = 0
                finite = np.isfinite(values).reshape(len(part), -1).all(axis=1)
                if not finite.all():
                    record = first + int(finite.argmin())
                    raise UserError(
                        f"{file}: row {places[record]}, of record {record}, has numbers that are "
                        "not finite."
                    )
                digest.update(values.tobytes())
                rows[first : first + len(part)] = values
                bar.update(len(part))
        rows.flush()
        os.replace(f"{self.path}.partial", self.path)
        self._describe({"encoder": f"npy:{file}", "fingerprint": digest.hexdigest()[:12]})
        return Result(path=self.path, shape=list(shape), notices=notices)

    def _places(
        self, names: Sequence[str], number: int, *, file: str, ids: str
    ) -> tuple[np.ndarray, list[str]]:
        """(the row of each record or -1, sentences about those without)."""
        from mmjax.data.sources import captions

        if len(names) != number:
            raise UserError(f"{ids} has {len(names)} lines, but {file} {number} rows.")
        row_of = {name: row for row, name in enumerate(names)}
        if len(row_of) != number:
            twice = next(name for row, name in enumerate(names) if row_of[name] != row)
            raise UserError(f"{ids}: {twice!r} comes twice.")
        records = [
            name
            for _, name in captions.read_captions_and_filenames(
                self.source, range(self.source.num_examples)
            )
        ]
        places = np.array([row_of.get(name, -1) for name in records], np.int64)
        if (places < 0).all():
            raise UserError(
                f"{ids} names no record of {self.source.name}: its first line is {names[0]!r}, the "
                f"first record {records[0]!r}."
            )
        notices = []
        if missing := int((places < 0).sum()):
            first = records[int(np.argmax(places < 0))]
            notices.append(f"{missing} records have no row, first {first!r}: they are zeros.")
        if surplus := number - len({*places[places >= 0].tolist()}):
            notices.append(f"{surplus} rows are of no record of the split.")
        return places, notices

    def _read(self, numbers: Sequence[int]) -> list[list[str]]:
        from mmjax.data.sources import captions

        return captions.read_captions(self.source, numbers)

    def _captions(self, why: str) -> Iterator[list[str]]:
        """The captions of each record, chunk by chunk."""
        count = self.source.num_examples
        with tqdm(total=count, desc=why, disable=not self.progress) as bar:
            for first in range(0, count, CHUNK):
                found = self._read(range(first, min(first + CHUNK, count)))
                yield from found
                bar.update(len(found))

    def _describe(self, made: dict[str, Any]) -> None:
        """Writes features.json: what is there already, and this split."""
        from mmjax.data.pipeline import precomputed_features

        before = precomputed_features.read_description(self.out) or {}
        kept = {k: v for k, v in before.items() if k not in ("dataset", "num_examples", "made")}
        if "text" in kept.get("towers", {}):  # its features were those of a tower until now
            kept["towers"] = {k: v for k, v in kept["towers"].items() if k != "text"}
        precomputed_features.write_description(
            self.out,
            dataset=self.source.info.name,
            num_examples=before.get("num_examples", {}) | {self.split: self.source.num_examples},
            made=before.get("made", {}) | {f"{self.split}/text": made},
            **kept,
        )


def _chosen(texts: Sequence[str], captions: str) -> list[str]:
    """The captions of a record that are to be embedded."""
    texts = [text for text in texts if text.strip()]
    return texts[:1] if captions == "first" else texts


def _embedded(
    encoder: Encoder, texts: Sequence[Sequence[str]], shape: Sequence[int], *, mean: bool
) -> tuple[np.ndarray, int]:
    """(float32 [len(texts), *shape], how many records have captions but no row)."""
    different = {text: None for each in texts for text in each}  # some captions come often
    number = {text: place for place, text in enumerate(different)}
    table = encoder.embed(list(different)) if different else np.zeros((0, shape[-1]), np.float32)
    if not (finite := np.isfinite(table).all(axis=1)).all():
        text = next(itertools.islice(different, int(finite.argmin()), None))
        raise UserError(f"The embedding of {text[:80]!r} has numbers that are not finite.")
    some = np.abs(table).max(axis=1, initial=0) > 0
    rows, blank = np.zeros((len(texts), *shape), np.float32), 0
    for row, each in zip(rows, texts, strict=True):
        found = table[[number[text] for text in each if some[number[text]]]]
        if not len(found):
            blank += bool(each)
        elif len(shape) == 2:  # fewer captions than others have: again from the first
            row[:] = found[np.arange(len(row)) % len(found)]
        elif mean:
            row[:] = found.mean(axis=0)
            if encoder.normalized and (length := np.linalg.norm(row)) > 0:
                row /= length
        else:
            row[:] = found[0]
    return rows, blank


def _open_partial(path: str, job: dict[str, Any]) -> tuple[np.memmap, dict[str, Any]]:
    """(the rows, how far they are), those of an interrupted run of the same job if there are."""
    from mmjax.data.pipeline import precomputed_features

    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with open(_state_path(path), encoding="utf-8") as file:
            state = json.load(file)
        if state["job"] == job:
            return np.lib.format.open_memmap(f"{path}.partial", "r+"), state
    with contextlib.suppress(FileNotFoundError):
        os.remove(_state_path(path))
    rows = precomputed_features.create_array(f"{path}.partial", job["shape"])
    return rows, {"job": job, "done": 0, "without": 0, "blank": 0}


def _state_path(path: str) -> str:
    return f"{path}.partial.json"


def _rows_of(file: str) -> np.ndarray:
    if not os.path.isfile(file):
        raise UserError(f"--encoder npy:{file}: there is no such file.")
    try:
        rows = np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no .npy file: {error}.") from error
    fits = rows.ndim in (2, 3) and min(rows.shape) > 0
    if not fits or not np.issubdtype(rows.dtype, np.floating):
        raise UserError(
            f"{file} holds {rows.dtype} {list(rows.shape)}; expected floating point [N, D] or "
            "[N, K, D]."
        )
    return rows


def _lines(path: str) -> list[str]:
    if not os.path.isfile(path):
        raise UserError(f"There is no file {path}.")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.rstrip("\r\n") for line in file]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: {error}.") from error
