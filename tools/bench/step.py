"""The compiled train step, and its compilation at several depths."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from mmjax.tools.bench.common import Setup, medians

if TYPE_CHECKING:  # imports JAX
    from mmjax.config import Config


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the arguments of the benchmark."""
    group.add_argument(
        "--depths",
        type=int,
        nargs="*",
        default=(2, 6, 12, 24),
        metavar="N",
        help="numbers of layers to compile the step with (default: 2 6 12 24)",
    )


def run(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Measures time, FLOP/s and MFU of a step, and its compilation."""
    import jax

    from mmjax.monitor import flops

    jax.config.update("jax_enable_compilation_cache", False)
    setup = Setup(cfg, synthetic=args.synthetic)
    dtype = setup.program.task.dtype
    result = medians(
        [
            {
                "step_seconds": setup.step_seconds(args.seconds),
                "matmul_flops_per_second": flops.measured_peak(dtype),
            }
            for _ in range(args.repeats)
        ]
    )
    seconds = result["step_seconds"]
    flops_per_step = setup.program.task.flops(setup.data_spec.batch)
    flops_per_second = flops_per_step / seconds
    return result | {
        "examples_per_second": cfg.batch_size / seconds,
        "flops_per_step": flops_per_step,
        "flops_per_second": flops_per_second,
        "mfu": flops.mfu(flops_per_step, seconds, flops.peak_of(setup.mesh, dtype)),
        "share_of_matmul": flops_per_second / (result["matmul_flops_per_second"] * setup.mesh.size),
        "compilation": setup.compiled[1],
        "compilation_by_depth": {
            depth: Setup(_with_depth(cfg, depth), synthetic=args.synthetic).compiled[1]
            for depth in args.depths
        },
    }


def _with_depth(cfg: Config, depth: int) -> Config:
    """Returns the recipe with `depth` layers in every tower."""
    from mmjax.modalities import INPUTS

    model = dict(cfg.model)
    if model["name"] == "ut_fac":  # one encoder for all modalities
        return dataclasses.replace(cfg, model=model | {"num_layers": depth})
    if "backbone" in model:
        towers = ["backbone"]
    else:  # the models of VATT have three towers that a recipe need not name
        default = ("video", "audio", "text") if cfg.task == "pretrain" else ()
        towers = [name for name in INPUTS if name in default or model.get(name)]
    for name in towers:
        spec = model.get(name, {})
        if spec is None:
            continue
        spec = {"name": spec} if isinstance(spec, str) and spec else dict(spec or {})
        model[name] = spec | {"num_layers": depth}
    return dataclasses.replace(cfg, model=model)
