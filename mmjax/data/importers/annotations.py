"""Finds official annotation files by name and reads them; errors name file and line."""

from __future__ import annotations

import csv
import fnmatch
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mmjax.data.storage import directories
from mmjax.errors import UserError

_DEPTH = 3  # folders below a given one that are searched
_BUFFER = 1 << 20  # characters of a large JSON file read at a time
_LONGEST = 1 << 28  # a value that is not complete after so many never will be
_GAP, _COLON = re.compile(r"[\s,]*"), re.compile(r"\s*:\s*")


class Annotations:
    """The official files of a dataset.

    Args:
      paths: files, or folders that hold them, three levels deep.

    Raises:
      UserError: a path that does not exist.
    """

    def __init__(self, paths: Sequence[str]):
        self.paths = [os.path.expanduser(path) for path in paths]
        self._files: list[str] = []
        for path in self.paths:
            if not os.path.exists(path):
                raise UserError(f"There is no annotation file or folder {path}.")
            self._files += [path] if os.path.isfile(path) else sorted(_below(path))

    def all(self, *patterns: str) -> list[str]:
        """The files whose names match one of the patterns, which may have * and ?."""
        return [
            file
            for file in self._files
            if any(fnmatch.fnmatchcase(os.path.basename(file), pattern) for pattern in patterns)
        ]

    def some(self, *patterns: str) -> list[str]:
        """As `all`; UserError if there is none."""
        if not (found := self.all(*patterns)):
            names = sorted({os.path.basename(file) for file in self._files})
            there_is = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
            raise UserError(
                f"There is no {' or '.join(patterns)} in {', '.join(self.paths)}; found: "
                f"{there_is or 'no file'}."
            )
        return found

    def optional(self, *patterns: str) -> str | None:
        """The one file that matches, or None; UserError if there are several."""
        found = self.all(*patterns)
        if len(found) > 1:
            raise UserError(
                f"{len(found)} annotation files match {' or '.join(patterns)}: "
                f"{', '.join(found[:3])}. Give the right one to --annotations."
            )
        return found[0] if found else None

    def one(self, *patterns: str) -> str:
        """The one file that matches; UserError if there is none, or several."""
        self.some(*patterns)
        return self.optional(*patterns)


def lines(path: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of the lines that are not blank, stripped."""
    with open(path, encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not text in UTF-8: {error}.") from error


def cells(path: str, *, comment: str = "") -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of a CSV without header, cells stripped; blank lines are left out.

    Args:
      path: the file.
      comment: lines that begin with it are left out.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, skipinitialspace=True)
        try:
            for row in reader:
                row = [cell.strip() for cell in row]
                if any(row) and not (comment and row[0].startswith(comment)):
                    yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise malformed(path, reader.line_num, str(error)) from error


def rows(path: str, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV whose first line names the columns.

    Raises:
      UserError: one of `columns` is missing, or a line has another number of cells.
    """
    found = cells(path)
    header = next(found, (1, []))[1]
    missing = [column for column in columns if column not in header]
    if missing:
        raise malformed(
            path, 1, f"no column {missing[0]!r}; there is {', '.join(header) or 'nothing'}"
        )
    for number, row in found:
        if len(row) != len(header):
            raise malformed(path, number, f"{len(row)} cells for {len(header)} columns")
        yield number, dict(zip(header, row, strict=True))


def malformed(path: str, line: int, problem: str) -> UserError:
    """The error for a line that is not what the format says."""
    return UserError(f"{path}, line {line}: {problem}")


def seconds(text: str, path: str, line: int) -> float:
    """A time; UserError if it is none."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise malformed(path, line, f"{text!r} is not a time in seconds")
    return value


def interval(start: str, end: str, path: str, line: int) -> tuple[float, float]:
    """Start and end of a clip; UserError if these are no times, or in the wrong order."""
    first, last = seconds(start, path, line), seconds(end, path, line)
    if last <= first:
        raise malformed(path, line, f"the clip ends at {end} s, not after its start at {start} s")
    return first, last


def read_json(path: str, key: str) -> Any:
    """`contents[key]` of a JSON file that is an object; UserError if it is not, or has no key."""
    with open(path, encoding="utf-8-sig") as file:
        try:
            contents = json.load(file)
        except ValueError as error:
            line = getattr(error, "lineno", 1)
            raise malformed(path, line, f"not JSON ({error})") from error
    if not isinstance(contents, dict) or key not in contents:
        raise malformed(path, 1, f"no object with the key {key!r}")
    return contents[key]


def fields(entry: Any, path: str, *keys: str) -> list[Any]:
    """The values of an object in a JSON file; UserError if it lacks one."""
    for key in keys:
        if not isinstance(entry, dict) or key not in entry:
            raise UserError(f"{path}: {json.dumps(entry)[:80]} has no {key!r}.")
    return [entry[key] for key in keys]


def json_items(path: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of a JSON file that is one object of objects, without reading it as a whole.

    Raises:
      UserError: names the last good key.
    """
    decode = json.JSONDecoder().raw_decode
    last = "at its beginning"
    with open(path, encoding="utf-8-sig") as file:
        text, size = file.read(_BUFFER).lstrip(), _BUFFER
        if not text.startswith("{"):
            raise malformed(path, 1, "no JSON object")
        at = 1
        while True:
            at = _GAP.match(text, at).end()
            if text[at : at + 1] == "}":
                return
            try:
                key, end = decode(text, at)
                value, end = decode(text, _COLON.match(text, end).end())
                # What ends where the text does may go on in the next piece.
                complete = end < len(text)
            except (ValueError, AttributeError):  # AttributeError: no colon yet
                complete = False
            if complete:
                yield key, value
                at, last = end, f"after the key {key!r}"
                size = _BUFFER
                continue
            more = file.read(size) if len(text) - at < _LONGEST else ""
            if not more:
                raise UserError(f"{path}: not JSON, or cut off, {last}.")
            text, at = text[at:] + more, 0
            size *= 2  # else a long value would be decoded again and again


def _below(directory: str) -> Iterator[str]:
    for root, below, files in directories.walk(directory):
        if os.path.relpath(root, directory).count(os.sep) >= _DEPTH - 1 and root != directory:
            below.clear()
        yield from (os.path.join(root, file) for file in files if not file.startswith("."))
