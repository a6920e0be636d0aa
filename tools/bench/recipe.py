"""How fast it is, on a recipe's own data, model and batch size.

    python -m mmjax.tools.bench.recipe data                 the input pipeline against bare decoding
    python -m mmjax.tools.bench.recipe step                 the compiled step; compilation at several depths
    python -m mmjax.tools.bench.recipe packed --config=demo:ut_fac    one encoder for all modalities at once
    python -m mmjax.tools.bench.recipe loop                 what the loop adds; time to the first step
    python -m mmjax.tools.bench.recipe eval                 feature extraction and the linear probe
    python -m mmjax.tools.bench.recipe neighbors           nearest neighbors, and faiss's
    python -m mmjax.tools.bench.recipe probe --examples 10000 --dim 2048    the probe's fit, and scikit-learn's
    python -m mmjax.tools.bench.recipe data step --task=pretrain --config=demo --config.batch_size=32

Recipes and overrides are those of `mmjax.main`. The output is one JSON object: figures, the command
and the machine. What is compared is measured in turns within one run, and figures are medians over
`--repeats`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmjax.tools.bench import neighbors as bench_neighbors
from mmjax.tools.bench import probe as bench_probe

from mmjax import config
from mmjax.cache import cache_dir
from mmjax.errors import UserError
from mmjax.monitor import report, writers

# ---- measuring


def sustained(step: Callable[[], Any], seconds: float) -> tuple[int, float, float]:
    """(calls, wall seconds, CPU seconds of this process) of calling `step` for `seconds`."""
    calls, cpu, began = 0, time.process_time(), time.perf_counter()
    while calls == 0 or time.perf_counter() - began < seconds:
        step()
        calls += 1
    return calls, time.perf_counter() - began, time.process_time() - cpu


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


# ---- data


def bench_data(cfg: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Clips per second and CPU time per clip: the training pipeline, and decoding the same frames
    alone.

    `floor` decodes the whole sampled frames, `floor_window` only the part that the pipeline crops;
    both on as many threads of the same runtime, from memory, and nothing else.
    """
    from mmjax.data.pipeline import loader

    data_cfg = cfg.data

    def open_data(section: dict[str, Any]) -> Any:
        return loader.make_train_data(section, batch_size=cfg.batch_size, seed=cfg.seed)

    data = open_data(data_cfg)
    if data.cfg.video is None:
        raise UserError("The floor is decoding frames; this recipe has no config.data.video.")
    frames, windows = _sampled_frames(open_data, data_cfg)
    kinds: dict[str, Callable[[], Iterator]] = {
        "floor": lambda: _decoding(frames, None, data),
        "pipeline": lambda: data.iterate(0),
    }
    if windows is not None:
        kinds["floor_window"] = lambda: _decoding(frames, windows, data)
    rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _, (kind, start) in itertools.product(range(options.repeats), kinds.items()):
        iterator = start()
        # Buffers are as full at the beginning of the measurement as at its end: the consumer never
        # rests.
        sustained(lambda i=iterator: next(i), options.seconds / 3)
        calls, wall, cpu = sustained(lambda i=iterator: next(i), options.seconds)
        clips = calls * cfg.batch_size
        rows[kind].append({"clips_per_second": clips / wall, "cpu_ms_per_clip": 1e3 * cpu / clips})
        del iterator
    figures: dict[str, Any] = {kind: medians(found) for kind, found in rows.items()}
    for kind in ("floor", "floor_window"):
        if kind in rows:
            pairs = list(zip(rows["pipeline"], rows[kind], strict=True))
            figures[f"pipeline_over_{kind}"] = statistics.median(
                a["clips_per_second"] / b["clips_per_second"] for a, b in pairs
            )
            figures[f"{kind}_cpu_over_pipeline_cpu"] = statistics.median(
                b["cpu_ms_per_clip"] / a["cpu_ms_per_clip"] for a, b in pairs
            )
    encoded = sum(len(frame) for clip in frames for frame in clip)
    figures["input"] = {
        "dataset": data.info.name,
        "examples": data.num_examples,
        "stored_frame": data.info.frame_size,
        "kilobytes_per_frame": encoded / frames.size / 1e3,
        "batch": {name: [list(s.shape), str(s.dtype)] for name, s in data.spec.items()},
        "threads": data.threads,
    }
    return figures


def _sampled_frames(open_data: Callable[[dict], Any], data_cfg: dict) -> tuple[Any, Any]:
    """Encoded frames, object [N, T], and windows, int32 [N, 4] or None, as the pipeline draws."""
    import numpy as np

    sections = ("audio", "text", "label", "touch")
    data = open_data({**data_cfg, **{name: None for name in sections if name in data_cfg}})
    names = data.pipeline.names()
    data.pipeline.replace(
        "decode",
        "video",
        lambda f: {
            "frames": f["_frames"],
            **({"window": f["_window"]} if "_window" in f else {}),
        },
    )
    for name in names["preprocess"]:
        data.pipeline.remove("preprocess", name)
    batches = list(itertools.islice(data.iterate(0), max(1, 128 // data.batch_size)))
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return joined["frames"], joined.get("window")


def _decoding(frames: Any, windows: Any, data: Any) -> Iterator:
    """Decodes clips in batches and on threads like the pipeline's, and does nothing else."""
    import tensorflow as tf

    method = {"fast": "INTEGER_FAST", "accurate": "INTEGER_ACCURATE"}[data.cfg.video.dct]
    stored = tf.constant(frames)
    places = None if windows is None else tf.constant(windows)

    def clip(number: tf.Tensor) -> tf.Tensor:
        number %= len(frames)
        pixels = []
        for picture in tf.unstack(stored[number], frames.shape[1]):
            if places is None:
                image = tf.io.decode_jpeg(picture, channels=3, dct_method=method)
            else:
                image = tf.io.decode_and_crop_jpeg(
                    picture, places[number], channels=3, dct_method=method
                )
            pixels.append(tf.cast(image[0, 0, 0], tf.int32))  # or the decoding would be pruned
        return tf.add_n(pixels)

    dataset = tf.data.Dataset.range(2**62).map(clip, num_parallel_calls=data.threads)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.max_intra_op_parallelism = 1
    options.threading.private_threadpool_size = data.threads
    return dataset.batch(data.rows).prefetch(2).with_options(options).as_numpy_iterator()


# ---- step


class Bare:
    """The program of a recipe with a state and one batch on the devices.

    Args:
      cfg: the recipe.
      synthetic: a batch of noise of the recipe's shapes, for recipes whose dataset is not here.
    """

    def __init__(self, cfg: Any, *, synthetic: bool = False):
        import jax

        from mmjax import program, session, sharding
        from mmjax.data_spec import DataSpec
        from mmjax.tasks import make_task

        self._cfg = cfg
        self.mesh = sharding.make_mesh(**cfg.mesh)
        if synthetic:
            self.data_spec = DataSpec.of_config(cfg)
            self.host_batch = _noise(self.data_spec.batch)
        else:
            self.data, self.data_spec = session.open_train_data(cfg)
            self.host_batch = next(iter(self.data.iterate(0)))
        self.program = program.build_program(cfg, make_task(cfg, self.data_spec), self.mesh)
        with jax.set_mesh(self.mesh):
            self.state = self.program.init(jax.random.key(cfg.seed))
            self.batch = sharding.make_global(self.host_batch, self.mesh)

    @functools.cached_property
    def compiled(self) -> tuple[Any, dict[str, float]]:
        """The step and what it cost to compile."""
        import jax

        with jax.set_mesh(self.mesh):
            began, cpu = time.perf_counter(), time.process_time()
            lowered = self.program.step.lower(self.state, self.batch)
            traced = time.perf_counter()
            step = lowered.compile()
        return step, {
            "trace_seconds": traced - began,
            "compile_seconds": time.perf_counter() - traced,
            "cpu_seconds": time.process_time() - cpu,
        }

    def step_seconds(self, seconds: float) -> float:
        """Wall clock per step over at least `seconds`, the device kept busy."""
        import jax

        def step() -> None:
            self.state, metrics = compiled(self.state, self.batch)
            if jax.default_backend() == "cpu" or next(waits) % 8 == 7:
                jax.block_until_ready(metrics)  # calls would run away from the clock

        compiled, _ = self.compiled
        waits = itertools.count()
        step()
        jax.block_until_ready(self.state)
        began, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - began < seconds:
            step()
            calls += 1
        jax.block_until_ready(self.state)
        return (time.perf_counter() - began) / calls


def _noise(spec: Any) -> dict[str, Any]:
    """A batch with every modality: any bytes, quiet noise, words 1 to 99, class 0, masks of 1."""
    import numpy as np

    from mmjax.modalities import INPUTS

    draw, batch = np.random.default_rng(0), {}
    for name, leaf in spec.items():
        if leaf.dtype == np.uint8:
            batch[name] = draw.integers(0, 256, leaf.shape, np.uint8)
        elif name in INPUTS and leaf.dtype == np.int32:
            batch[name] = draw.integers(1, 100, leaf.shape, np.int32)
        elif name in INPUTS:  # sound, or features of a tower
            batch[name] = draw.normal(0, 0.1, leaf.shape).astype(np.float32)
        else:
            value = 0 if name == "label" else 1
            batch[name] = np.full(leaf.shape, value, leaf.dtype)
    return batch


def bench_step(cfg: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Time, FLOP/s and MFU of the compiled step, and what compilation costs at several depths."""
    import jax

    from mmjax.monitor import flops

    jax.config.update("jax_enable_compilation_cache", False)
    bare = Bare(cfg, synthetic=options.synthetic)
    dtype = bare.program.task.dtype
    rows = []
    for _ in range(options.repeats):
        rows.append(
            {
                "step_seconds": bare.step_seconds(options.seconds),
                "matmul_flops_per_second": flops.measured_peak(dtype),
            }
        )
    figures: dict[str, Any] = medians(rows)
    seconds, work = figures["step_seconds"], bare.program.task.flops(bare.data_spec.batch)
    figures |= {
        "examples_per_second": cfg.batch_size / seconds,
        "flops_per_step": work,
        "flops_per_second": work / seconds,
        "mfu": flops.mfu(work, seconds, flops.peak_of(bare.mesh, dtype)),
        "share_of_matmul": work / seconds / (figures["matmul_flops_per_second"] * bare.mesh.size),
        "compilation": bare.compiled[1],
        "compilation_by_depth": {
            depth: Bare(_with_depth(cfg, depth), synthetic=options.synthetic).compiled[1]
            for depth in options.depths
        },
    }
    return figures


def _with_depth(cfg: Any, depth: int) -> Any:
    """The recipe with `depth` layers in every tower."""
    from mmjax.modalities import INPUTS

    cfg = cfg.copy_and_resolve_references()
    if cfg.model.name == "ut_fac":  # one encoder for all
        cfg.model.num_layers = depth
        return cfg
    if "backbone" in cfg.model:
        towers = ["backbone"]
    else:  # mmv_fac and tx_fac have three that a recipe need not name
        own = ("video", "audio", "text") if cfg.task == "pretrain" else ()
        towers = [m for m in INPUTS if m in own or cfg.model.get(m)]
    for tower in towers:
        spec = config.plain(cfg.model.get(tower, {}))
        if spec is None:
            continue
        spec = {"name": spec} if isinstance(spec, str) and spec else dict(spec or {})
        with cfg.unlocked(), cfg.ignore_type():
            cfg.model[tower] = {**spec, "num_layers": depth}
    return cfg


# ---- packed


def bench_packed(cfg: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The towers of ut_fac, forward and backward: all modalities through the shared encoder at
    once, as in training, and one after the other."""
    import jax
    import jax.numpy as jnp

    if cfg.model.get("name") != "ut_fac":
        raise UserError("The bench 'packed' is for recipes of ut_fac, e.g. --config=demo:ut_fac.")
    jax.config.update("jax_enable_compilation_cache", False)
    bare = Bare(cfg, synthetic=options.synthetic)
    task, extra = bare.program.task, bare.state["extra"]
    modalities = task.model.module.modalities

    def function(together: bool):
        def loss(params, batch, key):
            own = [{k: v for k, v in batch.items() if k.split("_")[0] == m} for m in modalities]
            parts = [batch] if together else own
            found = [task.encode(params, extra, part, key)[0] for part in parts]
            return sum(jnp.sum(x**2) for features in found for x in features.values())

        return jax.jit(jax.value_and_grad(loss))

    arguments = (bare.state["params"], bare.batch, jax.random.key(0))
    figures, calls, rows = {}, {}, []
    with jax.set_mesh(bare.mesh):
        for name in ("packed", "apart"):
            lowered, began = function(name == "packed").lower(*arguments), time.perf_counter()
            calls[name] = lowered.compile()
            figures[f"{name}_compile_seconds"] = time.perf_counter() - began
            jax.block_until_ready(calls[name](*arguments))
        for _ in range(options.repeats):
            row = {}
            for name, call in calls.items():
                number, seconds, _ = sustained(
                    lambda call=call: jax.block_until_ready(call(*arguments)), options.seconds
                )
                row[f"{name}_seconds"] = seconds / number
            rows.append(row)
    figures |= medians(rows)
    return figures | {"apart_over_packed": figures["apart_seconds"] / figures["packed_seconds"]}


# ---- loop


def bench_loop(cfg: Any, options: argparse.Namespace) -> dict[str, Any]:
    """What the training loop adds to the bare step, and the time from the start to the first step.

    `loop` is a real run; `loop_same_batch` has the same batch handed to it at every step, so that
    what remains is the loop itself. On CPUs the pipeline and the step share the cores, and `loop`
    pays for both.
    """
    import jax

    from mmjax import session

    cfg = cfg.copy_and_resolve_references()
    with cfg.unlocked():
        cfg.evals = {}
        cfg.total_steps = options.steps
        cfg.log_every = max(1, options.steps // 3)
        cfg.checkpoint.every = cfg.total_steps
        cfg.optimizer.schedule = {"name": "constant", "base": 1e-5}  # a warm-up may be longer
    # Every run compiles the same program; figures begin after the first step of each.
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        bare = Bare(cfg)
        rows = []
        for _ in range(options.repeats):
            before = bare.step_seconds(options.seconds)
            row = {"loop": _run_loop(cfg, session.open_train_data)}
            row["loop_same_batch"] = _run_loop(cfg, lambda cfg: (_SameBatch(bare), bare.data_spec))
            seconds = (before + bare.step_seconds(options.seconds)) / 2
            rows.append({"bare_step_seconds": seconds})
            for kind, found in row.items():
                rows[-1][f"{kind}_step_seconds"] = found["perf/step_seconds"]
                rows[-1][f"{kind}_over_bare"] = found["perf/step_seconds"] / seconds
                rows[-1][f"{kind}_data_share"] = found["perf/data_share"]
        jax.config.update("jax_enable_compilation_cache", False)
    figures: dict[str, Any] = medians(rows)
    starts = [_start_seconds(options) for _ in range(options.starts)]
    if starts:
        figures["start_to_first_step_seconds"] = medians(starts)
    return figures


class _SameBatch:
    """Training data that hand out one batch for ever."""

    corrupt = 0

    def __init__(self, bare: Bare):
        self.batch, self.num_examples = bare.host_batch, bare.data.num_examples
        self.batch_ids = bare.data.batch_ids

    def iterate(self, first_step: int) -> Iterator:
        return itertools.repeat(self.batch)


def _run_loop(cfg: Any, open_train_data: Callable) -> dict[str, float]:
    """The last figures that a run in a fresh directory logs."""
    from unittest import mock

    from mmjax import train

    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(train, "open_train_data", open_train_data),
    ):
        train.train(cfg, directory)
        return [r for r in writers.read_metrics(directory) if "perf/step_seconds" in r][-1]


def _start_seconds(options: argparse.Namespace) -> dict[str, float]:
    """From the start of `python -m mmjax.main` to its first logged step.

    `cold` begins with an empty compilation cache, `warm` with what `cold` left there. A dataset
    that is built on first use exists by now.
    """
    with tempfile.TemporaryDirectory() as directory:
        cache = cache_dir()
        root = pathlib.Path(directory)
        root.joinpath("cache").mkdir()
        for entry in cache.iterdir() if cache.is_dir() else ():
            if entry.name != "xla":
                root.joinpath("cache", entry.name).symlink_to(entry.resolve())
        found = {}
        for kind in ("cold", "warm"):
            run = root / kind
            command = [
                *(sys.executable, "-m", "mmjax.main", f"--task={options.task}"),
                *(f"--config={options.config}", f"--model_dir={run}", *options.overrides),
                "--config.log_every=1",
            ]
            began = time.time()
            environment = os.environ | {"MMJAX_CACHE": str(root / "cache")}
            process = subprocess.Popen(command, env=environment, stdout=sys.stderr)
            metrics = run / "metrics.jsonl"
            while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
                time.sleep(0.2)
            process.terminate()  # it saves and ends
            if process.wait() != 0:
                raise UserError(f"This failed, see above: {' '.join(command)}")
            found[kind] = writers.read_metrics(run)[0]["time"] - began
            shutil.rmtree(run)
    return found


# ---- eval


def bench_eval(cfg: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Examples per second of feature extraction, and the time of fitting a linear probe on them."""
    from mmjax.evals.features.store import FeatureStore
    from mmjax.evals.probes.classifiers import fit_logistic

    bare = Bare(cfg)
    store = FeatureStore(task=bare.program.task, data_cfg=cfg.data, mesh=bare.mesh)
    modality = next(m for m in ("video", "audio", "touch") if cfg.data.get(m) is not None)
    predict = next(iter(bare.program.task.predict))
    request = store.request(
        (modality,),
        predict=predict if "features" not in bare.program.task.predict else "features",
        split=cfg.data.get("split", "train"),
        batch_size=cfg.batch_size,
    )
    first = store.get(bare.state, request)  # compiles
    rows = []
    for _ in range(options.repeats):
        store.clear()
        features = store.get(bare.state, request)
        rows.append({"examples_per_second": len(features) / features.seconds})
        x, labels = features.labeled(modality)
        began = time.perf_counter()
        fit_logistic(x, labels, num_classes=int(labels.max()) + 1)
        rows[-1]["probe_seconds"] = time.perf_counter() - began
    return medians(rows) | {
        "examples": len(features),
        "feature": [modality, list(x.shape)],
        "first_extraction_seconds": first.seconds,
    }


# ---- the command

BENCHES = {
    "data": bench_data,
    "step": bench_step,
    "packed": bench_packed,
    "loop": bench_loop,
    "eval": bench_eval,
    "neighbors": bench_neighbors.bench_neighbors,
    "probe": bench_probe.bench_probe,
}


def main(argv: Sequence[str]) -> None:
    """The command line; `argv` without the program's name."""
    rest, overrides = config.split_arguments(argv)
    parser = argparse.ArgumentParser(
        prog="python -m mmjax.tools.bench.recipe", description=__doc__.split("\n")[0]
    )
    parser.add_argument("benches", nargs="+", choices=BENCHES, help="what to measure")
    parser.add_argument("--task", default="pretrain", help="whose recipe")
    parser.add_argument(
        "--config", default="demo", help="recipe or .py file; --config.key=value overrides values"
    )
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many counts")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement, at least")
    parser.add_argument(
        "--depths",
        type=int,
        nargs="*",
        default=(2, 6, 12, 24),
        help="step: compiled with so many layers",
    )
    parser.add_argument(
        "--synthetic", action="store_true", help="step, packed: a batch of noise; no dataset"
    )
    parser.add_argument("--steps", type=int, default=60, help="loop: steps of a run")
    parser.add_argument("--starts", type=int, default=1, help="loop: cold and warm starts")
    bench_neighbors.add_options(parser)
    bench_probe.add_options(parser)
    options = parser.parse_args(rest, argparse.Namespace(overrides=overrides))

    try:
        cfg = config.load(options.task, options.config, overrides)
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the JSON object
            figures = {name: BENCHES[name](cfg, options) for name in options.benches}
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    record = {
        "command": f"python -m mmjax.tools.bench.recipe {' '.join(argv)}",
        "repeats": options.repeats,
        **figures,
        "environment": report.environment(),
    }
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
