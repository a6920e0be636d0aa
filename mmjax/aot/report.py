"""What `mmjax plan --compile` prints about a compiled program, as text and as JSON."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from mmjax.aot import costs as costs_lib
from mmjax.aot import hlo
from mmjax.aot.compile import CompiledProgram
from mmjax.aot.roofline import roofline
from mmjax.config import Config
from mmjax.monitor import flops as flops_lib
from mmjax.monitor.report import format_bytes, format_table

NUM_GROUPS = 10
_GPU_FRACTION = 0.75  # of its memory that JAX reserves by default


def analyze(program: CompiledProgram, cfg: Config, recipe: str = "") -> dict[str, Any]:
    """Returns what `--json` prints; docs/performance.md describes the keys.

    Args:
      program: A compiled program.
      cfg: The config that it was compiled from, resolved.
      recipe: Name of the recipe.
    """
    device = flops_lib.device_type(program.topology.device_kind)
    assert device is not None, program.topology.device_kind
    memory = dict(program.memory)
    limit = program.limit or device.memory
    result = {
        "recipe": recipe,
        "function": program.function,
        "topology": program.topology.name,
        "device_kind": program.topology.device_kind,
        "devices": len(program.hosts),
        "mesh": dict(program.mesh),
        "versions": dict(program.versions),
        "autotuned": program.topology.platform == "tpu",
        "trace_seconds": program.trace_seconds,
        "compile_seconds": program.seconds,
        "cached": program.cached,
        "fits": memory["peak"] <= limit,
        "memory": memory | {"limit": limit},
    }
    if not result["fits"]:
        result["advice"] = _advice(program, cfg)
    if not program.hlo:
        return result | {"largest_temporaries": _largest_temporaries(program.message)}
    costs = costs_lib.count(hlo.parse(program.text()))
    bound = roofline(costs, device, program.mesh, program.hosts)
    mfu = None
    if program.model_flops is not None:
        peak = flops_lib.peak_flops(program.topology.device_kind, program.dtype)
        peak = None if peak is None else peak * len(program.hosts)
        mfu = flops_lib.mfu(program.model_flops, bound.step_seconds, peak)
    return result | {
        "flops": costs.flops,
        "model_flops": program.model_flops and program.model_flops / len(program.hosts),
        "bytes": costs.bytes,
        "elementwise": costs.elementwise,
        "uncounted": dict(costs.uncounted),
        "seconds": dict(bound.seconds),
        "step_seconds": bound.step_seconds,
        "serial_seconds": bound.serial_seconds,
        "limited_by": bound.limit,
        "mfu": mfu,
        "collectives": [dataclasses.asdict(traffic) for traffic in bound.traffic],
        "operations": [dataclasses.asdict(group) for group in bound.groups[:NUM_GROUPS]],
    }


def to_text(result: Mapping[str, Any]) -> str:
    """Returns the report of a result of `analyze`."""
    parts = [_title(result), _memory(result)]
    if "flops" in result:
        parts += [_work(result), _bounds(result), _collectives(result), _operations(result)]
        if uncounted := result["uncounted"]:
            lines = [f"  {what} ({count} times)" for what, count in uncounted.items()]
            parts.append(["Not counted:", *lines])
    return "\n\n".join("\n".join(lines) for lines in parts)


def _title(result: Mapping[str, Any]) -> list[str]:
    mesh = " × ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    source = "read from the cache, compiled" if result["cached"] else "compiled"
    versions = result["versions"]
    lines = [
        f"{result['function']} of {result['recipe']} for {result['topology']}: "
        f"{result['devices']} × {result['device_kind']} ({mesh})",
        f"jax {versions['jax']}, jaxlib {versions['jaxlib']}, {versions['compiler']}: {source} in "
        f"{result['compile_seconds']:.1f} s (tracing: {result['trace_seconds']:.1f} s)",
    ]
    if not result["autotuned"]:
        lines.append(
            "Kernels are not autotuned, and Triton's matrix products are off: both need the GPU."
        )
    return lines


def _memory(result: Mapping[str, Any]) -> list[str]:
    memory = result["memory"]
    peak, limit = memory["peak"], memory["limit"]
    if result["fits"]:
        lines = [f"Memory per device: fits, {format_bytes(peak)} of {format_bytes(limit)}"]
    else:
        lines = [
            f"Memory per device: DOES NOT FIT. It needs {format_bytes(peak)} of "
            f"{format_bytes(limit)}, {format_bytes(peak - limit)} too much. {result['advice']}"
        ]
    if "arguments" in memory:
        parts = [
            f"arguments {format_bytes(memory['arguments'])}",
            f"results {format_bytes(memory['outputs'])} (of which "
            f"{format_bytes(memory['aliased'])} replace arguments)",
            f"temporaries {format_bytes(memory['temporaries'])}",
        ]
        parts += [f"code {format_bytes(memory['code'])}"] if memory["code"] else []
        lines.append("  " + ", ".join(parts))
    if not result["autotuned"] and _GPU_FRACTION * limit < peak <= limit:
        lines.append(
            f"  JAX reserves {_GPU_FRACTION:.0%} of a GPU by default; set "
            "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 for this program"
        )
    if largest := result.get("largest_temporaries"):
        lines += ["Largest temporaries:"]
        lines += [f"  {t['size']:>9}  {t['shape']}  {_short(t['operation'])}" for t in largest]
    return lines


def _advice(program: CompiledProgram, cfg: Config) -> str:
    """Returns what reduces the memory of a program, with the present values."""
    if program.function != "train_step":
        return f"Use a smaller config.batch_size than {cfg.batch_size}."
    options = [f"a smaller config.batch_size than {cfg.batch_size}"]
    remat = cfg.model.get("remat", "none")
    if remat != "full":
        options.append(f"config.model.remat='full' instead of {remat!r}")
    per_device = cfg.update_batch_size // (program.mesh["data"] * program.mesh["fsdp"])
    if cfg.updates_per_step == 1 and cfg.accumulate_steps < per_device:
        options.append(f"config.accumulate_steps={2 * cfg.accumulate_steps}")
    if cfg.sharding == "dp" and len(program.hosts) > 1:
        options.append("--fsdp N with config.sharding='fsdp'")
    *first, last = options
    return f"Use {', '.join(first)}{' or ' if first else ''}{last}."


def _largest_temporaries(message: str) -> list[dict[str, str]]:
    """Returns the largest temporaries in a message of libtpu: size, shape and operation."""
    found = re.findall(
        r"^\s+\d+\. Size: (\S+)\n(?:\s+Operator: op_name=\"([^\"]*)\".*\n)?\s+Shape: (\S+)",
        message,
        re.MULTILINE,
    )
    return [
        {"size": size, "shape": shape.split("{")[0], "operation": operation}
        for size, operation, shape in found[:5]
    ]


def _work(result: Mapping[str, Any]) -> list[str]:
    flops, model = result["flops"], result["model_flops"]
    rows = [
        ("matrix units", f"{flops:.4g} FLOP"),
        ("memory", f"{format_bytes(result['bytes'])} read and written"),
        ("elementwise", f"{result['elementwise']:.4g} elements computed"),
    ]
    if model:
        rows[0] = (rows[0][0], f"{rows[0][1]} ({flops / model:.2f} × the model's {model:.4g})")
    what = "step" if result["function"] == "train_step" else "batch"
    return [
        f"Per device and {what}, with loops counted by their iterations:",
        *(f"  {name:<13} {value}" for name, value in rows),
    ]


def _bounds(result: Mapping[str, Any]) -> list[str]:
    bound = f"At least {_time(result['step_seconds'])}, limited by {result['limited_by']}"
    if result["mfu"] is not None:
        bound += f": an MFU of at most {result['mfu']:.1%}"
    lines = [f"  {name:<13} {_time(seconds)}" for name, seconds in result["seconds"].items()]
    if any(traffic["seconds"] is None for traffic in result["collectives"]):
        lines[-1] += " (the rate of this device type is unknown)"
    return [
        "Lower bounds of the time at the rates of the data sheet:",
        *lines,
        bound,
        f"Without overlap of operations: at least {_time(result['serial_seconds'])}",
    ]


def _collectives(result: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            *(t["kind"], t["axes"], t["count"], format_bytes(t["bytes"]), format_bytes(t["sent"])),
            "?" if t["seconds"] is None else _time(t["seconds"]),
        ]
        for t in result["collectives"]
    ]
    if not rows:
        return ["No collective operations."]
    header = ["collective", "mesh axes", "count", "arrays", "sent per device", "at least"]
    return [format_table(header, rows)]


def _operations(result: Mapping[str, Any]) -> list[str]:
    collective = sum(traffic["seconds"] or 0.0 for traffic in result["collectives"])
    total = result["serial_seconds"] - collective
    rows = [
        [
            _time(group["seconds"]),
            f"{group['seconds'] / total:.0%}" if total else "",
            group["count"],
            f"{group['flops']:.3g}",
            format_bytes(group["bytes"]),
            group["source"] or "-",
            _short(group["operation"]),
        ]
        for group in result["operations"]
    ]
    header = ["at least", "share", "runs", "FLOP", "bytes", "source", "operation"]
    return [format_table(header, rows, title="Most expensive operations by source line:")]


def _short(op_name: str) -> str:
    """Returns the end of an operation's path, marked if it belongs to the backward pass."""
    parts = [part for part in op_name.split("/") if part not in ("closed_call", "while", "body")]
    end = "/".join(parts[-2:] if len(parts) > 1 and len(parts[-1]) < 16 else parts[-1:])
    for _ in range(2):  # jit(transpose(jvp(f)))
        end = re.sub(r"\b(jit|jvp|transpose|checkpoint|remat)\(([^()]*)\)", r"\2", end).strip("/")
    marks = ["backward"] if "transpose(" in op_name else []
    marks += ["rematerialized"] if "rematted_computation" in op_name else []
    return f"{end} ({', '.join(marks)})" if marks else end


def _time(seconds: float) -> str:
    """Returns a duration with three significant digits."""
    units = (("s", 1), ("ms", 1e3), ("µs", 1e6))
    unit, factor = next(((u, f) for u, f in units if seconds * f >= 1), units[-1])
    value = seconds * factor
    digits = max(0, 2 - math.floor(math.log10(value))) if value >= 0.01 else 0
    return f"{value:.{digits}f} {unit}"
