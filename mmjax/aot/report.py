"""What `mmjax plan --compile` prints about a compiled program."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from mmjax.aot import costs as costs_lib
from mmjax.aot import hlo
from mmjax.aot.compile import CompiledProgram
from mmjax.aot.costs import Costs
from mmjax.aot.roofline import Roofline
from mmjax.config import Config
from mmjax.monitor import flops as flops_lib
from mmjax.monitor.report import format_bytes, format_table

NUM_GROUPS = 10
_GPU_FRACTION = 0.75  # of its memory that JAX reserves by default


@dataclasses.dataclass(frozen=True)
class Analysis:
    """A compiled program with its costs.

    Attributes:
      program: The program.
      device: Data sheet of its devices.
      module: The parsed program; None if it does not fit.
      costs: Its costs; None if it does not fit.
      roofline: Lower bounds of its time; None if it does not fit.
    """

    program: CompiledProgram
    device: flops_lib.DeviceType
    module: hlo.Module | None = None
    costs: Costs | None = None
    roofline: Roofline | None = None

    @property
    def fits(self) -> bool:
        """Whether the program fits into the memory of a device."""
        memory = self.program.memory
        return memory is not None and memory["peak"] <= self.limit

    @property
    def limit(self) -> float:
        """Bytes of memory of a device."""
        return self.program.limit or self.device.memory

    @property
    def excess(self) -> float:
        """Bytes by which the program exceeds the memory of a device."""
        memory = self.program.memory
        return max(0.0, (memory["peak"] if memory else self.program.used) - self.limit)

    @property
    def mfu(self) -> float | None:
        """Upper bound of the model FLOPs utilization; None if the model FLOPs are unknown."""
        program = self.program
        if self.roofline is None or program.model_flops is None:
            return None
        peak = flops_lib.peak_flops(program.topology.device_kind, program.dtype)
        seconds = self.roofline.step_seconds
        return flops_lib.mfu(program.model_flops, seconds, peak and peak * len(program.hosts))


def analyze(program: CompiledProgram) -> Analysis:
    """Returns a program with its costs and the bounds of its time."""
    device = flops_lib.device_type(program.topology.device_kind)
    assert device is not None, program.topology.device_kind
    if program.memory is None:
        return Analysis(program, device)
    module = hlo.parse(program.text())
    costs = costs_lib.count(module)
    roofline = Roofline(costs, device, program.mesh, program.hosts)
    return Analysis(program, device, module, costs, roofline)


def to_dict(analysis: Analysis) -> dict[str, Any]:
    """Returns everything that the report contains, for `--json`."""
    program, costs, roofline = analysis.program, analysis.costs, analysis.roofline
    result: dict[str, Any] = {
        "topology": program.topology.name,
        "device_kind": program.topology.device_kind,
        "devices": len(program.hosts),
        "mesh": dict(program.mesh),
        "function": program.function,
        "versions": dict(program.versions),
        "autotuned": program.topology.platform == "tpu",
        "trace_seconds": program.trace_seconds,
        "compile_seconds": program.seconds,
        "cached": program.cached,
        "fits": analysis.fits,
        "memory_limit": analysis.limit,
        "memory_excess": analysis.excess,
    }
    if costs is None or roofline is None:
        return result | {"memory": {"peak": program.used}, "message": program.message}
    devices = len(program.hosts)
    return result | {
        "memory": dict(program.memory or {}),
        "flops": costs.flops,
        "model_flops": None if program.model_flops is None else program.model_flops / devices,
        "bytes": costs.bytes,
        "elementwise": costs.elementwise,
        "uncounted": dict(costs.uncounted),
        "roofline": {
            "matrix_seconds": roofline.matrix_seconds,
            "memory_seconds": roofline.memory_seconds,
            "interconnect_seconds": roofline.collective_seconds,
            "step_seconds": roofline.step_seconds,
            "serial_seconds": roofline.serial_seconds,
            "limit": roofline.limit,
            "mfu": analysis.mfu,
        },
        "collectives": [dataclasses.asdict(traffic) for traffic in roofline.traffic],
        "operations": [dataclasses.asdict(group) for group in roofline.groups()[:NUM_GROUPS]],
    }


def to_text(analysis: Analysis, cfg: Config, label: str) -> str:
    """Returns the report.

    Args:
      analysis: From `analyze`.
      cfg: The resolved config.
      label: Name of the recipe.
    """
    program, costs, roofline = analysis.program, analysis.costs, analysis.roofline
    lines = [_title(program, label), ""]
    if costs is None or roofline is None:
        return "\n".join(lines + _too_large(analysis, cfg))
    lines += [
        *_memory(analysis, cfg),
        "",
        *_work(analysis),
        "",
        *_bounds(analysis),
        "",
        *_collectives(roofline),
        "",
        *_operations(roofline),
    ]
    if costs.uncounted:
        lines += ["", "Not counted:"]
        lines += [f"  {what} ({count} times)" for what, count in costs.uncounted.items()]
    return "\n".join(lines)


def _title(program: CompiledProgram, label: str) -> str:
    mesh = " × ".join(f"{axis} {size}" for axis, size in program.mesh.items())
    versions = program.versions
    source = "read from the cache, compiled" if program.cached else "compiled"
    kind = program.topology.device_kind
    lines = [
        f"{program.function} of {label} for {program.topology.name}: "
        f"{len(program.hosts)} × {kind} ({mesh})",
        f"jax {versions['jax']}, jaxlib {versions['jaxlib']}, {versions['compiler']}: {source} in "
        f"{program.seconds:.1f} s (tracing: {program.trace_seconds:.1f} s)",
    ]
    if program.topology.platform == "cuda":
        lines.append(
            "Kernels are not autotuned, and Triton's matrix products are off: both need the GPU."
        )
    return "\n".join(lines)


def _memory(analysis: Analysis, cfg: Config) -> list[str]:
    memory = analysis.program.memory or {}
    peak, limit = format_bytes(memory["peak"]), format_bytes(analysis.limit)
    if not analysis.fits:
        lines = [f"Memory per device: DOES NOT FIT, {peak} of {limit}. {_advice(analysis, cfg)}"]
    else:
        lines = [f"Memory per device: fits, at most {peak} of {limit}"]
    lines.append(
        f"  arguments {format_bytes(memory['arguments'])}, results "
        f"{format_bytes(memory['outputs'])} (of which {format_bytes(memory['aliased'])} replace "
        f"arguments), temporaries {format_bytes(memory['temporaries'])}, code "
        f"{format_bytes(memory['code'])}"
    )
    reserved = analysis.limit * _GPU_FRACTION
    if analysis.program.topology.platform == "cuda" and reserved < memory["peak"] < analysis.limit:
        lines.append(
            f"  JAX reserves {_GPU_FRACTION:.0%} of a GPU by default; set "
            "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 for this program"
        )
    return lines


def _too_large(analysis: Analysis, cfg: Config) -> list[str]:
    program = analysis.program
    lines = [
        f"Memory per device: DOES NOT FIT. The program needs {format_bytes(program.used)} of "
        f"{format_bytes(program.limit)}, {format_bytes(analysis.excess)} too much. "
        f"{_advice(analysis, cfg)}"
    ]
    largest = _largest_allocations(program.message)
    if largest:
        lines += ["", "Largest temporaries:", *(f"  {line}" for line in largest)]
    return lines


def _advice(analysis: Analysis, cfg: Config) -> str:
    """Returns what reduces the memory of a train step, with the present values."""
    mesh = analysis.program.mesh
    if analysis.program.function != "train_step":
        return f"Reduce config.batch_size={cfg.batch_size}."
    options = [f"a smaller config.batch_size than {cfg.batch_size}"]
    remat = cfg.model.get("remat", "none")
    if remat != "full":
        options.append(f"config.model.remat='full' instead of {remat!r}")
    per_device = cfg.batch_size // (mesh["data"] * mesh["fsdp"])
    if cfg.accumulate_steps < per_device:
        options.append(f"config.accumulate_steps={2 * cfg.accumulate_steps}")
    if cfg.sharding == "dp" and len(analysis.program.hosts) > 1:
        options.append("--fsdp N with config.sharding='fsdp'")
    return (
        f"Use {', '.join(options[:-1])} or {options[-1]}." if options[1:] else f"Use {options[0]}."
    )


def _largest_allocations(message: str) -> list[str]:
    """Returns the largest temporaries in a message of libtpu: size, shape and operation."""
    found = re.findall(
        r"^\s+\d+\. Size: (\S+)\n(?:\s+Operator: op_name=\"([^\"]*)\".*\n)?\s+Shape: (\S+)",
        message,
        re.MULTILINE,
    )
    return [f"{size:>9}  {shape.split('{')[0]}  {_short(op)}" for size, op, shape in found[:5]]


def _work(analysis: Analysis) -> list[str]:
    costs, program = analysis.costs, analysis.program
    assert costs is not None
    rows = [["matrix units", f"{costs.flops:.4g} FLOP"]]
    if program.model_flops is not None:
        model = program.model_flops / len(program.hosts)
        rows[0][1] += f" ({costs.flops / model:.2f} × the model's {model:.4g})"
    rows += [
        ["memory", f"{format_bytes(costs.bytes)} read and written"],
        ["elementwise", f"{costs.elementwise:.4g} elements computed"],
    ]
    lines = [f"  {name:<17} {value}" for name, value in rows]
    return ["Per device and step, with loops counted by their iterations:", *lines]


def _bounds(analysis: Analysis) -> list[str]:
    roofline = analysis.roofline
    assert roofline is not None
    known = all(t.seconds is not None for t in roofline.traffic)
    rows = [
        ("matrix units", roofline.matrix_seconds),
        ("memory", roofline.memory_seconds),
        ("interconnect" + ("" if known else " (rate unknown)"), roofline.collective_seconds),
    ]
    bound = f"At least {_time(roofline.step_seconds)} per step, limited by {roofline.limit}"
    if analysis.mfu is not None:
        bound += f": an MFU of at most {analysis.mfu:.1%}"
    return [
        "Lower bounds at the rates of the data sheet:",
        *(f"  {name:<17} {_time(seconds)}" for name, seconds in rows),
        bound,
        f"Without overlap of operations: at least {_time(roofline.serial_seconds)}",
    ]


def _collectives(roofline: Roofline) -> list[str]:
    if not roofline.traffic:
        return ["No collective operations."]
    rows = [
        [
            *(t.kind, t.axes, t.count, format_bytes(t.bytes), format_bytes(t.sent)),
            "?" if t.seconds is None else _time(t.seconds),
        ]
        for t in roofline.traffic
    ]
    header = ["collective", "mesh axes", "per step", "arrays", "sent per device", "at least"]
    return format_table(header, rows).split("\n")


def _operations(roofline: Roofline) -> list[str]:
    groups = roofline.groups()
    total = sum(group.seconds for group in groups)
    rows = [
        [
            _time(group.seconds),
            f"{group.seconds / total:.0%}" if total else "",
            group.count,
            f"{group.flops:.3g}",
            format_bytes(group.bytes),
            group.source or "-",
            _short(group.op_name) or group.kind,
        ]
        for group in groups[:NUM_GROUPS]
    ]
    header = ["at least", "share", "runs", "FLOP", "bytes", "source", "operation"]
    return format_table(header, rows, title="Most expensive operations by source line:").split("\n")


def _short(op_name: str) -> str:
    """Returns the end of an operation's path, marked if it belongs to the backward pass."""
    parts = [part for part in op_name.split("/") if part not in ("closed_call", "while", "body")]
    end = "/".join(parts[-2:] if len(parts) > 1 and len(parts[-1]) < 16 else parts[-1:])
    end = re.sub(r"\b(jit|jvp|transpose|checkpoint|remat)\(([^()]*)\)", r"\2", end)
    end = re.sub(r"\b(jit|jvp|transpose)\(([^()]*)\)", r"\2", end).strip("/")
    marks = ["backward"] if "transpose(" in op_name else []
    marks += ["rematerialized"] if "rematted_computation" in op_name else []
    return f"{end} ({', '.join(marks)})" if marks else end


def _time(seconds: float) -> str:
    """Returns a duration with three significant digits."""
    if seconds == 0:
        return "0 s"
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            value = seconds * factor
            digits = max(0, 2 - math.floor(math.log10(value))) if value >= 0.01 else 2
            return f"{value:.{digits}f} {unit}"
    raise AssertionError(seconds)
