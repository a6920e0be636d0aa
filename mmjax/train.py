"""The training loop, read top to bottom. What is learned is the task's, an update `step`'s."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from mmjax import (
    checkpoint,
    config,
    distributed,
    evals,
    evaluate,
    initialize,
    optim,
    sharding,
    snapshot,
    tree,
)
from mmjax import step as step_lib
from mmjax.data import loader
from mmjax.errors import UserError
from mmjax.monitor import flops as flops_lib
from mmjax.monitor import profiler, progress, report, writers
from mmjax.rundir import RunDir
from mmjax.tasks import DataFacts, make_task

# For what runs once: half the time to compile, on CPUs.
_QUICK_TO_COMPILE = {"cpu": {"xla_backend_optimization_level": 1}}


@dataclasses.dataclass
class Program:
    """All that is compiled or placed: what training, benchmarks and plans build from a config."""

    task: Any
    mesh: jax.sharding.Mesh
    frozen: Mapping[str, bool]
    tx: Any
    schedule: Callable
    state: Any  # abstract, with shardings
    init: Callable[[jax.Array], dict]  # key -> state
    step: Callable[[dict, Mapping[str, jax.Array]], tuple[dict, dict]]

    def plan(self, *, full: bool = False) -> str:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        return sharding.plan_table(self.state, shardings, full=full)


def build_program(cfg: Any, facts: DataFacts, mesh: jax.sharding.Mesh) -> Program:
    """Task, optimizer, sharded state and the compiled functions of a config."""
    sharding.check_batch(cfg.batch_size, mesh, cfg.accumulate_steps)
    task = make_task(cfg, facts)
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    settings = config.plain(cfg.optimizer)
    patterns = settings.pop("frozen", ())
    matched = tree.first_match(patterns, list(tree.flatten(params)), what="config.optimizer.frozen")
    frozen = {path: number is not None for path, number in matched.items()}
    trainable, _ = step_lib.split_params(params, frozen)
    parts = cfg.clip_shards > 0  # the step clips parts of the batch; the optimizer must not again
    tx, schedule = optim.make_optimizer(
        settings,
        trainable,
        total_steps=cfg.total_steps,
        batch_size=cfg.batch_size,
        clip=not parts,
    )

    def init(key):
        return step_lib.init_state(task, tx, key, frozen=frozen, ema=cfg.ema_decay > 0)

    abstract = jax.eval_shape(init, jax.random.key(0))
    where = sharding.state_shardings(
        abstract, mesh, preset=cfg.sharding, rules=config.plain(cfg.sharding_rules)
    )
    state = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), abstract, where
    )
    step = step_lib.make_step(
        task,
        tx,
        schedule,
        seed=cfg.seed,
        frozen=frozen,
        accumulate_steps=cfg.accumulate_steps,
        ema_decay=cfg.ema_decay,
        clip_shards=cfg.clip_shards,
        clip=optim.make_clipping(settings, trainable) if parts else None,
    )
    whole = sharding.replicated(mesh)
    backend = jax.default_backend()
    return Program(
        task=task,
        mesh=mesh,
        frozen=frozen,
        tx=tx,
        schedule=schedule,
        state=state,
        init=jax.jit(init, out_shardings=where, compiler_options=_QUICK_TO_COMPILE.get(backend)),
        step=jax.jit(
            step,
            in_shardings=(where, sharding.batch_sharding(mesh)),
            out_shardings=(where, whole),
            donate_argnums=0,
        ),
    )


def open_train_data(cfg: Any) -> tuple[Any, DataFacts]:
    """The training data of a config, and what the task needs to know of them."""
    data = loader.make_train_data(
        config.plain(cfg.data),
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return data, DataFacts.of(data)


def start_state(cfg: Any, program: Program, saved: checkpoint.Checkpoints) -> tuple[dict, int]:
    """The state to go on from, in this order of precedence:

    1. the newest checkpoint of the run's own directory;
    2. `resume_from`: the whole state of another run;
    3. `init_from`: the parameters of another run or checkpoint that fit, with a report;
    4. fresh parameters.
    """
    found = saved.restore_newest(program.state)
    if found:
        state, _, step = found
        logging.info("Resumed from step %d of %s.", step, saved.run_dir)
        return state, step
    if cfg.resume_from:
        other = checkpoint.Checkpoints(cfg.resume_from, read_only=True)
        found = other.restore_newest(program.state)
        if not found:
            raise UserError(f"config.resume_from={cfg.resume_from}: no checkpoint there.")
        logging.info("Resumed from step %d of %s.", found[2], cfg.resume_from)
        return found[0], found[2]
    fresh = state = program.init(jax.random.key(cfg.seed))
    if cfg.init_from:
        state = initialize.from_source(
            fresh,
            cfg.init_from,
            allow=config.plain(cfg.init_allow),
            names=config.plain(cfg.init_map),
        )
    before, now = tree.flatten(fresh["params"]), tree.flatten(state["params"])
    if random := [path for path in now if program.frozen[path] and now[path] is before[path]]:
        logging.warning(
            "Frozen at random values: %s. Nothing gave them others and training will not: name a "
            "source in config.init_from (VATT's word vectors: docs/convert.md), or train them "
            "(config.optimizer.frozen).",
            _towers_of(random, program.frozen),
        )
    return state, 0


def _towers_of(paths: list[str], every: Mapping[str, Any]) -> str:
    """Paths for a person: of a part of the model that is there with all its paths, its name."""
    whole: dict[str, list[str]] = collections.defaultdict(list)
    for path in every:
        whole[path.split("/")[0]].append(path)
    parts = {name for name, members in whole.items() if len(members) > 1}
    parts = {name for name in parts if set(whole[name]) <= set(paths)}
    rest = [path for path in paths if path.split("/")[0] not in parts]
    return ", ".join([*(f"all of {name}" for name in sorted(parts)), *rest])


def train(
    cfg: Any,
    model_dir: str,
    *,
    max_hours: float = 0.0,
    profile: str = "",
) -> dict[str, float]:
    """Trains to `cfg.total_steps`, or until SIGTERM or `max_hours`, and evaluates.

    Args:
      cfg: a checked config.
      model_dir: the run directory; a run that was interrupted goes on where it was.
      max_hours: save and end after so long (0: no limit).
      profile: 'START:STOP', steps to profile.

    Returns:
      The results of the last evaluation.

    Raises:
      UserError: anything the user can put right.
    """
    began = time.monotonic()
    primary = distributed.is_primary()
    mesh = sharding.make_mesh(
        **config.keywords(sharding.make_mesh, cfg.mesh, "mesh", given=["devices"])
    )
    window = profiler.parse_window(profile, total_steps=cfg.total_steps)

    # ---- data, model, state: everything that can be wrong is wrong before the first compilation
    run = RunDir(model_dir)
    if primary:
        run.lock()
    data, facts = open_train_data(cfg)
    program = build_program(cfg, facts, mesh)
    evaluators = evals.make_evaluators(
        config.plain(cfg.evals),
        task=program.task,
        data_cfg=config.plain(cfg.data),
        mesh=mesh,
        where="train",
        folder=run.path,
        made_by=config.plain(cfg),
    )
    for evaluator in evaluators:
        evaluator.check(program.state)
    keep = config.plain(cfg.checkpoint)
    best = snapshot.Best.from_config(run.path, keep, cfg.evals)
    keep = config.keywords(
        checkpoint.Checkpoints, keep, "checkpoint", given=["run_dir", "read_only", "frozen"]
    )
    saved = checkpoint.Checkpoints(run.path, frozen=program.frozen, **keep)
    logging.info("Run directory: %s", run.path)
    logging.info(
        "%s examples, %d a step. The train state:\n%s",
        data.num_examples or "A stream of",
        cfg.batch_size,
        program.plan(),
    )

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stop = stack.enter_context(distributed.StopSignal())
        stack.callback(run.unlock)
        stack.callback(saved.close)
        state, first = start_state(cfg, program, saved)
        if hasattr(program.task, "check"):
            program.task.check(state["params"])
        if first >= cfg.total_steps and run.complete_step() == first:
            logging.info(
                "This run is complete (step %d). Its results are in %s; give another --model_dir "
                "for a new run, or a larger --config.total_steps to go on.",
                first,
                run.path / "metrics.jsonl",
            )
            return {}
        if primary:  # only now: a start that fails, or is not needed, leaves the run as it was
            run.clear_complete()
            for line in run.write_start(cfg, program.plan(full=True), str(mesh)):
                logging.warning("config changed since the last start: %s", line)
        writer = stack.enter_context(
            writers.MetricWriter(
                run.path,
                tensorboard=cfg.tensorboard,
                wandb=config.plain(cfg.wandb) or None,
                process_index=jax.process_index(),
                first_step=first,
            )
        )
        meter = progress.Progress(
            cfg.total_steps,
            first_step=first,
            batch_size=cfg.batch_size,
            flops_per_step=program.task.flops(facts.spec),
            peak_flops=flops_lib.peak_of(mesh, program.task.dtype),
        )
        tracer = stack.enter_context(profiler.Profiler(run.path / "profile", window))
        guard = _NonfiniteGuard(cfg, data, run)
        window_metrics: dict[str, list[float]] = collections.defaultdict(list)
        pending: tuple[int, dict] | None = None
        results: dict[str, float] = {}
        reason = None

        def settle(pending: tuple[int, dict] | None) -> None:
            """Reads a finished step's metrics, a step late, so that the device never waits."""
            if pending is None:
                return
            number = pending[0]
            metrics = {name: float(value) for name, value in jax.device_get(pending[1]).items()}
            if guard.accepts(number, metrics):
                for name, value in metrics.items():
                    window_metrics[name].append(value)

        def save(step: int, state: dict) -> None:
            saved.save(step, state, {"step": step, "examples": step * cfg.batch_size})

        def keep_best(step: int, state: dict, results: Mapping[str, float]) -> None:
            if best.improved_by(results):
                save(step, state)
                saved.wait()
                if primary:
                    best.keep(step, results)
                distributed.barrier("best")

        # ---- the loop
        batches = iter(data.iterate(first))
        step = first
        while step < cfg.total_steps:
            with meter.data():
                batch = sharding.make_global(next(batches), mesh)
            tracer.at(step, state)
            with meter.step():
                state, metrics = program.step(state, batch)
                settle(pending)
            pending = (step, metrics)
            step += 1

            logs = step % cfg.log_every == 0 or step == cfg.total_steps
            if logs:
                with meter.step():
                    settle(pending)
                pending = None
                means = {name: float(np.mean(values)) for name, values in window_metrics.items()}
                window_metrics.clear()
                if primary:
                    writer.scalars(
                        step, {f"train/{k}": v for k, v in means.items()} | meter.metrics()
                    )
                    logging.info("%s", meter.line(step, means))
                if distributed.any_process(stop.received is not None):
                    reason = stop.received or "a signal to another process"
                elif distributed.any_process(_hours(began) >= max_hours > 0):
                    reason = f"--max_hours={max_hours}"
            elif stop.received and jax.process_count() == 1:
                reason = stop.received
            if saved.due(step) or step == cfg.total_steps or reason:
                with meter.pause():
                    settle(pending)
                    pending = None
                    save(step, state)
            if reason:
                break
            with meter.pause():
                done = evaluate.run_due(evaluators, state, step, final=step == cfg.total_steps)
                if done and primary:
                    writer.scalars(step, done)
                    if step < cfg.total_steps:
                        logging.info("%s", evals.format_results(done, title=f"Step {step}"))
                keep_best(step, state, done)
                results.update(done)
        if first == cfg.total_steps:  # it was stopped after its last step, before it was judged
            results = evaluate.run_due(evaluators, state, step, final=True)
            if primary:
                writer.scalars(step, results)
            keep_best(step, state, results)

        # ---- the end
        saved.wait()
        if data.corrupt:
            logging.warning("%d corrupt records were left out of training.", data.corrupt)
        if reason:
            logging.info(
                "Stopped by %s at step %d; saved. The same command goes on from there.",
                reason,
                step,
            )
        elif primary:
            run.write_complete(step)
            table = evals.format_results(results, title="Final results") if results else ""
            report.print_final(table, run.path, seconds=time.monotonic() - began)
            if cfg.evals and not evaluators:
                logging.info(
                    "Its evaluators are for a job of their own: python -m mmjax.main --task=%s "
                    "--mode=eval --model_dir=%s",
                    cfg.task,
                    run.path,
                )
        distributed.barrier("end")
        return results


def _hours(began: float) -> float:
    return (time.monotonic() - began) / 3600


class _NonfiniteGuard:
    """What follows from a step that was not finite: stop, with its batch on record, or go on."""

    def __init__(self, cfg: Any, data: Any, run: RunDir):
        self._cfg, self._data, self._run, self._count = cfg, data, run, 0

    def accepts(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether the metrics of this step are to be used.

        Raises:
          UserError: policy 'stop', or more than `nan_limit` such steps; the batch ids are on disk.
        """
        if not metrics["nonfinite"]:
            return True
        self._count += 1
        path = self._run.path / f"nonfinite_step_{step}.json"
        record = {
            "step": step,
            "metrics": {k: v if math.isfinite(v) else str(v) for k, v in metrics.items()},
            "batch_ids": {k: v.tolist() for k, v in self._data.batch_ids(step).items()},
        }
        if distributed.is_primary():
            path.write_text(json.dumps(record))
        text = f"loss {metrics['loss']}, gradient norm {metrics['grad_norm']} at step {step}"
        if self._cfg.nan_policy == "stop":
            raise UserError(
                f"Not finite: {text}. The records of this batch are listed in {path}; the "
                "parameters are those before it, in the last checkpoint. Lower the learning rate, "
                "clip gradients, or set --config.nan_policy=skip to leave such steps out."
            )
        if self._count > self._cfg.nan_limit:
            raise UserError(
                f"{self._count} steps were not finite, more than config.nan_limit="
                f"{self._cfg.nan_limit}; the last: {text}. The records of its batch are listed in "
                f"{path}. Lower the learning rate or clip gradients."
            )
        logging.warning("Not finite, step left out (%d so far): %s", self._count, text)
        return False
