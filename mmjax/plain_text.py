"""Text from others (captions, class names, file names) in output that programs interpret.

A terminal executes escape codes, a spreadsheet formulas, and LaTeX commands. Files that mmjax reads
again contain the text unchanged.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

# Control characters, and those that change the direction of the text around them.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")
_NUMBER = re.compile(r"[-+]?[\d.]+([eE][-+]?\d+)?%?")
_TEX = {
    **{character: "\\" + character for character in "%_&#${}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "–": "--",
}


def plain(text: str, *, keep: str = "") -> str:
    r"""Returns text with control characters as visible codes such as `\x1b`.

    Args:
      text: Any text.
      keep: Control characters that stay, for example a newline.
    """
    return _CONTROL.sub(lambda match: match[0] if match[0] in keep else _code(match[0]), text)


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def csv_cell(text: str, *, guard: str = "'") -> str:
    """Returns a cell of a CSV file that no spreadsheet takes for a formula. Numbers are unchanged.

    Args:
      text: The content.
      guard: What precedes it if it looks like a formula: an apostrophe, which spreadsheets hide, or
        a space, which mmjax removes when it reads the table.
    """
    return guard + text if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def tex(text: str) -> str:
    """Returns text for LaTeX, with all special characters escaped."""
    return "".join(_TEX.get(character, character) for character in plain(text))


class _PlainStream:
    """A text stream that shows control characters as codes, except those that programs print."""

    def __init__(self, stream: Any, keep: str):
        self._stream, self._keep = stream, keep

    def write(self, text: str) -> int:
        self._stream.write(plain(text, keep=self._keep))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """Shows control characters in the output of the process as codes, until the block ends.

    Progress bars return to the start of the line on standard error.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _PlainStream(before[0], "\n\t"), _PlainStream(before[1], "\n\t\r")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
