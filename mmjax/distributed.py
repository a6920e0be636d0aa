"""Startup of one or several processes, barriers, and stop signals."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging

from mmjax.errors import UserError

# In errors of collectives whose other processes are gone.
_LOST = ("Gloo", "closed by peer", "reset by peer", "heartbeat", "UNAVAILABLE", "barrier")
_ENV = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize() -> None:
    """Connects the processes of a multi-process job.

    Detects, in this order: the environment variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID; a SLURM job with several tasks; a Cloud TPU pod slice. Otherwise this is a
    single-process job.

    Raises:
      UserError: Only some of the three variables are set.
    """
    variables = [name for name in _ENV if os.environ.get(name)]
    slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in os.environ
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if variables:
        if len(variables) < len(_ENV):
            missing = ", ".join(sorted(set(_ENV) - set(variables)))
            raise UserError(
                f"{', '.join(variables)} are set in the environment, but not {missing}. Set all "
                "three or none."
            )
        # Collectives between CPU processes; ignored on accelerators.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            coordinator_address=os.environ[_ENV[0]],
            num_processes=int(os.environ[_ENV[1]]),
            process_id=int(os.environ[_ENV[2]]),
        )
    elif slurm or len(hosts) > 1:
        jax.distributed.initialize()
    logging.info(
        "Process %d of %d with %d of %d devices: %s",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
        jax.devices()[0].device_kind,
    )


@contextlib.contextmanager
def report_lost_processes() -> Iterator[None]:
    """Ends this process with a message if the block fails because another process is gone."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not any(word in str(error) for word in _LOST):
            raise
        logging.error(
            "Process %d lost another process of this job: %s. The log of that process has the "
            "cause. To resume from the last checkpoint, start all processes again.",
            jax.process_index(),
            str(error).splitlines()[0][:300],
        )
        logging.flush()
        os._exit(1)  # a normal end waits for the lost process, and is then aborted


def is_primary() -> bool:
    """Returns whether this process writes the files of the run directory."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process calls this with the same name."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Returns whether the flag is set on any process. All processes must call this together."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def sum_of_processes(array: np.ndarray) -> np.ndarray:
    """Returns the sum of an array over all processes. All must call this together."""
    if jax.process_count() == 1:
        return array
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array)).sum(axis=0)


class StopSignal:
    """Turns SIGTERM and the first Ctrl-C into a flag, so that a run saves before it stops.

    A second Ctrl-C raises KeyboardInterrupt. Use it as a context manager; previous handlers are
    restored on exit.

    Attributes:
      received: Name of the signal received, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, object] = {}

    def _handle(self, number: int, frame: object) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
