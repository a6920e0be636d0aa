"""Meshes, sharding rules over the whole state, and the table of shardings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from mmjax import sharding, tree
from mmjax.errors import UserError
from tests.messages import raises


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


PARAMS = {
    "layers": {
        "attention": {
            "query": {"kernel": shape(3, 64, 32), "bias": shape(3, 32)},
            "out": {"kernel": shape(3, 32, 64), "bias": shape(3, 64)},
        },
        "mlp": {
            "wi": {"kernel": shape(3, 64, 256), "bias": shape(3, 256)},
            "wo": {"kernel": shape(3, 256, 64)},
        },
    },
    "table": shape(1000, 6),
    "odd": shape(67, 71),
    "small": shape(64),
}
STATE = {
    "step": shape(dtype=jnp.int32),
    "params": PARAMS,
    "opt": jax.eval_shape(optax.adam(1e-3).init, PARAMS),
    "extra": {"half": shape(8, 8, dtype=jnp.bfloat16)},
}


def specs(state=STATE, *, rules=(), preset="dp", **axes):
    mesh = sharding.make_mesh(**axes)
    shardings = sharding.state_shardings(state, mesh, preset=preset, rules=rules)
    return {path: leaf.spec for path, leaf in tree.flatten(shardings).items()}


# ---- the mesh


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({}, (8, 1, 1)),
        (dict(fsdp=4), (2, 4, 1)),
        (dict(data=1, fsdp=-1, tensor=2), (1, 4, 2)),
        (dict(data=2, fsdp=2, tensor=2), (2, 2, 2)),
    ],
)
def test_the_mesh_uses_all_devices(axes, expected):
    mesh = sharding.make_mesh(**axes)
    assert tuple(mesh.shape.items()) == tuple(zip(sharding.AXES, expected, strict=True))
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_a_mesh_can_use_a_subset_of_devices():
    mesh = sharding.make_mesh(tensor=2, devices=jax.devices()[2:6])
    assert tuple(mesh.shape.values()) == (2, 1, 2)
    assert set(mesh.devices.flat) == set(jax.devices()[2:6])


class FakeDevice:
    """A device of a cluster that this machine does not have."""

    device_kind, core_on_chip = "fake", 0

    def __init__(self, platform, index, slice_index, coords=()):
        self.platform, self.id, self.slice_index, self.coords = platform, index, slice_index, coords
        self.process_index = slice_index


@pytest.mark.parametrize(("sizes", "hosts"), [((2, 4, 1), 2), ((1, 8, 1), 2), ((1, 1, 12), 3)])
def test_gpus_of_several_hosts_keep_the_last_axes_on_one_host(sizes, hosts):
    count = math.prod(sizes)
    devices = [FakeDevice("gpu", i, i * hosts // count) for i in range(count)]
    mesh = sharding.make_mesh(**dict(zip(sharding.AXES, sizes, strict=True)), devices=devices)
    assert [device.id for device in mesh.devices.flat] == list(range(count))


def tpu_slices(count):
    return [
        FakeDevice("tpu", 8 * s + 4 * z + 2 * y + x, s, (x, y, z))
        for s in range(count)
        for z in range(2)
        for y in range(2)
        for x in range(2)
    ]


def test_tpu_slices_are_on_the_data_axis():
    mesh = sharding.make_mesh(data=4, fsdp=4, devices=tpu_slices(2))
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (slices == np.array([0, 0, 1, 1])[:, None, None]).all()


def test_other_axes_across_tpu_slices_are_an_error():
    with raises(UserError, "config.mesh.data=1", "2 TPU slices"):
        sharding.make_mesh(data=1, fsdp=16, devices=tpu_slices(2))


def test_axes_may_take_a_part_of_a_dimension_of_a_tpu_slice():
    devices = [FakeDevice("tpu", 4 * y + x, 0, (x, y, 0)) for y in range(4) for x in range(4)]
    mesh = sharding.make_mesh(data=8, tensor=2, devices=devices)
    pairs = [[device.coords for device in pair] for pair in mesh.devices.reshape(8, 2)]
    assert all(sum(abs(np.subtract(*pair))) == 1 for pair in pairs)  # neighbors


@pytest.mark.parametrize(
    ("axes", "facts"),
    [
        (dict(data=2, fsdp=2), ("'data': 2, 'fsdp': 2", "4 devices", 8)),
        (dict(data=16), ("'data': 16", "16 devices", 8)),
        (dict(fsdp=3), ("'fsdp': 3", "8 available devices")),
    ],
)
def test_a_mesh_that_does_not_match_the_devices_is_an_error(axes, facts):
    with raises(UserError, "config.mesh", *facts):
        sharding.make_mesh(**axes)


@pytest.mark.parametrize(
    ("axes", "fact"),
    [
        (dict(data=-1, fsdp=-1), "'data': -1, 'fsdp': -1"),
        (dict(data=0), "'data': 0"),
        (dict(data=-2), "'data': -2"),
    ],
)
def test_an_invalid_axis_size_is_an_error(axes, fact):
    with raises(UserError, "config.mesh", fact, -1) as error:  # -1 is the only valid size below 1
        sharding.make_mesh(**axes)
    assert "8" not in str(error.value)  # independent of the number of devices


def test_a_batch_size_that_is_not_divisible_is_an_error_with_the_nearest_valid_one():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    sharding.check_batch(16, mesh)
    sharding.check_batch(16, mesh, num_parts=4)
    with raises(UserError, "config.batch_size=6", "4 devices", 8):
        sharding.check_batch(6, mesh)
    with raises(UserError, "config.batch_size=16", "4 devices", 3, 12):
        sharding.check_batch(16, mesh, num_parts=3)
    with raises(UserError, "config.batch_size=1", "4 devices"):
        sharding.check_batch(1, mesh)
    with raises(UserError, "config.batch_size=1", "4 devices", 8):  # never 0
        sharding.check_batch(1, mesh, num_parts=2)


def test_a_batch_is_split_over_data_and_fsdp():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    examples = np.arange(8 * 3).reshape(8, 3)
    batch = sharding.make_global({"x": examples}, mesh)
    assert np.array_equal(batch["x"], examples)
    for shard in batch["x"].addressable_shards:
        assert shard.data.shape == (2, 3)
        assert np.array_equal(shard.data, examples[shard.index])


# ---- presets and rules


def test_dp_replicates_all_leaves():
    assert set(specs().values()) == {P(), P(None), P(None, None), P(None, None, None)}


def test_fsdp_splits_the_largest_divisible_dimension():
    result = specs(preset="fsdp", data=2, fsdp=4)
    assert result["params/layers/attention/query/kernel"] == P(None, "fsdp", None)
    assert result["params/layers/attention/out/kernel"] == P(None, None, "fsdp")
    assert result["params/layers/mlp/wi/kernel"] == P(None, None, "fsdp")
    assert result["params/table"] == P("fsdp", None)
    assert result["params/odd"] == P(None, None)  # 4 divides neither 67 nor 71
    assert result["params/small"] == P(None)  # too small to be worth it
    assert result["step"] == P()


def test_fsdp_tp_splits_heads_and_hidden_units():
    result = specs(preset="fsdp_tp", data=2, fsdp=2, tensor=2)
    assert result["params/layers/attention/query/kernel"] == P(None, "fsdp", "tensor")
    assert result["params/layers/attention/query/bias"] == P(None, "tensor")
    assert result["params/layers/attention/out/kernel"] == P(None, "tensor", "fsdp")
    assert result["params/layers/attention/out/bias"] == P(None, None)
    assert result["params/layers/mlp/wi/kernel"] == P(None, "fsdp", "tensor")
    assert result["params/layers/mlp/wi/bias"] == P(None, "tensor")
    assert result["params/layers/mlp/wo/kernel"] == P(None, "tensor", "fsdp")
    assert result["params/table"] == P("fsdp", None)


def test_a_preset_does_not_split_indivisible_dimensions():
    state = {"params": {"mlp": {"wi": {"kernel": shape(63, 128)}}}}
    result = specs(state, preset="fsdp_tp", data=1, fsdp=2, tensor=4)
    assert result == {"params/mlp/wi/kernel": P(None, "tensor")}


@pytest.mark.parametrize("preset", ["fsdp", "fsdp_tp"])
def test_optimizer_moments_are_sharded_like_their_parameters(preset):
    result = specs(preset=preset, data=2, fsdp=2, tensor=2)
    for path in tree.flatten(PARAMS):
        for slot in ("mu", "nu"):
            assert result[f"opt/0/{slot}/{path}"] == result[f"params/{path}"]


def test_config_rules_precede_the_preset_in_order():
    rules = (("params/table", (None, "tensor")), ("table", ("data", None)))
    result = specs(preset="fsdp", rules=rules, data=2, fsdp=2, tensor=2)
    assert result["params/table"] == P(None, "tensor")
    assert result["opt/0/mu/table"] == P("data", None)
    assert result["params/layers/mlp/wi/kernel"] == P(None, None, "fsdp")


@pytest.mark.parametrize(
    ("keywords", "facts"),
    [
        (dict(preset="fdsp"), ("'fdsp'", "'fsdp'", "dp, fsdp, fsdp_tp")),
        (
            dict(rules=(("tabel", ("data",)),)),
            ("config.sharding_rules", "'tabel'", "extra/half"),
        ),
        (
            dict(rules=(("table", ("model", None)),)),
            ("config.sharding_rules", "'model'", "/table", "data, fsdp, tensor"),
        ),
        (
            dict(rules=(("odd", ("tensor", None)),)),
            ("config.sharding_rules", "/odd", "(67, 71)", "'tensor'", 2),
        ),
        (
            dict(rules=(("params/small", (None, "data")),)),
            ("config.sharding_rules", "params/small", "(64,)", "(None, 'data')"),
        ),
    ],
)
def test_invalid_rules_are_an_error(keywords, facts):
    with raises(UserError, *facts):
        specs(data=2, fsdp=2, tensor=2, **keywords)


# ---- the table of shardings


def test_the_table_counts_elements_and_bytes_per_device():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    shardings = sharding.state_shardings(STATE, mesh, preset="fsdp_tp")
    lines = sharding.plan_table(STATE, shardings).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    attention = 3 * (64 * 32 + 32) + 3 * (32 * 64 + 64)
    mlp = 3 * (64 * 256 + 256) + 3 * 256 * 64
    elements = attention + mlp + 1000 * 6 + 67 * 71 + 64
    # Kernels of layers are split in four. Their first biases and the table are split in two.
    local = 3 * (2 * 64 * 32 + 2 * 64 * 256) // 4 + 3 * (32 + 256) // 2 + 3 * 64
    local += 1000 * 6 // 2 + 67 * 71 + 64

    def mib(size):
        return f"{size / 2**20:.2f}"

    assert rows["params"] == [f"{elements:,}", mib(4 * elements), mib(4 * local)]
    assert rows["opt"] == [
        f"{2 * elements + 1:,}",
        mib(8 * elements + 4),
        mib(8 * local + 4),
    ]
    assert rows["extra"] == ["64", mib(128), mib(128)]
    assert set(rows) == {"step", "params", "opt", "extra"}


def test_the_full_table_lists_every_parameter():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    shardings = sharding.state_shardings(STATE, mesh, preset="fsdp_tp")
    lines = sharding.plan_table(STATE, shardings, full=True).splitlines()
    listed = [line for line in lines if line.startswith("params/")]
    assert len(listed) == len(jax.tree.leaves(PARAMS))
    (wi,) = [line for line in listed if line.startswith("params/layers/mlp/wi/kernel")]
    assert wi.split("  ")[-1] == "[-, fsdp, tensor]" and "(3, 64, 256)" in wi and "float32" in wi


def test_shard_bytes_is_the_size_on_one_device():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    shardings = jax.sharding.NamedSharding(mesh, P("fsdp", None))
    assert sharding.shard_bytes(shape(8, 3, dtype=jnp.bfloat16), shardings) == 2 * 3 * 2
