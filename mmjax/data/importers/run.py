"""Runs an importer: finds the media files of the examples and writes the table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from mmjax import files
from mmjax.data.importers import report, table_writer
from mmjax.data.importers.annotations import Annotations
from mmjax.data.importers.base import AnnotatedExample, Importer, Job, MediaName
from mmjax.data.importers.media_directory import MediaDir
from mmjax.data.importers.report import Summary
from mmjax.errors import UserError


def import_dataset(
    importer: Importer,
    *,
    media: str,
    out: str,
    annotations: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Summary:
    """Writes the table of a dataset, and lists of classes and of missing files next to it.

    These are `classes.txt`, `mask_classes.txt` and `missing.txt`, if they have a line. Importers
    whose masks are not image files write them to the directory `masks`.

    Args:
      importer: The importer of the dataset.
      media: The media directory. Paths in the table are relative to it.
      out: The table: .csv, .tsv or .jsonl.
      annotations: Official annotation files, or directories that contain them.
      options: Values of `importer.options` by name; options left out have their default.
      progress: Whether to show a progress bar.

    Returns:
      Counts and problems for the report.

    Raises:
      UserError: An annotation file is missing or malformed, or no example has a media file.
    """
    directory = os.path.dirname(os.path.abspath(out))
    media_dir = MediaDir(media, fuzzy=importer.fuzzy_names)
    job = Job(
        annotations=Annotations(annotations),
        media=media_dir,
        options=importer.resolve_options(options or {}),
        mask_dir=os.path.join(directory, "masks"),
    )
    summary, labels = Summary(ambiguous=media_dir.ambiguous, skipped=job.skipped), set()
    with files.atomic_open(out) as file:
        write = table_writer.make_writer(file, out, importer.columns)
        examples = tqdm(importer.read(job), "examples", unit="", disable=not progress)
        for example, path, name in _with_media(examples, job, summary, importer.skip_duplicates):
            for label in set(example.labels) - labels:
                _check_label(label, example, job.classes)
                labels.add(label)
            summary.num_examples += 1
            summary.splits.update(example.split.split("+"))
            summary.extra_columns |= dict.fromkeys(example.extra)
            write(example, path, name.start, name.end)
        summary.notes = job.notes
        if not summary.num_examples:
            raise _nothing_imported(importer, summary, media)
    summary.classes = job.classes if job.classes is not None else sorted(labels)
    summary.mask_classes = job.mask_classes or []
    if "mask" in importer.columns:
        _write_lines(os.path.join(directory, "mask_classes.txt"), summary.mask_classes)
    if importer.num_classes:
        _write_lines(os.path.join(directory, "classes.txt"), summary.classes)
    _write_lines(os.path.join(directory, "missing.txt"), summary.missing)
    return summary


def _with_media(
    examples: Iterable[AnnotatedExample], job: Job, summary: Summary, skip_duplicates: bool
) -> Iterator[tuple[AnnotatedExample, str, MediaName]]:
    """Yields `(example, path, the part of the file)` of the examples with a media file."""
    seen: dict[tuple, str] = {}
    for example in examples:
        summary.num_annotations += 1
        path, name = example.path, MediaName("")
        for candidate in example.media:
            if path is None and (path := job.media.find(candidate.name, hints=example.hints)):
                name = candidate
        if path is None or example.missing_file:
            summary.missing[example.missing_file or example.media[0].name] = None
            summary.num_missing += 1
            continue
        if skip_duplicates:
            clip = path, name.start, name.end
            if clip in seen:
                summary.duplicates.append(f"{example.location} repeats {seen[clip]}")
                continue
            seen[clip] = example.location
        yield example, path, name


def _nothing_imported(importer: Importer, summary: Summary, media: str) -> UserError:
    """Returns the error for an import without a single example."""
    if summary.missing:
        first = next(iter(summary.missing))
        suffix = "" if os.path.splitext(first)[1] else " (with any suffix)"
        problem = (
            f"none of the {summary.num_annotations} annotated examples has its media file in "
            f"{media}. The first missing file is {first}{suffix}."
        )
    else:
        problem = " ".join(
            [f"no usable example in {media}.", *report.skipped(summary), *summary.notes]
        )
    return UserError(
        f"{importer.name}: {problem} Run `{importer.help_command}` for the supported file names."
    )


def _check_label(label: str, example: AnnotatedExample, classes: Sequence[str] | None) -> None:
    if classes is not None and label not in classes:
        raise UserError(
            f"{example.location}: the label {label!r} is not one of the {len(classes)} classes."
        )


def _write_lines(path: str, values: Iterable[str]) -> None:
    """Writes one value per line, or removes the file of an earlier import if there are none."""
    if text := "".join(f"{value}\n" for value in values):
        files.write_text(path, text)
    else:
        files.remove(path)
