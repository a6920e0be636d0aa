"""Atomic writes, and readers of text and JSON files whose errors name the file.

A file or directory has its final name only when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import IO, Any, Literal

from mmjax.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of writing, never of reading
_SURROGATE = re.compile("[\ud800-\udfff]")


def partial_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns the hidden name, unique to this process, under which `path` is prepared."""
    path = pathlib.Path(path)
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def leftovers(path: str | os.PathLike) -> list[pathlib.Path]:
    """Returns what processes have left of preparing `path`, or are still preparing."""
    path = pathlib.Path(path)
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.partial-*"))


def remove_orphans(directory: str | os.PathLike) -> None:
    """Removes what killed processes of this machine have left of preparing files in a directory.

    Call it when no other machine writes to the directory: its processes are not visible here.
    """
    for path in pathlib.Path(directory).glob(".*.partial-*"):
        number = path.name.rpartition("-")[2]
        if number.isdecimal() and not _runs(int(number)):
            remove(path)


def _runs(process: int) -> bool:
    """Returns whether a process of this machine exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        pass
    return True


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a path to prepare a file or directory at, and renames it to `path` on success.

    After an exception nothing is left, and an earlier file at `path` is unchanged. A directory
    replaces no other directory: `path` must not exist.

    Args:
      path: The final path. Its parent directory is created.

    Raises:
      OSError: It cannot be written; if the disk is full, its `filename` is the final path.
    """
    path, partial = pathlib.Path(path), partial_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno in NO_SPACE and error.filename in (None, str(partial)):
            error.filename = str(path)
        raise
    finally:
        remove(partial)


@contextlib.contextmanager
def atomic_open(path: str | os.PathLike, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Opens a file for writing that appears at `path` when the block ends without an exception.

    Its bytes are on disk before it gets its name, so a crash leaves the old or the new content.

    Args:
      path: The final path. Its parent directory is created.
      mode: 'w' for UTF-8 text with unchanged newlines, or 'wb' for bytes.
    """
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with atomic_path(path) as partial, open(partial, mode, **text) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def describe(error: OSError) -> str:
    """Returns an error of the operating system as a message with the file and the way out."""
    if error.filename is None or error.strerror is None:
        return str(error)
    names = " → ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    if error.errno in NO_SPACE:
        return f"Cannot write {names}: {error.strerror}. Free disk space, or choose another place."
    return f"{names}: {error.strerror}."


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_open(path) as file:
        file.write(text)


def write_json(path: str | os.PathLike, value: Any, *, indent: int | None = 2) -> None:
    """Writes a value as JSON atomically, with a newline at the end."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def read_text(path: str | os.PathLike) -> str:
    """Returns the content of a UTF-8 text file, without a byte order mark.

    Raises:
      UserError: The file is missing, cannot be opened, or is not UTF-8.
    """
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{os.fspath(path)} does not exist.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{os.fspath(path)} is not UTF-8 text: byte {error.object[error.start]:#04x} at "
            f"position {error.start}. Save the file with UTF-8 encoding."
        ) from error
    except OSError as error:
        raise UserError(f"Cannot read {os.fspath(path)}: {error.strerror or error}.") from error


def read_lines(path: str | os.PathLike) -> list[str]:
    """Returns the stripped lines of a UTF-8 text file that are not blank; see `read_text`."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def valid_text(value: Any, where: str) -> tuple[Any, int]:
    """Returns a value from JSON with texts that can be encoded, and the number of replacements.

    JSON can contain half of a surrogate pair, for example of an emoji that a program has cut in
    two. It becomes U+FFFD.

    Args:
      value: The value.
      where: Where it comes from, for the message.

    Raises:
      UserError: The value is nested too deeply.
    """
    try:
        return _valid_text(value)
    except RecursionError as error:
        raise _too_deep(where) from error


def _too_deep(where: str) -> UserError:
    return UserError(f"{where} is not valid: its JSON is nested too deeply.")


def _valid_text(value: Any) -> tuple[Any, int]:
    if isinstance(value, str):
        return (value, 0) if value.isascii() else _SURROGATE.subn("\ufffd", value)
    if isinstance(value, list):
        items = [_valid_text(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    if isinstance(value, dict):
        items = {_valid_text(key)[0]: _valid_text(item) for key, item in value.items()}
        return {key: item for key, (item, _) in items.items()}, sum(n for _, n in items.values())
    return value, 0


def parse_json(text: str | bytes, where: str) -> Any:
    """Returns the value of JSON text.

    Args:
      text: The text, or its UTF-8 bytes, with or without a byte order mark.
      where: Where the text comes from, for the message: a file, or a file and a line.

    Raises:
      UserError: The text is not JSON or not UTF-8, or is nested too deeply.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise _too_deep(where) from error
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}.") from error


def read_json(path: str | os.PathLike, advice: str = "") -> Any:
    """Returns the value of a JSON file; see `read_text` and `parse_json` for errors.

    Args:
      path: The file.
      advice: End of the message: what the user can do about this file.
    """
    try:
        return parse_json(read_text(path), os.fspath(path))
    except UserError as error:
        raise UserError(f"{error} {advice}".rstrip()) from error


def read_object(path: str | os.PathLike, advice: str) -> dict[str, Any]:
    """Like `read_json`, for a file that must contain an object."""
    value = read_json(path, advice)
    if not isinstance(value, dict):
        raise UserError(
            f"{os.fspath(path)} is damaged: it contains {str(value)[:80]!r}, not a JSON object. "
            f"{advice}"
        )
    return value


def remove(path: str | os.PathLike) -> None:
    """Removes a file or a directory with its content; does nothing if it does not exist."""
    path = pathlib.Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
