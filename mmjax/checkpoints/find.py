"""The checkpoints of a run directory: where they are and which ones are complete."""

from __future__ import annotations

import os
import pathlib

from mmjax.errors import UserError
from mmjax.formats import published_checkpoints, tf_checkpoint, torch_reader

DIRECTORY = "checkpoints"
METADATA = "_CHECKPOINT_METADATA"  # Orbax writes it last


def checkpoints_dir(run_dir: str | os.PathLike) -> pathlib.Path:
    """Returns the directory of the checkpoints of a run."""
    return pathlib.Path(run_dir).absolute() / DIRECTORY


def list_steps(run_dir: str | os.PathLike) -> list[int]:
    """Returns the steps of the complete checkpoints of a run, oldest first.

    Raises:
      UserError: A directory cannot be opened.
    """
    directory = checkpoints_dir(run_dir)
    try:
        if not directory.is_dir():
            return []
        return sorted(
            int(entry.name)
            for entry in directory.iterdir()
            if entry.name.isdigit() and (entry / METADATA).is_file()
        )
    except OSError as error:
        raise unreadable_error(error) from error


def unreadable(path: pathlib.Path) -> UserError | None:
    """Returns the error for the first file below `path` that cannot be opened; None if all can be.

    What cannot be opened may be intact, so it must not be taken for damaged.
    """

    def fail(error: OSError) -> None:
        raise error

    try:
        for directory, _, names in os.walk(path, onerror=fail):
            for name in names:
                with open(os.path.join(directory, name), "rb") as file:
                    file.read(1)
    except FileNotFoundError:  # deleted, not unreadable
        return None
    except OSError as error:
        return unreadable_error(error)
    return None


def unreadable_error(error: OSError) -> UserError:
    """Returns the error for a part of a checkpoint that cannot be opened."""
    return UserError(
        f"Cannot open {error.filename}: {error.strerror or error}. The checkpoint may be intact. "
        "Make it readable for this user (chmod -R u+rwX), or move it away to use an earlier one."
    )


def find(source: str | os.PathLike) -> tuple[pathlib.Path, int]:
    """Returns the run directory and the step of a checkpoint.

    Args:
      source: `<run>` for its newest checkpoint, or `<run>/checkpoints/<step>`.

    Raises:
      UserError: There is no such checkpoint. The message lists the steps of the run.
    """
    foreign = ""
    if prefix := tf_checkpoint.find(source):
        foreign = f"{source} is a TensorFlow checkpoint"
    elif torch_reader.is_file(source):
        prefix, foreign = source, f"{source} is a PyTorch file"
    if foreign:
        raise UserError(
            f"{foreign}, not an mmjax run directory. Training can start from it with "
            "--override_checkpoint or config.init_from. For everything else, convert it: mmjax "
            f"convert {prefix} --out RUN"
        )
    path, step = pathlib.Path(source), None
    if path.name.isdigit() and path.parent.name == DIRECTORY:
        path, step = path.parent.parent, int(path.name)
    steps = list_steps(path)
    if not steps or (step is not None and step not in steps):
        existing = f"its steps are {steps}" if steps else "it has no complete checkpoint"
        raise UserError(
            f"{source} is not a run directory with checkpoints or one of its steps "
            f"(<run>/{DIRECTORY}/<step>): {existing}.{published_checkpoints.hint(source)}"
        )
    return path, steps[-1] if step is None else step
