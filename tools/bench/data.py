"""The input pipeline, compared with only decoding the same frames."""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mmjax.errors import UserError
from mmjax.tools.bench.common import call_for, medians

if TYPE_CHECKING:  # imports JAX
    from mmjax.config import Config


def run(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Measures clips per second and CPU time per clip.

    `floor` decodes complete sampled frames, `floor_window` only the part that the pipeline crops.
    Both use as many threads of the same runtime as the pipeline, read from memory, and do nothing
    else.
    """
    from mmjax.data.pipeline import bare_decoding, loader

    data = loader.make_train_data(cfg.data, batch_size=cfg.batch_size, seed=cfg.seed)
    if data.cfg.video is None:
        raise UserError(
            "mmjax bench data compares with decoding frames, but this recipe has no "
            "config.data.video. Choose another recipe with --config."
        )
    frames = bare_decoding.sample_frames(cfg.data, batch_size=cfg.batch_size, seed=cfg.seed)
    iterators: dict[str, Callable[[], Iterator]] = {
        "floor": lambda: bare_decoding.decode(frames, data, crop=False),
        "pipeline": lambda: data.iterate(0),
    }
    if frames.windows is not None:
        iterators["floor_window"] = lambda: bare_decoding.decode(frames, data, crop=True)
    measurements: dict[str, list[dict[str, float]]] = {name: [] for name in iterators}
    for _, (name, start) in itertools.product(range(args.repeats), iterators.items()):
        iterator = start()
        # Fill the buffers as they are during the measurement, in which the consumer never waits.
        call_for(args.seconds / 3, lambda i=iterator: next(i))
        calls, wall, cpu = call_for(args.seconds, lambda i=iterator: next(i))
        clips = calls * cfg.batch_size
        measurements[name].append(
            {"clips_per_second": clips / wall, "cpu_ms_per_clip": 1e3 * cpu / clips}
        )
        del iterator
    return {
        **{name: medians(values) for name, values in measurements.items()},
        **_ratios(measurements),
        "input": {
            "dataset": data.info.name,
            "examples": data.num_examples,
            "stored_frame": data.info.frame_size,
            "kilobytes_per_frame": frames.mean_bytes / 1e3,
            "batch": {name: [list(s.shape), str(s.dtype)] for name, s in data.spec.items()},
            "threads": data.threads,
        },
    }


def _ratios(measurements: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Returns medians of the ratios within each repeat."""
    ratios = {}
    for floor in ("floor", "floor_window"):
        if floor not in measurements:
            continue
        pairs = list(zip(measurements["pipeline"], measurements[floor], strict=True))
        ratios[f"pipeline_over_{floor}"] = statistics.median(
            pipeline["clips_per_second"] / own["clips_per_second"] for pipeline, own in pairs
        )
        ratios[f"{floor}_cpu_over_pipeline_cpu"] = statistics.median(
            own["cpu_ms_per_clip"] / pipeline["cpu_ms_per_clip"] for pipeline, own in pairs
        )
    return ratios
