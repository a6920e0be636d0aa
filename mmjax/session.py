"""Everything around the steps of a training run: data, checkpoints, logs, evaluation, stopping."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from mmjax import config, distributed, evals, evaluate, init_from, sharding, tree
from mmjax.checkpoints.best import Best
from mmjax.checkpoints.manager import Checkpoints
from mmjax.checkpoints.run_dir import RunDir
from mmjax.config import Config
from mmjax.data.pipeline import loader
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.monitor import flops, profiler, progress, report, writers
from mmjax.monitor.nonfinite import NonfiniteGuard
from mmjax.program import Program, build_program
from mmjax.tasks.base import make_task


def open_train_data(cfg: Config) -> tuple[Any, DataSpec]:
    """Returns the training data of a config and its spec."""
    data = loader.make_train_data(
        cfg.data,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return data, DataSpec.of(data)


def start_state(cfg: Config, program: Program, checkpoints: Checkpoints) -> tuple[dict, int]:
    """Returns the state and the step that training starts from, in this order of precedence:

    1. the newest checkpoint in the run directory;
    2. `resume_from`: the complete state of another run;
    3. `init_from`: matching parameters of another run or checkpoint, with a report;
    4. random initialization.
    """
    if restored := checkpoints.restore_newest(program.state):
        state, _, step = restored
        logging.info("Resumed from step %d of %s.", step, checkpoints.run_dir)
        return state, step
    if cfg.resume_from:
        restored = Checkpoints(cfg.resume_from, read_only=True).restore_newest(program.state)
        if not restored:
            raise UserError(
                f"config.resume_from={cfg.resume_from} contains no checkpoint. Pass a run "
                "directory, or set config.resume_from=''."
            )
        state, _, step = restored
        logging.info("Resumed from step %d of %s.", step, cfg.resume_from)
        return state, step
    initial = state = program.init(jax.random.key(cfg.seed))
    if cfg.init_from:
        state = init_from.from_source(
            initial, cfg.init_from, allow=cfg.init_allow, names=cfg.init_map
        )
    _warn_frozen_at_random(program, initial["params"], state["params"])
    return state, 0


def _warn_frozen_at_random(program: Program, initial: Any, params: Any) -> None:
    """Logs a warning for frozen parameters that kept their random initial values."""
    before, now = tree.flatten(initial), tree.flatten(params)
    random = [path for path in now if program.frozen[path] and now[path] is before[path]]
    if random:
        logging.warning(
            "These parameters are frozen at their random initial values: %s. Load pretrained "
            "values with config.init_from (for VATT's word vectors see docs/convert.md), or "
            "unfreeze them in config.optimizer.frozen.",
            _summarize(random, program.frozen),
        )


def _summarize(paths: list[str], every: Mapping[str, Any]) -> str:
    """Returns paths as text; a part of the model whose paths are all listed, by its name."""
    members: dict[str, list[str]] = collections.defaultdict(list)
    for path in every:
        members[path.split("/")[0]].append(path)
    parts = {name for name, own in members.items() if len(own) > 1 and set(own) <= set(paths)}
    rest = [path for path in paths if path.split("/")[0] not in parts]
    return ", ".join([*(f"all of {name}" for name in sorted(parts)), *rest])


class Session:
    """A training run between two steps. Create it with `open_session`.

    Attributes:
      step: Number of completed updates.
      state: The train state after them.
      stop_reason: Why training stops before `total_steps`, or None.
      results: Newest value of every evaluation metric.
    """

    def __init__(
        self,
        cfg: Config,
        *,
        run: RunDir,
        data: Any,
        program: Program,
        checkpoints: Checkpoints,
        best: Best,
        evaluators: list[evals.Evaluator],
        stop: distributed.StopSignal,
        max_hours: float,
    ):
        self.cfg, self.run, self.data, self.program = cfg, run, data, program
        self.checkpoints, self.best, self.evaluators = checkpoints, best, evaluators
        self.state, self.step = start_state(cfg, program, checkpoints)
        if hasattr(program.task, "check"):
            program.task.check(self.state["params"])
        self.first_step = self.step
        self.stop_reason: str | None = None
        self.results: dict[str, float] = {}
        self._stop, self._max_hours, self._started = stop, max_hours, time.monotonic()
        self._pending: tuple[int, dict] | None = None  # metrics on the device, and their step
        self._window: dict[str, list[float]] = collections.defaultdict(list)

    def start(self, stack: contextlib.ExitStack, data_spec: DataSpec, profile: Any) -> None:
        """Writes the start of the run and opens writers and meters.

        Called once nothing can fail anymore: a failing start leaves the run directory as it was.
        """
        cfg, run, task = self.cfg, self.run, self.program.task
        if distributed.is_primary():
            run.clear_complete()
            mesh = str(self.program.mesh)
            for line in run.write_start(cfg, self.program.plan(full=True), mesh):
                logging.warning("The config changed since the last start: %s", line)
        self._writer = stack.enter_context(
            writers.MetricWriter(
                run.path,
                tensorboard=cfg.tensorboard,
                wandb=cfg.wandb or None,
                process_index=jax.process_index(),
                first_step=self.first_step,
            )
        )
        self._meter = progress.Progress(
            cfg.total_steps,
            first_step=self.first_step,
            batch_size=cfg.batch_size,
            flops_per_step=task.flops(data_spec.batch),
            peak_flops=flops.peak_of(self.program.mesh, task.dtype),
        )
        self._profiler = stack.enter_context(profiler.Profiler(run.path / "profile", profile))
        self._guard = NonfiniteGuard(
            run.path,
            batch_ids=self.data.batch_ids,
            policy=cfg.nan_policy,
            limit=cfg.nan_limit,
        )
        self._batches = iter(self.data.iterate(self.first_step))

    @property
    def done(self) -> bool:
        """Whether no step is left to train."""
        return self.step >= self.cfg.total_steps or self.stop_reason is not None

    @property
    def already_complete(self) -> bool:
        """Whether an earlier start trained and evaluated this run to its end."""
        return self.step >= self.cfg.total_steps and self.run.complete_step() == self.step

    @property
    def log_due(self) -> bool:
        return self.step % self.cfg.log_every == 0 or self.step == self.cfg.total_steps

    @property
    def save_due(self) -> bool:
        last = self.step == self.cfg.total_steps
        return last or self.stop_reason is not None or self.checkpoints.due(self.step)

    def next_batch(self) -> dict[str, jax.Array]:
        """Returns the next global batch."""
        with self._meter.data():
            return sharding.make_global(next(self._batches), self.program.mesh)

    def update(self, batch: Mapping[str, jax.Array]) -> None:
        """Dispatches one update, and reads the metrics of the one before.

        Metrics are read one step late so that the device never waits for the host.
        """
        self._profiler.at(self.step, self.state)
        with (
            self._meter.step(),
            jax.profiler.StepTraceAnnotation("train", step_num=self.step),
        ):
            self.state, metrics = self.program.step(self.state, batch)
            self._settle()
        self._pending = (self.step, metrics)
        self.step += 1

    def _settle(self) -> None:
        """Reads the metrics of the last dispatched step, if any."""
        if self._pending is None:
            return
        step, on_device = self._pending
        self._pending = None
        metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
        if self._guard.accepts(step, metrics):
            for name, value in metrics.items():
                self._window[name].append(value)

    def log(self) -> None:
        """Writes the mean metrics since the last call."""
        with self._meter.step():
            self._settle()
        means = {name: float(np.mean(values)) for name, values in self._window.items()}
        self._window.clear()
        if distributed.is_primary():
            train = {f"train/{name}": value for name, value in means.items()}
            self._writer.scalars(self.step, train | self._meter.metrics())
            logging.info("%s", self._meter.line(self.step, means))

    def check_stop(self) -> None:
        """Sets `stop_reason` after a signal or when the time is up.

        Several processes agree at the steps that are logged, a single one stops at any step.
        """
        received = self._stop.received
        if self.log_due:
            hours = (time.monotonic() - self._started) / 3600
            if distributed.any_process(received is not None):
                self.stop_reason = received or "a signal to another process"
            elif distributed.any_process(hours >= self._max_hours > 0):
                self.stop_reason = f"--max_hours={self._max_hours}"
        elif received and jax.process_count() == 1:
            self.stop_reason = received

    def save(self) -> None:
        """Saves a checkpoint in the background."""
        with self._meter.pause():
            self._settle()
            self._save()

    def _save(self) -> None:
        examples = self.step * self.cfg.batch_size
        self.checkpoints.save(self.step, self.state, {"step": self.step, "examples": examples})

    def evaluate(self) -> None:
        """Runs the evaluators that are due, and keeps the best checkpoint."""
        final = self.step == self.cfg.total_steps
        with self._meter.pause():
            results = evaluate.run_due(self.evaluators, self.state, self.step, final=final)
            if results and distributed.is_primary():
                self._writer.scalars(self.step, results)
                if not final:
                    title = f"Step {self.step}"
                    logging.info("%s", evals.format_results(results, title=title))
            if self.best.improved_by(results):
                self._save()
                self.checkpoints.wait()
                if distributed.is_primary():
                    self.best.keep(self.step, results)
                distributed.barrier("best")
        self.results |= results

    def finish(self) -> dict[str, float]:
        """Waits for the last checkpoint, reports, and returns the results."""
        self.checkpoints.wait()
        if self.data.corrupt:
            logging.warning("Training skipped %d corrupt records.", self.data.corrupt)
        if self.stop_reason:
            logging.info(
                "Stopped by %s at step %d after saving. Run the same command to continue.",
                self.stop_reason,
                self.step,
            )
        elif distributed.is_primary():
            self.run.write_complete(self.step)
            self._report()
        distributed.barrier("end")
        return self.results

    def _report(self) -> None:
        results = self.results
        table = evals.format_results(results, title="Final results") if results else ""
        report.print_final(table, self.run.path, seconds=time.monotonic() - self._started)
        if self.cfg.evals and not self.evaluators:
            logging.info(
                "All evaluators of this recipe run in a separate job: python -m mmjax.main "
                "--task=%s --mode=eval --model_dir=%s",
                self.cfg.task,
                self.run.path,
            )


@contextlib.contextmanager
def open_session(
    cfg: Config, model_dir: str, *, max_hours: float = 0.0, profile: str = ""
) -> Iterator[Session]:
    """Opens everything that a training run needs, and closes it again.

    Raises:
      UserError: An invalid config, dataset, run directory or flag. All of these are found before
        the train step is compiled.
    """
    mesh = sharding.make_mesh(
        **config.keywords(sharding.make_mesh, cfg.mesh, "mesh", provided=["devices"])
    )
    window = profiler.parse_window(profile, total_steps=cfg.total_steps)
    run = RunDir(model_dir)
    with contextlib.ExitStack() as stack:
        if distributed.is_primary():
            run.lock()
            stack.callback(run.unlock)
        data, data_spec = open_train_data(cfg)
        program = build_program(cfg, make_task(cfg, data_spec), mesh)
        evaluators = evals.make_evaluators(
            cfg.evals,
            task=program.task,
            data_cfg=cfg.data,
            mesh=mesh,
            where="train",
            directory=run.path,
            task_cfg=vars(cfg),
        )
        for evaluator in evaluators:
            evaluator.check(program.state)
        options = dict(cfg.checkpoint)
        best = Best.from_config(run.path, options, cfg.evals)
        options = config.keywords(
            Checkpoints, options, "checkpoint", provided=["run_dir", "read_only", "frozen"]
        )
        checkpoints = Checkpoints(run.path, frozen=program.frozen, **options)
        logging.info("Run directory: %s", run.path)
        logging.info(
            "%s examples, %d per step. Train state:\n%s",
            data.num_examples or "A stream of",
            cfg.batch_size,
            program.plan(),
        )
        stack.enter_context(jax.set_mesh(mesh))
        stop = stack.enter_context(distributed.StopSignal())
        stack.callback(checkpoints.close)
        session = Session(
            cfg,
            run=run,
            data=data,
            program=program,
            checkpoints=checkpoints,
            best=best,
            evaluators=evaluators,
            stop=stop,
            max_hours=max_hours,
        )
        if not session.already_complete:
            session.start(stack, data_spec, window)
        yield session
