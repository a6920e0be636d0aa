"""Lower bounds of the time of a compiled program, from the data sheet of the device."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from mmjax.aot.collectives import KINDS, Collective
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
      operation: Path of the JAX operation; the type of the instruction if unknown.
      count: Number of runs in one step.
      flops: Operations on matrix units.
      bytes: Bytes read and written.
      seconds: Lower bound of their time, each on its own.
    """

    source: str
    operation: str
    count: int
    flops: float
    bytes: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Lower bounds for one step on one device.

    Attributes:
      seconds: {'matrix units', 'memory', 'interconnect': time that each needs on its own}.
      serial_seconds: Time if operations do not overlap, and each is limited by the slower of
        matrix units and memory.
      traffic: Collective operations.
      groups: All other operations, the most expensive first.
    """

    seconds: Mapping[str, float]
    serial_seconds: float
    traffic: Sequence[Traffic]
    groups: Sequence[Group]

    @property
    def limit(self) -> str:
        """What bounds the step."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def step_seconds(self) -> float:
        """Lower bound of the step: perfect overlap of everything."""
        return self.seconds[self.limit]


def roofline(
    costs: Costs, device: DeviceType, mesh: Mapping[str, int], hosts: Sequence[int]
) -> Roofline:
    """Returns the lower bounds of a program.

    Args:
      costs: Costs of the program.
      device: Rates of the device.
      mesh: {axis: size}.
      hosts: Host of each device, in the order of the mesh.
    """
    traffic = _traffic(costs, device, mesh, hosts)
    groups = _groups([o for o in costs.operations if o.kind not in KINDS], device)
    interconnect = sum(t.seconds or 0.0 for t in traffic)
    seconds = {
        "matrix units": sum(_matrix_seconds(o, device) * o.times for o in costs.operations),
        "memory": costs.bytes / device.bandwidth,
        "interconnect": interconnect,
    }
    return Roofline(seconds, interconnect + sum(g.seconds for g in groups), traffic, groups)


def _groups(operations: Sequence[Operation], device: DeviceType) -> list[Group]:
    members: dict[tuple[str, str], list[Operation]] = collections.defaultdict(list)
    for o in operations:
        members[o.source, o.op_name or o.kind].append(o)
    groups = [
        Group(
            *key,
            count=sum(o.times for o in same),
            flops=sum(o.flops * o.times for o in same),
            bytes=sum(o.bytes * o.times for o in same),
            seconds=sum(
                max(_matrix_seconds(o, device), o.bytes / device.bandwidth) * o.times for o in same
            ),
        )
        for key, same in members.items()
    ]
    return sorted(groups, key=lambda g: (-g.seconds, g.source, g.operation))


def _matrix_seconds(operation: Operation, device: DeviceType) -> float:
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
