"""Names of experiments, runs and configurations. They become names of directories."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable

from mmjax.errors import UserError
from mmjax.plain_text import plain

# Files and directories that reports write next to the directories of the experiments.
FIGURES, REPORT, CSV, SUMMARY = "figures", "report.html", "results.csv", "summary.json"
RESERVED = (FIGURES, REPORT, CSV, SUMMARY)
_MAX_BYTES = 200  # file systems allow 255, and a directory joins two names


def check_name(name: object, where: str) -> str:
    """Returns a name if it can be that of a directory.

    Args:
      name: The name.
      where: The file, line or key that contains it, for the error message.

    Raises:
      UserError: It is not text, is empty, too long or reserved, starts with a dot, or contains a
        slash or control characters.
    """
    if not isinstance(name, str):
        raise UserError(f"{where}: the name {name!r} is not text. Put it in quotes.")
    problem = ""
    if not name or name != name.strip():
        problem = "is empty, or starts or ends with a space"
    elif "/" in name or "\\" in name:
        problem = "contains a slash"
    elif name.startswith("."):
        problem = "starts with a dot"
    elif plain(name) != name:
        problem = "contains control characters"
    elif len(name.encode()) > _MAX_BYTES:
        problem = f"is longer than {_MAX_BYTES} bytes"
    elif name in RESERVED:
        problem = "is the name of a file of the report"
    if problem:
        raise UserError(f"{where}: the name {name!r} {problem}. It becomes a directory: rename it.")
    return name


def directory_name(run: str, config_name: str) -> str:
    """Returns the directory of a run with one training configuration, inside its experiment."""
    return f"{run}-{config_name}"


def run_directory(out: str | os.PathLike, experiment: str, run: str) -> pathlib.Path:
    """Returns the directory in which the heads of a run are trained.

    Args:
      out: Directory of the benchmark.
      experiment: Name of the encoder.
      run: Name of the run; with that of the configuration, if its heads are trained separately.
    """
    return pathlib.Path(out, experiment, ".runs", run)


def check_distinct(names: Iterable[tuple[str, str]], where: str) -> None:
    """Raises UserError if two directories have the same name, or differ only in letter case.

    Args:
      names: (directory name, what it is for) pairs.
      where: The file that contains them, for the error message.
    """
    owners: dict[str, tuple[str, str]] = {}
    for name, owner in names:
        other = owners.setdefault(name.casefold(), (name, owner))
        if other[1] != owner:
            both = name if name == other[0] else f"{other[0]} and {name}"
            raise UserError(
                f"{where}: {other[1]} and {owner} have the same directory, {both}. Rename one of "
                "them."
            )
