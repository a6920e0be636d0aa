"""YAML files that come with mmjax, which commands accept by name: `--vtab_configs all`."""

from __future__ import annotations

import os
import pathlib

from mmjax import assets
from mmjax.errors import UserError, unknown

_SUFFIX = ".yaml"
_DIRECTORIES = {"experiment_list": "experiment_lists", "vtab_configs": "vtab_configs"}  # by flag
_ALIASES = {"vtab_configs": {"default": "all"}}


def names(flag: str) -> list[str]:
    """Returns the names of the files that come with mmjax for a flag."""
    directory = pathlib.Path(assets.__path__[0], _DIRECTORIES[flag])
    found = {path.stem for path in directory.glob(f"*{_SUFFIX}")}
    return sorted(found | _ALIASES.get(flag, {}).keys())


def find(flag: str, name: str | os.PathLike) -> pathlib.Path:
    """Returns a file of the user, or one that comes with mmjax.

    Args:
      flag: 'experiment_list' or 'vtab_configs'.
      name: A path, or the name of a file that comes with mmjax.

    Raises:
      UserError: There is neither.
    """
    path, known = pathlib.Path(name), names(flag)
    if os.fspath(name) in known:
        stem = _ALIASES.get(flag, {}).get(os.fspath(name), os.fspath(name))
        return pathlib.Path(assets.__path__[0], _DIRECTORIES[flag], stem + _SUFFIX)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise UserError(
            f"--{flag}={path} does not exist. Pass a YAML file, or one of {', '.join(known)}."
        )
    raise unknown(f"--{flag}", os.fspath(name), [*known, "FILE.yaml"])
