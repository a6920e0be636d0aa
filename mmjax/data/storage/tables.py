"""The reader of all tables: CSV, TSV, JSON lines and Parquet, selected by file suffix.

| format | rules |
| --- | --- |
| CSV | a cell that starts with `"` ends at the next single `"`; `""` inside means `"` |
| TSV | no quotes: a `"` is part of the text |
| CSV, TSV | UTF-8, or UTF-16 with a byte order mark; the first line names the columns |
| JSON lines | UTF-8; one object per line |

In every format, NaN is a missing value, and bytes are UTF-8 text.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import logging

from mmjax.errors import UserError
from mmjax.files import parse_json, valid_text

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_MAX_CELL_BYTES = 1 << 24
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_END = "\x00end"  # a line after the last one; part of a cell if a quote is not closed
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

Cells = list[tuple[str, Any]]


def suffix_of(path: str) -> str:
    """Returns the file's suffix if it is one of `SUFFIXES`, or ''."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix if suffix in SUFFIXES else ""


def rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, {column: cell}) of each row of a table.

    The first line of CSV and TSV files names the columns. Their cells are strings, and cells
    missing at the end of a line are ''. For Parquet, the number is that of the row, from 1.

    Raises:
      UserError: The file is missing, has another suffix, or is malformed, or two columns have the
        same name; the message gives the line.
    """
    if not suffix_of(path):
        raise UserError(
            f"{path} is not a table: its name must end in one of {', '.join(SUFFIXES)}."
        )
    for line, row in cells(path):
        result = dict(row)
        if len(result) < len(row):
            names = [name for name, _ in row]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{path} has two columns {twice!r}. Remove or rename one of them.")
        yield line, result


def cells(path: str) -> Iterator[tuple[int, Cells]]:
    """Yields (line number, [(column, cell)]) of each row of a table.

    Unlike in `rows`, several columns may have the same name, and files with other suffixes are read
    as CSV. Halves of surrogate pairs in JSON, such as half an emoji, are replaced by U+FFFD and
    counted in the log.

    Raises:
      UserError: The file is missing or malformed; the message gives the line.
    """
    replaced = 0
    try:
        for line, row in _READERS.get(suffix_of(path), _separated)(path):
            for n, (column, cell) in enumerate(row):
                plain = _plain(cell, path, line, column)
                value, count = valid_text(plain, f"{path}, line {line},")
                row[n] = str(column), value
                replaced += count
            yield line, row
    except FileNotFoundError as error:
        raise UserError(f"Table {path} does not exist.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except RecursionError as error:
        raise UserError(f"{path}: a cell is nested too deeply.") from error
    if replaced:
        logging.warning("%s: replaced %d halves of surrogate pairs by U+FFFD.", path, replaced)


def column_names(names: Iterable[str], *expected: str) -> dict[str, str]:
    """Returns {expected name: name in the table} of columns that exist, in any case."""
    by_lower_case = {name.lower(): name for name in reversed(list(names))}
    return {name: by_lower_case[name] for name in expected if name in by_lower_case}


def _plain(cell: Any, path: str, line: int, column: str) -> Any:
    """Returns a cell with None for NaN and text for bytes."""
    if isinstance(cell, float) and math.isnan(cell):
        return None
    if isinstance(cell, bytes):
        try:
            return cell.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {line}: the column {column!r} contains bytes that are not UTF-8 "
                "text. Write such data, for example images, to files and their paths to the table."
            ) from error
    if isinstance(cell, list):
        values = (_plain(value, path, line, column) for value in cell)
        return [value for value in values if value is not None]
    return cell


# --------------------------------------------------------------------------------------------------
# CSV and TSV.


def separated(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (last line, cells) of each row of a CSV or TSV file, including that of the names.

    Raises:
      UserError: The file is not UTF-8, or a quote is not closed; the message gives the line.
    """
    csv.field_size_limit(_MAX_CELL_BYTES)
    is_tsv = suffix_of(path) == ".tsv"
    try:
        with open(path, "rb") as file:
            encoding = "utf-16" if file.read(2) in _UTF16 else "utf-8-sig"
    except FileNotFoundError as error:
        raise UserError(f"Table {path} does not exist.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    with open(path, newline="", encoding=encoding) as file:
        quoting = dict(quoting=csv.QUOTE_NONE, quotechar=None) if is_tsv else {}
        delimiter = _delimiter(path)
        reader = csv.reader(
            _lines(file), delimiter=delimiter, skipinitialspace=not is_tsv, **quoting
        )
        width, last = 0, 0
        try:
            for row in reader:
                first, last = last + 1, reader.line_num
                if row == [_END]:
                    return
                width = width or len(row)
                _check_quotes(path, row, width, first, last)
                yield last, row
        except UnicodeDecodeError as error:
            name = "UTF-16" if encoding == "utf-16" else "UTF-8"
            raise UserError(
                f"{path}, line {_undecodable_line(path)}, is not {name} text: {error}. Save the "
                "file with UTF-8 encoding."
            ) from error
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}.") from error


def _separated(path: str) -> Iterator[tuple[int, Cells]]:
    table = separated(path)
    header = [name.strip() for name in next(table, (1, []))[1]]
    _check_header(path, header)
    for line, row in table:
        if len(row) > len(header):
            raise UserError(
                f"{path}, line {line}: {len(row)} cells for {len(header)} columns. Put cells that "
                'contain the delimiter in "quotes".'
            )
        if any(cell.strip() for cell in row):
            yield line, list(itertools.zip_longest(header, row, fillvalue=""))


def _delimiter(path: str) -> str:
    return "\t" if suffix_of(path) == ".tsv" else ","


def _lines(file: Iterable[str]) -> Iterator[str]:
    """Yields the lines of a file, then `_END`."""
    for line in file:
        yield line if line.endswith(("\n", "\r")) else f"{line}\n"
    yield f"{_END}\n"


def _undecodable_line(path: str) -> int:
    """Returns the number of the first line that is not UTF-8; 1 for a file in UTF-16."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _check_header(path: str, header: Sequence[str]) -> None:
    """Raises UserError if the names of the columns are separated by another delimiter."""
    delimiter = _delimiter(path)
    others = [d for d in _DELIMITERS if d != delimiter and len(header) == 1 and d in header[0]]
    if others:
        names = ", ".join(name.strip() for name in header[0].split(others[0]))
        suffix = {"\t": ".tsv", ",": ".csv"}.get(others[0])
        raise UserError(
            f"{path}, line 1: the columns must be separated by {_DELIMITERS[delimiter]}, but "
            f"{_DELIMITERS[others[0]]} separate {names}. Save the table with "
            f"{_DELIMITERS[delimiter]}{f', or rename it to end in {suffix}' if suffix else ''}."
        )


def _check_quotes(path: str, row: Sequence[str], width: int, first: int, last: int) -> None:
    """Raises UserError for a row with a quote that is not closed, or too late.

    Args:
      path: The table.
      row: The cells.
      width: Number of columns.
      first, last: Lines of the row.
    """
    if row and row[-1].rstrip().endswith(_END):
        raise UserError(
            f'{path}, line {first}: a quote (") at the start of a cell is not closed. Close it; '
            'inside of quotes, write a quote as "".'
        )
    if last > first and _has_rows_in_a_cell(row, width, _delimiter(path)):
        raise UserError(
            f'{path}, line {first}: a quote (") is closed only on line {last}, and the rows '
            "between them would be part of one cell. Close it on its line; inside of quotes, write "
            'a quote as "".'
        )


def _has_rows_in_a_cell(row: Sequence[str], width: int, delimiter: str) -> bool:
    """Returns whether a cell over several lines contains what must be other rows of the table.

    Texts may have several lines. But a line is a row if it has the same number of cells, and a file
    name of the same type in the same column.
    """
    if len(row) < width and any("\n" in cell for cell in row):
        return True
    types = {n: match[0] for n, cell in enumerate(row) if (match := _file_type(cell))}
    for line in "\n".join(row).splitlines()[1:]:
        others = line.split(delimiter)
        if len(others) >= width > 1 and any(
            (match := _file_type(others[n])) and match[0] == file_type
            for n, file_type in types.items()
        ):
            return True
    return False


def _file_type(cell: str) -> re.Match | None:
    return re.search(r"\.\w{1,5}$", cell.strip().lower())


# --------------------------------------------------------------------------------------------------
# JSON lines and Parquet.


def _json_lines(path: str) -> Iterator[tuple[int, Cells]]:
    with open(path, "rb") as file:
        for line_number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = parse_json(line, f"{path}, line {line_number}")
            if not isinstance(row, dict):
                raise UserError(
                    f'{path}, line {line_number} is not a JSON object; expected {{"column": cell, '
                    "…}."
                )
            yield line_number, list(row.items())


def _parquet(path: str) -> Iterator[tuple[int, Cells]]:
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
    except Exception as error:  # noqa: BLE001 - damaged metadata can raise anything
        raise UserError(f"Cannot read {path} as Parquet: {error}.") from error


_READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet}
