"""Copies of checkpoints that a trainer cannot delete while they are read."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil

from mmjax import files
from mmjax.checkpoints.find import METADATA, checkpoints_dir
from mmjax.checkpoints.manager import FROZEN
from mmjax.errors import UserError


def snapshot(run_dir: str | os.PathLike, step: int, target: str | os.PathLike) -> bool:
    """Copies a checkpoint (with hard links where possible) to `<target>/checkpoints/<step>`.

    Args:
      run_dir: The run directory, whose trainer may delete old checkpoints at any time.
      step: Step of the checkpoint.
      target: Directory of the copy, laid out like a run directory.

    Returns:
      Whether the copy is complete; False if the checkpoint was deleted meanwhile.

    Raises:
      UserError: The copy cannot be written.
    """
    source = checkpoints_dir(run_dir) / str(step)
    final = checkpoints_dir(target) / str(step)
    partial = files.partial_path(final)
    try:
        files.remove(partial)
        files.remove(final)
        before = _names(source)
        shutil.copytree(source, partial, copy_function=_link)
        _link_frozen(source.parent, final.parent)
        complete = before == _names(partial) == _names(source) and METADATA in before
    except OSError as error:
        with contextlib.suppress(OSError):
            files.remove(partial)
        if _is_write_error(error, source):
            raise UserError(
                f"Cannot copy {source} to {final}: {_first_reason(error)}. Free disk space "
                "there or make the directory writable."
            ) from error
        return False
    if not complete:
        files.remove(partial)
        return False
    partial.rename(final)
    return True


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _is_write_error(error: OSError, source: pathlib.Path) -> bool:
    """Returns whether a copy failed although its sources still exist."""
    # shutil.Error is an OSError with [(source, target, reason), …].
    failed = [item[0] for item in error.args[0]] if isinstance(error, shutil.Error) else [source]
    return all(os.path.exists(path) for path in failed)


def _first_reason(error: OSError) -> str:
    return str(error.args[0][0][2]) if isinstance(error, shutil.Error) else str(error)


def _link_frozen(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the frozen parameters of a run; a trainer never deletes them."""
    for directory in source.glob(f"{FROZEN}-*"):
        if (directory / METADATA).exists() and not (target / directory.name).exists():
            with files.atomic_path(target / directory.name) as partial:
                shutil.copytree(directory, partial, copy_function=_link)


def _names(directory: pathlib.Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}
