"""Runs commands on a disk that fills up or becomes read-only, repairs it, and runs them again.

    python -m tests.drills.disk --rounds 60 --seed 0

A full disk is a small tmpfs; where mounting is not allowed, a limit of the size of each file stands
in for it. A read-only disk takes the right to write away at a random time. The command must end by
itself with a short message that names the disk. When the disk is repaired, the same command must
give the result of an uninterrupted one, with nothing left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import hashlib
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from tests.drills import kinds, runs
from tests.e2e import program

_LARGE = 256 << 20  # bytes of a disk that does not fill up
_CAPABILITY_VERSION, _CAP_DAC_OVERRIDE = 0x20080522, 1 << 1  # of linux/capability.h
_MAX_LINES = 10  # of errors and tracebacks in a log


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that writes to a disk.

    Attributes:
      arguments: Its arguments, with `{inputs}` and `{disk}` for the two directories.
      prepare: Writes inputs, given a directory and the environment.
      module: The module to run.
      copied: Name of an input that is copied to the disk first.
      result: Returns what is on the disk, to compare.
    """

    arguments: str
    prepare: Callable[[pathlib.Path, dict[str, str]], object] = lambda directory, env: None
    module: str = "mmjax.tools.cli"
    copied: str | None = None
    result: Callable[[pathlib.Path], object] = lambda disk: _files(disk)


def _files(disk: pathlib.Path) -> dict[str, str]:
    """Returns {name: hash} of the files of a disk."""
    return {
        str(path.relative_to(disk)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(disk.rglob("*"))
        if path.is_file()
    }


def _run(disk: pathlib.Path) -> object:
    """Returns the names, metrics and arrays of a run on a disk."""
    run = disk / "run"
    steps = tuple(sorted(int(path.name) for path in (run / "checkpoints").glob("[0-9]*")))
    arrays = {name: array.tobytes() for name, array in runs.states(run, steps).items()}
    names = sorted(path.name for path in run.iterdir())
    return names, runs.lines(run), arrays, runs.leftovers(run)


def _converted(disk: pathlib.Path) -> object:
    from mmjax.convert import load

    names = sorted(path.name for path in (disk / "run").iterdir())
    params, _ = load.load_params(str(disk / "run"))
    return names, kinds.digest(params)


def _train(directory: pathlib.Path, env: dict[str, str]) -> None:
    program.run(runs.arguments(directory / "run", "job"), directory, env).check()


def _write_images(directory: pathlib.Path, env: dict[str, str]) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    rows = ["path,caption,split"]
    for number in range(24):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(
            directory / f"{number}.png"
        )
        rows.append(f"{number}.png,image {number},{'test' if number % 4 == 0 else 'train'}")
    (directory / "images.csv").write_text("\n".join(rows) + "\n")


def _write_tensorflow(directory: pathlib.Path, env: dict[str, str]) -> None:
    from tests.convert import published

    published.write(directory, published.values(published.finetuned()), step=7)


def _write_features(directory: pathlib.Path, env: dict[str, str]) -> None:
    arguments = COMMANDS["sentences"].arguments.format(inputs=directory, disk=directory)
    program.run(arguments.split(), directory, env, module="mmjax.tools.cli").check()


_TRAIN = " ".join(runs.arguments("{disk}/run"))
_JOB = " ".join(runs.arguments("{disk}/run", "job"))
COMMANDS = {
    "train": Command(_TRAIN, module="mmjax.main", result=_run),
    "eval_job": Command(
        f"{_JOB} --mode=eval", _train, module="mmjax.main", copied="run", result=_run
    ),
    "build": Command(
        "build --csv {inputs}/images.csv --media-root {inputs} --out {disk}/data --size 48 "
        "--workers 1 --clips-per-shard 4",
        _write_images,
    ),
    "sentences": Command("sentences world:objects_tiny --encoder words --out {disk}/features"),
    "neighbors": Command(
        "neighbors {inputs}/features --data world:objects_tiny --out {disk}/pairs "
        "--show 3 --figure {disk}/pairs.png",
        _write_features,
    ),
    "convert": Command(
        "convert {inputs}/ckpt-7 --head-dim 8 --out {disk}/run",
        _write_tensorflow,
        result=_converted,
    ),
}


class Disk:
    """A directory whose free space or permissions can be changed.

    Args:
      path: The directory; it is created.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        path.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={_LARGE}", "tmpfs", str(path)]
        self.mounted = not subprocess.run(["mount", *options], capture_output=True).returncode

    def resize(self, size: int) -> None:
        """Sets the size in bytes, at least what is used."""
        if self.mounted:
            options = f"remount,size={max(4096, -(-size // 4096) * 4096)}"
            subprocess.run(["mount", "-o", options, str(self.path)], check=True)

    def used(self) -> int:
        """Returns the bytes used."""
        if self.mounted:
            return shutil.disk_usage(self.path).used
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    def allow_writing(self, yes: bool) -> None:
        """Gives or takes the right to write of everybody but root."""
        for path in [*self.path.rglob("*"), self.path]:
            with contextlib.suppress(FileNotFoundError):
                mode = path.stat().st_mode
                path.chmod(mode | 0o222 if yes else mode & ~0o222)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.path)], check=True)


@dataclasses.dataclass(frozen=True)
class Limit:
    """Limits the size of each file that a process writes, in place of the size of a disk."""

    size: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


def obey_permissions() -> None:
    """Takes root's right to write to read-only files away from this process."""
    words = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable; capabilities below 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, words):
        raise OSError(ctypes.get_errno(), "capget")
    for number in (0, 1):
        words[number] &= ~_CAP_DAC_OVERRIDE
    if libc.capset(header, words):
        raise OSError(ctypes.get_errno(), "capset")


class Drill:
    """Rounds of faults while one command runs.

    Args:
      directory: Directory for inputs and disks.
      env: Environment variables of the processes.
      name: Name of the command.
    """

    def __init__(self, directory: pathlib.Path, env: dict[str, str], name: str):
        self._command, self._env, self._inputs = COMMANDS[name], env, directory / name
        self._inputs.mkdir()
        self._command.prepare(self._inputs, env)
        self.failed = 0  # runs that noticed the fault
        with self._disk("intact") as disk:
            before, start = disk.used(), time.monotonic()
            self._run(disk).check()
            self._seconds = time.monotonic() - start
            self._used = disk.used() - before
            self._expected = self._command.result(disk.path)

    @contextlib.contextmanager
    def _disk(self, name: str) -> Iterator[Disk]:
        disk = Disk(self._inputs / name)
        try:
            if self._command.copied:
                shutil.copytree(
                    self._inputs / self._command.copied, disk.path / self._command.copied
                )
            yield disk
        finally:
            disk.close()

    def _run(self, disk: Disk, before=None) -> program.Finished:
        arguments = self._command.arguments.format(inputs=self._inputs, disk=disk.path).split()
        return program.run(
            arguments,
            self._inputs,
            self._env,
            module=self._command.module,
            before=before,
            timeout=600,
        )

    def round(self, seed: int) -> list[str]:
        """Returns what is wrong after a random fault and its repair."""
        rng = random.Random(seed)
        with self._disk(f"round-{seed}") as disk:
            fault = self._read_only if rng.random() < 0.3 else self._full
            failed, wrong = fault(disk, rng)
            if failed and (done := self._run(disk)).status:
                return [*wrong, f"after the repair: exit status {done.status}: {done.log[-2000:]}"]
            if self._command.result(disk.path) != self._expected:
                wrong.append(f"another result after the repair: {_names(disk.path)}")
            return wrong

    def _full(self, disk: Disk, rng: random.Random) -> tuple[bool, list[str]]:
        free = int(1.1 * self._used * rng.random())
        disk.resize(disk.used() + free)
        result = self._check(disk, None if disk.mounted else Limit(free))
        disk.resize(_LARGE)
        return result

    def _read_only(self, disk: Disk, rng: random.Random) -> tuple[bool, list[str]]:
        timer = threading.Timer(self._seconds * rng.random(), disk.allow_writing, [False])
        timer.start()
        result = self._check(disk, obey_permissions)
        timer.cancel()
        timer.join()
        disk.allow_writing(True)
        return result

    def _check(self, disk: Disk, before) -> tuple[bool, list[str]]:
        """Runs the command on a faulty disk.

        Returns:
          Whether it failed, and what is wrong with how it ended.
        """
        try:
            done = self._run(disk, before)
        except AssertionError as error:  # a traceback, or no end
            return True, [str(error)[-4000:]]
        self.failed += done.status != 0
        wrong = []
        if done.status not in (0, 1, 2):
            wrong.append(f"exit status {done.status}: {done.log[-2000:]}")
        if done.status and str(disk.path) not in done.log:
            wrong.append(f"the message does not name the disk: {done.log[-2000:]}")
        lines = [line for line in done.log.splitlines() if _is_error(line)]
        if len(lines) > _MAX_LINES or "Event loop" in done.log:
            wrong.append(f"{len(lines)} lines of errors: {done.log[-4000:]}")
        return done.status != 0, wrong


def _is_error(line: str) -> bool:
    return line[:1] == "E" or "error" in line.lower()


def _names(directory: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))[:40]


def main() -> int:
    """Runs the drill and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    args = parser.parse_args()
    start, failed, stopped, drills = time.monotonic(), 0, 0, {}
    with runs.environment() as env, tempfile.TemporaryDirectory() as directory:
        for number in range(args.seed, args.seed + args.rounds):
            name = args.commands[number % len(args.commands)]
            if name not in drills:
                drills[name] = Drill(pathlib.Path(directory), env, name)
            wrong = drills[name].round(number)
            failed += bool(wrong)
            print(f"round {number}, {name}: {wrong or 'as promised'}", flush=True)
        stopped = sum(drill.failed for drill in drills.values())
    runs.report("disk", start, rounds=args.rounds, commands_stopped=stopped, rounds_wrong=failed)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
