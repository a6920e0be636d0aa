"""Looks at every record for what makes training fail, or silently go wrong: `mmjax validate`."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmjax.cpus import available_cpus
from mmjax.data.storage import dataset, schema, tfrecord
from mmjax.errors import UserError

ERRORS = {
    "index": "an index that does not belong to its shard",
    "damaged": "a truncated record, or one with a wrong CRC",
    "layout": "no SequenceExample, or none of the keys that are read",
    "jpeg": "an image that cannot be decoded",
    "label": "a class number out of range",
    "int32": "integer PCM whose bytes are read as floats",
    "waveform": "a waveform that is empty, not finite or beyond [-1, 1]",
    "length": "image and sound of different length",
    "roi": "a part of the image that leaves it",
    "background": "a touch image and its background of different size",
    "leak": "the same content in two splits that should share none",
}
WARNINGS = {
    "silence": "no sound above -60 dB",
    "constant": "a film without any change",
    "blank": "images of one color",
    "repeated": "more than half of the frames repeat the one before",
    "duplicate": "the same content in two records",
    "caption": "no caption, while others have one",
    "unlabeled": "no label, while others have one",
    "missing": "no image, sound, touch or background, while others have them",
}
_CHUNK = 64  # records a thread takes at a time
_KEEP = 100  # findings of one kind kept in full; all are counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong with a record (number -1: with the whole shard)."""

    kind: str
    split: str
    shard: str
    record: int
    filename: str
    detail: str


@dataclasses.dataclass(kw_only=True)
class Result:
    """What a validation found: `counts` by kind, the first findings, and the records looked at."""

    records: int = 0
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    findings: list[Finding] = dataclasses.field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Counts a finding, and keeps it if it is among the first of its kind."""
        self.counts[finding.kind] += 1
        if self.counts[finding.kind] <= _KEEP:
            self.findings.append(finding)

    @property
    def num_errors(self) -> int:
        """Findings that are errors, not warnings."""
        return sum(count for kind, count in self.counts.items() if kind in ERRORS)


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
      path: its folder.
      splits: which ones; empty = all.
      max_records: look at this many records of each split, or of each combination of splits that
        the shards name, evenly spread; None = at all.
      workers: Number of threads (default: one per core).
      progress: show a bar.

    Raises:
      UserError: no dataset there, or no such split.
    """
    directory = dataset.DatasetDir(path)
    for split in splits:
        if not directory.info.stored_splits(split):
            raise UserError(
                f"{path} has no split {split!r}. It has: {', '.join(directory.info.split_sizes())}."
            )
    result, work = Result(), []
    chosen = {name: None for split in splits for name in directory.info.stored_splits(split)}
    for split in chosen or directory.info.splits:
        work += list(_chunks(directory, split, max_records, result))
    together = _together(directory.info)
    seen: dict[bytes, tuple[str, str, int]] = {}
    with tqdm(
        total=sum(len(rows) for *_, rows in work), desc="records", disable=not progress
    ) as bar:
        for (split, shard, _), (found, digests) in _map(
            path, directory.info, work, workers or available_cpus()
        ):
            result.records += len(digests)
            for finding in found:
                result.add(finding)
            for record, filename, digest in digests:
                if digest is not None:
                    _note_duplicate(
                        result, seen, digest, split, shard, record, filename, together=together
                    )
            bar.update(len(digests))
    return result


def check_record(
    payload: bytes, info: dataset.DatasetInfo
) -> tuple[schema.Example | None, list[tuple[str, str]]]:
    """(the example, [(kind, detail)]) of one record.

    Args:
      payload: a serialized example.
      info: of the dataset: what the examples should have.
    """
    repair = info.waveform_format == "int32"
    try:
        example = schema.decode(payload, waveform_format="int32" if repair else "unchecked")
    except UserError as error:
        return None, [("layout", str(error))]
    if not example.modalities:
        return example, [("layout", f"no data under any key that is read; it has {_keys(payload)}")]
    found = []
    wanted = set(info.modalities) & {"video", "audio", "touch"}
    for name in sorted(wanted - set(example.modalities)):
        if not (name == "audio" and example.waveform is not None):
            found.append(("missing", f"no {name}"))
    if info.statistics.get("touch_backgrounds") and example.touch and not example.touch_background:
        found.append(("missing", "no background of the touch image"))
    if "text" in info.modalities and not any(caption.strip() for caption in example.captions):
        found.append(("caption", "no caption"))
    if "label" in info.modalities and not example.labels:
        found.append(("unlabeled", "no label"))
    for label in example.labels:
        if label < 0 or (info.num_classes and label >= info.num_classes):
            found.append(("label", f"class {label} of {info.num_classes or 'unknown'} classes"))
    found += _check_images(example) + _check_touch(example)
    if example.waveform is not None:
        sound = _check_audio(example.waveform)
        wrong = any(kind in ERRORS for kind, _ in sound)
        found += sound if wrong else sound + _check_lengths(example, info)
    return example, found


def report(result: Result, *, offenders: int = 3) -> str:
    """The findings as a table, errors first, with the first offenders of each kind."""
    lines = []
    for level, kinds in (("error", ERRORS), ("warning", WARNINGS)):
        for kind, meaning in kinds.items():
            if not result.counts[kind]:
                continue
            lines.append(f"{level:8} {kind:10} {result.counts[kind]:>8}  {meaning}")
            first = [finding for finding in result.findings if finding.kind == kind][:offenders]
            for f in first:
                where = f"{f.shard}:{f.record}" if f.record >= 0 else f.shard
                lines.append(f"{'':31}{where} {f.filename}: {f.detail}")
    if not lines:
        return f"{result.records} records, nothing found."
    warnings = sum(result.counts.values()) - result.num_errors
    head = f"{'level':8} {'kind':10} {'records':>8}  what, and the first ones (shard:record file)"
    tail = f"{result.records} records, {result.num_errors} errors, {warnings} warnings."
    return "\n".join([head, *lines, tail])


def as_json(result: Result) -> dict[str, Any]:
    """The findings for machines."""
    return {
        "records": result.records,
        "errors": result.num_errors,
        "counts": dict(result.counts),
        "findings": [dataclasses.asdict(finding) for finding in result.findings],
    }


def _chunks(
    directory: dataset.DatasetDir, split: str, max_records: int | None, result: Result
) -> Iterator[tuple[str, str, list[tuple[int, int, int]]]]:
    """(split, shard, [(record, offset, length)]): the work on one split."""
    rows = []
    for shard in directory.info.splits[split].shards:
        path = os.path.join(directory.path, shard)
        try:
            index = tfrecord.read_index(path)
        except (UserError, OSError) as error:
            problems = tfrecord.verify(path) if os.path.exists(path) else []
            for problem in problems or [error]:
                result.add(
                    Finding(
                        kind="damaged" if problems else "index",
                        split=split,
                        shard=shard,
                        record=getattr(problem, "record", -1),
                        filename="",
                        detail=str(problem),
                    )
                )
            continue
        rows += [(shard, record, int(o), int(n)) for record, (o, n) in enumerate(index)]
    if max_records is not None and len(rows) > max_records:
        rows = [rows[int(k)] for k in np.linspace(0, len(rows) - 1, max_records)]
    for shard, group in itertools.groupby(rows, key=lambda row: row[0]):
        group = [row[1:] for row in group]
        for first in range(0, len(group), _CHUNK):
            yield split, shard, group[first : first + _CHUNK]


def _map(path: str, info: dataset.DatasetInfo, work: list, workers: int):
    """(chunk, what `_check_chunk` finds in it), in order."""
    # Threads: what takes time, decoding JPEGs and sums over bytes, leaves the interpreter free.
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        check = functools.partial(_check_chunk, path, info)
        yield from zip(work, pool.map(check, work), strict=True)


def _check_chunk(path: str, info: dataset.DatasetInfo, chunk):
    """([Finding], [(record, file name, digest or None)])."""
    split, shard, rows = chunk
    findings, digests = [], []
    for record, offset, length in rows:
        name, digest = "", None
        try:
            payload = tfrecord.read_record(os.path.join(path, shard), offset, length, record=record)
        except tfrecord.CorruptRecord as error:
            found = [("damaged", str(error))]
        else:
            example, found = check_record(payload, info)
            if example is not None:
                name, digest = example.filename, _digest(example)
        digests.append((record, name, digest))
        for kind, detail in found:
            findings.append(
                Finding(
                    kind=kind, split=split, shard=shard, record=record, filename=name, detail=detail
                )
            )
    return findings, digests


def _check_images(example: schema.Example) -> list[tuple[str, str]]:
    found, small, last = [], [], None
    for number, frame in enumerate(example.frames):
        if frame == last:  # as the builder stores a repeated frame
            small.append(small[-1])
            continue
        last = frame
        try:
            with Image.open(io.BytesIO(frame)) as image:
                image.draft("L", (32, 32))  # decodes all data, but to an eighth of the size
                image.load()
                small.append(np.asarray(image.convert("L"), np.float32))
        except (OSError, ValueError, SyntaxError) as error:
            return [("jpeg", f"frame {number} of {len(example.frames)}: {error}")]
    if not small:
        return found
    shapes = {image.shape for image in small}
    if len(shapes) > 1:
        return [("jpeg", f"frames of {len(shapes)} different sizes")]
    if example.roi is not None:
        top, left, height, width = example.roi
        wide, high = Image.open(io.BytesIO(example.frames[0])).size
        if top + height > high or left + width > wide:
            found.append(("roi", f"{width}×{height} at ({left}, {top}) of {wide}×{high}"))
    frames = np.stack(small)
    if frames.std(axis=(1, 2)).max() < 2:
        found.append(("blank", f"all {len(frames)} frames"))
    elif len(frames) > 1 and np.abs(frames - frames[0]).mean(axis=(1, 2)).max() < 0.5:
        found.append(("constant", f"{len(frames)} frames"))
    else:
        pairs = zip(example.frames[1:], example.frames, strict=False)
        repeats = sum(frame == before for frame, before in pairs)
        if repeats > len(frames) / 2:
            found.append(("repeated", f"{repeats} of {len(frames)} frames"))
    return found


def _check_touch(example: schema.Example) -> list[tuple[str, str]]:
    images = []
    for kind, data in (
        *(("touch image", data) for data in example.touch),
        *(("background", data) for data in example.touch_background),
    ):
        try:
            images.append(np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.float32))
        except (OSError, ValueError, SyntaxError) as error:
            return [("jpeg", f"{kind}: {error}")]
    found = []
    touch = images[: len(example.touch)]
    if touch and max(image.std() for image in touch) < 1:
        found.append(("blank", "touch"))
    if touch and len(sizes := {f"{wide}×{high}" for high, wide in (i.shape for i in images)}) > 1:
        found.append(("background", f"sizes {', '.join(sorted(sizes))}"))
    return found


def _check_audio(waveform: np.ndarray) -> list[tuple[str, str]]:
    if not waveform.size:
        return [("waveform", "no samples")]
    if schema.is_int32_waveform(waveform):
        return [("int32", schema.INT32_DEFECT)]
    if not np.isfinite(waveform).all():
        return [("waveform", f"{int((~np.isfinite(waveform)).sum())} samples are NaN or infinite")]
    peak = float(np.abs(waveform).max())
    if peak > 1.01:
        return [("waveform", f"peak {peak:.4g}; scale it to [-1, 1]")]
    return [("silence", f"peak {peak:.2g}")] if peak < 1e-3 else []


def _check_lengths(example: schema.Example, info: dataset.DatasetInfo) -> list[tuple[str, str]]:
    fps = example.frame_rate or info.fps
    rate = example.sample_rate or info.sample_rate
    if len(example.frames) < 2 or not fps or not rate:
        return []
    video, audio = len(example.frames) / fps, len(example.waveform) / rate
    if abs(video - audio) <= max(1.5 / fps, 0.1):
        return []
    return [("length", f"{video:.2f} s of image, {audio:.2f} s of sound")]


def _digest(example: schema.Example) -> bytes | None:
    if not example.frames and not example.touch and example.waveform is None:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for picture in (*example.frames, *example.touch):
        digest.update(picture)
    if example.waveform is not None:
        digest.update(example.waveform.tobytes())
    return digest.digest()


def _together(info: dataset.DatasetInfo) -> set[tuple[str, str]]:
    """Pairs of splits that share records on purpose, as the train1 and the test2 of folds do."""
    members = [dataset.split_members(name) for name in info.splits]
    return {pair for names in members for pair in itertools.product(names, repeat=2)}


def _note_duplicate(result, seen, digest, split, shard, record, filename, *, together) -> None:
    if digest not in seen:
        seen[digest] = split, shard, record
        return
    first_split, first_shard, first_record = seen[digest]
    members = dataset.split_members(first_split), dataset.split_members(split)
    leak = any(pair not in together for pair in itertools.product(*members))
    result.add(
        Finding(
            kind="leak" if leak else "duplicate",
            split=split,
            shard=shard,
            record=record,
            filename=filename,
            detail=f"the same as {first_shard}:{first_record}",
        )
    )


def _keys(payload: bytes) -> str:
    import tensorflow as tf

    proto = tf.train.SequenceExample.FromString(payload)
    keys = sorted([*proto.context.feature, *proto.feature_lists.feature_list])
    return ", ".join(keys[:12]) or "no keys"
