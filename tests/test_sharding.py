"""Mesh, path rules over the whole state, and the plan."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from mmjax import sharding, tree
from mmjax.errors import UserError


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
    found = sharding.state_shardings(state, mesh, preset=preset, rules=rules)
    return {path: where.spec for path, where in tree.flatten(found).items()}


# ---- the mesh


@pytest.mark.parametrize(
    "axes, wanted",
    [
        ({}, (8, 1, 1)),
        (dict(fsdp=4), (2, 4, 1)),
        (dict(data=1, fsdp=-1, tensor=2), (1, 4, 2)),
        (dict(data=2, fsdp=2, tensor=2), (2, 2, 2)),
    ],
)
def test_the_mesh_takes_all_devices(axes, wanted):
    mesh = sharding.make_mesh(**axes)
    assert tuple(mesh.shape.items()) == tuple(zip(sharding.AXES, wanted, strict=True))
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_a_mesh_of_some_devices():
    mesh = sharding.make_mesh(tensor=2, devices=jax.devices()[2:6])
    assert tuple(mesh.shape.values()) == (2, 1, 2)
    assert set(mesh.devices.flat) == set(jax.devices()[2:6])


@pytest.mark.parametrize(
    "axes, words",
    [
        (dict(data=2, fsdp=2), "needs 4 devices, there are 8"),
        (dict(data=16), "needs 16 devices, there are 8"),
        (dict(fsdp=3), "does not divide the 8 devices"),
        (dict(data=-1, fsdp=-1), "at most one is -1"),
        (dict(data=0), "sizes are ≥ 1"),
        (dict(data=-2), "sizes are ≥ 1"),
    ],
)
def test_sizes_that_do_not_fit(axes, words):
    with pytest.raises(UserError, match=f"config.mesh.*{words}"):
        sharding.make_mesh(**axes)


def test_batches_must_divide():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    sharding.check_batch(16, mesh)
    sharding.check_batch(16, mesh, accumulate_steps=4)
    with pytest.raises(UserError, match="batch_size=6 is not divisible by 4 dev.*that is: 8"):
        sharding.check_batch(6, mesh)
    with pytest.raises(UserError, match="4 devices × 3 accumulation steps.*that is: 12"):
        sharding.check_batch(16, mesh, accumulate_steps=3)
    with pytest.raises(UserError, match="that is: 4"):
        sharding.check_batch(1, mesh)


def test_a_batch_is_split_over_data_and_fsdp():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    rows = np.arange(8 * 3).reshape(8, 3)
    batch = sharding.make_global({"x": rows}, mesh)
    assert np.array_equal(batch["x"], rows)
    for shard in batch["x"].addressable_shards:
        assert shard.data.shape == (2, 3)
        assert np.array_equal(shard.data, rows[shard.index])


# ---- presets and rules


def test_dp_copies_everything():
    assert set(specs().values()) == {P(), P(None), P(None, None), P(None, None, None)}


def test_fsdp_splits_the_largest_dimension_that_it_divides():
    found = specs(preset="fsdp", data=2, fsdp=4)
    assert found["params/layers/attention/query/kernel"] == P(None, "fsdp", None)
    assert found["params/layers/attention/out/kernel"] == P(None, None, "fsdp")
    assert found["params/layers/mlp/wi/kernel"] == P(None, None, "fsdp")
    assert found["params/table"] == P("fsdp", None)
    assert found["params/odd"] == P(None, None)  # 4 divides neither 67 nor 71
    assert found["params/small"] == P(None)  # too small to be worth it
    assert found["step"] == P()


def test_fsdp_tp_splits_heads_and_hidden_units():
    found = specs(preset="fsdp_tp", data=2, fsdp=2, tensor=2)
    assert found["params/layers/attention/query/kernel"] == P(None, "fsdp", "tensor")
    assert found["params/layers/attention/query/bias"] == P(None, "tensor")
    assert found["params/layers/attention/out/kernel"] == P(None, "tensor", "fsdp")
    assert found["params/layers/attention/out/bias"] == P(None, None)
    assert found["params/layers/mlp/wi/kernel"] == P(None, "fsdp", "tensor")
    assert found["params/layers/mlp/wi/bias"] == P(None, "tensor")
    assert found["params/layers/mlp/wo/kernel"] == P(None, "tensor", "fsdp")
    assert found["params/table"] == P("fsdp", None)


def test_a_preset_leaves_whole_what_an_axis_does_not_divide():
    state = {"params": {"mlp": {"wi": {"kernel": shape(63, 128)}}}}
    found = specs(state, preset="fsdp_tp", data=1, fsdp=2, tensor=4)
    assert found == {"params/mlp/wi/kernel": P(None, "tensor")}


@pytest.mark.parametrize("preset", ["fsdp", "fsdp_tp"])
def test_moments_follow_their_parameters(preset):
    found = specs(preset=preset, data=2, fsdp=2, tensor=2)
    for path in tree.flatten(PARAMS):
        for slot in ("mu", "nu"):
            assert found[f"opt/0/{slot}/{path}"] == found[f"params/{path}"]


def test_own_rules_go_first_and_in_order():
    rules = (("params/table", (None, "tensor")), ("table", ("data", None)))
    found = specs(preset="fsdp", rules=rules, data=2, fsdp=2, tensor=2)
    assert found["params/table"] == P(None, "tensor")
    assert found["opt/0/mu/table"] == P("data", None)
    assert found["params/layers/mlp/wi/kernel"] == P(None, None, "fsdp")


@pytest.mark.parametrize(
    "keywords, words",
    [
        (dict(preset="fdsp"), "Unknown sharding preset 'fdsp'. Did you mean 'fsdp'"),
        (
            dict(rules=(("tabel", ("data",)),)),
            "sharding_rules: the pattern 'tabel' matches nothing",
        ),
        (dict(rules=(("table", ("model", None)),)), "'model' for .*/table; axes are"),
        (
            dict(rules=(("odd", ("tensor", None)),)),
            r"/odd \(67, 71\) has a dimension that axis 'tensor' of size 2 does not divide",
        ),
        (
            dict(rules=(("params/small", (None, "data")),)),
            r"params/small \(64,\) has fewer dimensions",
        ),
    ],
)
def test_rules_that_cannot_be_meant(keywords, words):
    with pytest.raises(UserError, match=words):
        specs(data=2, fsdp=2, tensor=2, **keywords)


# ---- the plan


def test_the_plan_counts_what_is_there():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    where = sharding.state_shardings(STATE, mesh, preset="fsdp_tp")
    lines = sharding.plan_table(STATE, where).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    attention = 3 * (64 * 32 + 32) + 3 * (32 * 64 + 64)
    mlp = 3 * (64 * 256 + 256) + 3 * 256 * 64
    elements = attention + mlp + 1000 * 6 + 67 * 71 + 64
    # Kernels of layers are in quarters, their first biases in halves, as is the table.
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


def test_the_full_plan_lists_every_parameter():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    where = sharding.state_shardings(STATE, mesh, preset="fsdp_tp")
    lines = sharding.plan_table(STATE, where, full=True).splitlines()
    listed = [line for line in lines if line.startswith("params/")]
    assert len(listed) == len(jax.tree.leaves(PARAMS))
    (wi,) = [line for line in listed if line.startswith("params/layers/mlp/wi/kernel")]
    assert wi.split("  ")[-1] == "[-, fsdp, tensor]" and "(3, 64, 256)" in wi and "float32" in wi


def test_bytes_of_a_leaf_on_one_device():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    where = jax.sharding.NamedSharding(mesh, P("fsdp", None))
    assert sharding.shard_bytes(shape(8, 3, dtype=jnp.bfloat16), where) == 2 * 3 * 2
