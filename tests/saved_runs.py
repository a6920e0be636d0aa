"""Run directories with random parameters, for tests of programs that read a trained model."""

import jax

from mmjax import config, session, tasks
from mmjax.checkpoints import run_dir
from mmjax.checkpoints.manager import Checkpoints
from tests.random_arrays import random_arrays

STEP = 7
# Overrides of `--task=pretrain --config=demo`: towers of one layer, which compile faster.
ONE_LAYER = tuple(f"--config.model.{tower}.num_layers=1" for tower in ("video", "audio", "text"))


def save_run(cfg, path, *, seed=0, scale=2.0):
    """Writes a run directory with a checkpoint of step `STEP`.

    Args:
      cfg: The config of the run.
      path: The run directory.
      seed: Seed of the parameters.
      scale: Factor of matrices, so that embeddings differ clearly.

    Returns:
      `(task, {"params", "extra"}, training data)`.
    """
    data, data_spec = session.open_train_data(cfg)
    task = tasks.make_task(cfg, data_spec)
    params, extra = random_arrays(task.model, seed)
    params = jax.tree.map(lambda x: x * (scale if x.ndim > 1 else 1.0), params)
    state = {"params": params, "extra": extra}
    saved = Checkpoints(path)
    saved.save(STEP, state, {"step": STEP})
    saved.close()
    (path / run_dir.CONFIG).write_text(config.to_json(cfg))
    return task, state, data
