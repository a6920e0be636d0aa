"""`python -m mmjax.main` many times without paying for its imports each time.

Commands run as forks of one process that has imported the program and done nothing else: each has
its own directory, standard streams, devices and end. What `-m` itself adds, other tests try for
real.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import mmjax

# The demo with towers of one layer, which compile sooner.
SMALL = (
    "--config=demo:smoke",
    *(f"--config.model.{tower}.num_layers=1" for tower in ("video", "audio", "text")),
    "--config.evals={}",
    "--config.tensorboard=False",
)
STEPS = 6
# With all that draws random numbers; tests that share it share its compilation.
RECIPE = (
    *SMALL,
    f"--config.total_steps={STEPS}",
    "--config.checkpoint={'every': 2, 'keep': 9}",
    "--config.ema_decay=0.9",
    "--config.model.dropout_rate=0.2",
    "--config.model.video.keep_tokens=0.5",
    "--config.augment.audio_noise=0.01",
    "--config.data.video.crop=inception",
)

_PRELOAD = ["mmjax.main", "mmjax.train", "mmjax.evaluate", "mmjax.tasks.pretrain"]
_PRELOAD += ["mmjax.tasks.finetune", "tests.e2e.program"]


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a command left: exit status (negative: the signal that ended it) and what it said."""

    status: int
    stdout: str
    log: str

    def __post_init__(self):
        assert "Traceback" not in self.log, self.log

    def check(self, status: int = 0) -> Finished:
        assert self.status == status, f"exit status {self.status}\n{self.stdout}\n{self.log}"
        return self


@functools.cache
def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


def _child(arguments, folder, env, streams, before) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    mmjax._avoid_wrong_results_on_cpu()  # as its import does, which was under the parent's flags
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["mmjax.main", *arguments]
    if before is not None:
        before()
    from mmjax import main

    main.main()


def run(
    arguments: Sequence[str],
    folder: pathlib.Path,
    env: dict[str, str],
    *,
    before: Callable[[], None] | None = None,
    timeout: float = 240,
) -> Finished:
    """Runs the program with these arguments in `folder`.

    Args:
      before: called in the process first, to let something happen to it; must be picklable.
    """
    streams = [folder / f".{name}-{os.getpid()}" for name in ("stdout", "stderr")]
    process = _context().Process(target=_child, args=(arguments, folder, env, streams, before))
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
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def curve(run_dir: pathlib.Path, name: str = "train/loss") -> dict[int, float]:
    """{step: value} of a metric."""
    return {line["step"]: line[name] for line in metrics_of(run_dir) if name in line}


def _change_batches(change: Callable[[int, dict], dict]) -> None:
    """Training batches are `change(step, batch)` from now on, in this process."""
    from mmjax.data import loader

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
    """Makes one sample of sound of the batches of these steps infinite."""

    def change(now: int, batch: dict) -> dict:
        if now in steps:
            batch["audio"] = batch["audio"].copy()
            batch["audio"][0, 0] = float("inf")
        return batch

    _change_batches(change)
