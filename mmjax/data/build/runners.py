"""Runs the building of shards: in processes of this machine, or on workers of Apache Beam."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import sys
from collections.abc import Sequence

from tqdm import tqdm

from mmjax.data.build.plan import Shard
from mmjax.data.build.shards import ShardBuilder
from mmjax.errors import UserError


def run_local(
    builder: ShardBuilder, shards: Sequence[Shard], *, workers: int, progress: bool = True
) -> None:
    """Builds shards in processes of this machine.

    Args:
      builder: Builds a shard.
      shards: The shards to build.
      workers: Number of processes; 1 for this process.
      progress: Whether to show a progress bar.

    Raises:
      UserError: A clip cannot be built and `on_error` is 'fail', or a process died.
    """
    total = sum(len(shard.clips) for shard in shards)
    interval = 0.5 if sys.stderr.isatty() else 30.0
    with tqdm(total=total, desc="examples", disable=not progress, mininterval=interval) as bar:
        if min(workers, len(shards)) <= 1:
            for shard in shards:
                builder(shard, bar.update)
        else:
            _run_processes(builder, shards, min(workers, len(shards)), bar)


def _run_processes(builder: ShardBuilder, shards: Sequence[Shard], workers: int, bar: tqdm) -> None:
    context = multiprocessing.get_context("spawn")  # forking a process with threads may hang it
    counter = context.Value("Q")
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_start_worker, initargs=(counter,)
    )
    try:
        futures = {pool.submit(_build, builder, shard): shard for shard in shards}
        waiting = set(futures)
        while waiting:
            done, waiting = concurrent.futures.wait(
                waiting, timeout=0.2, return_when=concurrent.futures.FIRST_EXCEPTION
            )
            for future in done:
                future.result()
            if counter.value > bar.n:
                bar.update(counter.value - bar.n)
    except concurrent.futures.process.BrokenProcessPool as error:
        left = sum(not future.done() or future.exception() is not None for future in futures)
        raise UserError(
            f"A worker process died with {left} of {len(shards)} shards left. Usual reasons are "
            "too little memory, or a file that crashes FFmpeg. Run the same command again with "
            "fewer --workers; --workers 1 shows which file it is."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def run_beam(builder: ShardBuilder, shards: Sequence[Shard], *, arguments: Sequence[str]) -> None:
    """Builds shards on the workers of an Apache Beam runner.

    The workers must see the media files and the dataset under the same paths as this machine.

    Args:
      builder: Builds a shard.
      shards: The shards to build.
      arguments: Arguments of Beam, such as `--runner=FlinkRunner`.

    Raises:
      UserError: Apache Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            '--runner beam needs Apache Beam. Install it with: pip install "mmjax[beam]".'
        ) from error
    with beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
        _ = (
            pipeline
            | "shards" >> beam.Create(list(shards))
            | "distribute" >> beam.Reshuffle()
            | "build" >> beam.Map(builder)
        )


_counter = None  # in worker processes: the number of clips that all workers have finished


def _start_worker(counter) -> None:
    global _counter
    _counter = counter


def _build(builder: ShardBuilder, shard: Shard) -> None:
    def tick() -> None:
        with _counter.get_lock():
            _counter.value += 1

    builder(shard, tick)
