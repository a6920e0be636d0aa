"""Lower bounds of the time of a compiled program, from the data sheet of the device."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from mmjax.aot.collectives import Collective
from mmjax.aot.costs import Costs, Operation
from mmjax.monitor.flops import DeviceType


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collective operations of one kind along the same mesh axes, in one step.

    Attributes:
      kind: For example 'all-reduce'.
      axes: Mesh axes along which devices exchange data, joined by '+'.
      count: Number of operations.
      bytes: Bytes of the arrays.
      sent: Bytes that each device must send.
      seconds: Time to send them at the full rate; None if the rate is unknown.
    """

    kind: str
    axes: str
    count: int
    bytes: float
    sent: float
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Group:
    """Operations that come from the same line of code.

    Attributes:
      source: 'file:line', or '' if unknown.
      op_name: Path of the JAX operation.
      kind: Kind of the operations, if it is the same for all of them.
      count: How often they run in one step.
      flops: Operations on matrix units.
      bytes: Bytes read and written.
      seconds: Lower bound of their time, each on its own.
    """

    source: str
    op_name: str
    kind: str
    count: int
    flops: float
    bytes: float
    seconds: float


class Roofline:
    """Lower bounds for one step on one device.

    Args:
      costs: Costs of the program.
      device: Rates of the device.
      mesh: {axis: size}.
      hosts: Host of each device, in the order of the mesh.
    """

    def __init__(
        self, costs: Costs, device: DeviceType, mesh: Mapping[str, int], hosts: Sequence[int]
    ):
        self._costs, self._device = costs, device
        self.matrix_seconds = sum(_matrix(o, device) * o.times for o in costs.operations)
        self.memory_seconds = costs.bytes / device.bandwidth
        self.traffic = _traffic(costs, device, mesh, hosts)
        self.collective_seconds = sum(t.seconds or 0.0 for t in self.traffic)
        # No overlap between operations, each limited by the slower of matrix units and memory.
        self.serial_seconds = self.collective_seconds + sum(
            self.seconds(o) * o.times for o in costs.operations if not o.collective
        )

    @property
    def step_seconds(self) -> float:
        """Lower bound of the step: perfect overlap of everything."""
        return max(self.matrix_seconds, self.memory_seconds, self.collective_seconds)

    @property
    def limit(self) -> str:
        """What bounds the step: 'matrix units', 'memory' or 'interconnect'."""
        bounds = {
            "matrix units": self.matrix_seconds,
            "memory": self.memory_seconds,
            "interconnect": self.collective_seconds,
        }
        return max(bounds, key=lambda name: bounds[name])

    def seconds(self, operation: Operation) -> float:
        """Returns a lower bound of the time of one run of an operation."""
        return max(_matrix(operation, self._device), operation.bytes / self._device.bandwidth)

    def groups(self) -> list[Group]:
        """Returns the operations by source line and JAX operation, the most expensive first."""
        members: dict[tuple[str, str, str], list[Operation]] = {}
        for o in self._costs.operations:
            if not o.collective:
                key = (o.source, o.op_name, "" if o.source or o.op_name else o.kind)
                members.setdefault(key, []).append(o)
        groups = [
            Group(
                source=source,
                op_name=op_name,
                kind=kind or _common([o.kind for o in operations]),
                count=sum(o.times for o in operations),
                flops=sum(o.flops * o.times for o in operations),
                bytes=sum(o.bytes * o.times for o in operations),
                seconds=sum(self.seconds(o) * o.times for o in operations),
            )
            for (source, op_name, kind), operations in members.items()
        ]
        return sorted(groups, key=lambda g: (-g.seconds, g.source, g.op_name))


def _common(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else ""


def _matrix(operation: Operation, device: DeviceType) -> float:
    peak = device.float32 if operation.dtype in ("f32", "f64") else device.bfloat16
    return operation.flops / peak


def _traffic(
    costs: Costs, device: DeviceType, mesh: Mapping[str, int], hosts: Sequence[int]
) -> list[Traffic]:
    members: dict[tuple[str, str], list[tuple[Collective, int]]] = collections.defaultdict(list)
    for collective, times in costs.collectives:
        members[collective.kind, collective.axes(mesh)].append((collective, times))
    result = []
    for (kind, axes), parts in sorted(members.items()):
        seconds = [_seconds(c, device, hosts) for c, _ in parts]
        known = [s * n for s, (_, n) in zip(seconds, parts, strict=True) if s is not None]
        result.append(
            Traffic(
                kind=kind,
                axes=axes,
                count=sum(times for _, times in parts),
                bytes=sum(c.bytes * times for c, times in parts),
                sent=sum(c.sent(c.group_size(len(hosts))) * times for c, times in parts),
                seconds=sum(known) if len(known) == len(parts) else None,
            )
        )
    return result


def _seconds(collective: Collective, device: DeviceType, hosts: Sequence[int]) -> float | None:
    """Returns the time that a device needs at least to send its part of a collective.

    Between hosts with a network of their own, all devices of a host share the work.
    """
    if device.links is None:
        return None
    size = collective.group_size(len(hosts))
    seconds = collective.sent(size) / device.links
    if device.network is None:
        return seconds
    group = collective.groups[0] if collective.groups else range(len(hosts))
    spanned = len({hosts[i] for i in group})
    if spanned > 1:
        here = size / spanned
        seconds = max(seconds, collective.sent(spanned) / here / device.network)
    return seconds
