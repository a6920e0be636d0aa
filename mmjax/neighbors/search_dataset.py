"""Finds the nearest neighbors of a dataset's features and writes them as pairs."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from tqdm import tqdm

from mmjax.data.pairs import pair_files, scopes
from mmjax.errors import UserError
from mmjax.neighbors import dataset_features, report
from mmjax.neighbors.cost import estimate_cost
from mmjax.neighbors.prepared_features import prepare
from mmjax.neighbors.search import SearchResult, mutual, nearest
from mmjax.neighbors.settings import choose_settings
from mmjax.neighbors.tile_search import count_products

_RESUME_FILE = "search.npz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a search, named like the flags of `mmjax neighbors`.

    Attributes:
      features: A directory of precomputed features, or a .npy file of floats [N, D].
      out: Directory of pairs to write; `config.data.pairs.path` reads it. May be '' with `plan`.
      plan: Whether only `Search.describe_cost` is called.
      modality: Modality of the features; '' if the directory has only one.
      split: Split of the dataset.
      data: The dataset of the features; None if no other option needs it.
      k: Number of neighbors per record.
      min_similarity: Pairs of a lower cosine similarity are dropped.
      exclude_duplicates: Never pairs records with equal 'captions' or equal 'features'. True means
        'captions' for text and 'features' otherwise; None pairs all.
      mutual: Whether to keep only pairs in which each record is among the k nearest of the other.
      scope: Restricts neighbors to records of one group; see `mmjax.data.pairs.scopes`.
      groups: Alternatively, a .npy file with the group of each record, integers [N].
      dtype: Type of the first pass: 'auto', 'float32' or 'bfloat16'. The result is the same.
      memory: GiB for features on each device; None uses what is available.
      block: Number of vectors on each side of a matrix product; None chooses by device.
      show: Number of records to print with their neighbors.
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

    def __post_init__(self) -> None:
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
        if self.scope and self.groups:
            raise UserError("--scope and --groups exclude each other: pass only one of them.")


def neighbors_command(features: str, *, data: str, split: str, modality: str = "") -> str:
    """Returns the `mmjax neighbors` command to run next on newly computed features.

    Args:
      features: The directory of the features.
      data: The dataset of the features.
      split: Its split.
      modality: The modality, if the directory may have several.
    """
    arguments = ["mmjax", "neighbors", features]
    arguments += ["--modality", modality] if modality else []
    arguments += ["--data", data, "--out", f"pairs/{os.path.basename(os.path.abspath(features))}"]
    arguments += ["--split", split] if split != "train" else []
    return shlex.join(arguments)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Pairs that a search has written.

    Attributes:
      pairs: The neighbors that were kept, and their similarities.
      report: A description for the user.
    """

    pairs: SearchResult
    report: str


class Search:
    """A nearest-neighbor search among the features of a dataset.

    Args:
      options: The options.

    Raises:
      UserError: The options contradict each other, or do not fit the features or the dataset.
    """

    def __init__(self, options: Options):
        self.options = options
        self._features = dataset_features.open_features(
            options.features, split=options.split, modality=options.modality
        )
        count = len(self._features.features)
        if options.k >= max(count, 2):
            raise UserError(
                f"--k must be at most {max(count - 1, 1)} for {count} records; got {options.k}."
            )
        self._excluded = options.exclude_duplicates
        if self._excluded is True:
            self._excluded = "captions" if self._features.modality == "text" else "features"
        self._source, self._captions, filenames = None, [], []
        if options.data:
            self._source = dataset_features.open_dataset(
                options.data,
                split=options.split,
                features=self._features,
                check_name=not options.features.endswith(".npy"),
            )
            self._captions, filenames = dataset_features.read_contexts(
                self._source, progress=options.progress
            )
        else:
            self._check_dataset_is_not_needed()
        self._groups = None
        if options.scope:
            self._groups = scopes.groups_of(options.scope, self._source, filenames)
        elif options.groups:
            self._groups = dataset_features.read_groups(options.groups, count=count)
        self._settings = choose_settings(
            options.dtype,
            block=options.block,
            device_bytes=options.memory and options.memory * 2**30,
        )

    def _check_dataset_is_not_needed(self) -> None:
        needed_by = {
            "--scope": self.options.scope,
            "--show": self.options.show,
            "--figure": self.options.figure,
            "--exclude-duplicates captions": self._excluded == "captions",
        }
        for option, value in needed_by.items():
            if value:
                raise UserError(f"{option} needs --data DATASET, the dataset of the features.")

    def describe_cost(self) -> str:
        """Returns a description of the time and memory that `run` needs; '' without records."""
        features = self._features.features
        if not len(features):
            return ""
        options = dict(k=self.options.k, settings=self._settings, groups=self._groups)
        with _logging():
            cost = estimate_cost(*features.shape, **options)
        return report.describe_cost(cost, features, **options)

    def run(self) -> Result:
        """Finds the neighbors and writes them.

        Call it again after an interruption to continue the search.
        """
        options = self.options
        texts = [" ".join((*own, "")[0].split()).casefold() for own in self._captions]
        directory = pathlib.Path(options.out).expanduser()
        directory.mkdir(parents=True, exist_ok=True)
        resume_file = directory / _RESUME_FILE
        with _logging():
            result, fingerprint = self._search(texts, resume_file)
        is_mutual = mutual(result)
        keep = (result.neighbors >= 0) & (result.similarity >= options.min_similarity)
        num_below = int(((result.neighbors >= 0) & ~keep).sum())
        if options.mutual:
            keep &= is_mutual
        _keep(result, keep, is_mutual)
        self._write(result, fingerprint)
        resume_file.unlink(missing_ok=True)
        lines = [
            *report.summarize(options.out, result, is_mutual, texts, num_below),
            *report.list_examples(result, self._captions, options.show),
        ]
        if options.figure:
            lines += report.draw_examples(
                options.figure, result, self._captions, self._source, options.show
            )
        if self._source:
            command = ["python", "-m", "mmjax.main", "--task=guided", "--config=pairs"]
            command += [f"--config.data.train={options.data}"]
            command += [f"--config.data.pairs.path={options.out}"]
            lines.append(f"Next: {shlex.join(command)}")
        return Result(pairs=result, report="\n".join(lines))

    def _search(self, texts: list[str], resume_file: pathlib.Path) -> tuple[SearchResult, str]:
        """Returns the neighbors, and the fingerprint of the features."""
        options, features = self.options, self._features.features
        ids = dataset_features.caption_ids(texts) if self._excluded == "captions" else None
        with _progress_bar("read", len(features), " features", options.progress) as progress:
            prepared = prepare(
                features,
                groups=self._groups,
                duplicate_ids=ids,
                allow_equal=self._excluded is None,
                progress=progress,
                name=self._features.path,
            )
        scores = self._settings.block**2
        total = count_products(prepared.vectors, self._settings) * scores
        with _progress_bar("search", total, " scores", options.progress) as progress:
            result = nearest(
                prepared,
                k=options.k,
                settings=self._settings,
                resume_file=resume_file,
                progress=lambda products: progress(products * scores),
            )
        return result, prepared.fingerprint

    def _write(self, result: SearchResult, fingerprint: str) -> None:
        options = self.options
        pair_files.write_pairs(
            options.out,
            result.neighbors,
            result.similarity,
            dataset=self._source.info.name if self._source else self._features.dataset,
            split=options.split,
            made={
                "of": os.path.abspath(os.path.expanduser(options.features)),
                "modality": self._features.modality,
                "k": options.k,
                "min_similarity": options.min_similarity,
                "exclude_duplicates": self._excluded,
                "mutual": options.mutual,
                "scope": options.scope or options.groups,
                "features": fingerprint,
            }
            | result.counts,
        )


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Shows the messages that the search logs."""
    logger = logging.getLogger("mmjax.neighbors")
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _progress_bar(
    name: str, total: int, unit: str, visible: bool
) -> Iterator[Callable[[int], None]]:
    with tqdm(
        desc=name, total=total, unit=unit, unit_scale=True, disable=not visible, file=sys.stderr
    ) as bar:
        yield bar.update


def _keep(result: SearchResult, keep: np.ndarray, is_mutual: np.ndarray) -> None:
    """Removes pairs in place, and moves the remaining ones of each record to the front.

    Args:
      result: The pairs.
      keep: bool [N, k]: pairs to keep.
      is_mutual: bool [N, k]; changed in the same way.
    """
    order = np.argsort(~keep, 1, kind="stable")
    result.neighbors[:] = np.take_along_axis(np.where(keep, result.neighbors, -1), order, 1)
    result.similarity[:] = np.take_along_axis(np.where(keep, result.similarity, 0), order, 1)
    is_mutual[:] = np.take_along_axis(is_mutual & keep, order, 1)
