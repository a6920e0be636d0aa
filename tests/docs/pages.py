"""Reads the documentation: its pages, their fenced blocks and the commands in them."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
PAGES += sorted((REPOSITORY / "docs").rglob("*.md"))
NAMES = [str(path.relative_to(REPOSITORY)) for path in PAGES]

_FENCE = re.compile(r"^( *)```(\w*)\s*$")
_SEPARATORS = {"&&", "||", "|", ";", "&"}
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
      page: Path of the page relative to the repository.
      line: Line number of its first line of content.
      language: Language after the opening fence, or ''.
      text: Content.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str:
        """Path in the first line, if that is a comment such as `# my_pkg/my_tower.py`; else ''."""
        match = re.match(r"# ([\w./-]+\.\w+)\n", self.text)
        return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a `bash` block: where it is, its text, and its words without redirections."""

    where: str
    text: str
    words: tuple[str, ...]


def read_blocks(page: str) -> list[Block]:
    """Returns the fenced blocks of a page."""
    blocks, lines, start, indent, language = [], [], 0, 0, ""
    for number, line in enumerate((REPOSITORY / page).read_text().splitlines(), 1):
        fence = _FENCE.match(line)
        if fence and not start:
            start, indent, language, lines = number + 1, len(fence[1]), fence[2], []
        elif fence:
            blocks.append(Block(page, start, language, "".join(f"{x[indent:]}\n" for x in lines)))
            start = 0
        elif start:
            lines.append(line)
    assert not start, f"{page}:{start - 1}: the block is not closed"
    return blocks


def commands(page: str) -> list[Command]:
    """Returns the commands in the `bash` blocks of a page."""
    return [
        command
        for block in read_blocks(page)
        if block.language == "bash"
        for number, line in _logical_lines(block)
        for command in _split(f"{page}:{number}", line)
    ]


def _logical_lines(block: Block) -> Iterator[tuple[int, str]]:
    """Yields the line number and text of each line, joined at backslashes."""
    pending, first = "", 0
    for number, line in enumerate(block.text.splitlines(), block.line):
        first = first if pending else number
        pending += line.removesuffix("\\")
        if not line.endswith("\\"):
            if pending.strip():
                yield first, pending
            pending = ""
    assert not pending, f"{block.page}:{first}: the last line ends with a backslash"


def _split(where: str, line: str) -> Iterator[Command]:
    """Yields the commands of a line: those around `&&`, `|` and `;`."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    try:
        tokens = [*lexer, ";"]
    except ValueError as error:
        raise AssertionError(f"{where}: {error}: {line}") from error
    for token in tokens:
        if token not in _SEPARATORS:
            words.append(token)
            continue
        while words and _ASSIGNMENT.match(words[0]):
            words.pop(0)
        redirection = next((i for i, word in enumerate(words) if word in (">", ">>", "<")), None)
        if words:
            yield Command(where, line.strip(), tuple(words[:redirection]))
        words = []
