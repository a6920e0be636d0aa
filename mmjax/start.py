"""The state that a training run starts from: a checkpoint, other parameters, or random ones."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from absl import logging

from mmjax import init_from, tree
from mmjax.checkpoints.manager import Checkpoints
from mmjax.config import Config
from mmjax.errors import UserError
from mmjax.program import Program


class Start(NamedTuple):
    """Where training starts.

    Attributes:
      state: The train state.
      step: Number of completed updates.
      meta: What `Session.save` stored with the checkpoint; {} for a new run.
      resumed: Whether the checkpoint is of this run.
    """

    state: dict
    step: int = 0
    meta: Mapping[str, Any] = MappingProxyType({})
    resumed: bool = False


def find_start(cfg: Config, program: Program, checkpoints: Checkpoints) -> Start:
    """Returns where training starts, in this order of precedence:

    1. the newest checkpoint in the run directory;
    2. `resume_from`: the complete state of another run;
    3. `init_from`: matching parameters of another run or checkpoint, with a report;
    4. random initialization.
    """
    if restored := checkpoints.restore_newest(program.state):
        state, meta, step = restored
        logging.info("Resumed from step %d of %s.", step, checkpoints.run_dir)
        return Start(state, step, meta, resumed=True)
    if cfg.resume_from:
        restored = Checkpoints(cfg.resume_from, read_only=True).restore_newest(program.state)
        if not restored:
            raise UserError(
                f"config.resume_from={cfg.resume_from} contains no checkpoint. Pass a run "
                "directory, or set config.resume_from=''."
            )
        state, meta, step = restored
        logging.info("Resumed from step %d of %s.", step, cfg.resume_from)
        return Start(state, step, meta)
    initial = state = program.init(jax.random.key(cfg.seed))
    if cfg.init_from:
        state = init_from.from_source(
            initial,
            cfg.init_from,
            allow=cfg.init_allow,
            names=cfg.init_map,
            prefix=getattr(program.task, "init_prefix", ""),
        )
    if finish := getattr(program.task, "finish_init", None):
        before = {name: state[name] for name in ("params", "extra")}
        after = dict(zip(before, finish(*before.values()), strict=True))
        after = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), after, before)
        state = init_from.with_parts(state, **after)
    _warn_frozen_at_random(program, initial["params"], state["params"])
    return Start(state)


def _warn_frozen_at_random(program: Program, initial: Any, params: Any) -> None:
    """Logs a warning for frozen parameters that kept their random initial values.

    It omits the part that `init_from` fills: without `init_from`, it is random on purpose.
    """
    before, now = tree.flatten(initial), tree.flatten(params)
    part = getattr(program.task, "init_prefix", None)
    random = [
        path
        for path in now
        if program.frozen[path] and now[path] is before[path] and path.split("/")[0] != part
    ]
    if random:
        logging.warning(
            "These parameters are frozen at their random initial values: %s. Load pretrained "
            "values with config.init_from (for VATT's word vectors see docs/convert.md), or "
            "unfreeze them in config.optimizer.frozen.",
            _summarize(random, program.frozen),
        )


def _summarize(paths: list[str], every: Mapping[str, Any]) -> str:
    """Returns paths as text; a part of the model whose paths are all listed, by its name."""
    members: dict[str, list[str]] = collections.defaultdict(list)
    for path in every:
        members[path.split("/")[0]].append(path)
    parts = {name for name, own in members.items() if len(own) > 1 and set(own) <= set(paths)}
    rest = [path for path in paths if path.split("/")[0] not in parts]
    return ", ".join([*(f"all of {name}" for name in sorted(parts)), *rest])
