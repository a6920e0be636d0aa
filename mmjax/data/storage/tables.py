"""The rows of tables: CSV, TSV, JSON lines and Parquet, by the ends of their names."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

from mmjax.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


def suffix_of(path: str) -> str:
    """The one of `SUFFIXES` that a file's name ends in, or ''."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix if suffix in SUFFIXES else ""


def rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, {column: cell}) of a table; of Parquet the number of the row, from 1.

    The cells of CSV and TSV are text, whose first line names the columns; those that a line lacks
    are empty.

    Raises:
      UserError: a file that is missing, whose name has another end, or that is not what it says,
        with the line.
    """
    if not suffix_of(path):
        raise UserError(f"{path} is no table: its name must end in {', '.join(SUFFIXES)}.")
    for number, row in cells(path):
        yield number, dict(row)


def cells(path: str) -> Iterator[tuple[int, list[tuple[str, Any]]]]:
    """As `rows`, [(column, cell)]: a column may come twice. Files of other names are CSV."""
    try:
        yield from _READERS.get(suffix_of(path), _separated)(path)
    except FileNotFoundError as error:
        raise UserError(f"There is no table {path}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def _separated(path: str) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    csv.field_size_limit(1 << 24)
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
            raise UserError(f"{path} is not text in UTF-8: {error}.") from error
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}.") from error


def _json_lines(path: str) -> Iterator[tuple[int, list[tuple[str, Any]]]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error}).") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: not a JSON object.")
            yield number, list(row.items())


def _parquet(path: str) -> Iterator[tuple[int, list[tuple[str, Any]]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs `pip install pyarrow`.") from error
    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(4096)
        found = (list(row.items()) for batch in batches for row in batch.to_pylist())
        yield from enumerate(found, 1)
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}.") from error


_READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet}
