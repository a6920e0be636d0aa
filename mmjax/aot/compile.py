"""Compiles a recipe for devices that this machine does not have, in a child process."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import mmjax
from mmjax import config, files
from mmjax.aot import topology
from mmjax.cache import cache_dir
from mmjax.config import Config
from mmjax.errors import UserError

_WORKER = "mmjax.aot.worker"
TIMEOUT = 3600  # seconds; the largest published recipes compile in minutes


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledProgram:
    """A program for one topology, or the reason why it does not fit.

    Attributes:
      topology: What it was compiled for.
      function: 'train_step', or a predict function.
      mesh: {axis: size}.
      hosts: Host of each device, in the order of the mesh.
      versions: Versions of jax, jaxlib and the compiler.
      trace_seconds: Time to trace and lower the function.
      seconds: Time to compile it.
      cached: Whether the program comes from the cache.
      model_flops: FLOPs of one global step as MFU counts them; None for predict functions.
      dtype: Data type of the model's matrix products.
      memory: {part: bytes per device}; only 'peak', what it needs, if it does not fit.
      hlo: File with the optimized program; '' if it does not fit.
      limit: Bytes that the compiler may use; only if it does not fit.
      message: The compiler's message; only if it does not fit.
    """

    topology: topology.Topology
    function: str
    mesh: Mapping[str, int]
    hosts: tuple[int, ...]
    versions: Mapping[str, str]
    trace_seconds: float
    seconds: float
    cached: bool
    model_flops: float | None
    dtype: str
    memory: Mapping[str, float]
    hlo: str
    limit: float = 0.0
    message: str = ""

    def text(self) -> str:
        """Returns the text of the optimized program."""
        with gzip.open(self.hlo, "rt") as file:
            return file.read()


def compile_recipe(
    cfg: Config | Mapping[str, Any],
    topology_name: str,
    *,
    data: int | None = None,
    fsdp: int | None = None,
    tensor: int | None = None,
    function: str = "train_step",
    recipe: str = "",
    timeout: float = TIMEOUT,
) -> CompiledProgram:
    """Compiles the train step or a predict function of a config.

    Args:
      cfg: The config of a training run.
      topology_name: Devices, as in `mmjax.aot.topology.parse`.
      data: Size of the mesh axis 'data'; None for `config.mesh.data`, by default all devices that
        the other axes leave.
      fsdp: Size of the mesh axis 'fsdp'; None for `config.mesh.fsdp`.
      tensor: Size of the mesh axis 'tensor'; None for `config.mesh.tensor`.
      function: 'train_step', or the name of a predict function of the task.
      recipe: Name of the recipe, for error messages.
      timeout: Seconds after which the compiler is stopped.

    Raises:
      UserError: The topology, mesh, config or function is invalid, the compiler is not installed,
        or it crashes.
    """
    cfg = config.resolve(cfg)
    target = topology.parse(topology_name)
    target.compiler()
    mesh = _mesh(target, cfg, {"data": data, "fsdp": fsdp, "tensor": tensor})
    cache = cache_dir() / "aot"
    request = {
        "config": json.loads(config.to_json(cfg)),
        "topology": target.name,
        "mesh": mesh,
        "function": function,
        "cache": str(cache),
        "sys_path": [os.path.abspath(path) for path in sys.path],
    }
    result = _run(
        request, target, recipe=recipe or f"--task={cfg.task}", cache=cache, timeout=timeout
    )
    if result.pop("status") == "user_error":
        raise UserError(result["message"])
    result["hosts"] = tuple(result["hosts"])
    return CompiledProgram(topology=target, function=function, **result)


def _mesh(
    target: topology.Topology, cfg: Config, sizes: Mapping[str, int | None]
) -> dict[str, int]:
    """Returns the sizes of the mesh axes.

    Raises:
      UserError: They do not fit the number of devices.
    """
    mesh = {axis: cfg.mesh.get(axis, 1) if size is None else size for axis, size in sizes.items()}
    count = target.num_devices
    others = mesh["fsdp"] * mesh["tensor"]
    if mesh["data"] == -1 and others > 0 and count % others == 0:
        mesh["data"] = count // others
    if min(mesh.values()) < 1 or mesh["data"] * others != count:
        shape = ", ".join(f"{axis} {size}" for axis, size in mesh.items())
        raise UserError(
            f"--compile={target.name} has {count} devices, but the mesh is {shape}. The product of "
            "--data, --fsdp and --tensor must be the number of devices; without --data, that axis "
            "takes all devices that the others leave."
        )
    return mesh


def _run(
    request: Mapping[str, Any],
    target: topology.Topology,
    *,
    recipe: str,
    cache: pathlib.Path,
    timeout: float,
) -> dict[str, Any]:
    """Returns the result of a worker process; its log is kept if it fails."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mmjax-aot-") as directory:
        paths = [str(pathlib.Path(directory, name)) for name in ("request.json", "result.json")]
        files.write_json(paths[0], request)
        handle, log = tempfile.mkstemp(prefix="log-", suffix=".txt", dir=cache)
        # The mmjax that runs here, even if the current directory contains another one.
        root = str(pathlib.Path(mmjax.__file__).resolve().parent.parent)
        env = target.environment(os.environ)
        env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
        command = [sys.executable, "-P", "-m", _WORKER, *paths]
        with open(handle, "wb") as output:
            process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                process.kill()
                process.wait()
        where = f"{target.compiler()} for {target.name} ({recipe})"
        if status is None:
            raise UserError(
                f"The compiler {where} did not finish within {timeout:.0f} s. Its log: {log}"
            )
        result = files.read_json(paths[1]) if os.path.exists(paths[1]) else None
    if result is None:
        raise UserError(f"{_crash(status, where, request['function'])} Its log: {log}")
    if result["status"] == "failed":
        message = result["message"].strip()
        raise UserError(f"The compiler {where} refused the program: {message}\nIts log: {log}")
    os.remove(log)
    return result


def _crash(status: int, where: str, function: str) -> str:
    if status >= 0:
        return f"The process of the compiler {where} ended with status {status}."
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    reason = "the machine may have too little memory" if name == "SIGKILL" else "a bug in it"
    return (
        f"The compiler {where} crashed with {name} while compiling {function}: {reason}. A smaller "
        "config.batch_size, another config.model.remat or another version of the compiler may "
        "avoid it."
    )
