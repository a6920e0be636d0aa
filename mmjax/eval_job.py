"""The evaluation job: evaluates the checkpoints of a run in a process of its own.

The job watches a run directory. It copies each new checkpoint before reading it, because the
trainer may delete it, and restores only what evaluation needs, on the devices of its machine. It
ends after evaluating the last checkpoint of a completed run. It can be stopped and restarted at any
time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging

from mmjax import config, distributed, files, sharding, tree
from mmjax.checkpoints.best import Best
from mmjax.checkpoints.find import find, list_steps
from mmjax.checkpoints.manager import Checkpoints
from mmjax.checkpoints.run_dir import RunDir
from mmjax.checkpoints.snapshot import snapshot
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.eval_watch import RepeatedMessage, Results, watch
from mmjax.evals import Evaluator, make_evaluators
from mmjax.evaluate import failures, run_all
from mmjax.monitor import metrics_file
from mmjax.tasks import make_task

_SNAPSHOT = "evaluation_snapshot"
_POLL_SECONDS = 5.0


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
      The exit status: 0, or 1 if an evaluation failed or its results could not be written.

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
        results = Results(run.path, tensorboard=cfg.tensorboard)
        if step is not None:
            return _evaluate_one(evaluators, restore, results, step, run.path)
        return _watch_run(cfg, run, evaluators, restore, results, pause)


def _watch_run(
    cfg: config.Config,
    run: RunDir,
    evaluators: Sequence[Evaluator],
    restore: Callable[[int], Mapping[str, Any] | None],
    results: Results,
    pause: Callable[[], bool],
) -> int:
    """Runs `watch`, keeps the best checkpoint, and returns the exit status."""
    best = Best.from_config(run.path, dict(cfg.checkpoint), cfg.evals)
    not_kept = []

    def keep(step: int, values: Mapping[str, float]) -> None:
        try:
            if best.improved_by(values):
                best.keep(step, values)
        except UserError as error:  # its results are written, and other evaluations are due
            logging.error("The best checkpoint, step %d, was not kept. %s", step, error)
            not_kept.append(step)

    for step in list_steps(run.path):  # a job may have been killed between results and `best`
        if step > best.step():
            keep(step, metrics_file.values_at(run.path, step, by_job=True))
    failed = watch(
        run,
        evaluators,
        restore,
        results,
        list_steps=lambda: list_steps(run.path),
        pause=pause,
        keep=keep,
    )
    if failed:
        logging.error("Evaluations failed: %d. See the messages above.", failed)
    return int(failed > 0 or bool(not_kept))


def _evaluate_one(
    evaluators: Sequence[Evaluator],
    restore: Callable[[int], Mapping[str, Any] | None],
    results: Results,
    step: int,
    run_dir: pathlib.Path,
) -> int:
    """Evaluates one checkpoint and returns the exit status."""
    state = restore(step)
    if state is None:
        raise UserError(
            f"The checkpoint of step {step} in {run_dir} was deleted while it was read. Existing "
            f"steps: {list_steps(run_dir)}."
        )
    values = run_all(evaluators, state, step)
    written = results.write(step, values, ())
    return int(bool(failures(values)) or not written)


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
    log = RepeatedMessage()
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
    from mmjax.data.pipeline import loader, tokenizer
    from mmjax.data.pipeline.dmvr.construct import is_stream

    section = data_config.for_evaluation(cfg.data)
    data = data_config.parse_config(section)
    cfg = dataclasses.replace(cfg, data=section)
    incomplete = (data.text and not data.text.vocab) or (data.audio and not data.audio.sample_rate)
    if incomplete or data.label or any(map(is_stream, data.specs)):
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
    """Returns `params`, `ema` if the checkpoint has it, and `extra`; None if it was deleted.

    Raises:
      DamagedError: It is not what was saved.
      UserError: It cannot be opened or copied, or is of another architecture.
    """
    with _copy(run.path, step) as copy:
        if copy is None:
            return None
        with contextlib.closing(Checkpoints(copy, read_only=True, original=run.path)) as saved:
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


@contextlib.contextmanager
def _copy(run_dir: pathlib.Path, step: int) -> Iterator[pathlib.Path | None]:
    """Yields a directory with a copy of a checkpoint, or None if the checkpoint was deleted.

    The copy consists of hard links in the run directory if that can be written, otherwise of files
    in the directory of temporary files.
    """
    with contextlib.ExitStack() as stack:
        target = run_dir / _SNAPSHOT
        stack.callback(files.remove, target)
        try:
            copied = snapshot(run_dir, step, target)
        except UserError:
            temporary = tempfile.TemporaryDirectory(prefix="mmjax-snapshot-")
            target = pathlib.Path(stack.enter_context(temporary))
            copied = snapshot(run_dir, step, target)
        yield target if copied else None
