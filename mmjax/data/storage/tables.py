"""Readers of tables: CSV, TSV, JSON lines and Parquet, selected by file suffix."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

from mmjax.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_MAX_CELL_BYTES = 1 << 24


def suffix_of(path: str) -> str:
    """Returns the file's suffix if it is one of `SUFFIXES`, or ''."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix if suffix in SUFFIXES else ""


def rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, {column: cell}) of each row of a table.

    The first line of CSV and TSV files names the columns. Their cells are strings, and cells
    missing at the end of a line are ''. For Parquet, the number is that of the row, from 1.

    Raises:
      UserError: The file is missing, has another suffix, or is malformed; the message gives the
        line.
    """
    if not suffix_of(path):
        raise UserError(
            f"{path} is not a table: its name must end in one of {', '.join(SUFFIXES)}."
        )
    for line, row in cells(path):
        yield line, dict(row)


def cells(path: str) -> Iterator[tuple[int, list[tuple[str, Any]]]]:
    """Yields (line number, [(column, cell)]) of each row of a table.

    Unlike in `rows`, several columns may have the same name, and files with other suffixes are read
    as CSV.

    Raises:
      UserError: The file is missing or malformed; the message gives the line.
    """
    try:
        yield from _READERS.get(suffix_of(path), _separated)(path)
    except FileNotFoundError as error:
        raise UserError(f"Table {path} does not exist.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error}.") from error


def _separated(path: str) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    csv.field_size_limit(_MAX_CELL_BYTES)
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter="\t" if suffix_of(path) == ".tsv" else ",")
        try:
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) > len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(row)} cells for {len(header)} "
                        'columns. Put cells that contain the delimiter in "quotes".'
                    )
                yield reader.line_num, list(itertools.zip_longest(header, row, fillvalue=""))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 text: {error}. Save the file with UTF-8 encoding."
            ) from error
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}.") from error


def _json_lines(path: str) -> Iterator[tuple[int, list[tuple[str, Any]]]]:
    with open(path, "rb") as file:
        for line_number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                raise UserError(f"{path}, line {line_number} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise UserError(
                    f'{path}, line {line_number} is not a JSON object; expected {{"column": cell, '
                    "…}."
                )
            yield line_number, list(row.items())


def _parquet(path: str) -> Iterator[tuple[int, list[tuple[str, Any]]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet requires `pip install pyarrow`.") from error
    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(4096)
        table_rows = (list(row.items()) for batch in batches for row in batch.to_pylist())
        yield from enumerate(table_rows, 1)
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"Cannot read {path} as Parquet: {error}.") from error


_READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet}
