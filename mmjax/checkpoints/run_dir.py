"""The run directory: what stands in it, and that only one trainer writes to it."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Mapping
from typing import Any

import ml_collections

from mmjax import config as config_lib
from mmjax.errors import UserError

CONFIG = "config.json"
COMPLETE = "train_complete"
LOCK = "trainer.lock"
TIME = "%Y-%m-%d %H:%M:%S"  # in `run.json`


class RunDir:
    """Paths and once-written files of a run.

        config.json       the resolved config           run.json       command, versions, devices
        parameters.txt    all parameters, their places  metrics.jsonl  a line per log or evaluation
        checkpoints/      <step>/                       tensorboard/   the same as events
        train_complete    written last: the step reached

    Raises:
      UserError: the directory cannot be made or written to.
    """

    def __init__(self, path: str | os.PathLike, *, create: bool = True):
        self.path = pathlib.Path(path).absolute()
        self._lock = None
        if create:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                probe = self.path / f".writable-{os.getpid()}"
                probe.write_text("")
                probe.unlink()
            except OSError as error:
                raise UserError(
                    f"--model_dir={path} cannot be written to: {error}. Give a directory that can."
                ) from error
        elif not self.path.is_dir():
            raise UserError(f"--model_dir={path}: no such directory.")

    def lock(self) -> None:
        """Claims the directory for this trainer, until the process ends.

        Raises:
          UserError: another trainer, which is named, holds it.
        """
        handle = open(self.path / LOCK, "a+")
        for _ in range(10):  # `has_trainer` of an evaluation job holds it for an instant
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
                f"Another trainer is using {self.path} ({holder}). Stop it, or give another "
                "--model_dir."
            )
        handle.seek(0)
        handle.truncate()
        handle.write(f"pid {os.getpid()} on {platform.node()} since {time.ctime()}")
        handle.flush()
        self._lock = handle

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def has_trainer(self) -> bool:
        """Whether a trainer holds the directory now."""
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

    def read_config(self) -> ml_collections.ConfigDict:
        """The config the run was started with."""
        path = self.path / CONFIG
        if not path.is_file():
            raise UserError(f"{self.path} is not a run directory: it has no {CONFIG}.")
        return config_lib.from_json(path.read_text())

    def write_start(self, cfg: Mapping, parameters: str, devices: str) -> list[str]:
        """Writes what is known at start; returns how the config differs from an earlier start."""
        text = config_lib.to_json(cfg)
        changed: list[str] = []
        if (self.path / CONFIG).is_file():
            changed = _differences(json.loads((self.path / CONFIG).read_text()), json.loads(text))
        self._write(CONFIG, text)
        self.write_record(devices=devices, started=time.strftime(TIME))
        self._write("parameters.txt", parameters)
        return changed

    def write_record(self, **facts: Any) -> None:
        """Writes `run.json`: the command and the versions that made the directory, and `facts`."""
        versions = {
            name: importlib.metadata.version(name)
            for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
        }
        versions = {"python": platform.python_version(), **versions}
        record = {"command": sys.argv, "versions": versions, **facts}
        self._write("run.json", json.dumps(record, indent=2))

    def _write(self, name: str, text: str) -> None:
        partial = self.path / f".{name}.partial"
        partial.write_text(text + "\n")
        partial.rename(self.path / name)

    def complete_step(self) -> int | None:
        """The step at which training ended for good; None while it has not."""
        path = self.path / COMPLETE
        return json.loads(path.read_text())["step"] if path.is_file() else None

    def write_complete(self, step: int) -> None:
        self._write(COMPLETE, json.dumps({"step": step}))

    def clear_complete(self) -> None:
        (self.path / COMPLETE).unlink(missing_ok=True)


def _differences(old: dict, new: dict, at: str = "") -> list[str]:
    lines = []
    for key in sorted({*old, *new}):
        name = f"{at}{key}"
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            lines += _differences(old[key], new[key], f"{name}.")
        elif old.get(key) != new.get(key):
            lines.append(f"{name}: {old.get(key)!r} → {new.get(key)!r}")
    return lines
