"""From a task, a config and a mesh to compiled functions over a sharded train state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from mmjax import optim, sharding, step, tree
from mmjax.config import Config

# For programs that run once: halves compile time on CPUs.
_COMPILE_FAST = {"cpu": {"xla_backend_optimization_level": 1}}


@dataclasses.dataclass
class Program:
    """What training, benchmarks and plans build from a config.

    Attributes:
      task: The task.
      mesh: The devices.
      frozen: {path of a parameter: whether it is frozen}.
      tx: The optimizer of the trainable parameters.
      schedule: Update -> learning rate.
      state: The abstract train state, with shardings.
      init: Compiled function from a key to a train state.
      step: Compiled function from a state and a global batch to a state and metrics.
    """

    task: Any
    mesh: jax.sharding.Mesh
    frozen: Mapping[str, bool]
    tx: optax.GradientTransformation
    schedule: Callable[[jax.Array], jax.Array]
    state: Any
    init: Callable[[jax.Array], dict]
    step: Callable[[dict, Mapping[str, jax.Array]], tuple[dict, dict]]

    def plan(self, *, full: bool = False) -> str:
        """Returns a table of the shapes, shardings and bytes of the train state."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        return sharding.plan_table(self.state, shardings, full=full)


def build_program(cfg: Config, task: Any, mesh: jax.sharding.Mesh) -> Program:
    """Returns the program of a config.

    Args:
      cfg: The config that the task was built from.
      task: A task; see `mmjax.tasks.base`.
      mesh: The devices.

    Raises:
      UserError: An invalid optimizer, sharding or batch size.
    """
    sharding.check_batch(cfg.batch_size, mesh, cfg.accumulate_steps * cfg.updates_per_step)
    options = dict(cfg.optimizer)
    params, frozen = _frozen(task, options.pop("frozen", ()), what="config.optimizer.frozen")
    trainable, _ = step.split_params(params, frozen)
    # If the step clips, the optimizer must not clip again.
    separate_lookups = optim.separates_lookups(options)
    step_clips = cfg.clip_shards > 0 or separate_lookups
    tx, schedule = optim.make_optimizer(
        options,
        trainable,
        total_steps=cfg.total_updates,
        batch_size=cfg.update_batch_size,
        clip=not step_clips,
    )
    return assemble(
        task,
        tx,
        schedule,
        mesh,
        frozen=frozen,
        preset=cfg.sharding,
        rules=cfg.sharding_rules,
        seed=cfg.seed,
        accumulate_steps=cfg.accumulate_steps,
        ema_decay=cfg.ema_decay,
        clip_shards=cfg.clip_shards,
        clip=optim.make_clipping(options, trainable) if step_clips else None,
        separate_lookups=separate_lookups,
        updates_per_step=cfg.updates_per_step,
    )


def _frozen(task: Any, patterns: Sequence[str], *, what: str) -> tuple[Any, dict[str, bool]]:
    """Returns the abstract parameters of a task, and which of them are frozen."""
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    matched = tree.first_match(patterns, list(tree.flatten(params)), what=what)
    return params, {path: index is not None for path, index in matched.items()}


def assemble(
    task: Any,
    tx: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    mesh: jax.sharding.Mesh,
    *,
    frozen: Mapping[str, bool] | Sequence[str] = (),
    preset: str = "dp",
    rules: Sequence[tuple[str, Any]] = (),
    ema_decay: float = 0.0,
    donate: bool = True,
    **options: Any,
) -> Program:
    """Returns the program of a task and an optimizer.

    Args:
      task: What is learned.
      tx: Optimizer of the trainable parameters.
      schedule: Update -> learning rate, for the metrics.
      mesh: The devices.
      frozen: {path of a parameter: whether it is frozen}, or patterns of frozen paths.
      preset: Sharding preset.
      rules: (pattern, axes) pairs that precede those of the preset.
      ema_decay: Decay of the moving average of the parameters; 0 keeps none.
      donate: Whether the step may overwrite the state that it is given.
      **options: Further options of `step.make_step`.
    """
    if not isinstance(frozen, Mapping):
        _, frozen = _frozen(task, frozen, what="frozen")

    def init(key):
        return step.init_state(task, tx, key, frozen=frozen, ema=ema_decay > 0)

    abstract = jax.eval_shape(init, jax.random.key(0))
    shardings = sharding.state_shardings(abstract, mesh, preset=preset, rules=rules)
    state = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        abstract,
        shardings,
    )
    function = step.make_step(task, tx, schedule, frozen=frozen, ema_decay=ema_decay, **options)
    compiler_options = _COMPILE_FAST.get(jax.default_backend())
    return Program(
        task=task,
        mesh=mesh,
        frozen=frozen,
        tx=tx,
        schedule=schedule,
        state=state,
        init=jax.jit(init, out_shardings=shardings, compiler_options=compiler_options),
        step=jax.jit(
            function,
            in_shardings=(shardings, sharding.batch_sharding(mesh)),
            out_shardings=(shardings, sharding.replicated(mesh)),
            donate_argnums=(0,) if donate else (),
        ),
    )
