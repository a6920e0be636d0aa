"""The loop of the evaluation job: evaluates the checkpoints of a run as they appear.

Completed evaluations are read from the lines of `metrics.jsonl` that hold their results, so an
evaluation is complete exactly when its results are on disk.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from absl import logging

from mmjax import files
from mmjax.checkpoints.manager import DamagedError
from mmjax.errors import UserError
from mmjax.evals import Evaluator, format_results
from mmjax.evaluate import failures, run_all
from mmjax.monitor import metrics_file, writers

_FINISHED = "evaluated.jsonl"  # written until mmjax 0.2.0, apart from the results
_REPEAT_SECONDS = 600.0  # minimum interval between equal log messages


class Results:
    """The results of the evaluation job in `metrics.jsonl`, and what they complete.

    Args:
      run_dir: The run directory.
      tensorboard: Whether to write TensorBoard events too.
    """

    def __init__(self, run_dir: pathlib.Path, *, tensorboard: bool):
        self._run_dir, self._tensorboard = run_dir, tensorboard
        self._identity: object = object()
        self._pairs: set[tuple[int, str]] = set()

    def refresh(self) -> None:
        """Reads the completed evaluations again if a trainer has rolled the file back.

        A resumed trainer repeats the steps after its checkpoint, and removes their results.
        """
        identity = metrics_file.identity(self._run_dir)
        if identity == self._identity:
            return
        self._identity = identity
        records = metrics_file.read_records(self._run_dir)
        self._pairs = {
            (record["step"], name) for record in records for name in metrics_file.evaluated(record)
        }
        if earlier := _pairs_of_earlier_version(self._run_dir / _FINISHED):
            written = {(r["step"], key.partition("/")[0]) for r in records for key in r}
            self._pairs |= earlier & written

    def __contains__(self, pair: tuple[int, str]) -> bool:
        return pair in self._pairs

    def last_before(self, step: int, evaluator: str) -> int:
        """Returns the newest step before `step` at which the evaluator ran, or 0."""
        return max((s for s, name in self._pairs if name == evaluator and s < step), default=0)

    def write(self, step: int, results: Mapping[str, float], evaluators: Sequence[str]) -> bool:
        """Prints results and writes them to the run directory.

        Args:
          step: The step.
          results: {name: value}.
          evaluators: Names of the evaluators to record as completed, unless they failed.

        Returns:
          Whether they were written. If not, an error is logged.
        """
        print(format_results(results, title=f"Step {step} of {self._run_dir}"), flush=True)
        completed = tuple(sorted({*evaluators} - {*failures(results)}))
        try:
            with writers.MetricWriter(self._run_dir, tensorboard=self._tensorboard) as writer:
                writer.scalars(step, results, evaluated=completed)
        except UserError as error:
            logging.error(
                "The results of step %d are printed above, but not saved: %s Then start the job "
                "again.",
                step,
                error,
            )
            return False
        self._pairs |= {(step, name) for name in completed}
        return True


def _pairs_of_earlier_version(path: pathlib.Path) -> set[tuple[int, str]]:
    """Returns the (step, evaluator) pairs of `evaluated.jsonl`.

    It recorded them before their results were written.
    """
    pairs = set()
    for line in files.read_text(path).splitlines() if path.is_file() else ():
        try:
            record = files.parse_json(line, str(path))
            pairs.add((int(record["step"]), str(record["evaluator"])))
        except (UserError, KeyError, TypeError, ValueError):  # left by a killed job
            continue
    return pairs


class _Run(Protocol):
    """The part of `mmjax.checkpoints.run_dir.RunDir` that `watch` uses."""

    path: pathlib.Path

    def complete_step(self) -> int | None: ...

    def has_trainer(self) -> bool: ...


def watch(
    run: _Run,
    evaluators: Sequence[Evaluator],
    restore: Callable[[int], Mapping[str, Any] | None],
    results: Results,
    *,
    list_steps: Callable[[], list[int]],
    pause: Callable[[], bool],
    keep: Callable[[int, Mapping[str, float]], None] = lambda step, results: None,
) -> int:
    """Evaluates new checkpoints of a run, oldest first, until the run is complete.

    An evaluator with `every=N` runs at the first checkpoint at or after each multiple of N, and at
    the last checkpoint. A failed evaluation is not repeated by this job, only by a restarted one.

    Args:
      run: The run directory.
      evaluators: The evaluators to run.
      restore: Returns the state of a step, or None if its checkpoint was deleted; raises if it
        cannot be read.
      results: Receives the metrics.
      list_steps: Returns the steps of the existing checkpoints.
      pause: Waits; returns whether to stop the job.
      keep: Called with a step and its metrics after they are written.

    Returns:
      Number of evaluations that failed or could not be written.

    Raises:
      UserError: The run is complete, but its last checkpoint does not exist.
    """
    failed: set[tuple[int, str]] = set()
    log = RepeatedMessage()

    def due(step: int, complete: int | None) -> list[Evaluator]:
        return [
            e
            for e in evaluators
            if (step, e.name) not in results
            and (step, e.name) not in failed
            and e.schedule.due(step, final=step == complete, last=results.last_before(step, e.name))
        ]

    while True:
        complete = run.complete_step()  # read first: no checkpoint is added after it is set
        steps = list_steps()
        results.refresh()
        step = next((s for s in steps if due(s, complete)), None)
        if step is not None:
            chosen = due(step, complete)
            incomplete = _evaluate_step(step, chosen, restore, results, keep)
            if incomplete is not None:
                failed |= {(step, name) for name in incomplete}
            elif pause():
                return len(failed)
            continue
        if complete is not None:
            if complete not in steps:
                raise UserError(
                    f"{run.path} was completed at step {complete}, but that checkpoint does not "
                    f"exist (existing steps: {steps or 'none'}). Evaluate an existing one with "
                    "--override_checkpoint."
                )
            logging.info("The run is complete at step %d, and all evaluations are done.", complete)
            return len(failed)
        log.info(_waiting(run, steps))
        if pause():
            return len(failed)


def _evaluate_step(
    step: int,
    evaluators: Sequence[Evaluator],
    restore: Callable[[int], Mapping[str, Any] | None],
    results: Results,
    keep: Callable[[int, Mapping[str, float]], None],
) -> list[str] | None:
    """Evaluates a checkpoint and returns the evaluators that failed or could not be written.

    Returns None, with a warning, if the checkpoint was deleted.
    """
    try:
        state = restore(step)
    except DamagedError as error:
        logging.error("%s", error)
        return [evaluator.name for evaluator in evaluators]
    if state is None:
        logging.warning(
            "The checkpoint of step %d was deleted before it could be evaluated. If this happens "
            "often, increase --config.checkpoint.keep or --config.checkpoint.every of the trainer.",
            step,
        )
        return None
    names = [evaluator.name for evaluator in evaluators]
    values = run_all(evaluators, state, step)
    if not results.write(step, values, names):
        return names
    keep(step, values)
    return failures(values)


def _waiting(run: _Run, steps: Sequence[int]) -> str:
    """Returns the message of a job that waits for a checkpoint."""
    newest = f"Evaluated the newest checkpoint, step {steps[-1]}," if steps else "No checkpoint yet"
    if run.has_trainer():
        return f"{newest} in {run.path}. Its trainer is running; waiting for the next checkpoint."
    if steps:
        return (
            f"{newest} in {run.path}. The run is not complete, and no trainer runs on this "
            "machine: it crashed, was stopped, or runs elsewhere. Waiting. To resume training, run "
            "its command again; to stop this job, press Ctrl-C."
        )
    return (
        f"{newest} in {run.path}, and no trainer runs on this machine. Waiting. Check --model_dir "
        "or start the trainer; to stop this job, press Ctrl-C."
    )


class RepeatedMessage:
    """Logs a message when it differs from the last one, or again after some time."""

    def __init__(self) -> None:
        self._message, self._when = "", 0.0

    def info(self, message: str) -> None:
        if message != self._message or time.monotonic() - self._when > _REPEAT_SECONDS:
            logging.info("%s", message)
            self._message, self._when = message, time.monotonic()
