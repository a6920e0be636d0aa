"""Tests of peak FLOP/s by JAX device name, and of MFU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.monitor.flops import device_type, measured_peak, mfu, peak_flops, peak_of


@pytest.mark.parametrize(
    ("device_kind", "bfloat16", "float32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 156),
        ("NVIDIA H100 80GB HBM3", 989.5, 494.7),
        ("NVIDIA H100 PCIe", 756.5, 378),
        ("NVIDIA H100 NVL", 835.5, 417.5),
        ("NVIDIA H200", 989.5, 494.7),
        ("NVIDIA H200 NVL", 835.5, 417.5),
        ("NVIDIA GH200 480GB", 989.5, 494.7),
        ("NVIDIA B200", 2250, 1125),
        ("NVIDIA L4", 121, 60),
        ("Tesla T4", 8.1, 8.1),
        ("Tesla V100-SXM2-16GB", 15.7, 15.7),
        ("Tesla V100-PCIE-32GB", 14, 14),
        ("TPU v2", 23, 23),
        ("TPU v3", 61.5, 61.5),
        ("TPU v4", 275, 275),
        ("TPU v5 lite", 197, 197),
        ("TPU v5", 459, 459),
        ("TPU v5p", 459, 459),
        ("TPU v6 lite", 918, 918),
        ("TPU7x", 1153.5, 1153.5),
    ],
)
def test_peak_flops_of_known_devices(device_kind, bfloat16, float32):
    assert peak_flops(device_kind) == pytest.approx(bfloat16 * 1e12)
    assert peak_flops(device_kind, "float32") == pytest.approx(float32 * 1e12)


@pytest.mark.parametrize(
    "device_kind", ["cpu", "NVIDIA L40S", "NVIDIA GB200", "TPU v4 lite", "TPU v9"]
)
def test_unknown_devices_have_no_peak(device_kind):
    assert peak_flops(device_kind) is None


@pytest.mark.parametrize(
    ("device_kind", "gib", "gb_per_second", "links", "network"),
    [
        ("NVIDIA H200", 141, 4800, 450, 50),
        ("NVIDIA H100 80GB HBM3", 80, 3350, 450, 50),
        ("NVIDIA H100 NVL", 94, 3900, 300, None),
        ("TPU v5 lite", 16, 819, 200, None),
        ("TPU v6 lite", 32, 1640, 448, None),
    ],
)
def test_memory_and_links_of_known_devices(device_kind, gib, gb_per_second, links, network):
    device = device_type(device_kind)
    assert (device.memory, device.bandwidth) == (gib * 2**30, gb_per_second * 1e9)
    assert (device.links, device.network) == (links * 1e9, network and network * 1e9)


def test_unknown_dtype_has_no_peak():
    assert peak_flops("NVIDIA H100 80GB HBM3", "float64") is None


class Device:
    device_kind = "NVIDIA A100-SXM4-40GB"


class Mesh:
    devices = np.array([[Device()] * 4] * 2)
    size = 8


def test_peak_of_a_mesh_is_the_sum_over_its_devices():
    assert peak_of(Mesh(), jnp.bfloat16) == pytest.approx(8 * 312e12)
    assert peak_of(Mesh(), np.dtype("float32")) == pytest.approx(8 * 156e12)
    assert peak_of(jax.make_mesh((1,), ("data",))) == peak_flops(jax.devices()[0].device_kind)


def test_mfu_is_achieved_over_peak_flops():
    # Eight devices of 312 TFLOP/s have a peak of 1248e12 operations in half a second.
    assert mfu(312e12, 0.5, 8 * 312e12) == pytest.approx(0.25)
    assert mfu(312e12, 0.5, None) is None


def test_measured_peak_is_the_fastest_matmul_rate(monkeypatch):
    ticks = iter([0.0, 1.0, 1.0, 3.0])
    monkeypatch.setattr("mmjax.monitor.flops.time.perf_counter", lambda: next(ticks))
    assert measured_peak(size=8, repeats=2) == pytest.approx(2 * 8**3 / 1.0)
