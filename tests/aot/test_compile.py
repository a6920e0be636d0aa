"""The child process that compiles: errors, crashes, memory and the cache."""

import os
import re
import types

import jax
import pytest

from mmjax import config
from mmjax.aot import compile as compile_lib
from mmjax.aot import worker
from mmjax.errors import UserError
from tests.messages import assert_mentions, raises


def recipe(**values):
    cfg = config.load("finetune", "demo:smoke", [])
    for key, value in values.items():
        setattr(cfg, key, value)
    return cfg


@pytest.fixture
def fake(monkeypatch):
    """The child process is tests/aot/fake_worker.py, and libtpu need not be installed."""
    monkeypatch.setattr(compile_lib, "_WORKER", "tests.aot.fake_worker")
    monkeypatch.setattr(compile_lib.topology.Topology, "compiler", lambda self: "libtpu 1.2.3")


@pytest.mark.parametrize(
    ("seed", "facts"),
    [
        (1, ["SIGSEGV", "libtpu 1.2.3", "v5e:2x2", "finetune demo", "train_step"]),
        (2, ["libtpu 1.2.3", "v5e:2x2", "finetune demo", "2 s"]),
        (3, ["libtpu 1.2.3", "v5e:2x2", "finetune demo", "INTERNAL: no such kernel"]),
        (4, ["libtpu 1.2.3", "v5e:2x2", "finetune demo", "status 3"]),
    ],
)
def test_a_compiler_that_crashes_hangs_or_refuses_is_an_error_with_its_log(fake, seed, facts):
    with raises(UserError, *facts) as info:
        compile_lib.compile_recipe(
            recipe(seed=seed), "v5e:2x2", recipe="finetune demo", timeout=2.0
        )
    log = re.search(r"log: (\S+)", str(info.value))[1]
    with open(log) as file:
        assert_mentions(file.read(), "last words of the compiler")
    os.remove(log)


@pytest.mark.parametrize(
    ("sizes", "mesh", "expected"),
    [
        ({}, {}, (4, 1, 1)),
        ({"fsdp": 2}, {}, (2, 2, 1)),
        ({"data": 1, "tensor": 4}, {}, (1, 1, 4)),
        ({}, {"fsdp": 4}, (1, 4, 1)),
        ({"fsdp": 1}, {"fsdp": 4}, (4, 1, 1)),
    ],
)
def test_the_data_axis_takes_the_devices_that_others_leave(monkeypatch, sizes, mesh, expected):
    requests = []

    def run(request, target, **_):
        requests.append(request)
        return {"status": "user_error", "message": "stop"}

    monkeypatch.setattr(compile_lib, "_run", run)
    monkeypatch.setattr(compile_lib.topology.Topology, "compiler", lambda self: "libtpu 1.2.3")
    with pytest.raises(UserError, match="stop"):
        compile_lib.compile_recipe(recipe(mesh=mesh), "v5e:2x2", **sizes)
    assert tuple(requests[0]["mesh"].values()) == expected


def test_a_mesh_that_does_not_fill_the_topology_is_an_error(fake):
    with raises(UserError, "v5e:2x2", "4 devices", "fsdp 3", "--fsdp"):
        compile_lib.compile_recipe(recipe(), "v5e:2x2", fsdp=3)


@pytest.mark.parametrize(
    ("message", "used", "limit"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 28.43G of 15.75G hbm. Exceeded hbm capacity by 12.68G.",
            28.43,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (18.71G) exceeds available HBM (15.75G).",
            18.71,
            15.75,
        ),
    ],
)
def test_messages_of_libtpu_say_how_much_memory_is_missing(message, used, limit):
    error = worker.memory_error(message)
    assert error["memory"]["peak"] == pytest.approx(used * 2**30)
    assert error["limit"] == pytest.approx(limit * 2**30)


@pytest.mark.parametrize(
    "message",
    ["INTERNAL: Used 2G of 1G hbm", "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem."],
)
def test_other_errors_are_not_about_device_memory(message):
    assert worker.memory_error(message) is None


class Lowered:
    """A lowered function that counts compilations."""

    def __init__(self, text):
        self.text, self.compilations = text, 0

    def as_text(self, debug_info):
        return self.text

    def compile(self):
        self.compilations += 1
        sizes = dict(argument=40, output=30, alias=20, temp=5, generated_code=1)
        stats = {f"{name}_size_in_bytes": size for name, size in sizes.items()}
        return types.SimpleNamespace(
            as_text=lambda: "HloModule m",
            memory_analysis=lambda: types.SimpleNamespace(**stats),
        )


def test_the_cache_has_one_entry_per_program_and_topology(monkeypatch, tmp_path):
    lowered = Lowered("program 1")
    monkeypatch.setattr(worker, "lower", lambda *_: (lowered, {"model_flops": 1.0, "dtype": "x"}))
    monkeypatch.setattr(worker.topology.Topology, "devices", lambda self: jax.devices()[:4])
    monkeypatch.setattr(worker.topology.Topology, "compiler", lambda self: "libtpu 1.2.3")
    request = {
        "config": {"task": "finetune"},
        "topology": "v5e:2x2",
        "mesh": {"data": 4, "fsdp": 1, "tensor": 1},
        "function": "train_step",
        "cache": str(tmp_path),
    }
    monkeypatch.setattr(worker.config, "resolve", lambda cfg: cfg)
    first, second = worker.compile_request(request), worker.compile_request(request)
    assert (first["cached"], second["cached"], lowered.compilations) == (False, True, 1)
    assert {**first, "cached": 0, "trace_seconds": 0} == {**second, "cached": 0, "trace_seconds": 0}
    assert first["memory"]["peak"] == 40 + 30 - 20 + 5 + 1
    assert not worker.compile_request({**request, "topology": "v6e:2x2"})["cached"]
    lowered.text = "program 2"
    assert not worker.compile_request(request)["cached"]
    assert lowered.compilations == 3
