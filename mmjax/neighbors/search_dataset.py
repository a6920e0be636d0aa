"""Nearest neighbors of a dataset's features: `mmjax neighbors`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from mmjax.errors import UserError

if TYPE_CHECKING:  # which import TensorFlow and JAX
    from mmjax.data.sources.base import Source
    from mmjax.neighbors import Found

_WORK = "search.npz"
_QUANTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a search, called like the flags of `mmjax neighbors`.

    Attributes:
      features: A directory of precomputed features, or a .npy file of floats [N, D].
      out: Directory of pairs to write, as `data.pairs.path` reads it; '' with `plan`.
      plan: Whether only the plan is needed.
      modality: Modality of the features; '' if the directory has only one.
      split: Split of the dataset.
      data: The dataset of the features; None if nothing needs it.
      k: Number of neighbors per record.
      min_similarity: Pairs of a lower cosine similarity are dropped.
      exclude_duplicates: Records never paired: with the same 'captions', or the same 'features';
        True chooses 'captions' for text and 'features' otherwise; None pairs all.
      mutual: Whether to keep only pairs in which each record is among the k nearest of the other.
      scope: Restricts neighbors to records of one group; see `mmjax.data.pairs.scopes`.
      groups: Alternatively, a .npy file with the group of each record, integers [N].
      dtype: Type of the first pass: 'auto', 'float32' or 'bfloat16'. The result is the same.
      memory: GiB for features on each device; None uses what is available.
      block: Number of rows of a matrix product; None chooses by device.
      show: Number of records in the report whose neighbors are printed.
      figure: A PNG file for a drawing of records and their neighbors; '' draws none.
      progress: Whether to show progress bars.
    """

    features: str
    out: str = ""
    plan: bool = False
    modality: str = ""
    split: str = "train"
    data: str | None = None
    k: int = 1
    min_similarity: float = -1.0
    exclude_duplicates: bool | Literal["captions", "features"] | None = None
    mutual: bool = False
    scope: str | None = None
    groups: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    memory: float | None = None
    block: int | None = None
    show: int = 0
    figure: str = ""
    progress: bool = True

    def __post_init__(self):
        if not self.out and not self.plan:
            raise UserError("Pass --out DIR to write pairs, or --plan.")
        for name in ("k", "block"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} must be at least 1; got {value}.")
        if not -1 <= self.min_similarity <= 1:
            raise UserError(
                f"--min-similarity must be a cosine, from -1 to 1; got {self.min_similarity}."
            )
        if self.memory is not None and self.memory <= 0:
            raise UserError(f"--memory must be greater than 0; got {self.memory}.")


def command(features: str, *, data: str, split: str, modality: str = "") -> str:
    """What is typed to find neighbors by features, for who has just made them.

    Args:
      features: their folder.
      data: the dataset that they are of.
      split: of it.
      modality: whose features these are, if the folder may have others.
    """
    words = ["mmjax", "neighbors", features]
    words += ["--modality", modality] if modality else []
    words += ["--data", data, "--out", f"pairs/{os.path.basename(os.path.abspath(features))}"]
    words += ["--split", split] if split != "train" else []
    return shlex.join(words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Neighbors that a search has written.

    Attributes:
      found: The neighbors and their similarities.
      report: A description for the user.
    """

    found: Found
    report: str


class Search:
    """A nearest-neighbor search among the features of a dataset."""

    def __init__(self, options: Options):
        """Opens the features, and the dataset if the options need it.

        Raises:
          UserError: The options do not fit together, or to the features and the dataset.
        """
        from mmjax import neighbors

        self.options = options
        self._features, self._modality, self._name = _features(options)
        count = len(self._features)
        if options.k >= max(count, 2):
            raise UserError(
                f"--k must be at most {max(count - 1, 1)} for {count} records; got {options.k}."
            )
        self._kind = options.exclude_duplicates
        if self._kind is True:
            self._kind = "captions" if self._modality == "text" else "features"
        self._source = _source(options, self._kind, self._name, count)
        self._captions, filenames = _contexts(options, self._source)
        self._groups = _groups(options, self._source, filenames, count)
        self._settings = neighbors.choose_settings(
            options.dtype,
            block=options.block,
            device_bytes=options.memory and options.memory * 2**30,
        )

    def plan(self) -> str:
        """Returns a description of the time and memory that `run` needs; '' without records."""
        if not len(self._features):
            return ""
        with _logging():
            return _plan(self._features, self.options.k, self._settings, self._groups)

    def run(self) -> Result:
        """Finds the neighbors and writes them; an interrupted search continues where it stopped."""
        from mmjax import neighbors
        from mmjax.data.pairs import pair_files

        options, features, source = self.options, self._features, self._source
        texts = [" ".join((*own, "")[0].split()).casefold() for own in self._captions]
        same = None
        if self._kind == "captions":
            numbers: dict[str, int] = {}
            same = np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
        directory = os.path.expanduser(options.out)
        os.makedirs(directory, exist_ok=True)
        work = os.path.join(directory, _WORK)
        with _logging():
            with _bar("read", len(features), " rows", options.progress) as progress:
                prepared = neighbors.prepare(
                    features,
                    groups=self._groups,
                    same=same,
                    equal=self._kind is None,
                    progress=progress,
                )
            scores = self._settings.block**2
            total = neighbors.products(prepared.rows, self._settings) * scores
            with _bar("search", total, " scores", options.progress) as progress:
                found = neighbors.nearest(
                    prepared,
                    k=options.k,
                    settings=self._settings,
                    work=work,
                    progress=lambda products: progress(products * scores),
                )
        both = neighbors.mutual(found)
        keep = (found.neighbors >= 0) & (found.similarity >= options.min_similarity)
        below = int(((found.neighbors >= 0) & ~keep).sum())
        if options.mutual:
            keep &= both
        _keep(found, keep, both)
        pair_files.write_pairs(
            options.out,
            found.neighbors,
            found.similarity,
            dataset=source.info.name if source else self._name,
            split=options.split,
            made={
                "of": os.path.abspath(os.path.expanduser(options.features)),
                "modality": self._modality,
                "k": options.k,
                "min_similarity": options.min_similarity,
                "exclude_duplicates": self._kind,
                "mutual": options.mutual,
                "scope": options.scope or options.groups,
                "features": prepared.content,
            }
            | found.counts,
        )
        if os.path.exists(work):
            os.remove(work)
        lines = [*_summary(options.out, found, both, texts, below), *self._examples(found)]
        if options.figure:
            lines += self._draw(found)
        if source:
            command = ["python", "-m", "mmjax.main", "--task=guided", "--config=pairs"]
            command += [f"--config.data.train={options.data}"]
            command += [f"--config.data.pairs.path={options.out}"]
            lines.append(f"Next: {shlex.join(command)}")
        return Result(found=found, report="\n".join(lines))

    def _examples(self, found: Found) -> Iterator[str]:
        """Yields captions of records and their neighbors."""
        for record in _sample(found, self.options.show):
            (head, text), *others = self._labels(found, record)
            yield from ("", f"{head}: {text}", *(f"  {h}: {t}" for h, t in others))

    def _draw(self, found: Found) -> Iterator[str]:
        """Draws records and their neighbors, and yields a line that names the file."""
        from mmjax.neighbors import figure

        rows = []
        for record in _sample(found, self.options.show or 8):
            names = [record, *(int(n) for n in found.neighbors[record] if n >= 0)][:6]
            labels = self._labels(found, record)[:6]
            rows.append(
                [
                    (_image(self._source, number), head, text)
                    for number, (head, text) in zip(names, labels, strict=True)
                ]
            )
        if not rows:
            return
        path = self.options.figure
        try:
            figure.draw(rows, path, title=f"{self._source.name}: records and their neighbors")
        except (OSError, ValueError) as error:
            raise UserError(f"--figure {path} cannot be written: {error}.") from error
        yield f"{path}: {len(rows)} records and their nearest neighbors."

    def _labels(self, found: Found, record: int) -> list[tuple[str, str]]:
        """Returns (similarity and index, caption) of a record and its neighbors."""
        names = [record, *(int(n) for n in found.neighbors[record] if n >= 0)]
        heads = [f"record {record}"]
        similarities = found.similarity[record][: len(names) - 1]
        heads += [f"{s:.3f}  record {n}" for n, s in zip(names[1:], similarities, strict=True)]
        texts = [(*self._captions[number], "(no caption)")[0] for number in names]
        return list(zip(heads, texts, strict=True))


def _sample(found: Found, count: int) -> list[int]:
    """Returns `count` random records that have a neighbor, in order."""
    records = np.flatnonzero(found.neighbors[:, 0] >= 0)
    return sorted(np.random.default_rng(0).permutation(records)[:count].tolist())


def _features(options) -> tuple[np.ndarray, str, str]:
    """(features, modality, name of the dataset)."""
    from mmjax.data.pipeline import precomputed_features

    directory = os.path.expanduser(options.features)
    if directory.endswith(".npy"):
        path, modality, name = (
            directory,
            options.modality or "",
            os.path.basename(directory)[: -len(".npy")],
        )
        content = None
    else:
        content = precomputed_features.read_description(directory)
        if content is None:
            raise UserError(
                f"{options.features} is no folder of features: it has no {precomputed_features.FILE}. `mmjax "
                "sentences` and `mmjax embed` write such; or name a .npy file."
            )
        modality = options.modality or _only_modality(os.path.join(directory, options.split))
        path, name = (
            precomputed_features.features_path(directory, options.split, modality),
            content["dataset"],
        )
    if content and not os.path.exists(path):
        there = ", ".join(_modalities(os.path.dirname(path))) or "nothing"
        raise UserError(f"There is no {path}. That split has features of {there}.")
    try:
        features = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an array: {error}.") from error
    if features.ndim != 2:
        raise UserError(
            f"{path} has the shape {list(features.shape)}; expected a row for each record, [N, D]. "
            "Features with several rows for each (`mmjax sentences --captions all`, `mmjax embed "
            "--variants`) are for training: make them with one."
        )
    if content and content["num_examples"].get(options.split) != len(features):
        raise UserError(
            f"{path} has {len(features)} rows, but {precomputed_features.FILE} says "
            f"{content['num_examples'].get(options.split, 0)}: compute the features again."
        )
    return features, modality, name


def _modalities(directory: str) -> list[str]:
    """Of which there are features."""
    entries = sorted(os.listdir(directory)) if os.path.isdir(directory) else ()
    return [entry[: -len(".npy")] for entry in entries if entry.endswith(".npy")]


def _only_modality(directory: str) -> str:
    found = _modalities(directory)
    if not found:
        raise UserError(f"{directory} has no features: name another --split, or compute them.")
    if len(found) > 1:
        raise UserError(f"{directory} has features of {', '.join(found)}: say --modality NAME.")
    return found[0]


def _source(options, kind: str | None, name: str, count: int) -> Source | None:
    """The dataset, if it is given."""
    if not options.data:
        needs = {
            "--scope": options.scope,
            "--show": options.show,
            "--figure": options.figure,
            "--exclude-duplicates captions": kind == "captions",
        }
        if lacking := [option for option, value in needs.items() if value]:
            raise UserError(f"{lacking[0]} needs --data DATASET: the one that the features are of.")
        return None
    from mmjax.data.sources import registry as sources

    source = sources.open_source(options.data, split=options.split)
    of_file = options.features.endswith(".npy")
    if source.num_examples != count or (source.info.name != name and not of_file):
        raise UserError(
            f"--data {options.data} has {source.num_examples} records of {source.info.name}/"
            f"{options.split}, but the features are {count} of {name}/{options.split}."
        )
    return source


def _contexts(options, source: Source | None) -> tuple[Sequence[Sequence[str]], Sequence[str]]:
    """(captions, file names) of all records; nothing without a dataset."""
    if source is None:
        return [], []
    from mmjax.data.sources import captions

    found = captions.read_captions_and_filenames(source, range(source.num_examples))
    texts, filenames = [], []
    for own, name in tqdm(
        found, "captions", source.num_examples, unit=" records", disable=not options.progress
    ):
        texts.append(own)
        filenames.append(name)
    return texts, filenames


def _groups(
    options, source: Source | None, filenames: Sequence[str], count: int
) -> np.ndarray | None:
    from mmjax.data.pairs import scopes

    if options.scope and options.groups:
        raise UserError("--scope and --groups both say who may be whose neighbor: give one.")
    if options.scope:
        return scopes.groups_of(options.scope, source, filenames)
    if not options.groups:
        return None
    try:
        groups = np.lib.format.open_memmap(os.path.expanduser(options.groups), mode="r")
    except (OSError, ValueError) as error:
        raise UserError(
            f"--groups {options.groups} cannot be read as an array: {error}."
        ) from error
    if groups.shape != (count,) or not np.issubdtype(groups.dtype, np.integer):
        raise UserError(
            f"--groups {options.groups} is {groups.dtype} {list(groups.shape)}; expected integers "
            f"[{count}], one for each row of the features."
        )
    return groups


def _plan(features: np.ndarray, k: int, settings: Any, groups: np.ndarray | None) -> str:
    """Returns a description of the time and memory of a search."""
    from mmjax import neighbors
    from mmjax.monitor import report

    count, width = features.shape
    found = neighbors.plan(count, width, k=k, settings=settings, groups=groups)
    where = "kept in memory" if found["cached"] else "read from the file each time"
    within = "" if groups is None else f" within its group, of {len(np.unique(groups))}"
    lines = [
        f"{count} rows of {width} ({features.dtype}), the nearest {k} of each{within}",
        f"devices: {len(settings.devices)}; products in {settings.dtype}: {found['flops']:.3g} "
        f"floating point operations, about {report.format_seconds(found['seconds'])} at this "
        "machine's rate just now",
        f"memory: {report.format_bytes(found['device_bytes'])} on each device, "
        f"{report.format_bytes(found['host_bytes'])} on the host; unit vectors are {where}; "
        f"passes over the features: {found['passes']}",
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """What the search logs is shown, such as how many rows it searches again."""
    logger = logging.getLogger("mmjax.neighbors")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _bar(what: str, total: int, unit: str, show: bool) -> Iterator[Callable[[int], None]]:
    with tqdm(
        desc=what, total=total, unit=unit, unit_scale=True, disable=not show, file=sys.stderr
    ) as bar:
        yield bar.update


def _keep(found: Found, keep: np.ndarray, both: np.ndarray) -> None:
    """Leaves out the other pairs, in place; those that are kept move to the front."""
    order = np.argsort(~keep, 1, kind="stable")
    found.neighbors[:] = np.take_along_axis(np.where(keep, found.neighbors, -1), order, 1)
    found.similarity[:] = np.take_along_axis(np.where(keep, found.similarity, 0), order, 1)
    both[:] = np.take_along_axis(both & keep, order, 1)


def _summary(
    out: str, found: Found, both: np.ndarray, texts: Sequence[str], below: int
) -> Iterator[str]:
    """Lines that say what was found."""
    there, counts = found.neighbors >= 0, found.counts
    yield (
        f"{out}: {there[:, 0].sum()} of {len(there)} records have a neighbor, {there.sum()} pairs."
    )
    reasons = {
        "rows of zeros": counts["zero"],
        "alone in their group": counts["alone"],
        "pairs below --min-similarity": below,
    }
    if told := ", ".join(f"{count} {what}" for what, count in reasons.items() if count):
        yield f"left out: {told}"
    yield (
        f"{counts['distinct']} distinct rows, of which {counts['searched_again']} were searched "
        f"again in float32, {counts['searched_whole']} by all scores"
    )
    if not there.any():
        return
    values = np.percentile(found.similarity[:, 0][there[:, 0]], _QUANTILES)
    shown = "  ".join(f"{q} %: {v:.3f}" for q, v in zip(_QUANTILES, values, strict=True))
    yield f"similarity of the nearest: {shown}"
    yield f"mutual: {both.sum()} of {there.sum()} pairs ({both.sum() / there.sum():.0%})"
    if texts:
        rows, places = np.nonzero(there)
        others = found.neighbors[rows, places]
        equal = sum(texts[row] == texts[other] for row, other in zip(rows, others, strict=True))
        yield f"same caption: {equal} pairs ({equal / len(rows):.0%})"


def _image(source: Source, record: int) -> np.ndarray | None:
    """The first image of a record."""
    import io

    import PIL.Image

    from mmjax.data.storage import schema

    example = schema.decode(
        source.fetch(record), waveform_format="unchecked", where=source.where(record)
    )
    images = (*example.frames, *example.touch)
    if not images:
        return None
    try:
        return np.asarray(PIL.Image.open(io.BytesIO(images[0])).convert("RGB"))
    except (OSError, ValueError, SyntaxError):
        return None
