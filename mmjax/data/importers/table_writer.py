"""Writes the table of an import as .csv, .tsv or .jsonl, in the columns of `mmjax build`."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from typing import IO, Any

from mmjax.data.importers.base import AnnotatedExample
from mmjax.errors import UserError
from mmjax.plain_text import csv_cell

Writer = Callable[[AnnotatedExample, str, float | None, float | None], None]


def make_writer(file: IO[str], out: str, columns: Sequence[str]) -> Writer:
    """Returns a function `write(example, path, start, end)` that appends a row to a table.

    Args:
      file: The open file.
      out: Name of the table; its suffix determines the format.
      columns: Columns besides path, start, end and split.

    Raises:
      UserError: The suffix is not supported. The returned function raises it for a value that the
        format cannot hold.
    """
    columns = ["path", "start", "end", *columns, "split"]
    if out.endswith((".jsonl", ".ndjson")):

        def write_json(
            example: AnnotatedExample, path: str, start: float | None, end: float | None
        ) -> None:
            row = _row(example, path, start, end)
            row = {name: row[name] for name in columns if row[name] not in (None, "", (), [])}
            file.write(json.dumps({**row, **example.extra}, ensure_ascii=False) + "\n")

        return write_json
    if not out.endswith((".csv", ".tsv")):
        raise UserError(f"--out {out}: the table must end in .csv, .tsv or .jsonl.")
    is_tsv = out.endswith(".tsv")
    # In TSV, quotes are text: see `mmjax.data.storage.tables`.
    quoting = dict(delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None) if is_tsv else {}
    table = csv.writer(file, **quoting)
    table.writerow(columns)

    def write_cells(
        example: AnnotatedExample, path: str, start: float | None, end: float | None
    ) -> None:
        if example.extra:
            raise UserError(
                f"--out {out}: the additional columns {', '.join(example.extra)} need a table that "
                "ends in .jsonl."
            )
        row = _row(example, path, start, end)
        cells = [_cell(name, row, out) for name in columns]
        if is_tsv and any(re.search(r"[\t\n\r]", cell) for cell in cells):
            raise UserError(
                f"--out {out}: a cell of {path} contains a tab or a line break, which .tsv cannot "
                "hold. Choose a table that ends in .jsonl."
            )
        # The reader removes the space; a spreadsheet would take a caption `=…` for a formula.
        table.writerow([csv_cell(cell, guard=" ") for cell in cells])

    return write_cells


def _row(
    example: AnnotatedExample, path: str, start: float | None, end: float | None
) -> dict[str, Any]:
    return {
        "path": path,
        "start": _format_seconds(start),
        "end": _format_seconds(end),
        "caption": example.captions,
        "label": example.labels,
        "touch": example.touch,
        "background": example.background,
        "crop": example.crop,
        "mask": example.mask,
        "split": example.split,
    }


def _cell(column: str, row: dict[str, Any], out: str) -> str:
    value = row[column] or ""
    if isinstance(value, str):
        return value
    if column == "crop":
        return ",".join(map(str, value))
    if any("|" in part for part in value):
        raise UserError(
            f"--out {out}: a {column} of {row['path']} contains '|', which separates values in "
            "this format. Choose a table that ends in .jsonl."
        )
    return "|".join(value)


def _format_seconds(value: float | None) -> str:
    """Returns seconds rounded to milliseconds, without trailing zeros."""
    return "" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")
