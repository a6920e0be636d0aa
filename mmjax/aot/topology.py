"""Names of TPU slices and groups of GPUs, and the compilers for them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from mmjax.errors import UserError
from mmjax.monitor.flops import device_type


@dataclasses.dataclass(frozen=True)
class _TPU:
    """What libtpu needs to know about a TPU version.

    Attributes:
      device_kind: The `device_kind` of its devices.
      prefix: Its name in topologies of libtpu.
      num_dims: Number of dimensions of a slice.
      devices_per_chip: JAX devices of a chip.
      options: Further options of libtpu.
    """

    device_kind: str
    prefix: str
    num_dims: int
    devices_per_chip: int = 1
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_TPUS = {
    # By default, libtpu would use each core of a v4 as a device.
    "v4": _TPU("TPU v4", "v4", 3, options={"chip_config_name": "megacore"}),
    "v5e": _TPU("TPU v5 lite", "v5e", 2),
    "v5p": _TPU("TPU v5", "v5p", 3),
    "v6e": _TPU("TPU v6 lite", "v6e", 2),
    "v7x": _TPU("TPU7x", "tpu7x", 3, devices_per_chip=2),
}


@dataclasses.dataclass(frozen=True)
class _GPU:
    """What XLA needs to know about a GPU besides `mmjax.monitor.flops.DeviceType`.

    The numbers are from NVIDIA's architecture papers.
    """

    device_kind: str
    compute_capability: tuple[int, int]
    cores: int
    fpus_per_core: int
    clock_ghz: float
    l2_cache: int
    shared_memory: int

    def target(self) -> str:
        """Returns the description that the plugin takes, a stream_executor.GpuTargetConfigProto."""
        major, minor = self.compute_capability
        rates = device_type(self.device_kind)
        assert rates is not None
        device = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 49152,
            "shared_memory_per_core": self.shared_memory,
            "shared_memory_per_block_optin": self.shared_memory - 1024,
            "threads_per_core_limit": 2048,
            "core_count": self.cores,
            "fpus_per_core": self.fpus_per_core,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "memory_bandwidth": int(rates.bandwidth),
            "l2_cache_size": self.l2_cache,
            "clock_rate_ghz": self.clock_ghz,
            "device_memory_size": int(rates.memory),
            "registers_per_core_limit": 65536,
            "registers_per_block_limit": 65536,
        }
        fields = " ".join(f"{key}: {value}" for key, value in device.items())
        capability = f"cuda_compute_capability {{ major: {major} minor: {minor} }}"
        dnn_major, dnn_minor = _cudnn()[:2]
        dnn = f"dnn_version_info {{ major: {dnn_major} minor: {dnn_minor} }}"
        return (
            f"gpu_device_info {{ {fields} {capability} }} {dnn} "
            f'platform_name: "CUDA" device_description_str: "{self.device_kind}"'
        )


_GPUS = {
    "a100": _GPU("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 40 * 2**20, 164 * 2**10),
    "h100": _GPU("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 50 * 2**20, 228 * 2**10),
    "h200": _GPU("NVIDIA H200 141GB HBM3e", (9, 0), 132, 128, 1.98, 50 * 2**20, 228 * 2**10),
}

# {platform: (extra of mmjax, name, packages)}.
_COMPILERS = {
    "tpu": ("tpu", "libtpu", "libtpu"),
    "cuda": ("cuda", "XLA's CUDA plugin", "jax-cuda13-plugin", "jax-cuda12-plugin"),
}

# Without these, libtpu looks for a TPU and locks it.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Without the device no kernel can be measured; Triton's matrix products need that.
_GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: For example 'v5e:2x4'.
      type: The part before the colon.
      dims: The numbers behind it.
      platform: 'tpu' or 'cuda'.
    """

    name: str
    type: str
    dims: tuple[int, ...]
    platform: str

    @property
    def num_devices(self) -> int:
        """Number of JAX devices."""
        per_chip = _TPUS[self.type].devices_per_chip if self.platform == "tpu" else 1
        return math.prod(self.dims) * per_chip

    @property
    def device_kind(self) -> str:
        """The `device_kind` of its devices."""
        return {**_TPUS, **_GPUS}[self.type].device_kind

    def environment(self, before: Mapping[str, str]) -> dict[str, str]:
        """Returns the environment of the process that compiles.

        Args:
          before: The environment of this process.
        """
        env = dict(before) | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
        if self.platform == "tpu":
            return env | _TPU_ENVIRONMENT
        return env | {"XLA_FLAGS": f"{before.get('XLA_FLAGS', '')} {_GPU_FLAGS}".strip()}

    def devices(self) -> list[Any]:
        """Returns the devices; call it only in a process with `environment`.

        Raises:
          UserError: There is no such slice.
        """
        from jax.experimental import topologies

        if self.platform == "cuda":
            shape, target = "x".join(map(str, self.dims)), _GPUS[self.type].target()
            options: dict[str, Any] = {"topology": shape, "target_config": target}
            return topologies.get_topology_desc(self.type, platform="cuda", **options).devices
        tpu = _TPUS[self.type]
        name, options = f"{tpu.prefix}:{'x'.join(map(str, self.dims))}", tpu.options
        if any(size % 2 for size in self.dims[:2]):  # hosts have 2 × 2 chips by default
            x, y = (2 - size % 2 for size in self.dims[:2])
            options = {**options, "chips_per_host_bounds": (x, y, 1)}
        try:
            return topologies.get_topology_desc(
                platform="tpu", topology_name=name, **options
            ).devices
        except Exception as error:  # jax.errors.JaxRuntimeError
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--compile={self.name}: libtpu knows no such slice: {reason}"
            ) from None

    def compiler(self) -> str:
        """Returns the name and version of the compiler.

        Raises:
          UserError: It is not installed.
        """
        extra, what, *packages = _COMPILERS[self.platform]
        if found := _installed(packages):
            return " ".join(found)
        raise UserError(
            f"--compile={self.name} needs the compiler of these devices, {what}, which is not "
            f'installed. Install it with: pip install "mmjax[{extra}]". It needs no such device.'
        )


def _installed(packages: Sequence[str]) -> tuple[str, str] | None:
    """Returns the first package that is installed, and its version."""
    for package in packages:
        try:
            return package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def _cudnn() -> list[str]:
    """Returns the version of cuDNN that is installed, or one that JAX supports."""
    found = _installed(["nvidia-cudnn-cu12", "nvidia-cudnn-cu13"])
    return (found[1] if found else "9.10").split(".")


def parse(name: str) -> Topology:
    """Returns the topology of a name such as 'v5e:2x4' or 'h100:1x2x8'.

    Raises:
      UserError: The device type or the shape is not one of the known forms.
    """
    match = re.fullmatch(r"([A-Za-z0-9]+):(\d+(?:x\d+)*)", name)
    kind = match[1].lower() if match else ""
    if not match or kind not in {**_TPUS, **_GPUS}:
        raise UserError(
            f"--compile={name}: unknown topology. Known: {', '.join(_TPUS)} with the chips along "
            f"each dimension of the slice (v5e:2x4, v5p:4x4x4), and {', '.join(_GPUS)} with "
            "SLICESxHOSTSxGPUS (h100:1x2x8 for two hosts with eight GPUs each)."
        )
    dims = tuple(int(size) for size in match[2].split("x"))
    platform = "tpu" if kind in _TPUS else "cuda"
    expected = _TPUS[kind].num_dims if platform == "tpu" else 3
    if len(dims) != expected or not all(dims):
        example = "x".join(["2"] * expected) if platform == "tpu" else "1x1x8"
        raise UserError(
            f"--compile={name}: {kind} needs {expected} sizes of at least 1, for example "
            f"{kind}:{example}."
        )
    return Topology(f"{kind}:{match[2]}", kind, dims, platform)
