"""Plain-text tables, memory per device, and a description of the machine."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from mmjax.cpus import available_cpus
from mmjax.plain_text import plain


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "") -> str:
    """Returns an aligned plain-text table.

    Text is left-aligned and numbers are right-aligned; floats have four significant digits.

    Args:
      header: Column names.
      rows: Cells of each row; None is an empty cell.
      title: Line above the table; '' for none.

    Raises:
      ValueError: A row has another number of cells than the header.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    for row in cells:
        if len(row) != len(header):
            raise ValueError(f"A row has {len(row)} cells for {len(header)} columns: {row}.")
    widths = [max(len(text) for text in column) for column in zip(header, *cells, strict=True)]
    numeric = [
        bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows)
        for i in range(len(header))
    ]

    def align(row: Sequence[str]) -> str:
        parts = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    lines = [align(header), "  ".join("-" * width for width in widths), *map(align, cells)]
    return "\n".join(([title] if title else []) + lines)


def print_final(table: str, run_dir: str | os.PathLike, *, seconds: float | None = None) -> None:
    """Prints the end of a run: results, memory, and the metrics file.

    Args:
      table: Table of the last results, or ''.
      run_dir: The run directory.
      seconds: Duration of the run; None to omit it.
    """
    took = "" if seconds is None else f" in {format_seconds(seconds)}"
    if table:
        print(table + "\n")
    print(memory_table())
    print(f"\nDone{took}. Metrics: {os.path.join(run_dir, 'metrics.jsonl')}", flush=True)


def format_bytes(count: float) -> str:
    """Returns a byte count in binary units, for example '1.2 GiB'."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1000 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """Returns a duration as '0:41', '12:05', '3:07:00' or '2d 03:07:00'."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}:{minute:02d}:{second:02d}"
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def device_memory() -> list[dict[str, Any]]:
    """Returns the memory of each local device: `{device, in_use, peak, limit}` in bytes.

    `limit` is None if unknown. CPU devices share the memory of the process and are one entry, the
    resident set of the host.
    """
    rows = []
    for device in jax.local_devices():
        stats = device.memory_stats()
        if stats:
            in_use = stats["bytes_in_use"]
            peak = stats.get("peak_bytes_in_use", in_use)
            limit = stats.get("bytes_limit")
            rows.append({"device": str(device), "in_use": in_use, "peak": peak, "limit": limit})
    if not rows:
        in_use, peak = _host_memory()
        rows.append({"device": "host", "in_use": in_use, "peak": peak, "limit": None})
    return rows


def memory_table() -> str:
    """Returns `device_memory` as a table."""
    rows = [
        (
            row["device"],
            *(format_bytes(row[k]) if row[k] else "" for k in ("in_use", "peak", "limit")),
        )
        for row in device_memory()
    ]
    return format_table(("device", "in use", "peak", "limit"), rows)


def environment() -> dict[str, Any]:
    """Returns package versions and hardware, for benchmarks and run directories."""
    packages = ("mmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    tensorflow = ("tensorflow-cpu", "tensorflow")
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": available_cpus(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
        "versions": {name: v for name in packages + tensorflow if (v := _version(name))},
    }


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else plain(str(value))


def _host_memory() -> tuple[int, int]:
    """Returns the current and the peak resident set of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = peak if sys.platform == "darwin" else peak * 1024
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize(), peak
    except OSError:  # no /proc: only the peak is known
        return peak, peak


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
