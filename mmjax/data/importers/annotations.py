"""Finds official annotation files by name and parses them. Errors name the file and the line."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mmjax import files
from mmjax.data.storage import directories, tables
from mmjax.errors import UserError

_MAX_DEPTH = 3  # levels of subdirectories that are searched
_BUFFER = 1 << 20  # characters of a large JSON file that are read at a time
_MAX_VALUE = 1 << 28  # a JSON value longer than this is considered malformed
_GAP, _COLON = re.compile(r"[\s,]*"), re.compile(r"\s*:\s*")


class Annotations:
    """The official annotation files of a dataset.

    Args:
      paths: Files, or directories that contain them, at most three levels deep.

    Attributes:
      paths: The same, with '~' expanded.

    Raises:
      UserError: A path does not exist.
    """

    def __init__(self, paths: Sequence[str]):
        self.paths = [os.path.expanduser(path) for path in paths]
        self._files: list[str] = []
        for path in self.paths:
            if not os.path.exists(path):
                raise UserError(f"--annotations {path}: no such file or directory.")
            self._files += [path] if os.path.isfile(path) else sorted(_list_files(path))

    def find_all(self, *patterns: str) -> list[str]:
        """Returns the files whose base names match one of the patterns (with * and ?)."""
        return [
            file
            for file in self._files
            if any(fnmatch.fnmatchcase(os.path.basename(file), pattern) for pattern in patterns)
        ]

    def require_any(self, *patterns: str) -> list[str]:
        """Returns the same as `find_all`; raises UserError if no file matches."""
        matches = self.find_all(*patterns)
        if not matches:
            names = sorted({os.path.basename(file) for file in self._files})
            shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            raise UserError(
                f"--annotations {' '.join(self.paths)}: no file {' or '.join(patterns)}. "
                f"Found: {shown or 'no files'}."
            )
        return matches

    def find_one(self, *patterns: str) -> str | None:
        """Returns the only file that matches, or None; raises UserError if several match."""
        matches = self.find_all(*patterns)
        if len(matches) > 1:
            raise UserError(
                f"--annotations: {len(matches)} files match {' or '.join(patterns)}: "
                f"{', '.join(matches)}. Pass only one of them."
            )
        return matches[0] if matches else None

    def require_one(self, *patterns: str) -> str:
        """Returns the only file that matches; raises UserError if none or several match."""
        self.require_any(*patterns)
        return self.find_one(*patterns)


def location(path: str, line: int) -> str:
    """Returns 'FILE, line N', the form in which messages refer to a line."""
    return f"{path}, line {line}"


def line_error(path: str, line: int, problem: str) -> UserError:
    """Returns the error for a malformed line of an annotation file."""
    return UserError(f"{location(path, line)}: {problem}.")


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    """Yields `(line number, stripped text)` of the lines that are not blank.

    Raises:
      UserError: The file is not UTF-8.
    """
    for number, line in enumerate(files.read_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def read_cells(path: str, *, comment: str = "") -> Iterator[tuple[int, list[str]]]:
    """Yields `(line number, stripped cells)` of a CSV file without a header.

    Blank lines are skipped.

    Args:
      path: The file.
      comment: Lines that start with this prefix are skipped; '' skips none.

    Raises:
      UserError: The file is not a CSV file in UTF-8.
    """
    for number, row in tables.separated(path):
        row = [cell.strip() for cell in row]
        if any(row) and not (comment and row[0].startswith(comment)):
            yield number, row


def read_table(path: str, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields `(line number, {column: cell})` of a CSV file with a header.

    Args:
      path: The file.
      *columns: Required columns.

    Raises:
      UserError: A required column is missing, or a line has too few or too many cells.
    """
    rows = read_cells(path)
    header = next(rows, (1, []))[1]
    for column in columns:
        if column not in header:
            existing = ", ".join(header) or "none"
            raise line_error(path, 1, f"the column {column!r} is missing. Its columns: {existing}")
    for number, row in rows:
        if len(row) != len(header):
            raise line_error(path, number, f"expected {len(header)} cells; got {len(row)} cells")
        yield number, dict(zip(header, row, strict=True))


def parse_seconds(text: str, path: str, line: int) -> float:
    """Returns a time in seconds; raises UserError if it is not a finite number >= 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise line_error(path, line, f"expected a time in seconds; got {text!r}")
    return value


def parse_interval(start: str, end: str, path: str, line: int) -> tuple[float, float]:
    """Returns start and end in seconds; raises UserError if they are malformed or reversed."""
    first, last = parse_seconds(start, path, line), parse_seconds(end, path, line)
    if last <= first:
        raise line_error(path, line, f"the end {end} s is not after the start {start} s")
    return first, last


def read_json(path: str, key: str) -> Any:
    """Returns the value of a key of a JSON file that contains one object.

    Raises:
      UserError: The file is not JSON, or has no such key.
    """
    contents, _ = files.valid_text(files.read_json(path), path)
    if not isinstance(contents, dict) or key not in contents:
        raise line_error(path, 1, f"expected a JSON object with the key {key!r}")
    return contents[key]


def get_fields(entry: Any, path: str, *keys: str) -> list[Any]:
    """Returns the values of the keys of a JSON object; raises UserError if one is missing.

    Args:
      entry: The object.
      path: The file that contains it, for the message.
      *keys: Required keys.
    """
    for key in keys:
        if not isinstance(entry, dict) or key not in entry:
            raise UserError(f"{path}: the key {key!r} is missing in {json.dumps(entry)[:80]}.")
    return [entry[key] for key in keys]


def iterate_json(path: str) -> Iterator[tuple[str, Any]]:
    """Yields `(key, value)` of a JSON file with one object, without loading all of it.

    The values must be objects or arrays.

    Raises:
      UserError: The JSON is malformed or truncated; the message names the last valid key.
    """
    decode = json.JSONDecoder().raw_decode
    last = "at its start"
    with _reading_text(path), open(path, encoding="utf-8-sig") as file:
        text, size = file.read(_BUFFER).lstrip(), _BUFFER
        if not text.startswith("{"):
            raise line_error(path, 1, "expected a JSON object")
        position = 1
        while True:
            position = _GAP.match(text, position).end()
            if text[position : position + 1] == "}":
                return
            try:
                key, end = decode(text, position)
                value, end = decode(text, _COLON.match(text, end).end())
                # A value that ends with the buffer may continue beyond it.
                complete = end < len(text)
            except RecursionError as error:
                raise UserError(f"{path}: the JSON {last} is nested too deeply.") from error
            except (ValueError, AttributeError):  # AttributeError: the colon is not read yet
                complete = False
            if complete:
                where = f"{path}, {key!r},"
                yield files.valid_text(key, where)[0], files.valid_text(value, where)[0]
                position, last = end, f"after the key {key!r}"
                size = _BUFFER
                continue
            more = file.read(size) if len(text) - position < _MAX_VALUE else ""
            if not more:
                raise UserError(f"{path}: malformed or truncated JSON {last}.")
            text, position = text[position:] + more, 0
            size *= 2  # a fixed size would decode a long value again and again


@contextlib.contextmanager
def _reading_text(path: str) -> Iterator[None]:
    """Turns errors of the file and of its encoding into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: {error}. Save the file with UTF-8 encoding."
        ) from error


def _list_files(directory: str) -> Iterator[str]:
    for root, subdirectories, names in directories.walk(directory):
        depth = os.path.relpath(root, directory).count(os.sep) + 1
        if root != directory and depth >= _MAX_DEPTH:
            subdirectories.clear()
        yield from (os.path.join(root, name) for name in names)
