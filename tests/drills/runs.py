"""Runs that the drills interrupt: a small recipe, faults to inject, and comparisons of results."""

from __future__ import annotations

import abc
import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from tests.drills.tiny import STEPS
from tests.e2e import program


def arguments(run_dir: pathlib.Path | str = "run", arg: str = "") -> list[str]:
    """Returns the arguments of a training run of the recipe with this argument."""
    recipe = ":".join(filter(None, [str(pathlib.Path(__file__).parent / "tiny.py"), arg]))
    return ["--task=tests.drills.tiny:Colors", f"--config={recipe}", f"--model_dir={run_dir}"]


# Every call of these is an event, and so is its end. A process is killed at one of them.
EVENTS = (
    ("mmjax.session", "Session.start"),
    ("mmjax.session", "Session.update"),
    ("mmjax.session", "Session.log"),
    ("mmjax.session", "Session.evaluate_missed"),
    ("mmjax.checkpoints.manager", "Checkpoints.save"),
    ("mmjax.checkpoints.manager", "Checkpoints.wait"),
    ("mmjax.checkpoints.manager", "Checkpoints.restore_newest"),
    ("mmjax.checkpoints.best", "Best.keep"),
    ("mmjax.checkpoints.run_dir", "RunDir.write_start"),
    ("mmjax.checkpoints.run_dir", "RunDir.write_complete"),
    ("mmjax.monitor.metrics_file", "append"),
    ("mmjax.monitor.metrics_file", "roll_back"),
    ("mmjax.evaluate", "run_all"),
    ("mmjax.eval_watch", "run_all"),
    ("mmjax.eval_watch", "Results.write"),
    ("mmjax.eval_watch", "Results.refresh"),
    ("mmjax.files", "write_text"),
)


@dataclasses.dataclass(frozen=True)
class Kill:
    """A signal at an event of a process.

    Attributes:
      event: Index of the event; the process ends by itself if it has fewer.
      number: The signal.
      delay: Seconds from the event to the signal. The process continues meanwhile.
    """

    event: int
    number: int = signal.SIGKILL
    delay: float = 0.0

    @classmethod
    def sample(cls, rng: random.Random, events: int) -> Kill:
        """Returns a random kill: at an event, or a little later, sometimes by SIGTERM."""
        number = signal.SIGTERM if rng.random() < 0.2 else signal.SIGKILL
        delay = rng.choice((0.0, 0.0, rng.uniform(0, 0.2)))
        # A resumed run has fewer events, so the first ones are more likely.
        return cls(int(events * rng.random() ** 2), number, delay)

    def __call__(self) -> None:
        """Installs the kill in this process."""
        _count_events(self._at)

    def _at(self, index: int) -> None:
        if index != self.event:
            return
        if self.delay:
            threading.Timer(self.delay, os.kill, (os.getpid(), self.number)).start()
        else:
            os.kill(os.getpid(), self.number)


def _count_events(at) -> None:
    """Calls `at(index)` before and after every call of `EVENTS`."""
    count, lock = [0], threading.Lock()

    def event() -> None:
        with lock:
            index = count[0]
            count[0] += 1
        at(index)

    def wrap(function):
        @functools.wraps(function)
        def wrapper(*args, **options):
            event()
            result = function(*args, **options)
            event()
            return result

        return wrapper

    for module, name in EVENTS:
        owner = importlib.import_module(module)
        *parents, last = name.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, last, wrap(getattr(owner, last)))


class Count:
    """Writes the number of events of a process to a file, to know where it can be killed."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def __call__(self) -> None:
        _count_events(lambda index: self._path.write_text(str(index + 1)))


@contextlib.contextmanager
def environment(cache: str | None = None) -> Iterator[dict[str, str]]:
    """Yields the environment of the processes of a drill that is run as a program."""
    from tests import conftest

    with tempfile.TemporaryDirectory() as directory:
        flags = " ".join([conftest._DEVICES.format(1), *conftest._QUICK])
        path = [str(conftest.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        yield os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
            "MMJAX_CACHE": cache or directory,
            "PYTHONPATH": os.pathsep.join(path),
        }


def lines(run_dir: pathlib.Path) -> list[dict]:
    """Returns the lines of `metrics.jsonl`, which must be valid, without times.

    Those of the trainer are in their order. Results of the evaluation job follow, sorted and one
    evaluator per line, because the job may write while a trainer does.
    """
    by_trainer, by_job = [], []
    for line in program.metrics_of(run_dir):
        line = {k: v for k, v in line.items() if k != "time" and not k.startswith("perf/")}
        names = line.pop("evaluated", None)
        if names is None:
            by_trainer.append(line)
            continue
        for name in names:
            results = {k: v for k, v in line.items() if k.startswith(f"{name}/")}
            by_job.append({"step": line["step"], "evaluator": name, **results})
    return by_trainer + sorted(by_job, key=lambda line: (line["step"], line["evaluator"]))


def states(run_dir: pathlib.Path, steps: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns the arrays of some checkpoints, read without mmjax."""
    import orbax.checkpoint as ocp

    arrays = {}
    for step in steps:
        tree = ocp.PyTreeCheckpointer().restore(run_dir / "checkpoints" / str(step) / "state")
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[f"{step}{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return arrays


def leftovers(run_dir: pathlib.Path) -> list[str]:
    """Returns temporary files and directories that a run has left."""
    marks = (".partial-", "orbax-checkpoint-tmp", ".writable-", "evaluation_snapshot", ".tmp-")
    return sorted(
        str(path.relative_to(run_dir))
        for path in run_dir.rglob("*")
        if any(mark in path.name for mark in marks)
    )


def differences(expected: pathlib.Path, actual: pathlib.Path) -> list[str]:
    """Returns how two completed runs differ; [] if only in times."""
    result = []
    a, b = lines(expected), lines(actual)
    if a != b:
        pairs = [(x, y) for x, y in zip(a, b, strict=False) if x != y]
        result.append(f"metrics.jsonl: {len(a)} and {len(b)} lines; first difference: {pairs[:1]}")
    steps = (STEPS, json.loads((expected / "best/best.json").read_text())["step"])
    for name in ("best/best.json", "train_complete"):
        if (expected / name).read_text() != (actual / name).read_text():
            result.append(f"{name}: {(actual / name).read_text()}")
    first, second = states(expected, steps), states(actual, steps)
    if first.keys() != second.keys():
        result.append("arrays of other names")
    result += [
        f"{name}: other values"
        for name in first.keys() & second.keys()
        if first[name].tobytes() != second[name].tobytes()
    ]
    return result + [f"left behind: {name}" for name in leftovers(actual)]


class KillDrill(abc.ABC):
    """Rounds of kills of one recipe.

    Args:
      directory: Directory for the runs.
      env: Environment variables of the processes.

    Attributes:
      kills: Number of processes that were killed.
    """

    def __init__(self, directory: pathlib.Path, env: dict[str, str]):
        self._directory, self._env = directory, env
        self.kills = 0

    @abc.abstractmethod
    def round(self, seed: int) -> list[str]:
        """Returns the differences from an uninterrupted run."""

    def _kill_and_finish(self, run: Callable, kills: Sequence[Kill]) -> list[str]:
        """Calls `run(kill)` for each kill and then `run(None)`; returns what went wrong."""
        for kill in [*kills, None]:
            done = run(kill)
            if done.status not in ((0, -kill.number) if kill else (0,)):
                return [f"{kill} of {kills}: exit status {done.status}: {done.log[-2000:]}"]
            self.kills += kill is not None and (done.status != 0 or "Stopped by" in done.log)
        return []


def repeat(name: str, make_drill: Callable[..., KillDrill], description: str) -> int:
    """Runs the rounds of a drill that kills processes, as a program; returns its exit status.

    Args:
      name: Name of the drill.
      make_drill: Returns the drill, given a directory and environment variables.
      description: For `--help`.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start, failed = time.monotonic(), 0
    with environment() as env, tempfile.TemporaryDirectory() as directory:
        drill = make_drill(pathlib.Path(directory), env)
        for number in range(args.seed, args.seed + args.rounds):
            differences = drill.round(number)
            failed += bool(differences)
            print(f"round {number}: {differences or 'equal'}", flush=True)
    report(name, start, rounds=args.rounds, kills=drill.kills, rounds_that_differ=failed)
    return int(failed > 0)


def report(drill: str, start: float, **counts: object) -> None:
    """Prints the counts of a drill."""
    values = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in counts.items())
    print(f"{drill}: {values}, {time.monotonic() - start:.0f} s", flush=True)
