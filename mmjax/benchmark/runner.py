"""Runs the cells of a benchmark: every encoder on every end task.

Cells are a queue that any number of processes may work on, on one host or on several that share
the output directory: a process takes the next cell that is neither finished nor locked by another
one. A failing cell does not stop the others.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Sequence

from absl import logging

from mmjax import cache
from mmjax.benchmark import cell as cells_lib
from mmjax.benchmark import evaluation
from mmjax.benchmark.cell import Cell
from mmjax.benchmark.experiments import Experiment
from mmjax.benchmark.image_encoder import ImageEncoder, open_encoder
from mmjax.benchmark.names import run_directory
from mmjax.benchmark.options import ProbeOptions, TrainingConfig
from mmjax.benchmark.progress import DONE_BEFORE, FAILED, FINISHED, SKIPPED, Reporter
from mmjax.benchmark.runs import Run
from mmjax.checkpoints.run_dir import RunDir
from mmjax.errors import UserError
from mmjax.monitor import log

BUSY = "busy"
# Files in the run directory of a cell.
_LOG, _LOCK = "log.txt", "cell.lock"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a cell.

    Attributes:
      title: The cell.
      experiment, run: Its names.
      state: 'finished', 'failed', 'skipped', 'done before', or 'busy' in another process.
      reason: Why it failed or was skipped, or its results.
      seconds: Time that it took.
    """

    title: str
    experiment: str
    run: str
    state: str
    reason: str = ""
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of the command that apply to all runs that do not set them.

    Attributes:
      out: Directory of the benchmark.
      root: Directory of the data sets.
      protocol: 'default' or 'paper'.
      seeds: Seeds per configuration; 0 for the default.
      schedulers: 'meant' or 'disabled'.
      size: Height and width of the images; 0 for those of the encoder.
      epochs: Replaces the epochs of all runs; 0 for their own.
      pca: Number of principal components of features that are computed once; 0 keeps them.
    """

    out: str
    root: str = "datasets"
    protocol: str = "default"
    seeds: int = 0
    schedulers: str = "meant"
    size: int = 0
    epochs: int = 0
    pca: int = 0


def make_cells(
    experiments: Sequence[Experiment], runs: Sequence[Run], settings: Settings
) -> list[tuple[Experiment, Run, Cell | None]]:
    """Returns the queue, ordered by encoder: (experiment, run, cell or None for an evaluation).

    A run on feature maps has a cell per training configuration, because its decoders are large.
    """
    queue: list[tuple[Experiment, Run, Cell | None]] = []
    for experiment in experiments:
        for run in runs:
            if not run.configs:
                queue.append((experiment, run, None))
                continue
            configs = tuple(
                TrainingConfig(name=name, **options) for name, options in run.configs.items()
            )
            whole = _options(run, configs, settings)
            parts = (
                [whole] if whole.uses_table else [_options(run, (c,), settings) for c in configs]
            )
            queue += [
                (
                    experiment,
                    run,
                    Cell(
                        experiment=experiment.name,
                        run=run.name,
                        options=part,
                        head=run.head,
                        out=settings.out,
                    ),
                )
                for part in parts
            ]
    return queue


def _options(run: Run, configs: tuple[TrainingConfig, ...], settings: Settings) -> ProbeOptions:
    table = run.pre_encode
    return ProbeOptions(
        end_task=run.end_task,
        root=settings.root,
        epochs=settings.epochs or run.epochs,
        batch_size=run.batch_size,
        eval_batch_size=run.test_batch_size or 0,
        seeds=run.seeds or settings.seeds,
        protocol=run.protocol or settings.protocol,
        schedulers=settings.schedulers,
        validation=run.validation,
        encode_once=table,
        repeats=run.num_dataset_repeats if table else 1,
        pca=settings.pca if table else 0,
        size=run.size or settings.size,
        configs=configs,
    )


def run_all(
    queue: Sequence[tuple[Experiment, Run, Cell | None]], settings: Settings, reporter: Reporter
) -> list[Outcome]:
    """Runs all cells that are not finished, and returns what became of each.

    Args:
      queue: From `make_cells`.
      settings: Options of the benchmark.
      reporter: Shows the progress.
    """
    lacking = _missing(queue, settings.root)
    outcomes = [
        Outcome(
            title=title,
            experiment=experiment.name,
            run=run.name,
            state=SKIPPED,
            reason=f"missing: {', '.join(lacking[run.end_task])}",
        )
        for experiment, run, cell in queue
        if lacking[run.end_task]
        for title in [cell.title if cell else f"{experiment.name} / {run.name}"]
    ]
    waiting = [item for item in queue if not lacking[item[1].end_task]]
    reporter.skipped(lacking, len(outcomes))
    encoders = _Encoders()
    while waiting:
        busy = []
        for experiment, run, cell in waiting:
            outcome = _attempt(experiment, run, cell, settings, encoders, reporter)
            if outcome.state == BUSY:
                busy.append((experiment, run, cell))
                continue
            reporter.ended(outcome.title, outcome.state, outcome.reason, outcome.seconds)
            outcomes.append(outcome)
        if len(busy) == len(waiting):  # only cells of other processes remain
            time.sleep(2)
        waiting = busy
    return outcomes


def _missing(
    queue: Sequence[tuple[Experiment, Run, Cell | None]], root: str
) -> dict[str, list[str]]:
    """Returns {end task: patterns of missing files}."""
    from mmjax.data.sources.layouts import missing

    return {
        name: missing(name, root) for name in dict.fromkeys(run.end_task for _, run, _ in queue)
    }


class _Encoders:
    """Opens encoders, and keeps the latest one."""

    def __init__(self) -> None:
        self._open = functools.lru_cache(maxsize=1)(self._read)

    def __call__(self, experiment: Experiment) -> ImageEncoder:
        if experiment.weights is None:
            raise UserError(
                f"{experiment.name} has no weights. pyVTAB uses torchvision's ImageNet weights in "
                "this case: name the file, for example resnet50-0676ba61.pth."
            )
        return self._open(experiment.weights)

    @staticmethod
    def _read(weights: str) -> ImageEncoder:
        return open_encoder(weights)


def _attempt(
    experiment: Experiment,
    run: Run,
    cell: Cell | None,
    settings: Settings,
    encoders: _Encoders,
    reporter: Reporter,
) -> Outcome:
    """Runs a cell if it is neither finished nor busy; never raises for a fault of the cell."""
    title = cell.title if cell else f"{experiment.name} / {run.name}"
    common = dict(title=title, experiment=experiment.name, run=run.name)
    started = time.monotonic()
    try:
        encoder = encoders(experiment)
        if cell is None:
            reporter.started(title)
            reason = evaluation.run(experiment, run, settings, encoder)
            return Outcome(**common, state=FINISHED, reason=reason, seconds=_since(started))
        digest = cells_lib.cell_hash(cell, encoder)
        if cells_lib.finished(cell, digest):
            return Outcome(**common, state=DONE_BEFORE)
        # The trainer locks the run directory only when the features have been computed.
        with cache.locked(cell.directory / _LOCK, wait=False) as taken:
            if not taken or RunDir(cell.directory).has_trainer():
                return Outcome(**common, state=BUSY)
            if cells_lib.finished(cell, digest):  # by another process in the meantime
                return Outcome(**common, state=DONE_BEFORE)
            reporter.started(title, cell.directory)
            with log.to_file(cell.directory / _LOG):
                written = cells_lib.run_cell(cell, encoder, digest)
    except Exception as error:  # noqa: BLE001 - one cell must not stop the others
        directory = (
            cell.directory if cell else run_directory(settings.out, experiment.name, run.name)
        )
        reason = _record(error, directory / _LOG)
        return Outcome(**common, state=FAILED, reason=reason, seconds=_since(started))
    best = "; ".join(f"{one.config_name}: {one.metric} {one.test_accuracy:.4g}" for one in written)
    return Outcome(**common, state=FINISHED, reason=best, seconds=_since(started))


def _record(error: Exception, path: pathlib.Path) -> str:
    """Writes an error to a log; returns its first line, and the name of the log if it has more."""
    known = isinstance(error, UserError)
    with log.to_file(path):
        logging.info("Failed: %s", error, exc_info=None if known else error)
    first, _, rest = str(error).partition("\n")
    if not known:
        first = f"{type(error).__name__}: {first}"
    return first if known and not rest else f"{first} (more in {path})"


def _since(started: float) -> float:
    return time.monotonic() - started
