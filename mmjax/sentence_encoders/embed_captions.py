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
    from mmjax.data.sources.registry import Source
    from mmjax.sentence_encoders.backends import Encoder

CHUNK = 8192  # records between two notes of how far it is
CAPTIONS = {
    "first": "the first caption",
    "mean": "the mean of all captions",
    "all": "each caption on its own, one of which training draws at each visit",
}
_OPTIONS = ("batch_size", "max_length", "dtype", "width", "vocab")


def add(commands) -> None:
    """Adds the command."""
    p = commands.add_parser(
        "sentences",
        help="embed the captions of a dataset",
        description="Writes an embedding of the captions of each record, FEATURES/SPLIT/text.npy, "
        "which `mmjax neighbors` and data.text.features take. Run again after an interruption, it "
        "goes on where it stopped.",
    )
    p.add_argument("dataset", metavar="DATASET", help="a dataset folder, or world:NAME")
    p.add_argument("--out", required=True, metavar="FEATURES", help="the folder of features")
    p.add_argument(
        "--encoder",
        required=True,
        metavar="E",
        help="a folder with config.json and model.safetensors (all-MiniLM-L6-v2 and others of "
        "BERT's kind, run in JAX); st:NAME: of the package sentence-transformers; words: bag of "
        "words, tf-idf; vectors:FILE: mean of word vectors (fastText's .vec, or an .npz with "
        "--vocab); npy:FILE: rows that you have",
    )
    p.add_argument("--split", default="train", help="which one (train)")
    p.add_argument(
        "--captions",
        choices=CAPTIONS,
        help="; ".join(f"{name}: {text}" for name, text in CAPTIONS.items()) + " (first)",
    )
    p.add_argument("--batch-size", type=int, metavar="N", help="texts at a time, over all devices")
    p.add_argument("--max-length", type=int, metavar="N", help="pieces of a text (as the model's)")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), help="of a folder's encoder")
    p.add_argument("--width", type=int, metavar="D", help="of words (1024)")
    p.add_argument("--vocab", metavar="FILE", help="of vectors: the words of a table's rows")
    p.add_argument(
        "--ids",
        metavar="FILE",
        help="of npy: the file name of each row, one per line (default: rows are in the order of "
        "the records)",
    )
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    p.set_defaults(run=_sentences)


def _sentences(args) -> int:
    from mmjax.data.sources import registry as sources

    source = sources.open_source(args.dataset, split=args.split)
    options = {name: getattr(args, name) for name in _OPTIONS}
    kind, _, file = args.encoder.partition(":")
    job = Job(source=source, split=args.split, out=args.out, progress=not args.quiet)
    if kind == "npy":
        unused = [name for name in (*_OPTIONS, "captions") if getattr(args, name) is not None]
        if unused:
            raise UserError(f"--{unused[0].replace('_', '-')} is not for rows that are there.")
        result = job.take(file, ids=args.ids)
    else:
        from mmjax.sentence_encoders import backends

        if args.ids:
            raise UserError("--ids says what the rows of --encoder npy:FILE are of.")
        encoder = backends.make_encoder(args.encoder, **options)
        result = job.embed(encoder, args.encoder, captions=args.captions or "first")
    print(f"{result.path}: float32 {result.shape} of {source.name} by {args.encoder}.")
    for notice in result.notices:
        print(notice)
    train = f"train on them: --config.data.text.features={args.out}"
    if len(result.shape) == 3:  # several for each record, which have no nearest one
        print(f"Next: {train}")
        return 0
    following = search_dataset.command(args.out, data=args.dataset, split=args.split)
    print(f"Next: {following}, or {train}")
    return 0


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
            name for _, name in captions.read_contexts(self.source, range(self.source.num_examples))
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
