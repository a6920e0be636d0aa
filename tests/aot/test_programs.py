"""Tiny recipes of all tasks, compiled for a TPU slice: numbers that can regress.

The numbers are those of libtpu 0.0.42. A better program may lower them: then lower them here.
"""

import collections
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import sharding
from mmjax.aot import batches, costs, hlo, report, topology, worker
from mmjax.aot.compile import compile_recipe
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.program import build_program
from mmjax.tasks.base import make_task
from mmjax.tools import cli
from tests.aot import programs
from tests.messages import assert_mentions, raises


def _has_libtpu():
    try:
        return bool(topology.parse(programs.TOPOLOGY).compiler())
    except UserError:
        return False


needs_libtpu = pytest.mark.skipif(not _has_libtpu(), reason="libtpu is not installed")
all_tasks = pytest.mark.parametrize("task", programs.TINY)

# {task: {collective: (largest number per step, largest number of bytes besides gradients)}}.
COLLECTIVES = {
    "pretrain": {"all-reduce": (19, 20_000), "all-gather": (4, 16_384)},
    "finetune": {"all-reduce": (2, 3_000)},
    "touch": {"all-reduce": (8, 8_000), "all-gather": (6, 24_576)},
    "guided": {
        "all-reduce": (26, 18_000),
        "all-gather": (2, 6_144),
        "all-to-all": (3, 2_048),
        "collective-permute": (6, 2_570),
    },
}
# {task: (largest bytes of memory, largest bytes that a step reads and writes)}, per device.
BYTES = {
    "pretrain": (22.1e6, 27.1e6),
    "finetune": (13.4e6, 7.6e6),
    "touch": (18.6e6, 23.6e6),
    "guided": (5.5e6, 2.3e6),
}


def train_program(task):
    """Returns the program of a tiny recipe on one CPU device, and its batch."""
    cfg = programs.tiny_config(task)
    spec = DataSpec.of_config(cfg)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    program = build_program(cfg, make_task(cfg, spec), mesh)
    return program, batches.training_batch(cfg, spec), mesh


def parameter_bytes(program):
    return sum(4 * math.prod(p.shape) for p in jax.tree.leaves(program.state["params"]))


@needs_libtpu
@all_tasks
def test_collectives_per_step(task):
    parameters = parameter_bytes(train_program(task)[0])
    actual = {t["kind"]: t for t in programs.analyzed(task)["collectives"]}
    assert actual.keys() <= COLLECTIVES[task].keys()
    for kind, traffic in actual.items():
        count, size = COLLECTIVES[task][kind]
        gradients = parameters if kind == "all-reduce" else 0
        assert traffic["count"] <= count
        assert traffic["bytes"] <= gradients + size
        assert traffic["axes"] == "data"
    # Data parallelism must sum every gradient.
    assert actual["all-reduce"]["bytes"] >= parameters


@needs_libtpu
@all_tasks
def test_memory_and_bytes_per_device(task):
    result = programs.analyzed(task)
    program, batch, _ = train_program(task)
    parameters, memory = parameter_bytes(program), result["memory"]
    example = sum(math.prod(v.shape) * v.dtype.itemsize for v in batch.values()) / 4
    peak, moved = BYTES[task]
    assert result["fits"]
    # Parameters and two moments of Adam; the step replaces them.
    assert 3 * parameters + example <= memory["arguments"] <= memory["peak"] <= peak
    assert memory["aliased"] >= 0.99 * memory["outputs"]
    # It reads and writes all of them.
    assert 6 * parameters <= result["bytes"] <= moved


def _probabilities(task, *overrides):
    """Returns the number of float32 arrays [B, H, T, T] that operations exchange."""
    program = programs.compiled(task, *overrides)
    arrays = costs.materialized_arrays(hlo.parse(program.text()))
    per_device = programs.tiny_config(task).batch_size // 4
    return sum(
        count
        for array, count in arrays.items()
        if array.dtype == "f32"
        and len(dims := array.dims) == 4
        and dims[0] == per_device
        and dims[2] == dims[3] > 15
    )


@needs_libtpu
def test_fused_attention_keeps_no_probabilities():
    """Neither does 'auto' with 128 tokens or more; these towers have fewer."""
    override = "model.backbone.attention_impl=pallas"
    assert _probabilities("finetune") > 0
    assert _probabilities("finetune", override) == 0
    # Forward twice (with recomputation) and backward; each says what it computes.
    result = costs.count(hlo.parse(programs.compiled("finetune", override).text()))
    kernels = [o for o in result.operations if "pallas_call" in o.op_name]
    assert len(kernels) >= 2 and all(o.flops > 0 for o in kernels)
    assert not result.uncounted


def flops_of_jaxpr(jaxpr, times=1):
    """Returns operations of dots, and of convolutions without padding; scans by their length."""
    total = collections.Counter()
    for equation in jaxpr.eqns:
        params, out = equation.params, equation.outvars[0].aval
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            size = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
            total["dot"] += 2 * times * size * out.size
        elif equation.primitive.name == "conv_general_dilated":
            names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
            options = {name: params[name] for name in names}
            ones = jax.lax.conv_general_dilated(
                *(jnp.ones(v.aval.shape) for v in equation.invars),
                **options,
                dimension_numbers=params["dimension_numbers"],
                feature_group_count=params["feature_group_count"],
                batch_group_count=params["batch_group_count"],
            )
            total["convolution"] += 2 * times * float(ones.sum())
        inner = times * (params["length"] if equation.primitive.name == "scan" else 1)
        for leaf in jax.tree.leaves(list(params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(leaf := getattr(leaf, "jaxpr", leaf), "eqns"):
                total += flops_of_jaxpr(leaf, inner)
    return total


@needs_libtpu
@all_tasks
def test_operations_are_those_of_the_jaxpr(task):
    program, batch, mesh = train_program(task)
    with jax.set_mesh(mesh):
        traced = program.step.trace(program.state, batch)
    expected = flops_of_jaxpr(traced.jaxpr.jaxpr).total()
    result = programs.analyzed(task)
    assert not result["uncounted"]
    fft = sum(o.flops for o in _costs(task).operations if "fft" in o.op_name)  # TPUs multiply
    assert (result["flops"] - fft) * result["devices"] == pytest.approx(expected, rel=1e-3)


def _costs(task):
    return costs.count(hlo.parse(programs.compiled(task).text()))


@needs_libtpu
def test_the_command_prints_text_or_json(monkeypatch, capsys):
    program = programs.compiled("finetune")
    monkeypatch.setattr("mmjax.aot.compile.compile_recipe", lambda *_, **__: program)
    arguments = ["plan", "--task=finetune", "--config=demo:smoke", "--compile=v5e:2x2"]
    assert cli.main(arguments) == 0
    assert_mentions(
        *(capsys.readouterr().out, "finetune demo:smoke", "4 × TPU v5 lite", "libtpu", "fits"),
        *("all-reduce", "mmjax/models/blocks/transformer.py:", "MFU of at most"),
    )
    assert cli.main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["recipe"] == "finetune demo:smoke"
    assert result["flops"] == programs.analyzed("finetune")["flops"]
    assert 0 < result["mfu"] < 1


@needs_libtpu
def test_a_program_that_does_not_fit_says_by_how_much(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    cfg = dataclasses.replace(programs.tiny_config("finetune"), batch_size=2**18)
    result = report.analyze(compile_recipe(cfg, "v5e:1x1"), cfg, "finetune huge")
    assert not result["fits"]
    excess = result["memory"]["peak"] - result["memory"]["limit"]
    assert excess > 2**30 and 15e9 < result["memory"]["limit"] < 17e9
    assert_mentions(
        *(report.to_text(result), "DOES NOT FIT", f"{excess / 2**30:.1f} GiB too much"),
        *("config.batch_size than 262144", "remat", "accumulate_steps"),
    )


@pytest.mark.parametrize("task", ["pretrain", "finetune", "touch"])
def test_predict_functions_take_the_batch_of_an_evaluation(task):
    cfg = programs.tiny_config(task)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    lowered, description = worker.lower(cfg, mesh, "features")
    assert description["model_flops"] is None
    outputs, fields = lowered.out_info
    assert outputs and all(v.shape[0] == cfg.batch_size for v in outputs.values())
    assert {"mask", "example_id"} <= fields.keys()


def test_an_unknown_function_is_an_error():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with raises(UserError, "--function", "featurs", "features", "train_step"):
        worker.lower(programs.tiny_config("finetune"), mesh, "featurs")


@pytest.mark.parametrize("task", ["pretrain", "finetune", "touch", "guided"])
def test_the_training_batch_has_the_fields_of_the_pipeline(task):
    from mmjax.session import open_train_data

    cfg = programs.tiny_config(task)
    data, spec = open_train_data(cfg)
    actual = next(iter(data.iterate(0)))
    batch = batches.training_batch(cfg, spec)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (np.shape(v), np.asarray(v).dtype) for k, v in actual.items()
    }
