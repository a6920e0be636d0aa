"""The host stage between data and step: batches with fields that depend on the model.

A task names the class of its stage in `enricher`. The stage of step n + `staleness` is started
before step n, so that its slow part, such as requests to a server, runs while the device trains. It
then sees the parameters before step n. With staleness 0, nothing overlaps.

A resumed run continues with what the interrupted one had started: `EnrichedBatches.save` writes it
beside each checkpoint.
"""

from __future__ import annotations

import collections
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging

from mmjax import files, registry
from mmjax.config import Config

_COUNT = "queue.json"  # number of tickets

Batch = Mapping[str, np.ndarray]


class Enricher(Protocol):
    """The interface of a stage.

    The constructor takes `(cfg, task, data_spec, mesh)`.
    """

    staleness: int

    @staticmethod
    def field_shapes(cfg: Config, task: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of the new fields, to compile the step without a stage."""

    def start(self, state: dict, step: int, batch: Batch) -> Any:
        """Returns a ticket of work that has been started.

        Args:
          state: The train state.
          step: The step that the batch is for.
          batch: The batch on the host.
        """

    def finish(self, ticket: Any) -> dict[str, np.ndarray]:
        """Waits for the work of a ticket, and returns the new fields of its batch."""

    def save(self, directory: pathlib.Path, tickets: list[Any]) -> None:
        """Writes the state of the stage and the tickets that are not finished."""

    def restore(self, directory: pathlib.Path, batches: list[Batch]) -> list[Any]:
        """Restores the state, and returns tickets for the batches that had been started.

        Args:
          directory: What `save` has written.
          batches: The batches that the saved tickets are for.
        """

    def metrics(self) -> dict[str, float]:
        """Returns metrics since the last call."""

    def close(self) -> None:
        """Releases threads and connections."""


def enricher_of(task: Any) -> type[Enricher] | None:
    """Returns the stage that a task names in `enricher`, a string 'package.module:Name'."""
    name = getattr(task, "enricher", None)
    return registry.resolve("enricher", name, {}) if name else None


class EnrichedBatches:
    """Batches with the fields of a stage.

    Args:
      batches: Batches on the host, from step `step` on.
      enricher: The stage.
      run_dir: The run directory.
      step: The first step.
      last_step: Steps from this one on are not started.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        enricher: Enricher,
        run_dir: pathlib.Path,
        *,
        step: int,
        last_step: int,
    ):
        self._batches, self._enricher, self._last = batches, enricher, last_step
        self._directory = pathlib.Path(run_dir, "enrichment")
        self._queue: collections.deque[tuple[Batch, Any]] = collections.deque()
        saved = self._directory / str(step)
        if saved.exists():
            count = files.read_object(saved / _COUNT, "Delete this directory.")["tickets"]
            restored = [next(batches) for _ in range(count)]
            tickets = enricher.restore(saved, restored)
            self._queue.extend(zip(restored, tickets, strict=True))
        elif step:
            logging.warning(
                "%s does not exist: the stage between data and step starts from its initial state.",
                saved,
            )

    def next(self, state: dict, step: int) -> dict[str, np.ndarray]:
        """Returns the batch of a step, and starts later ones."""
        last = min(step + self._enricher.staleness, self._last - 1)
        while step + len(self._queue) <= last:
            batch = next(self._batches)
            ticket = self._enricher.start(state, step + len(self._queue), batch)
            self._queue.append((batch, ticket))
        batch, ticket = self._queue[0]
        fields = self._enricher.finish(ticket)
        self._queue.popleft()  # a ticket that fails is saved
        return {**batch, **fields}

    def save(self, step: int, keep: list[int]) -> None:
        """Writes what a run that is resumed at a step needs, and removes earlier files.

        Args:
          step: Number of completed steps.
          keep: The steps of complete checkpoints. Those after them may still be written.
        """
        partial = self._directory / f".{step}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files.write_json(partial / _COUNT, {"tickets": len(self._queue)})
        self._enricher.save(partial, [ticket for _, ticket in self._queue])
        final = self._directory / str(step)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for path in self._directory.glob("[0-9]*"):
            if int(path.name) < max(keep, default=0) and int(path.name) not in keep:
                shutil.rmtree(path, ignore_errors=True)

    def metrics(self) -> dict[str, float]:
        """Returns metrics of the stage since the last call."""
        return self._enricher.metrics()

    def close(self) -> None:
        """Releases what the stage holds."""
        self._enricher.close()
