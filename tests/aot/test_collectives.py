"""Collective operations: groups, mesh axes, bytes; and the lower bounds of time from them."""

import pytest

from mmjax.aot import costs, hlo
from mmjax.aot.collectives import parse_groups
from mmjax.aot.roofline import roofline
from mmjax.monitor.flops import DeviceType, device_type


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, to_apply=%add", [(0, 1), (2, 3)]),
        ("replica_groups={}, to_apply=%add", []),
        ("replica_groups=[2,2]<=[4]", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [(0, 2), (1, 3)]),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", [(0, 2), (1, 3), (4, 6), (5, 7)]),
        ("replica_groups=mesh['data'=2,'fsdp'=2] {'fsdp'}", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['data'=2,'fsdp'=2] {'data'}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [(0, 1), (2, 3)]),
    ],
)
def test_replica_groups_in_all_notations(attributes, groups):
    assert list(parse_groups(attributes)) == groups


PROGRAM = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

ENTRY %main (x: f32[1024], y: bf16[512]) -> f32[1024] {
  %x = f32[1024]{0} parameter(0), metadata={op_name="x"}
  %y = bf16[512]{0} parameter(1)
  %r = (f32[1024]{0}, bf16[512]{0}) all-reduce(%x, %y), channel_id=1, \
replica_groups=[1,8]<=[8], to_apply=%add
  %g = (f32[1024]{0}, f32[4096]{0}) all-gather-start(%x), channel_id=2, \
replica_groups=[2,4]<=[8], dimensions={0}
  %gd = f32[4096]{0} all-gather-done(%g)
  %p = f32[1024]{0} collective-permute(%x), channel_id=3, source_target_pairs={{0,4},{4,0}}
  %sc = bf16[128]{0} reduce-scatter(%y), channel_id=4, \
replica_groups=[2,4]<=[2,4], dimensions={0}, to_apply=%add
  ROOT %c = f32[1024]{0} copy(%x)
}
"""
MESH = {"data": 2, "fsdp": 4, "tensor": 1}
DEVICE = DeviceType("x", 1e12, 1e12, 1e9, bandwidth=1e9, links=1e9, network=1e8)


def test_collectives_have_bytes_and_mesh_axes():
    counted = costs.count(hlo.parse(PROGRAM))
    actual = {
        (c.kind, c.axes(MESH)): (c.bytes, c.sent(c.group_size(8)), n)
        for c, n in counted.collectives
    }
    assert actual == {
        ("all-reduce", "data+fsdp"): (4096 + 1024, 2 * 7 / 8 * 5120, 1),
        ("all-gather", "fsdp"): (4 * 4096, 3 * 4096, 1),
        ("collective-permute", "data"): (4096, 4096, 1),
        ("reduce-scatter", "fsdp"): (1024, 3 / 4 * 1024, 1),
    }


ASYNC = """HloModule m

%start (x: f32[8,64]) -> f32[64,64] {
  %x = f32[8,64]{1,0} parameter(0)
  ROOT %g = f32[64,64]{1,0} all-gather(%x), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
}

%part (x: f32[8,64]) -> f32[64,64] {
  %x = f32[8,64]{1,0} parameter(0)
  ROOT %g = f32[64,64]{1,0} all-gather(%x), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
}

%body (state: (s32[], f32[8,64])) -> (s32[], f32[8,64]) {
  %state = (s32[], f32[8,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8,64]{1,0} get-tuple-element(%state), index=1
  %f = f32[64,64]{1,0} fusion(%x), kind=kCustom, calls=%part
  ROOT %t = (s32[], f32[8,64]{1,0}) tuple(%i, %x)
}

%condition (state: (s32[], f32[8,64])) -> pred[] {
  %state = (s32[], f32[8,64]{1,0}) parameter(0)
  ROOT %p = pred[] constant(true)
}

ENTRY %main (x: f32[8,64]) -> (s32[], f32[8,64]) {
  %x = f32[8,64]{1,0} parameter(0)
  %f = f32[64,64]{1,0} fusion(%x), kind=kCustom, calls=%start
  %zero = s32[] constant(0)
  %t = (s32[], f32[8,64]{1,0}) tuple(%zero, %x)
  ROOT %w = (s32[], f32[8,64]{1,0}) while(%t), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"6"}}
}
"""


def test_parts_of_an_asynchronous_collective_are_one_also_in_a_loop():
    """libtpu fuses them with the work of a loop that runs while the data are sent."""
    counted = costs.count(hlo.parse(ASYNC))
    assert [(c.kind, c.bytes, n) for c, n in counted.collectives] == [
        ("all-gather", 64 * 64 * 4, 1)
    ]


def test_roofline_bounds_the_time_by_the_slowest_part():
    counted = costs.count(hlo.parse(PROGRAM))
    bound = roofline(counted, DEVICE, MESH, hosts=[0] * 8)
    sent = 2 * 7 / 8 * 5120 + 3 * 4096 + 4096 + 3 / 4 * 1024
    assert bound.seconds["interconnect"] == pytest.approx(sent / 1e9)
    assert bound.seconds["memory"] == pytest.approx(counted.bytes / 1e9)
    assert bound.seconds["matrix units"] == 0
    assert (bound.limit, bound.step_seconds) == ("memory", bound.seconds["memory"])
    assert [(g.operation, g.bytes) for g in bound.groups] == [("copy of x", 8192)]
    assert bound.serial_seconds == pytest.approx(sent / 1e9 + 8192 / 1e9)


def test_devices_of_a_host_share_its_network():
    counted = costs.count(hlo.parse(PROGRAM))
    one, two = (roofline(counted, DEVICE, MESH, hosts) for hosts in ([0] * 8, [0] * 4 + [1] * 4))
    seconds = {t.kind: t.seconds for t in two.traffic}
    assert seconds["all-gather"] == {t.kind: t.seconds for t in one.traffic}["all-gather"]
    # Two hosts exchange the array; each of four devices sends a quarter of the host's part.
    assert seconds["all-reduce"] == pytest.approx(2 * 1 / 2 * 5120 / 4 / 1e8)


def test_traffic_between_devices_without_known_links_has_no_time():
    device = device_type("TPU v3")
    bound = roofline(costs.count(hlo.parse(PROGRAM)), device, MESH, hosts=[0] * 8)
    assert {t.seconds for t in bound.traffic} == {None}
