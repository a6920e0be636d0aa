"""Memory and operations that a recipe needs, computed from shapes: the command `mmjax plan`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from mmjax import config, sharding
from mmjax.config import Config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.monitor import flops as flops_lib
from mmjax.monitor import report
from mmjax.program import build_program
from mmjax.tasks import make_task


def activation_bytes(
    task: Any, spec: Mapping[str, jax.ShapeDtypeStruct], num_examples: int
) -> float:
    """Returns the bytes of activations that JAX keeps for the backward pass of the encoder.

    They are counted after rematerialization (model.remat), but before XLA fuses operations. So they
    are an upper bound for the largest part of the memory of a step. Parameters are not counted.

    Args:
      task: The task.
      spec: {field: abstract array} of a batch.
      num_examples: Number of examples.
    """
    params, extra = jax.eval_shape(task.init, jax.random.key(0))

    def residual_bytes(batch_size: int) -> int:
        def residuals(params, batch, key):
            def encode(params):
                return task.encode(params, extra_values, batch, key)

            extra_values = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), extra)
            return jax.vjp(encode, params, has_aux=True)[1]

        batch = {
            name: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype)
            for name, leaf in spec.items()
        }
        leaves = jax.tree.leaves(jax.eval_shape(residuals, params, batch, jax.random.key(0)))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    # The difference excludes arrays that do not grow with the batch, such as parameters.
    return (residual_bytes(4) - residual_bytes(2)) / 2 * num_examples


def plan(
    cfg: Config | Mapping[str, Any],
    *,
    data: int,
    fsdp: int = 1,
    tensor: int = 1,
    full: bool = False,
    device: str | None = None,
) -> str:
    """Returns a table of the train state, and estimates of memory and time per step.

    Args:
      cfg: The config of a training run.
      data: Size of the mesh axis 'data'.
      fsdp: Size of the mesh axis 'fsdp'.
      tensor: Size of the mesh axis 'tensor'.
      full: Whether the table lists every parameter.
      device: Device type, as in `jax.devices()[0].device_kind` ('NVIDIA H100'), to estimate the
        minimum time of a step; None for no estimate.

    Raises:
      UserError: The run itself would be refused, for example because the batch size is not
        divisible; or the peak rate of the device type is unknown.
    """
    cfg = config.resolve(cfg)
    peak = _peak_flops(device, cfg) if device else None
    mesh = _abstract_mesh(data=data, fsdp=fsdp, tensor=tensor)
    spec = DataSpec.of_config(cfg)
    program = build_program(cfg, make_task(cfg, spec), mesh)
    num_devices, per_device = data * fsdp * tensor, cfg.batch_size // (data * fsdp)
    example = sum(math.prod(s.shape[1:]) * s.dtype.itemsize for s in spec.batch.values())
    flops = program.task.flops(spec.batch)
    at_once = per_device // (cfg.accumulate_steps * cfg.updates_per_step)
    activations = activation_bytes(program.task, spec.batch, at_once)
    updates = (
        f" in {cfg.updates_per_step} updates of {cfg.update_batch_size}"
        if cfg.updates_per_step > 1
        else ""
    )
    lines = [
        f"Mesh: {num_devices} devices (data {data} × fsdp {fsdp} × tensor {tensor}), "
        f"sharding {cfg.sharding!r}",
        "",
        program.plan(full=full),
        "",
        f"Batch: {cfg.batch_size} examples{updates}, {per_device} per device "
        f"({report.format_bytes(per_device * example)} of input data per device)",
        f"Floating-point operations per step: {flops:.3g} (forward and backward, without "
        f"rematerialization), {flops / num_devices:.3g} per device",
        f"Activations (model.remat={cfg.model.get('remat', 'none')}, "
        f"accumulate_steps={cfg.accumulate_steps}): at most {report.format_bytes(activations)} per "
        "device",
    ]
    if peak:
        lines.append(
            f"Minimum step time at the peak rate of {device} ({peak / 1e12:.0f} TFLOP/s): "
            f"{flops / num_devices / peak:.3g} s"
        )
    return "\n".join(lines)


def _peak_flops(device: str, cfg: Config) -> float:
    """Returns the peak floating-point operations per second of a device type."""
    dtype = cfg.model.get("dtype", "float32")
    peak = flops_lib.peak_flops(device, dtype)
    if peak is None:
        raise UserError(
            f"--device={device}: the peak rate of this device type in {dtype} is unknown. Known "
            "types include 'NVIDIA A100', 'NVIDIA H100', 'TPU v3', 'TPU v4' and 'TPU v5p'."
        )
    return peak


def _abstract_mesh(*, data: int, fsdp: int, tensor: int) -> AbstractMesh:
    if min(data, fsdp, tensor) < 1:
        raise UserError(
            "--data, --fsdp and --tensor must be at least 1; got a mesh of "
            f"{data} × {fsdp} × {tensor} devices."
        )
    types = (AxisType.Auto,) * len(sharding.AXES)
    return AbstractMesh((data, fsdp, tensor), sharding.AXES, axis_types=types)
