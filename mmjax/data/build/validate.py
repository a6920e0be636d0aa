"""Checks every record of a dataset for problems that would disturb training: `mmjax validate`."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from mmjax.cpus import available_cpus
from mmjax.data.build.class_names import ClassNames
from mmjax.data.build.record_checks import ERRORS, WARNINGS, check_record, content_digest
from mmjax.data.storage import dataset, tfrecord
from mmjax.errors import UserError

_CHUNK = 64  # records that a thread checks at a time
_MAX_FINDINGS = 100  # findings per problem that are kept in full; all are counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem of a record, of a whole shard, or of the dataset.

    Attributes:
      problem: Key of `record_checks.ERRORS` or `WARNINGS`.
      split: Name of the split, or several joined by '+'; '' for the whole dataset.
      shard: File name of the shard, or the dataset.
      record: Index of the record in the shard; -1 for the whole shard or dataset.
      filename: Media file of the example; '' if it is unknown.
      detail: The invalid values.
    """

    problem: str
    split: str
    shard: str
    record: int
    filename: str
    detail: str

    @property
    def location(self) -> str:
        """'SHARD, record N', or the shard."""
        return _location(self.shard, self.record) if self.record >= 0 else self.shard


@dataclasses.dataclass(kw_only=True)
class Result:
    """The result of a validation.

    Attributes:
      records: Number of records checked.
      counts: Number of findings by problem.
      findings: The first findings of each problem.
    """

    records: int = 0
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    findings: list[Finding] = dataclasses.field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Counts a finding, and keeps it if it is among the first of its problem."""
        self.counts[finding.problem] += 1
        if self.counts[finding.problem] <= _MAX_FINDINGS:
            self.findings.append(finding)

    @property
    def num_errors(self) -> int:
        """Number of findings that are errors rather than warnings."""
        return sum(count for problem, count in self.counts.items() if problem in ERRORS)


class _Chunk(NamedTuple):
    """Records of one shard to check: (index, offset in bytes, length in bytes)."""

    split: str
    shard: str
    records: list[tuple[int, int, int]]


class _Content(NamedTuple):
    """A record that was checked, with a hash of its media or None, its labels and their names."""

    record: int
    filename: str
    digest: bytes | None
    labels: list[int]
    label_texts: list[str]


def validate(
    path: str,
    *,
    splits: Sequence[str] = (),
    max_records: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Result:
    """Checks a dataset.

    Args:
      path: The dataset.
      splits: Splits to check; () for all.
      max_records: Number of records to check per split, evenly spaced, or per combination of splits
        such as train1+test2. None for all.
      workers: Number of threads (default: one per core).
      progress: Whether to show a progress bar.

    Raises:
      UserError: The dataset or split does not exist.
    """
    directory = dataset.DatasetDir(path)
    info = directory.info
    for split in splits:
        if not info.stored_splits(split):
            raise UserError(
                f"{path} has no split {split!r}. Splits: {', '.join(info.split_sizes())}."
            )
    result, chunks = Result(), []
    selected = {name: None for split in splits for name in info.stored_splits(split)}
    for split in selected or info.splits:
        chunks += list(_chunks(directory, split, max_records, result))
    duplicates, classes = _Duplicates(info), ClassNames(info.class_names)
    with (
        tqdm(
            total=sum(len(chunk.records) for chunk in chunks),
            desc="records",
            disable=not progress,
        ) as bar,
        # Threads suffice: decoding images and hashing release the interpreter lock.
        concurrent.futures.ThreadPoolExecutor(workers or available_cpus()) as pool,
    ):
        results = pool.map(functools.partial(_check_chunk, path, info), chunks)
        for chunk, (findings, contents) in zip(chunks, results, strict=True):
            result.records += len(contents)
            for finding in findings:
                result.add(finding)
            for content in contents:
                classes.add(chunk.split, content.labels, content.label_texts)
                if finding := duplicates.find(chunk, content):
                    result.add(finding)
            bar.update(len(contents))
    for conflict in classes.conflicts():
        result.add(
            Finding(
                problem="classes", split="", shard=path, record=-1, filename="", detail=conflict
            )
        )
    return result


def report(result: Result, *, offenders: int = 3) -> str:
    """Returns the findings as a table, errors first.

    Args:
      result: The result of `validate`.
      offenders: Number of records to list for each problem.
    """
    lines = []
    for level, problems in (("error", ERRORS), ("warning", WARNINGS)):
        for problem, meaning in problems.items():
            if not result.counts[problem]:
                continue
            lines.append(f"{level:8} {problem:10} {result.counts[problem]:>8}  {meaning}")
            first = [f for f in result.findings if f.problem == problem][:offenders]
            lines += [f"{'':31}{f.location} {f.filename}: {f.detail}" for f in first]
    if not lines:
        return f"Checked {result.records} records: no problems."
    warnings = sum(result.counts.values()) - result.num_errors
    head = f"{'level':8} {'problem':10} {'records':>8}  meaning, and the first records"
    tail = f"Checked {result.records} records: {result.num_errors} errors, {warnings} warnings."
    return "\n".join([head, *lines, tail])


def as_json(result: Result) -> dict[str, Any]:
    """Returns the result as a value for JSON."""
    return {
        "records": result.records,
        "errors": result.num_errors,
        "counts": dict(result.counts),
        "findings": [dataclasses.asdict(finding) for finding in result.findings],
    }


def _location(shard: str, record: int) -> str:
    return f"{shard}, record {record}"


def _chunks(
    directory: dataset.DatasetDir, split: str, max_records: int | None, result: Result
) -> Iterator[_Chunk]:
    """Yields the records of a split; adds findings for shards that have no valid index."""
    records = []
    for shard in directory.info.splits[split].shards:
        path = os.path.join(directory.path, shard)
        try:
            index = tfrecord.read_index(path)
        except (UserError, OSError) as error:
            damages = tfrecord.verify(path) if os.path.exists(path) else []
            for problem in damages or [error]:
                result.add(
                    Finding(
                        problem="damaged" if damages else "index",
                        split=split,
                        shard=shard,
                        record=getattr(problem, "record", -1),
                        filename="",
                        detail=str(problem),
                    )
                )
            continue
        records += [(shard, record, int(o), int(n)) for record, (o, n) in enumerate(index)]
    if max_records is not None and len(records) > max_records:
        records = [records[int(k)] for k in np.linspace(0, len(records) - 1, max_records)]
    for shard, group in itertools.groupby(records, key=lambda record: record[0]):
        group = [record[1:] for record in group]
        for first in range(0, len(group), _CHUNK):
            yield _Chunk(split, shard, group[first : first + _CHUNK])


def _check_chunk(
    path: str, info: dataset.DatasetInfo, chunk: _Chunk
) -> tuple[list[Finding], list[_Content]]:
    """Returns the findings and the contents of the records of a chunk."""
    findings, contents = [], []
    for record, offset, length in chunk.records:
        filename, digest, labels, texts = "", None, [], []
        try:
            shard = os.path.join(path, chunk.shard)
            payload = tfrecord.read_record(shard, offset, length, record=record)
        except tfrecord.CorruptRecord as error:
            problems = [("damaged", str(error))]
        else:
            example, problems = check_record(payload, info)
            if example is not None:
                filename, digest = example.filename, content_digest(example)
                labels, texts = example.labels, example.label_texts
        contents.append(_Content(record, filename, digest, labels, texts))
        findings += [
            Finding(
                problem=problem,
                split=chunk.split,
                shard=chunk.shard,
                record=record,
                filename=filename,
                detail=detail,
            )
            for problem, detail in problems
        ]
    return findings, contents


class _Duplicates:
    """Finds records with the same media, within a split or across splits."""

    def __init__(self, info: dataset.DatasetInfo):
        self._seen: dict[bytes, tuple[str, str, int]] = {}
        # Pairs of splits that share records on purpose, such as train1 and test2 of folds.
        members = [dataset.split_members(name) for name in info.splits]
        self._shared = {pair for names in members for pair in itertools.product(names, repeat=2)}

    def find(self, chunk: _Chunk, content: _Content) -> Finding | None:
        """Returns the finding for a record whose media occurred before, else None."""
        if content.digest is None:
            return None
        if content.digest not in self._seen:
            self._seen[content.digest] = chunk.split, chunk.shard, content.record
            return None
        split, shard, record = self._seen[content.digest]
        pairs = itertools.product(dataset.split_members(split), dataset.split_members(chunk.split))
        leak = any(pair not in self._shared for pair in pairs)
        return Finding(
            problem="leak" if leak else "duplicate",
            split=chunk.split,
            shard=chunk.shard,
            record=content.record,
            filename=content.filename,
            detail=f"same media as {_location(shard, record)}",
        )
