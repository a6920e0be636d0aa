"""The shared encoder of ut_fac, compared with one call per modality."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from mmjax.errors import UserError
from mmjax.tools.bench.common import Setup, call_for, medians

if TYPE_CHECKING:  # imports JAX
    from mmjax.config import Config


def run(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Measures the towers of ut_fac, forward and backward.

    `packed` passes all modalities through the shared encoder at once, as in training; `apart`
    passes one after the other.
    """
    import jax
    import jax.numpy as jnp

    if cfg.model.get("name") != "ut_fac":
        raise UserError(
            f"mmjax bench packed needs a recipe with config.model.name=ut_fac; this one has "
            f"{cfg.model.get('name')}. For example, pass --config=demo:ut_fac."
        )
    jax.config.update("jax_enable_compilation_cache", False)
    setup = Setup(cfg, synthetic=args.synthetic)
    task, extra = setup.program.task, setup.state["extra"]
    modalities = task.model.module.modalities

    def make_function(packed: bool):
        def loss(params, batch, key):
            own = [{k: v for k, v in batch.items() if k.split("_")[0] == m} for m in modalities]
            parts = [batch] if packed else own
            features = [task.encode(params, extra, part, key)[0] for part in parts]
            return sum(jnp.sum(x**2) for part in features for x in part.values())

        return jax.jit(jax.value_and_grad(loss))

    arguments = (setup.state["params"], setup.batch, jax.random.key(0))
    result, functions = {}, {}
    with jax.set_mesh(setup.mesh):
        for name in ("packed", "apart"):
            lowered = make_function(name == "packed").lower(*arguments)
            start = time.perf_counter()
            functions[name] = lowered.compile()
            result[f"{name}_compile_seconds"] = time.perf_counter() - start
            jax.block_until_ready(functions[name](*arguments))
        measurements = [
            {
                f"{name}_seconds": _seconds(function, arguments, args.seconds)
                for name, function in functions.items()
            }
            for _ in range(args.repeats)
        ]
    result |= medians(measurements)
    return result | {"apart_over_packed": result["apart_seconds"] / result["packed_seconds"]}


def _seconds(function: Any, arguments: tuple, seconds: float) -> float:
    """Returns the wall-clock time of a call, averaged over at least `seconds`."""
    import jax

    calls, wall, _ = call_for(seconds, lambda: jax.block_until_ready(function(*arguments)))
    return wall / calls
