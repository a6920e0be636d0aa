"""Runs `python -m mmjax.main` many times without repeating its imports.

Each command is a fork of one process that has imported the program and done nothing else. It has
its own working directory, standard streams, devices and exit status. Other tests start
`python -m mmjax.main` itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import multiprocessing
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

import mmjax
from mmjax import program

# The demo with towers of one layer, which compile faster.
SMALL = (
    "--config=demo:smoke",
    *(f"--config.model.{tower}.num_layers=1" for tower in ("video", "audio", "text")),
    "--config.evals={}",
    "--config.tensorboard=False",
)
STEPS = 6
_LENGTH = (f"--config.total_steps={STEPS}", "--config.checkpoint={'every': 2, 'keep': 9}")
# Uses every option that samples random numbers; tests with this recipe share its compilation.
RECIPE = (
    *SMALL,
    *_LENGTH,
    "--config.ema_decay=0.9",
    "--config.model.dropout_rate=0.2",
    "--config.model.video.keep_tokens=0.5",
    "--config.augment.audio_noise=0.01",
    "--config.data.video.crop=inception",
)
# An audio classifier, for tests that do not depend on the model. It starts in half the time.
CLASSIFIER = (
    "--task=finetune",
    "--config=demo:smoke",
    *_LENGTH,
    "--config.data.limit=0",
    "--config.data.video=None",
    "--config.data.audio={'num_samples': 3200}",
    "--config.model.backbone={'name': 'wat_tiny', 'num_layers': 1, 'keep_tokens': 1.0}",
    "--config.optimizer.lr_multipliers=()",
    "--config.evals={}",
    "--config.tensorboard=False",
)

_PRELOAD = ["mmjax.main", "mmjax.train", "mmjax.eval_job", "mmjax.tasks.pretrain"]
_PRELOAD += ["mmjax.tasks.finetune", "tests.e2e.program"]


@dataclasses.dataclass(frozen=True)
class Finished:
    """The result of a command: exit status (negative for a signal), standard output and log."""

    status: int
    stdout: str
    log: str

    def __post_init__(self):
        assert "Traceback" not in self.log, self.log

    def check(self, status: int = 0) -> Finished:
        """Asserts the exit status."""
        assert self.status == status, f"exit status {self.status}\n{self.stdout}\n{self.log}"
        return self

    def check_log(self, *facts: object) -> None:
        """Asserts that one line of the log mentions every fact."""
        assert self.log_lines(*facts), f"no line mentions {facts}:\n{self.log}"

    def log_lines(self, *facts: object) -> list[str]:
        """Returns the lines of the log that mention every fact."""
        return lines_mentioning(self.log, *facts)


def lines_mentioning(text: str, *facts: object) -> list[str]:
    """Returns the lines of a text that mention every fact as a whole word or number."""
    patterns = [rf"(?<![\w.]){re.escape(str(fact))}(?!\w|\.\w)" for fact in facts]
    return [
        line for line in text.splitlines() if all(re.search(pattern, line) for pattern in patterns)
    ]


@functools.cache
def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


def _child(module, arguments, directory, env, streams, before) -> None:
    os.chdir(directory)
    if sys.path[0] != "":
        sys.path.insert(0, "")  # as `python -m` does
    os.environ.clear()
    os.environ.update(env)
    mmjax._avoid_wrong_results_on_cpu()  # the import did, with the parent's flags
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    program._COMPILE_FAST = {}  # the flags in `env` compile even faster
    sys.argv = [module, *arguments]
    if before is not None:
        before()
    sys.exit(importlib.import_module(module).main())


def run(
    arguments: Sequence[str],
    directory: pathlib.Path,
    env: dict[str, str],
    *,
    module: str = "mmjax.main",
    before: Callable[[], None] | None = None,
    timeout: float = 240,
) -> Finished:
    """Runs the program with these arguments in `directory`.

    Args:
      arguments: Command-line arguments.
      directory: Working directory.
      env: Environment variables.
      module: Module to run: `mmjax.main`, or `mmjax.tools.cli` for the command `mmjax`.
      before: Function that the process calls first, to inject a fault; must be picklable.
      timeout: Seconds after which the process is killed and the test fails.
    """
    streams = [directory / f".{name}-{os.getpid()}" for name in ("stdout", "stderr")]
    child = (module, arguments, directory, env, streams, before)
    process = _context().Process(target=_child, args=child)
    process.start()
    try:
        process.join(timeout)
        assert process.exitcode is not None, f"still running: {arguments}\n{streams[1].read_text()}"
    finally:
        process.kill()
        process.join()
    texts = [path.read_text() for path in streams]
    with contextlib.suppress(FileNotFoundError):
        for path in streams:
            path.unlink()
    return Finished(process.exitcode, *texts)


def metrics_of(run_dir: pathlib.Path) -> list[dict]:
    """Returns the lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def curve(run_dir: pathlib.Path, name: str = "train/loss") -> dict[int, float]:
    """Returns {step: value} of a metric."""
    return {line["step"]: line[name] for line in metrics_of(run_dir) if name in line}


def _change_batches(change: Callable[[int, dict], dict]) -> None:
    """Replaces training batches by `change(step, batch)` in this process."""
    from mmjax.data.pipeline import loader

    original = loader.TrainData.iterate

    def iterate(self, first_step=0):
        for step, batch in enumerate(original(self, first_step), first_step):
            yield change(step, batch)

    loader.TrainData.iterate = iterate


def signal_at(step: int, number: int) -> None:
    """Sends this process a signal when it fetches the batch of `step`."""

    def change(now: int, batch: dict) -> dict:
        if now == step:
            os.kill(os.getpid(), number)
        return batch

    _change_batches(change)


def poison(steps: Sequence[int]) -> None:
    """Makes one audio sample infinite in the batches of these steps."""

    def change(now: int, batch: dict) -> dict:
        if now in steps:
            batch["audio"] = batch["audio"].copy()
            batch["audio"][0, 0] = float("inf")
        return batch

    _change_batches(change)
