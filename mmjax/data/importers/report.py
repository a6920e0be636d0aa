"""The result of an import, and its report."""

from __future__ import annotations

import collections
import dataclasses
import os
import shlex
from collections.abc import Iterable, Sequence

from mmjax.data.importers.base import Importer, Skipped

_MAX_EXAMPLES = 3  # names that a line of the report shows


@dataclasses.dataclass(kw_only=True)
class Summary:
    """The result of an import.

    Attributes:
      num_annotations: Number of annotated examples, with or without media.
      num_examples: Number of examples in the table.
      splits: Number of examples in each split; an example in several splits counts in each.
      classes: Class names in order.
      mask_classes: Class names of segmentation masks by value.
      num_missing: Number of examples without their media files.
      missing: Names of the missing media files, each once.
      duplicates: Skipped annotations of a clip that is in the table already.
      ambiguous: See `MediaDir`.
      skipped: See `Job`.
      notes: See `Job`.
      extra_columns: Additional columns of the table, which `mmjax build` must ignore.
    """

    num_annotations: int = 0
    num_examples: int = 0
    splits: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    classes: list[str] = dataclasses.field(default_factory=list)
    mask_classes: list[str] = dataclasses.field(default_factory=list)
    num_missing: int = 0
    missing: dict[str, None] = dataclasses.field(default_factory=dict)
    duplicates: list[str] = dataclasses.field(default_factory=list)
    ambiguous: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    skipped: dict[str, Skipped] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    extra_columns: dict[str, None] = dataclasses.field(default_factory=dict)

    @property
    def missing_fraction(self) -> float:
        """The fraction of annotated examples without media."""
        return self.num_missing / max(self.num_annotations, 1)


def lines(importer: Importer, summary: Summary, *, out: str, media: str) -> list[str]:
    """Returns the lines of the report: counts, problems and the command to run next.

    Args:
      importer: The importer.
      summary: Its result.
      out: The table.
      media: The media directory.
    """
    splits = ", ".join(f"{name} {count}" for name, count in sorted(summary.splits.items()))
    classes = f"; {len(summary.classes)} classes (classes.txt)" if summary.classes else ""
    if summary.mask_classes:
        classes += f"; {len(summary.mask_classes)} classes of masks (mask_classes.txt)"
    notes = [*summary.notes, *skipped(summary), *_problems(summary)]
    if importer.num_classes and len(summary.classes) != importer.num_classes:
        notes.append(
            f"found {len(summary.classes)} of the {importer.num_classes} classes of the complete "
            "dataset. Class numbers differ from those of models trained on all of them."
        )
    return [
        f"{out}: {summary.num_examples} examples ({splits}){classes}.",
        *(f"{importer.name}: {note}" for note in notes),
        f"Next: {shlex.join(_build_command(importer, summary, out=out, media=media))}",
    ]


def skipped(summary: Summary) -> list[str]:
    """Returns a sentence for each group of annotations that the reader skipped."""
    return [
        f"skipped {group}: {skipped.count}{_for_example(skipped.examples, skipped.count)}."
        for group, skipped in summary.skipped.items()
    ]


def _problems(summary: Summary) -> Iterable[str]:
    """Yields sentences about missing, repeated and ambiguous media."""
    if summary.missing:
        yield (
            f"skipped examples without their media file: {summary.num_missing} of "
            f"{summary.num_annotations} (missing.txt lists {len(summary.missing)} files)"
            f"{_for_example(summary.missing)}."
        )
    if summary.duplicates:
        yield (
            f"skipped repeated annotations: {len(summary.duplicates)}"
            f"{_for_example(summary.duplicates)}."
        )
    if summary.ambiguous:
        choices = [f"{paths[0]} (not {paths[1]})" for paths in summary.ambiguous.values()]
        yield f"chose between files of the same name: {len(choices)}{_for_example(choices)}."


def _build_command(importer: Importer, summary: Summary, *, out: str, media: str) -> Sequence[str]:
    command = ["mmjax", "build", "--csv", out, "--media-root", media]
    if summary.extra_columns:
        command += ["--ignore-columns", ",".join(summary.extra_columns)]
    if importer.num_classes:
        command += ["--classes", os.path.join(os.path.dirname(out), "classes.txt")]
    if summary.mask_classes:
        file = os.path.join(os.path.dirname(out), "mask_classes.txt")
        command += ["--mask-classes", file]
    table = os.path.splitext(os.path.basename(out))[0]
    name = table if importer.named_after_table else importer.name
    return [*command, "--out", f"datasets/{name}", *importer.build_options.split()]


def _for_example(names: Iterable[str], count: int | None = None) -> str:
    """Returns ', for example A, B, C, …', or '' without names."""
    names = list(names)
    shown = ", ".join(names[:_MAX_EXAMPLES])
    more = ", …" if max(len(names), count or 0) > _MAX_EXAMPLES else ""
    return f", for example {shown}{more}" if names else ""
