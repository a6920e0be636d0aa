"""Who builds the shards: processes of this machine, or the workers of an Apache Beam runner."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import sys
from collections.abc import Sequence

from tqdm import tqdm

from mmjax.data.build.build import Shard, ShardBuilder
from mmjax.errors import UserError


def run_local(
    builder: ShardBuilder, shards: Sequence[Shard], *, workers: int, progress: bool = True
) -> None:
    """Builds shards in processes of this machine.

    Args:
      builder: see `ShardBuilder`.
      shards: what to build.
      workers: processes; 1 = this one.
      progress: show a bar.

    Raises:
      UserError: a row that cannot be built, with `on_error='fail'`, or a process that died.
    """
    total = sum(len(shard.clips) for shard in shards)
    interval = 0.5 if sys.stderr.isatty() else 30.0
    with tqdm(total=total, desc="clips", disable=not progress, mininterval=interval) as bar:
        if min(workers, len(shards)) <= 1:
            for shard in shards:
                builder(shard, bar.update)
            return
        context = multiprocessing.get_context("spawn")  # forking a process with threads may hang it
        counter = context.Value("Q")
        pool = concurrent.futures.ProcessPoolExecutor(
            min(workers, len(shards)), context, initializer=_start_worker, initargs=(counter,)
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
                "A worker process died, as it does when memory runs out or a file crashes FFmpeg. "
                f"{left} shards are left; run the same command again with fewer --workers, or "
                "with 1 to see where it stops."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def run_beam(builder: ShardBuilder, shards: Sequence[Shard], *, arguments: Sequence[str]) -> None:
    """Builds shards on the workers of an Apache Beam runner.

    The workers read the files and write the dataset under the same paths as this machine.

    Args:
      builder: see `ShardBuilder`.
      shards: what to build.
      arguments: Beam's own, such as `--runner=FlinkRunner`.

    Raises:
      UserError: Apache Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError('Apache Beam is not installed: pip install "mmjax[beam]".') from error
    with beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
        _ = (
            pipeline
            | "shards" >> beam.Create(list(shards))
            | "spread" >> beam.Reshuffle()
            | "build" >> beam.Map(builder)
        )


_counter = None  # in worker processes: the number of clips that all of them have done


def _start_worker(counter) -> None:
    global _counter
    _counter = counter


def _build(builder: ShardBuilder, shard: Shard) -> None:
    def tick() -> None:
        with _counter.get_lock():
            _counter.value += 1

    builder(shard, tick)
