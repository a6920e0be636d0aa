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

from mmjax import config, distributed, enrichment, evals, evaluate, sharding
from mmjax.checkpoints.best import Best
from mmjax.checkpoints.manager import Checkpoints
from mmjax.checkpoints.run_dir import RunDir
from mmjax.config import Config
from mmjax.data.pipeline import loader
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.monitor import flops, metrics_file, profiler, progress, report, writers
from mmjax.monitor.nonfinite import NonfiniteGuard
from mmjax.program import Program, build_program
from mmjax.start import find_start
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


class Session:
    """A training run between two steps. Create it with `open_session`.

    Attributes:
      step: Number of completed steps.
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
        enricher: enrichment.Enricher | None,
        stop: distributed.StopSignal,
        max_hours: float,
    ):
        self.cfg, self.run, self.data, self.program = cfg, run, data, program
        self.checkpoints, self.best, self.evaluators = checkpoints, best, evaluators
        self._enricher = enricher
        self._start = find_start(cfg, program, checkpoints)
        self.state, self.step = self._start.state, self._start.step
        if hasattr(program.task, "check"):
            program.task.check(self.state["params"])
        self.first_step = self.step
        self.stop_reason: str | None = None
        self.results: dict[str, float] = {}
        self._stop, self._max_hours, self._started = stop, max_hours, time.monotonic()
        self._pending: tuple[int, dict] | None = None  # metrics on the device, and their step
        # Metrics since the last logged step. A checkpoint stores them, so that the next mean covers
        # the same steps in a resumed run.
        self._window: dict[str, list[float]] = collections.defaultdict(list)
        for name, values in self._start.meta.get("window", {}).items():
            self._window[name] += map(float, values)

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
                resume_at=self.first_step,
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
            count=self._start.meta.get("nonfinite", 0),
        )
        self._batches = iter(self.data.iterate(self.first_step))
        self._enriched: enrichment.EnrichedBatches | None = None
        if self._enricher is not None:
            self._enriched = enrichment.EnrichedBatches(
                self._batches,
                self._enricher,
                run.path,
                step=self.first_step,
                last_step=cfg.total_steps,
            )

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
        """Returns the next global batch.

        Raises:
          UserError: The stage between data and step failed. The state has been saved.
        """
        with self._meter.data():
            if self._enriched is None:
                batch = next(self._batches)
            else:
                try:
                    batch = self._enriched.next(self.state, self.step)
                except UserError:
                    self.save()
                    self.checkpoints.wait()
                    raise
            return sharding.make_global(batch, self.program.mesh)

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
        if self._enriched is not None:
            means |= self._enriched.metrics()
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
        """Saves a checkpoint in the background, with what a resumed run needs to log the same."""
        with self._meter.pause():
            self._settle()
            if distributed.is_primary():
                self._writer.sync()
            meta = {
                "step": self.step,
                "examples": self.step * self.cfg.batch_size,
                "nonfinite": self._guard.count,
                "window": {
                    name: [metrics_file.encode(value) for value in values]
                    for name, values in self._window.items()
                },
            }
            if self._enriched is not None:
                self._enriched.save(self.step, keep=self.checkpoints.steps())
            self.checkpoints.save(self.step, self.state, meta)

    def _due_evaluators(self) -> list[evals.Evaluator]:
        final = self.step == self.cfg.total_steps
        return [e for e in self.evaluators if e.schedule.due(self.step, final=final)]

    def evaluate(self) -> None:
        """Runs the evaluators that are due, and keeps the best checkpoint."""
        self._evaluate(self._due_evaluators())

    def evaluate_missed(self) -> None:
        """Runs the evaluators that were due at the first step and did not complete.

        The trainer was stopped after saving that checkpoint, or killed while evaluating it.
        """
        if not self._start.resumed and not self.done:
            return
        recorded, missed = {}, []
        if distributed.is_primary():
            values = metrics_file.values_at(self.run.path, self.step)
            names = {e.name for e in self.evaluators}
            recorded = {k: v for k, v in values.items() if k.partition("/")[0] in names}
        for evaluator in self._due_evaluators():
            written = any(name.startswith(f"{evaluator.name}/") for name in recorded)
            if distributed.any_process(distributed.is_primary() and not written):
                missed.append(evaluator)
        self.results |= recorded
        if distributed.any_process(distributed.is_primary() and self.best.step() < self.step):
            self._keep_best(recorded)  # the trainer may have been killed before
        self._evaluate(missed)

    def _evaluate(self, evaluators: list[evals.Evaluator]) -> None:
        if not evaluators:
            return
        final = self.step == self.cfg.total_steps
        with self._meter.pause():
            results = evaluate.run_all(evaluators, self.state, self.step)
            if results and distributed.is_primary():
                self._writer.scalars(self.step, results)
                if not final:
                    title = f"Step {self.step}"
                    logging.info("%s", evals.format_results(results, title=title))
        self._keep_best(results)
        self.results |= results

    def _keep_best(self, results: Mapping[str, float]) -> None:
        """Keeps the checkpoint of this step if its results are the best so far."""
        best = distributed.is_primary() and self.best.improved_by(results)
        if distributed.any_process(best):
            self.save()
            with self._meter.pause():
                self.checkpoints.wait()
                if distributed.is_primary():
                    self.best.keep(self.step, results)
                distributed.barrier("best")

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
        # JAX does not reuse a trace from another mesh, so set it before the model is traced.
        stack.enter_context(jax.set_mesh(mesh))
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
        enricher = None
        if (stage := enrichment.enricher_of(program.task)) is not None:
            enricher = stage(cfg, program.task, data_spec, mesh)
            stack.callback(enricher.close)
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
            enricher=enricher,
            stop=stop,
            max_hours=max_hours,
        )
        if not session.already_complete:
            session.start(stack, data_spec, window)
        yield session
