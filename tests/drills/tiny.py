"""A recipe that compiles in a second: a linear model of image colors with noise, for the drills."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import config
from mmjax.evals import Evaluator

STEPS, WIDTH = 8, 32


class Colors:
    """Predicts the colors of an image from random projections of them."""

    dtype = "float32"

    def __init__(self, cfg, data_spec):
        self.predict = {}

    def init(self, key):
        keys = jax.random.split(key, 2)
        params = {
            "fixed": {"kernel": jax.random.normal(keys[0], (3, WIDTH))},
            "head": {"kernel": jax.random.normal(keys[1], (WIDTH, 3)), "bias": jnp.zeros(3)},
        }
        return params, {"mean": jnp.zeros(3)}

    def encode(self, params, extra, batch, key):
        colors = batch["image"].astype(jnp.float32).reshape(len(batch["image"]), -1, 3).mean(1)
        noise = jax.random.normal(key, (len(colors), WIDTH))
        hidden = jnp.tanh(colors @ params["fixed"]["kernel"] / 255 + noise)
        extra = {"mean": 0.9 * extra["mean"] + 0.1 * colors.mean(0)}
        return {"colors": colors / 255, "hidden": hidden}, extra

    def objective(self, params, extra, features, batch, key):
        result = features["hidden"] @ params["head"]["kernel"] + params["head"]["bias"]
        errors = ((result - features["colors"]) ** 2).mean(1)
        return errors.mean(), (extra, {"error": (errors.sum(), errors.size)})

    def flops(self, batch):
        return None


class Mean(Evaluator):
    """The mean of the parameters."""

    def evaluate(self, state):
        leaves = jax.tree.leaves(state["params"])
        return {"mean": float(np.mean([float(np.mean(np.asarray(leaf))) for leaf in leaves]))}


def get_config(arg=""):
    """Returns the config; with the argument 'job', evaluators run in an evaluation job."""
    cfg = config.base()
    cfg.task = "tests.drills.tiny:Colors"
    cfg.batch_size, cfg.total_steps = 8, STEPS
    # Steps of logs, checkpoints and evaluations do not divide each other.
    cfg.log_every = 3
    cfg.checkpoint.update(every=2, keep=9, best="often/mean")
    cfg.data = dict(train="world:objects_tiny", image=dict(size=8))
    cfg.optimizer = dict(
        name="adamw", schedule=dict(name="constant", base=0.1), frozen=("^fixed/",)
    )
    mean = dict(type="tests.drills.tiny:Mean")
    where = {"where": "eval"} if arg == "job" else {}
    cfg.evals = dict(often=dict(mean, every=2, **where), last=dict(mean, **where))
    return cfg
