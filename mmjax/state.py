"""Adapter between Flax NNX modules and nested dicts of arrays.

Modules are built eagerly and used as pytrees in plain `jax.*` transforms. The trainer, checkpoints,
sharding rules and converters see only the train state, a dict `{step, params, opt, ema, extra}`
(without `ema` if no moving average is kept).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx

from mmjax import lookups

nnx.set_graph_mode(False)
nnx.set_graph_updates(False)


class _Stream(nnx.RngStream):
    """An `nnx.RngStream` that traces faster.

    `variable[...] = value` makes Flax query the sharding of the value. A tracer has none and
    formats an error from everything traced so far, once per array of a model.
    """

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.count[...])
        self.count.set_value(self.count[...] + 1)
        return key


def _rngs(key: int | jax.Array) -> nnx.Rngs:
    rngs = nnx.Rngs()
    rngs.default = _Stream(key, tag="default")
    return rngs


class ModelDef:
    """The structure of a module without its arrays.

    Args:
      build: Function from random number generators to the module.

    Attributes:
      module: The module with `jax.ShapeDtypeStruct` as arrays, for sizes, names and FLOPs.
      params: Nested dict of `jax.ShapeDtypeStruct` of the trainable arrays (`nnx.Param`).
      extra: The same for all other state (BatchNorm statistics, queues).

    Raises:
      TypeError: The module stores a random number generator.
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module]):
        # Jitted so that JAX keeps the trace: constructing the layers of a large model is slow.
        self._split = jax.jit(lambda key: nnx.split(build(_rngs(key)), nnx.Param, ...), inline=True)
        self._graph, self._params, self._extra = jax.eval_shape(self._split, jax.random.key(0))
        self.module = nnx.merge(self._graph, self._params, self._extra)
        generators = [
            path for path, leaf in nnx.to_flat_state(self._extra) if isinstance(leaf, nnx.RngState)
        ]
        if generators:
            raise TypeError(f"Modules take explicit keys; generator state found at {generators}.")
        self.params = nnx.to_pure_dict(self._params)
        self.extra = nnx.to_pure_dict(self._extra)

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        """Returns randomly initialized `(params, extra)`; can be jitted with output shardings."""
        _, params, extra = self._split(key)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(extra)

    def bind(self, params: dict, extra: dict) -> nnx.Module:
        """Returns the module with these arrays. Calls may update its state; see `extra_of`."""
        states = []
        for template, values in ((self._params, params), (self._extra, extra)):
            state = jax.tree.map(lambda leaf: leaf, template)
            nnx.replace_by_pure_dict(state, values)
            states.append(state)
        module = nnx.merge(self._graph, *states, copy=True)
        lookups.name_parameters(module)
        return module

    def extra_of(self, module: nnx.Module) -> dict:
        """Returns the non-trainable arrays of a module after it was called."""
        _, _, extra = nnx.split(module, nnx.Param, ...)
        return nnx.to_pure_dict(extra)
