"""Evaluation inside a training, and the evaluation job beside one; the evaluators are the same.

The job watches a run directory. It takes a snapshot of a checkpoint before it reads it, since the
trainer may delete it meanwhile; restores only what evaluation needs, on the devices it has; and
ends when the trainer has left its `train_complete` and the last checkpoint is judged. What is done
stands in `evaluated.jsonl`, so the job can be stopped and started at will.
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
FAILED = "failed"  # the metric `<evaluator>/failed` stands for an evaluator that raised
_SNAPSHOT = "evaluation_snapshot"
_POLL_SECONDS = 5.0
_REPEAT_SECONDS = 600.0  # the same waiting message is not said more often


def run_all(
    evaluators: Sequence[Evaluator], state: Mapping[str, Any], step: int
) -> dict[str, float]:
    """The metrics of evaluators on one state, features shared.

    One that raises is logged with its traceback and gives `{name/failed: 1}`; the others go on.
    """
    results: dict[str, float] = {}
    for evaluator in evaluators:
        try:
            results |= evaluator.run(state, step)
        except UserError as error:
            logging.error("Evaluator %s failed at step %d: %s", evaluator.name, step, error)
            results[f"{evaluator.name}/{FAILED}"] = 1.0
        except Exception:  # noqa: BLE001 - whatever it is, the training goes on
            logging.exception("Evaluator %s failed at step %d.", evaluator.name, step)
            results[f"{evaluator.name}/{FAILED}"] = 1.0
    for evaluator in evaluators:
        evaluator.store.clear()
    return results


def failures(results: Mapping[str, float]) -> list[str]:
    """The evaluators that failed, by the metrics of `run_all`."""
    return [name.removesuffix(f"/{FAILED}") for name in results if name.endswith(f"/{FAILED}")]


def run_due(
    evaluators: Sequence[Evaluator], state: Mapping[str, Any], step: int, *, final: bool
) -> dict[str, float]:
    """`run_all` of those that are due after `step` updates; {} if none is.

    Args:
      evaluators: those of this place.
      state: the train state, with `params` (or `ema`) and `extra`.
      step: updates done.
      final: whether it is the last step.
    """
    return run_all([e for e in evaluators if e.schedule.due(step, final=final)], state, step)


class Finished:
    """Which (step, evaluator) pairs are done, in a file of JSON lines that survives the job."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._pairs: set[tuple[int, str]] = set()
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # half a line of a job that was killed
                    continue
                self._pairs.add((record["step"], record["evaluator"]))

    def __contains__(self, pair: tuple[int, str]) -> bool:
        return pair in self._pairs

    def last_before(self, step: int, evaluator: str) -> int:
        """The newest step before `step` at which the evaluator was done; 0 if there is none."""
        return max((s for s, name in self._pairs if name == evaluator and s < step), default=0)

    def add(self, step: int, evaluator: str) -> None:
        self._pairs.add((step, evaluator))
        with open(self._path, "a") as file:
            file.write(
                json.dumps({"step": step, "evaluator": evaluator, "time": time.time()}) + "\n"
            )


class _Run(Protocol):
    """What `watch` asks of a run directory; see `mmjax.checkpoints.run_dir.RunDir`."""

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
    """Evaluates the checkpoints of a run as they come, oldest first, until the run is complete.

    An evaluator with `every=N` runs at each checkpoint with which a multiple of N has passed since
    its last one, and at the last checkpoint. One that fails is not tried again by this job, but by
    the next one that is started.

    Args:
      run: the run directory.
      evaluators: what to run.
      restore: state of a step; None if the checkpoint vanished; raises if it cannot be read.
      write: takes the metrics of a step.
      list_steps: the steps that have a checkpoint now.
      pause: waits a while; True if the job is to stop.

    Returns:
      How many evaluations failed.
    """
    finished, failed = Finished(run.path / FINISHED), set()
    said = _Repeated()

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
        complete = run.complete_step()  # before the steps: after it, no step is added
        steps = list_steps()
        step = next((s for s in steps if due(s, complete)), None)
        if step is not None:
            chosen = due(step, complete)
            try:
                state = restore(step)
            except UserError:
                raise
            except Exception:  # noqa: BLE001 - Orbax has no common type for damage
                logging.exception("The checkpoint of step %d cannot be read.", step)
                failed |= {(step, e.name) for e in chosen}
                continue
            if state is None:
                logging.warning(
                    "The checkpoint of step %d was deleted before it could be evaluated. If this "
                    "happens often, let the trainer keep more (--config.checkpoint.keep) or save "
                    "less often.",
                    step,
                )
                if pause():
                    return len(failed)
                continue
            results = run_all(chosen, state, step)
            del state
            for evaluator in chosen:
                if f"{evaluator.name}/{FAILED}" in results:
                    failed.add((step, evaluator.name))
                else:
                    finished.add(step, evaluator.name)
            write(step, results)
            continue
        if complete is not None:
            if complete not in steps:
                raise UserError(
                    f"{run.path} was completed at step {complete}, but that checkpoint is not "
                    f"there (there are: {steps or 'none'}). Evaluate one of those with "
                    "--override_checkpoint."
                )
            logging.info("The run is complete at step %d and evaluated.", complete)
            return len(failed)
        said.say(_waiting(run, steps))
        if pause():
            return len(failed)


def _waiting(run: _Run, steps: Sequence[int]) -> str:
    newest = (
        f"The newest checkpoint, of step {steps[-1]}, is done" if steps else "No checkpoint yet"
    )
    if run.has_trainer():
        return f"{newest} in {run.path}; its trainer is running. Waiting for the next one."
    if steps:
        return (
            f"{newest} in {run.path}, but the run is not complete and no trainer is at work on "
            "this machine: it crashed, was stopped, or runs elsewhere. Waiting; the command that "
            "started it resumes it. Stop this job with Ctrl-C."
        )
    return (
        f"{newest} in {run.path}, and no trainer is at work on this machine. Waiting; if "
        "--model_dir is right, start the trainer. Stop this job with Ctrl-C."
    )


class _Repeated:
    """Says a message when it is new, or when it was last said long ago."""

    def __init__(self) -> None:
        self._message, self._when = "", 0.0

    def say(self, message: str) -> None:
        if message != self._message or time.monotonic() - self._when > _REPEAT_SECONDS:
            logging.info("%s", message)
            self._message, self._when = message, time.monotonic()


# ---------------------------------------------------------------------------------------- the job


def run_job(
    cfg: Any,
    model_dir: str,
    *,
    overrides: Sequence[str] = (),
    override_checkpoint: str | None = None,
    evals: Any = None,
) -> int:
    """`--mode=eval`: the evaluation job of a run, or the evaluation of one checkpoint.

    The job runs the evaluators with `where='eval'`; if there is none, all of them. A single
    checkpoint is given to all evaluators, whatever their schedule, and its results go to its own
    run directory.

    Args:
      cfg: a config; None takes the one the run was started with.
      model_dir: the run directory.
      overrides: `--config.key=value` arguments for that config.
      override_checkpoint: `<run>` (its newest checkpoint) or `<run>/checkpoints/<step>`: evaluate
        this one, then return.
      evals: a section that takes the place of the config's `evals`.

    Returns:
      The exit status: 0, or 1 if an evaluation failed.

    Raises:
      UserError: anything the user can put right.
    """
    if jax.process_count() > 1:
        raise UserError(
            "The evaluation job is one process; it uses all devices of its machine. Start it once, "
            "outside the multi-process launcher."
        )
    with distributed.StopSignal() as stop:
        pause = _pause(stop)
        if override_checkpoint:
            run_dir, step = find(override_checkpoint)
            run = RunDir(run_dir, create=False)
        else:
            run = _wait_for_run(model_dir, pause, needs_config=cfg is None)
            if run is None:
                return 0
        cfg = run.read_config() if cfg is None else cfg
        if evals is not None:
            cfg.evals = evals
            cfg.checkpoint.best = ""  # by an evaluator of the training, which this is not about
        config.apply(cfg, overrides)
        cfg = config.resolve(cfg)
        evaluators, restore = _prepare(cfg, run, any_place=bool(override_checkpoint))
        write = _writer(run, tensorboard=cfg.tensorboard)
        if override_checkpoint:
            return _evaluate_one(evaluators, restore, write, step, run_dir)
        best = Best.from_config(run.path, dict(cfg.checkpoint), cfg.evals)

        def write_and_keep(step: int, results: Mapping[str, float]) -> None:
            write(step, results)
            if best.improved_by(results):
                best.keep(step, results)

        failures = watch(
            run,
            evaluators,
            restore,
            write_and_keep,
            list_steps=lambda: list_steps(run.path),
            pause=pause,
        )
        if failures:
            logging.error("%d evaluations failed, see above.", failures)
        return int(failures > 0)


def _evaluate_one(
    evaluators: Sequence[Evaluator],
    restore: Callable[[int], Mapping[str, Any] | None],
    write: Callable[[int, Mapping[str, float]], None],
    step: int,
    run_dir: pathlib.Path,
) -> int:
    """Exit status of evaluating one checkpoint."""
    try:
        state = restore(step)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - Orbax has no common type for damage
        why = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise UserError(
            f"The checkpoint of step {step} in {run_dir} is damaged: {why}. Evaluate another: "
            f"{list_steps(run_dir)}."
        ) from error
    if state is None:
        raise UserError(f"The checkpoint of step {step} in {run_dir} was just deleted.")
    results = run_all(evaluators, state, step)
    write(step, results)
    return int(bool(failures(results)))


def _pause(stop: distributed.StopSignal) -> Callable[[], bool]:
    def pause() -> bool:
        end = time.monotonic() + _POLL_SECONDS
        while not stop.received and time.monotonic() < end:
            time.sleep(0.2)
        if stop.received:
            logging.info("Stopped by %s; the same command goes on from here.", stop.received)
        return bool(stop.received)

    return pause


def _wait_for_run(
    model_dir: str, pause: Callable[[], bool], *, needs_config: bool
) -> RunDir | None:
    """The run directory once it is there; None if the job is to stop."""
    said = _Repeated()
    while True:
        path = pathlib.Path(model_dir)
        if path.is_dir() and not (needs_config and not (path / "config.json").is_file()):
            return RunDir(model_dir, create=False)
        missing = "is not a run directory yet" if path.is_dir() else "does not exist yet"
        said.say(
            f"{path.absolute()} {missing}. Waiting for a trainer to start there; check "
            "--model_dir. Stop this job with Ctrl-C."
        )
        if pause():
            return None


def _mesh(cfg: Any) -> jax.sharding.Mesh:
    """The config's mesh if it fits this machine, else all devices along its main axis."""
    sizes = config.keywords(sharding.make_mesh, cfg.mesh, "mesh", provided=["devices"])
    try:
        return sharding.make_mesh(**sizes)
    except UserError:
        split = "fsdp" if cfg.sharding.startswith("fsdp") else "data"
        return sharding.make_mesh(**{"data": 1, split: -1})


def _prepare(
    cfg: Any, run: RunDir, *, any_place: bool
) -> tuple[list[Evaluator], Callable[[int], dict | None]]:
    """Evaluators of a config, and a function from a step to what they need of its state."""
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
        raise UserError("config.evals is empty: there is nothing to evaluate.")
    chosen = [e for e in evaluators if e.schedule.where == "eval"]
    if any_place or not chosen:
        chosen = evaluators
    logging.info("Evaluators: %s.", ", ".join(e.name for e in chosen))
    params, extra = jax.eval_shape(task.init, jax.random.key(0))
    return chosen, lambda step: _restore(run, step, params, extra, cfg, mesh)


def _data_spec(cfg: Any) -> DataSpec:
    """What the task needs to know of its data: from the config if that says it, else from them.

    A config without labels that names its vocabulary and the rate of its sound says it all. Then
    the training data need not be here, as those of a converted checkpoint seldom are.
    """
    from mmjax.data.pipeline import config as data_config  # these import TensorFlow
    from mmjax.data.pipeline import dmvr, loader

    section = data_config.for_evaluation(cfg.data)
    data = data_config.parse_config(section)
    cfg = dataclasses.replace(cfg, data=section)
    unsaid = (data.text and not data.text.vocab) or (data.audio and not data.audio.sample_rate)
    if unsaid or data.label or any(map(dmvr.is_stream, data.specs)):
        train_data = loader.make_train_data(section, batch_size=cfg.batch_size, seed=cfg.seed)
        return DataSpec.of(train_data)
    return dataclasses.replace(
        DataSpec.of_config(cfg),
        vocab_size=loader.open_tokenizer(data).vocab_size if data.text else None,
        sample_rate=data.audio.rate(0) if data.audio else None,
    )


def _restore(
    run: RunDir, step: int, params: dict, extra: dict, cfg: Any, mesh: jax.sharding.Mesh
) -> dict | None:
    """Parameters, their average if the checkpoint has one, and `extra`; None if it vanished."""
    target = run.path / _SNAPSHOT
    if not os.access(run.path, os.W_OK):
        target = pathlib.Path(tempfile.mkdtemp(prefix="mmjax-snapshot-"))
    try:
        if not snapshot(run.path, step, target):
            return None
        with contextlib.closing(Checkpoints(target, read_only=True)) as saved:
            there = saved.shapes(step)
            abstract = {"params": params, "extra": extra}
            averaged = {path for path in there if path.startswith("ema/")}
            if averaged:  # frozen parameters have no average
                abstract["ema"] = tree.map_named(
                    lambda path, leaf: leaf if f"ema/{path}" in averaged else None, params
                )
            where = sharding.state_shardings(
                abstract, mesh, preset=cfg.sharding, rules=cfg.sharding_rules
            )
            abstract = jax.tree.map(
                lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
                abstract,
                where,
            )
            return saved.restore(step, abstract)[0]
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _writer(run: RunDir, *, tensorboard: bool) -> Callable[[int, Mapping[str, float]], None]:
    """Prints results and adds them to the run's `metrics.jsonl` and TensorBoard."""
    writable = os.access(run.path, os.W_OK)
    if not writable:
        logging.warning("%s cannot be written to: results are only printed.", run.path)

    def write(step: int, results: Mapping[str, float]) -> None:
        if writable and results:
            with writers.MetricWriter(run.path, tensorboard=tensorboard) as writer:
                writer.scalars(step, results)
        print(format_results(results, title=f"Step {step} of {run.path}"), flush=True)

    return write
