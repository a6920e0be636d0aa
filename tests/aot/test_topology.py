"""Names of topologies, and the environment of their compilers."""

from importlib import metadata

import pytest

from mmjax.aot import topology
from mmjax.errors import UserError
from mmjax.monitor.flops import device_type
from tests.messages import raises


@pytest.mark.parametrize(
    ("name", "platform", "devices", "device_kind"),
    [
        ("v5e:2x4", "tpu", 8, "TPU v5 lite"),
        ("V5P:2x2x2", "tpu", 8, "TPU v5"),
        ("v7x:2x2x1", "tpu", 8, "TPU7x"),
        ("h100:1x2x8", "cuda", 16, "NVIDIA H100 80GB HBM3"),
    ],
)
def test_a_name_gives_devices(name, platform, devices, device_kind):
    target = topology.parse(name)
    assert (target.platform, target.num_devices, target.device_kind) == (
        platform,
        devices,
        device_kind,
    )


def test_every_type_has_a_data_sheet():
    for name in ("v4:1x1x1", "v5e:1x1", "v5p:1x1x1", "v6e:1x1", "v7x:1x1x1"):
        assert device_type(topology.parse(name).device_kind).links
    for name in ("a100", "h100", "h200"):
        assert device_type(topology.parse(f"{name}:1x1x1").device_kind).network


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("v9:2x2", ["v9:2x2", "v5e", "h200"]),
        ("v5e", ["v5e", "v5e:2x4"]),
        ("v5e:2x2x2", ["v5e:2x2x2", "2 sizes"]),
        ("v5p:2x2", ["v5p:2x2", "3 sizes"]),
        ("h100:8", ["h100:8", "3 sizes", "h100:1x1x8"]),
        ("v5e:0x2", ["v5e:0x2", "at least 1"]),
    ],
)
def test_an_unknown_topology_is_an_error_that_names_the_known_ones(name, facts):
    with raises(UserError, *facts):
        topology.parse(name)


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x2", "tpu"), ("h200:1x1x1", "cuda")])
def test_a_missing_compiler_is_an_error_with_the_command_that_installs_it(name, extra, monkeypatch):
    def version(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(topology.metadata, "version", version)
    with raises(UserError, name, f'pip install "mmjax[{extra}]"'):
        topology.parse(name).compiler()


def test_the_compiler_runs_on_cpus_and_keeps_the_flags_of_the_user():
    env = topology.parse("h100:1x1x1").environment({"XLA_FLAGS": "--mine", "JAX_PLATFORMS": "tpu"})
    assert env["JAX_PLATFORMS"] == "cpu"
    assert env["XLA_FLAGS"].startswith("--mine ")
    assert topology.parse("v5e:2x4").environment({})["TPU_SKIP_MDS_QUERY"] == "1"
