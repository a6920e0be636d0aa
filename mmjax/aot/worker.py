"""The process that compiles: `python -m mmjax.aot.worker REQUEST.json RESULT.json`.

Compilers for other devices may crash, so the command that wants a program runs this module in a
child process, with the environment of `mmjax.aot.topology`. The optimized program is kept in the
cache directory under a hash of everything that it depends on.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pathlib
import re
import sys
import time
from importlib import metadata
from typing import Any

import jax

from mmjax import config, enrichment, files, sharding
from mmjax import step as step_lib
from mmjax.aot import batches, topology
from mmjax.config import Config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError, check_choice
from mmjax.evals.features.store import compile_predict
from mmjax.program import build_program
from mmjax.tasks.base import make_task

_FORMAT = 1  # of cached programs; a change invalidates all of them
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
# What libtpu says if a program does not fit. The second message does not include arguments.
_OUT_OF_MEMORY = re.compile(
    rf"Used {_SIZE} of {_SIZE} hbm|HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)"
)


def lower(cfg: Config, mesh: jax.sharding.Mesh, function: str) -> tuple[Any, dict[str, Any]]:
    """Traces a function as training does, and lowers it for the devices of a mesh.

    Args:
      cfg: A resolved config.
      mesh: Devices, also of a topology.
      function: 'train_step', or the name of a predict function of the task.

    Returns:
      The lowered function, and a description: model FLOPs of the task, data type of its products.
    """
    spec = DataSpec.of_config(cfg)
    program = build_program(cfg, make_task(cfg, spec), mesh)
    task = program.task
    if function == "train_step":
        batch, flops = batches.training_batch(cfg, spec), task.flops(spec.batch)
        if (stage := enrichment.enricher_of(task)) is not None:
            batch |= stage.field_shapes(cfg, task)
    else:
        check_choice("--function:", function, ["train_step", *task.predict])
        batch, flops = batches.evaluation_batch(cfg), None
    where = sharding.batch_sharding(mesh)
    arrays = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
        for name, leaf in batch.items()
    }
    with jax.set_mesh(mesh):
        if function == "train_step":
            traced = program.step.trace(program.state, arrays)
        else:
            predict = compile_predict(task.predict[function], mesh)
            params = step_lib.evaluation_params(program.state)
            traced = predict.trace(params, program.state["extra"], arrays)
        return traced.lower(), {"model_flops": flops, "dtype": str(task.dtype)}


def compile_request(request: dict[str, Any]) -> dict[str, Any]:
    """Compiles what a request describes, or finds it in the cache.

    Args:
      request: config, topology, mesh, function, and the cache directory.

    Returns:
      A description of the program, with the path of its HLO text.
    """
    target = topology.parse(request["topology"])
    versions = {
        "jax": metadata.version("jax"),
        "jaxlib": metadata.version("jaxlib"),
        "compiler": target.compiler(),
    }
    cfg = config.resolve(config.from_json(json.dumps(request["config"])))
    mesh = sharding.make_mesh(**request["mesh"], devices=target.devices())
    start = time.monotonic()
    lowered, description = lower(cfg, mesh, request["function"])
    description |= {
        "versions": versions,
        "mesh": dict(mesh.shape),
        "hosts": [device.process_index for device in mesh.devices.flat],
        "trace_seconds": time.monotonic() - start,
    }
    flags = {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    # With source lines: the report names them, so they must be those of the present code.
    text = lowered.as_text(debug_info=True)
    key = json.dumps([_FORMAT, versions, target.name, flags], sort_keys=True)
    digest = hashlib.sha256((key + text).encode()).hexdigest()[:24]
    name = re.sub(r"\W+", "-", f"{target.name}-{cfg.task}-{request['function']}")
    path = pathlib.Path(request["cache"]) / f"{name}-{digest}.json"
    hlo = path.with_suffix(".hlo.gz")
    cached = path.is_file()
    if not cached:
        files.write_json(path, _compile(lowered, hlo))
    result = files.read_json(path)
    text = str(hlo) if "limit" not in result else ""
    return description | result | {"hlo": text, "cached": cached}


def _compile(lowered: Any, path: pathlib.Path) -> dict[str, Any]:
    """Compiles a function, writes the text of its program, and returns its memory."""
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except Exception as error:
        found = memory_error(str(error))
        if found is None:
            raise
        return {"seconds": time.monotonic() - start, **found}
    seconds = time.monotonic() - start
    with files.atomic_open(path, "wb") as file, gzip.open(file, "wt", compresslevel=5) as text:
        text.write(compiled.as_text())
    return {"seconds": seconds, "memory": _memory(compiled.memory_analysis())}


def _memory(stats: Any) -> dict[str, int]:
    """Returns bytes per device.

    'peak' is what must be allocated. `peak_memory_in_bytes` differs: libtpu counts arrays on the
    chip there, but not the code.
    """
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return memory | {"peak": sum(memory.values()) - 2 * memory["aliased"]}


def memory_error(message: str) -> dict[str, Any] | None:
    """Returns what a compiler's message says about device memory; None for other errors."""
    match = _OUT_OF_MEMORY.search(message) if "RESOURCE_EXHAUSTED" in message else None
    if not match:
        return None
    used, used_unit, limit, limit_unit = filter(lambda group: group is not None, match.groups())
    return {
        "memory": {"peak": float(used) * _UNITS[used_unit]},
        "limit": float(limit) * _UNITS[limit_unit],
        "message": message,
    }


def main(argv: list[str]) -> int:
    """Reads a request, and writes the result or the error."""
    with open(argv[0]) as file:
        request = json.load(file)
    sys.path += [path for path in request["sys_path"] if path not in sys.path]
    try:
        result = {"status": "ok", **compile_request(request)}
    except UserError as error:
        result = {"status": "user_error", "message": str(error)}
    except Exception as error:
        result = {"status": "failed", "message": f"{type(error).__name__}: {error}"}
        files.write_json(argv[1], result)
        raise
    files.write_json(argv[1], result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
