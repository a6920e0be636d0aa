"""What a recipe needs on devices that are not here: bytes of every array, operations of a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from mmjax import config, sharding
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.monitor import flops as flops_lib
from mmjax.monitor import report
from mmjax.program import build_program
from mmjax.tasks import make_task


def kept_bytes(task: Any, spec: Mapping[str, jax.ShapeDtypeStruct], rows: int) -> float:
    """Bytes that the backward pass of the task's encoder needs of so many examples, from shapes.

    What is saved by JAX, after rematerialization (model.remat), before what XLA saves by fusing:
    an upper bound for the large part of a step's memory. Parameters are not counted.
    """
    params, extra = jax.eval_shape(task.init, jax.random.key(0))

    def kept(count: int) -> int:
        def residuals(params, batch, key):
            def encode(params):
                return task.encode(params, extra_values, batch, key)

            extra_values = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), extra)
            return jax.vjp(encode, params, has_aux=True)[1]

        batch = {
            name: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)
            for name, leaf in spec.items()
        }
        leaves = jax.tree.leaves(jax.eval_shape(residuals, params, batch, jax.random.key(0)))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    # The difference leaves out what does not grow with the batch: parameters and tables.
    return (kept(4) - kept(2)) / 2 * rows


def plan(
    cfg: Any,
    *,
    data: int,
    fsdp: int = 1,
    tensor: int = 1,
    full: bool = False,
    device: str | None = None,
) -> str:
    """A table for a mesh of any size, computed from shapes alone.

    Args:
      device: a kind of device, as `jax.devices()[0].device_kind` names it ('NVIDIA H100'), for the
        least time of a step.

    Raises:
      UserError: what would stop the run itself: a batch that does not divide, a rule that cannot
        be; or a kind of device whose rate is not known.
    """
    cfg = config.resolve(cfg)
    peak, model = None, cfg.model
    if device:
        dtype = model.get("dtype", "float32")
        peak = flops_lib.peak_flops(device, dtype)
        if peak is None:
            raise UserError(
                f"--device={device}: its rate in {dtype} is not known. Known are, among others, "
                "'NVIDIA A100', 'NVIDIA H100', 'TPU v3', 'TPU v4', 'TPU v5p'."
            )
    if min(data, fsdp, tensor) < 1:
        raise UserError(f"A mesh of {data} × {fsdp} × {tensor} devices: its sizes are at least 1.")
    mesh = AbstractMesh(
        (data, fsdp, tensor), sharding.AXES, axis_types=(AxisType.Auto,) * len(sharding.AXES)
    )
    data_spec = DataSpec.of_config(cfg)
    program = build_program(cfg, make_task(cfg, data_spec), mesh)
    rows = cfg.batch_size // (data * fsdp)
    batch = sum(math.prod(s.shape[1:]) * s.dtype.itemsize for s in data_spec.batch.values())
    flops = program.task.flops(data_spec.batch)
    kept = kept_bytes(program.task, data_spec.batch, rows // cfg.accumulate_steps)
    devices = data * fsdp * tensor
    return "\n".join(
        [
            f"{devices} devices (data {data} × fsdp {fsdp} × tensor {tensor}), "
            f"rules '{cfg.sharding}'",
            "",
            program.plan(full=full),
            "",
            f"batch: {cfg.batch_size} examples, {rows} a device, "
            f"{report.format_bytes(rows * batch)} a device as it travels",
            f"one step: {flops:.3g} floating point operations (forward and backward, without "
            f"rematerialization), {flops / devices:.3g} a device",
            f"kept for the backward pass (model.remat={model.get('remat', 'none')}, "
            f"{cfg.accumulate_steps} microbatches): at most {report.format_bytes(kept)} a device",
            *(
                [
                    f"at the full rate of {device}, {peak / 1e12:.0f} TFLOP/s, a step takes "
                    f"{flops / devices / peak:.3g} s"
                ]
                if peak
                else []
            ),
        ]
    )
