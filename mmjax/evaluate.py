"""Evaluation during training, and in a separate evaluation job with the same evaluators.

The job watches a run directory. It copies each new checkpoint before reading it, because the
trainer may delete it, and restores only what evaluation needs, on the devices of its machine. It
ends after evaluating the last checkpoint of a completed run. Completed evaluations are recorded in
`evaluated.jsonl`, so the job can be stopped and restarted at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
from absl import logging

from mmjax import config, distributed, sharding, tree
from mmjax.checkpoints.best import Best
from mmjax.checkpoints.find import find, list_steps
from mmjax.checkpoints.manager import Checkpoints
from mmjax.checkpoints.run_dir import RunDir
from mmjax.checkpoints.snapshot import snapshot
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.evals import Evaluator, format_results, make_evaluators
from mmjax.monitor import writers
from mmjax.tasks import make_task

FINISHED = "evaluated.jsonl"
FAILED = "failed"  # the metric `<evaluator>/failed` marks an evaluator that raised
_SNAPSHOT = "evaluation_snapshot"
_POLL_SECONDS = 5.0
_REPEAT_SECONDS = 600.0  # minimum interval between equal log messages


def run_all(
    evaluators: Sequence[Evaluator], state: Mapping[str, Any], step: int
) -> dict[str, float]:
    """Runs evaluators on one state; they share features.

    An evaluator that raises is logged and reported as `{name/failed: 1}`; the others still run.

    Args:
      evaluators: The evaluators.
      state: The train state, with `params` (or `ema`) and `extra`.
      step: Number of completed updates.

    Returns:
      {name/metric: value}.
    """
    results: dict[str, float] = {}
    for evaluator in evaluators:
        try:
            results |= evaluator.run(state, step)
        except UserError as error:
            logging.error("Evaluator %s failed at step %d: %s", evaluator.name, step, error)
            results[f"{evaluator.name}/{FAILED}"] = 1.0
        except Exception:  # noqa: BLE001 - no failure may stop training
            logging.exception("Evaluator %s failed at step %d.", evaluator.name, step)
            results[f"{evaluator.name}/{FAILED}"] = 1.0
    for evaluator in evaluators:
        evaluator.store.clear()
    return results


def failures(results: Mapping[str, float]) -> list[str]:
    """Returns the names of the evaluators that failed, from the result of `run_all`."""
    return [name.removesuffix(f"/{FAILED}") for name in results if name.endswith(f"/{FAILED}")]


def run_due(
    evaluators: Sequence[Evaluator], state: Mapping[str, Any], step: int, *, final: bool
) -> dict[str, float]:
    """Runs the evaluators that are due; see `run_all`.

    Args:
      evaluators: The evaluators of this process.
      state: The train state, with `params` (or `ema`) and `extra`.
      step: Number of completed updates.
      final: Whether it is the last step.

    Returns:
      {name/metric: value}; {} if no evaluator is due.
    """
    return run_all([e for e in evaluators if e.schedule.due(step, final=final)], state, step)


class Finished:
    """The completed (step, evaluator) pairs, stored in a file of JSON lines.

    Args:
      path: The file; created by the first `add`.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._pairs: set[tuple[int, str]] = set()
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # incomplete line of a killed job
                    continue
                self._pairs.add((record["step"], record["evaluator"]))

    def __contains__(self, pair: tuple[int, str]) -> bool:
        return pair in self._pairs

    def last_before(self, step: int, evaluator: str) -> int:
        """Returns the newest step before `step` at which the evaluator ran, or 0."""
        return max((s for s, name in self._pairs if name == evaluator and s < step), default=0)

    def add(self, step: int, evaluator: str) -> None:
        """Records a completed evaluation."""
        self._pairs.add((step, evaluator))
        with open(self._path, "a") as file:
            file.write(
                json.dumps({"step": step, "evaluator": evaluator, "time": time.time()}) + "\n"
            )


class _Run(Protocol):
    """The part of `mmjax.checkpoints.run_dir.RunDir` that `watch` uses."""

    path: pathlib.Path

    def complete_step(self) -> int | None: ...

    def has_trainer(self) -> bool: ...


def watch(
    run: _Run,
    evaluators: Sequence[Evaluator],
    restore: Callable[[int], Mapping[str, Any] | None],
    write: Callable[[int, Mapping[str, float]], None],
    *,
    list_steps: Callable[[], list[int]],
    pause: Callable[[], bool],
) -> int:
    """Evaluates new checkpoints of a run, oldest first, until the run is complete.

    An evaluator with `every=N` runs at the first checkpoint at or after each multiple of N, and at
    the last checkpoint. A failed evaluation is not repeated by this job, only by a restarted one.

    Args:
      run: The run directory.
      evaluators: The evaluators to run.
      restore: Returns the state of a step, or None if its checkpoint was deleted; raises if it
        cannot be read.
      write: Receives the step and its metrics.
      list_steps: Returns the steps of the existing checkpoints.
      pause: Waits; returns whether to stop the job.

    Returns:
      Number of failed evaluations.

    Raises:
      UserError: The run is complete, but its last checkpoint does not exist.
    """
    finished, failed = Finished(run.path / FINISHED), set()
    log = _RepeatedMessage()

    def due(step: int, complete: int | None) -> list[Evaluator]:
        return [
            e
            for e in evaluators
            if (step, e.name) not in finished
            and (step, e.name) not in failed
            and e.schedule.due(
                step, final=step == complete, last=finished.last_before(step, e.name)
            )
        ]

    while True:
        complete = run.complete_step()  # read first: no checkpoint is added after it is set
        steps = list_steps()
        step = next((s for s in steps if due(s, complete)), None)
        if step is not None:
            chosen = due(step, complete)
            failed_names = _evaluate_step(step, chosen, restore, write)
            if failed_names is not None:
                failed |= {(step, name) for name in failed_names}
                for name in {e.name for e in chosen} - set(failed_names):
                    finished.add(step, name)
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
    write: Callable[[int, Mapping[str, float]], None],
) -> list[str] | None:
    """Evaluates a checkpoint and returns the names of the evaluators that failed.

    Returns None, with a warning, if the checkpoint was deleted.
    """
    try:
        state = restore(step)
    except UserError:
        raise
    except Exception:  # noqa: BLE001 - Orbax has no common type for damage
        logging.exception("Cannot read the checkpoint of step %d.", step)
        return [evaluator.name for evaluator in evaluators]
    if state is None:
        logging.warning(
            "The checkpoint of step %d was deleted before it could be evaluated. If this happens "
            "often, increase --config.checkpoint.keep or --config.checkpoint.every of the trainer.",
            step,
        )
        return None
    results = run_all(evaluators, state, step)
    write(step, results)
    return failures(results)


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


class _RepeatedMessage:
    """Logs a message when it differs from the last one, or again after some time."""

    def __init__(self) -> None:
        self._message, self._when = "", 0.0

    def info(self, message: str) -> None:
        if message != self._message or time.monotonic() - self._when > _REPEAT_SECONDS:
            logging.info("%s", message)
            self._message, self._when = message, time.monotonic()


# --------------------------------------------------------------------------------------------------
# The evaluation job.


def run_job(
    cfg: Any,
    model_dir: str,
    *,
    overrides: Sequence[str] = (),
    override_checkpoint: str | None = None,
    evals: Any = None,
) -> int:
    """Runs `--mode=eval`: the evaluation job of a run, or the evaluation of one checkpoint.

    The job runs the evaluators with `where='eval'`, or all of them if none has it. With
    `override_checkpoint`, all evaluators run once on that checkpoint, and the results are written
    to its run directory.

    Args:
      cfg: A config; None uses the one that the run was started with.
      model_dir: The run directory.
      overrides: `--config.key=value` arguments for the config.
      override_checkpoint: The only checkpoint to evaluate: `<run>` (its newest one) or
        `<run>/checkpoints/<step>`.
      evals: A section that replaces `evals` of the config.

    Returns:
      The exit status: 0, or 1 if an evaluation failed.

    Raises:
      UserError: A problem that the user can fix.
    """
    if jax.process_count() > 1:
        raise UserError(
            f"--mode=eval runs in one process with all devices of its machine; got "
            f"{jax.process_count()} processes. Start it once, outside the multi-process launcher."
        )
    with distributed.StopSignal() as stop:
        pause = _pause(stop)
        if override_checkpoint:
            run_dir, step = find(override_checkpoint)
            run = RunDir(run_dir, create=False)
        else:
            run, step = _wait_for_run(model_dir, pause, needs_config=cfg is None), None
            if run is None:
                return 0
        cfg = run.read_config() if cfg is None else cfg
        if evals is not None:
            cfg.evals = evals
            cfg.checkpoint.best = ""  # names a training evaluator
        config.apply(cfg, overrides)
        cfg = config.resolve(cfg)
        evaluators, restore = _prepare(cfg, run, all_evaluators=step is not None)
        write = _writer(run, tensorboard=cfg.tensorboard)
        if step is not None:
            return _evaluate_one(evaluators, restore, write, step, run.path)
        return _watch_run(cfg, run, evaluators, restore, write, pause)


def _watch_run(
    cfg: config.Config,
    run: RunDir,
    evaluators: Sequence[Evaluator],
    restore: Callable[[int], Mapping[str, Any] | None],
    write: Callable[[int, Mapping[str, float]], None],
    pause: Callable[[], bool],
) -> int:
    """Runs `watch`, keeps the best checkpoint, and returns the exit status."""
    best = Best.from_config(run.path, dict(cfg.checkpoint), cfg.evals)

    def write_and_keep(step: int, results: Mapping[str, float]) -> None:
        write(step, results)
        if best.improved_by(results):
            best.keep(step, results)

    failed = watch(
        run,
        evaluators,
        restore,
        write_and_keep,
        list_steps=lambda: list_steps(run.path),
        pause=pause,
    )
    if failed:
        logging.error("%d evaluations failed. See the messages above.", failed)
    return int(failed > 0)


def _evaluate_one(
    evaluators: Sequence[Evaluator],
    restore: Callable[[int], Mapping[str, Any] | None],
    write: Callable[[int, Mapping[str, float]], None],
    step: int,
    run_dir: pathlib.Path,
) -> int:
    """Evaluates one checkpoint and returns the exit status."""
    try:
        state = restore(step)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - Orbax has no common type for damage
        why = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise UserError(
            f"The checkpoint of step {step} in {run_dir} is damaged: {why}. Existing steps: "
            f"{list_steps(run_dir)}."
        ) from error
    if state is None:
        raise UserError(
            f"The checkpoint of step {step} in {run_dir} was deleted while it was read. Existing "
            f"steps: {list_steps(run_dir)}."
        )
    results = run_all(evaluators, state, step)
    write(step, results)
    return int(bool(failures(results)))


def _pause(stop: distributed.StopSignal) -> Callable[[], bool]:
    """Returns the `pause` of `watch`: polls for a few seconds, or until a stop signal."""

    def pause() -> bool:
        end = time.monotonic() + _POLL_SECONDS
        while not stop.received and time.monotonic() < end:
            time.sleep(0.2)
        if stop.received:
            logging.info("Stopped by %s. Run the same command to continue.", stop.received)
        return bool(stop.received)

    return pause


def _wait_for_run(
    model_dir: str, pause: Callable[[], bool], *, needs_config: bool
) -> RunDir | None:
    """Waits for a run directory; returns None if the job is to stop."""
    log = _RepeatedMessage()
    while True:
        path = pathlib.Path(model_dir)
        if path.is_dir() and not (needs_config and not (path / "config.json").is_file()):
            return RunDir(model_dir, create=False)
        state = "is not a run directory yet" if path.is_dir() else "does not exist yet"
        log.info(
            f"{path.absolute()} {state}. Waiting for its trainer to start. Check --model_dir; to "
            "stop this job, press Ctrl-C."
        )
        if pause():
            return None


def _mesh(cfg: Any) -> jax.sharding.Mesh:
    """Returns the mesh of the config if it fits this machine, else one with all devices."""
    sizes = config.keywords(sharding.make_mesh, cfg.mesh, "mesh", provided=["devices"])
    try:
        return sharding.make_mesh(**sizes)
    except UserError:
        axis = "fsdp" if cfg.sharding.startswith("fsdp") else "data"
        return sharding.make_mesh(**{"data": 1, axis: -1})


def _prepare(
    cfg: Any, run: RunDir, *, all_evaluators: bool
) -> tuple[list[Evaluator], Callable[[int], dict | None]]:
    """Returns the evaluators of a config, and a function from a step to the state they need."""
    mesh = _mesh(cfg)
    data_cfg = cfg.data
    task = make_task(cfg, _data_spec(cfg))
    evaluators = make_evaluators(
        cfg.evals,
        task=task,
        data_cfg=data_cfg,
        mesh=mesh,
        directory=run.path,
        task_cfg=vars(cfg),
    )
    if not evaluators:
        raise UserError("config.evals is empty. Add an evaluator in the recipe, or pass --evals.")
    chosen = [e for e in evaluators if e.schedule.where == "eval"]
    if all_evaluators or not chosen:
        chosen = evaluators
    logging.info("Evaluators: %s.", ", ".join(e.name for e in chosen))
    params, extra = jax.eval_shape(task.init, jax.random.key(0))
    return chosen, lambda step: _restore(run, step, params, extra, cfg, mesh)


def _data_spec(cfg: Any) -> DataSpec:
    """Returns the data spec from the config alone if possible, else from the training data.

    The config suffices if it has no labels and sets the vocabulary and the sample rate. Then the
    training data need not exist on this machine, for example for a converted checkpoint.
    """
    from mmjax.data.pipeline import config as data_config  # these import TensorFlow
    from mmjax.data.pipeline import dmvr, loader, tokenizer

    section = data_config.for_evaluation(cfg.data)
    data = data_config.parse_config(section)
    cfg = dataclasses.replace(cfg, data=section)
    incomplete = (data.text and not data.text.vocab) or (data.audio and not data.audio.sample_rate)
    if incomplete or data.label or any(map(dmvr.is_stream, data.specs)):
        train_data = loader.make_train_data(section, batch_size=cfg.batch_size, seed=cfg.seed)
        return DataSpec.of(train_data)
    return dataclasses.replace(
        DataSpec.of_config(cfg),
        vocab_size=tokenizer.open_tokenizer(data).vocab_size if data.text else None,
        sample_rate=data.audio.rate(0) if data.audio else None,
    )


def _restore(
    run: RunDir, step: int, params: dict, extra: dict, cfg: Any, mesh: jax.sharding.Mesh
) -> dict | None:
    """Returns `params`, `ema` if the checkpoint has it, and `extra`; None if it was deleted."""
    target = run.path / _SNAPSHOT
    if not os.access(run.path, os.W_OK):
        target = pathlib.Path(tempfile.mkdtemp(prefix="mmjax-snapshot-"))
    try:
        if not snapshot(run.path, step, target):
            return None
        with contextlib.closing(Checkpoints(target, read_only=True)) as saved:
            shapes = saved.shapes(step)
            abstract = {"params": params, "extra": extra}
            averaged = {path for path in shapes if path.startswith("ema/")}
            if averaged:  # frozen parameters have no average
                abstract["ema"] = tree.map_named(
                    lambda path, leaf: leaf if f"ema/{path}" in averaged else None, params
                )
            shardings = sharding.state_shardings(
                abstract, mesh, preset=cfg.sharding, rules=cfg.sharding_rules
            )
            abstract = jax.tree.map(
                lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
                abstract,
                shardings,
            )
            return saved.restore(step, abstract)[0]
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _writer(run: RunDir, *, tensorboard: bool) -> Callable[[int, Mapping[str, float]], None]:
    """Returns a function that prints results and writes them to the run directory."""
    writable = os.access(run.path, os.W_OK)
    if not writable:
        logging.warning("%s is not writable. Results are only printed.", run.path)

    def write(step: int, results: Mapping[str, float]) -> None:
        if writable and results:
            with writers.MetricWriter(run.path, tensorboard=tensorboard) as writer:
                writer.scalars(step, results)
        print(format_results(results, title=f"Step {step} of {run.path}"), flush=True)

    return write
