"""The run directory: its files, its format version, and the lock of its trainer."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import logging

from mmjax import config, files
from mmjax.errors import UserError

CONFIG = "config.json"
RECORD = "run.json"
COMPLETE = "train_complete"
LOCK = "trainer.lock"
TIME = "%Y-%m-%d %H:%M:%S"  # in `run.json`
FORMAT = 2  # of the run directory; 1 had other config keys and no number


class RunDir:
    """A run directory.

        config.json       resolved config         run.json       format, command, versions, devices
        parameters.txt    parameters, shardings   metrics.jsonl  a line per log or evaluation
        checkpoints/      <step>/                 tensorboard/   the same metrics as events
        train_complete    written last: the step reached

    Args:
      path: The directory.
      create: Whether to create it and check that it is writable.

    Raises:
      UserError: The directory cannot be created or written, or does not exist.
    """

    def __init__(self, path: str | os.PathLike, *, create: bool = True):
        self.path = pathlib.Path(path).absolute()
        self._lock = None
        if create:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.path):  # a kill leaves nothing
                    pass
            except OSError as error:
                raise UserError(
                    f"--model_dir={path} is not writable: {error}. Pass another directory."
                ) from error
        elif not self.path.is_dir():
            raise UserError(f"--model_dir={path}: no such directory.")

    def lock(self) -> None:
        """Locks the directory for this trainer until `unlock` or the end of the process.

        Raises:
          UserError: Another trainer holds the lock, or the run has another format version.
        """
        self.check_format()
        handle = open(self.path / LOCK, "a+")
        for _ in range(10):  # `has_trainer` of an evaluation job holds it briefly
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
        else:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            handle.close()
            raise UserError(
                f"Another trainer is using {self.path} ({holder}). Stop it, or pass another "
                "--model_dir."
            )
        handle.seek(0)
        handle.truncate()
        handle.write(f"pid {os.getpid()} on {platform.node()} since {time.ctime()}")
        handle.flush()
        self._lock = handle

    def unlock(self) -> None:
        """Releases the lock, if this process holds it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def has_trainer(self) -> bool:
        """Returns whether a trainer holds the lock."""
        if self._lock is not None:
            return True
        try:
            with open(self.path / LOCK) as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True

    def check_format(self) -> None:
        """Raises UserError if another version of the format wrote this directory."""
        path = self.path / RECORD
        if not path.is_file():
            return
        way_out = "Restore it from a backup, or pass another --model_dir."
        version = files.read_object(path, way_out).get("format", 1)
        if version != FORMAT:
            raise UserError(
                f"{self.path} has run format {version}; this version of mmjax supports {FORMAT}. "
                "Use the version that wrote it (see its run.json), or start a new run with another "
                "--model_dir."
            )

    def read_config(self) -> ml_collections.ConfigDict:
        """Returns the config that the run was started with.

        Raises:
          UserError: The directory has no config, or another format version.
        """
        path = self.path / CONFIG
        if not path.is_file():
            raise UserError(f"{self.path} is not a run directory: it has no {CONFIG}.")
        self.check_format()
        way_out = "Restore it from a backup, or run the training command again to write it."
        return ml_collections.ConfigDict(config.plain(files.read_object(path, way_out)))

    def write_start(self, cfg: config.Config | Mapping, parameters: str, devices: str) -> list[str]:
        """Writes config, record and parameter table.

        Args:
          cfg: The config.
          parameters: The parameter table.
          devices: Description of the device mesh.

        Returns:
          How the config differs from that of an earlier start, one line per key.
        """
        text = config.to_json(cfg)
        changed: list[str] = []
        if (self.path / CONFIG).is_file():
            try:
                old = config.plain(self.read_config())
            except UserError as error:  # resuming needs only the checkpoint
                logging.warning("%s It is written again.", error)
            else:
                changed = _differences(old, config.plain(json.loads(text)))
        files.write_text(self.path / CONFIG, text + "\n")
        self.write_record(devices=devices, started=time.strftime(TIME))
        files.write_text(self.path / "parameters.txt", parameters + "\n")
        return changed

    def write_record(self, **entries: Any) -> None:
        """Writes `run.json`: the format, the command, package versions, and `entries`."""
        versions = {
            name: importlib.metadata.version(name)
            for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
        }
        versions = {"python": platform.python_version(), **versions}
        record = {"format": FORMAT, "command": sys.argv, "versions": versions, **entries}
        files.write_json(self.path / RECORD, record)

    def complete_step(self) -> int | None:
        """Returns the step at which training was completed, or None.

        Raises:
          UserError: The file cannot be read or is damaged.
        """
        path = self.path / COMPLETE
        if not path.is_file():
            return None
        way_out = "Delete it and run the training command again, which writes it."
        step = files.read_object(path, way_out).get("step")
        if not isinstance(step, int):
            raise UserError(f"{path} is damaged: its step is {step!r}, not an integer. {way_out}")
        return step

    def write_complete(self, step: int) -> None:
        """Marks the run as complete at a step."""
        files.write_json(self.path / COMPLETE, {"step": step}, indent=None)

    def clear_complete(self) -> None:
        """Marks the run as not complete."""
        (self.path / COMPLETE).unlink(missing_ok=True)


def _differences(old: dict, new: dict, at: str = "") -> list[str]:
    """Returns lines 'key: old value → new value'."""
    lines = []
    for key in sorted({*old, *new}):
        name = f"{at}{key}"
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            lines += _differences(old[key], new[key], f"{name}.")
        elif old.get(key) != new.get(key):
            lines.append(f"{name}: {old.get(key)!r} → {new.get(key)!r}")
    return lines
