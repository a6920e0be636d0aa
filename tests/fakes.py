"""Two small tasks with closed-form gradients, and a minimal training loop to run them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmjax import program, sharding, tree

IN, HIDDEN, OUT, CLASSES = 64, 128, 64, 5
SCALE = 0.5


class Contrast:
    """Two linear towers with a shared linear head, trained by a symmetric in-batch softmax.

    Parameter names match the sharding presets, and the sizes are large enough for 'auto' to split.
    """

    frozen = ()

    def __init__(self, noise=0.0):
        self.noise = noise

    def init(self, key):
        left, right, head = jax.random.split(key, 3)
        params = {
            "left": {"mlp": {"wi": {"kernel": 0.1 * jax.random.normal(left, (IN, HIDDEN))}}},
            "right": {"mlp": {"wi": {"kernel": 0.1 * jax.random.normal(right, (IN, HIDDEN))}}},
            "head": {"mlp": {"wo": {"kernel": 0.1 * jax.random.normal(head, (HIDDEN, OUT))}}},
        }
        return params, {"mean": jnp.zeros(HIDDEN), "calls": jnp.int32(0)}

    def encode(self, params, extra, batch, key):
        left = batch["left"] + self.noise * jax.random.normal(key, batch["left"].shape)
        features = {
            "left": left @ params["left"]["mlp"]["wi"]["kernel"],
            "right": batch["right"] @ params["right"]["mlp"]["wi"]["kernel"],
        }
        return features, extra

    def objective(self, params, extra, features, batch, key):
        head = params["head"]["mlp"]["wo"]["kernel"]
        logits = SCALE * (features["left"] @ head) @ (features["right"] @ head).T
        targets = jnp.arange(logits.shape[0])
        loss = sum(
            optax.softmax_cross_entropy_with_integer_labels(z, targets).mean() / 2
            for z in (logits, logits.T)
        )
        extra = {
            "mean": 0.9 * extra["mean"] + 0.1 * features["left"].mean(axis=0),
            "calls": extra["calls"] + 1,
        }
        hits = (logits.argmax(axis=1) == targets).sum()
        return loss, (extra, {"top1": (hits, targets.size)})


class Classify:
    """A linear classifier with two parameter groups, whose loss is a mean over examples."""

    frozen = ()
    separable = True

    def init(self, key):
        backbone, head = jax.random.split(key)
        params = {
            "backbone": {"kernel": 0.3 * jax.random.normal(backbone, (IN, HIDDEN))},
            "head": {"kernel": 0.3 * jax.random.normal(head, (HIDDEN, CLASSES))},
        }
        return params, {"mean": jnp.zeros(HIDDEN), "calls": jnp.int32(0)}

    def encode(self, params, extra, batch, key):
        features = batch["left"] @ params["backbone"]["kernel"]
        mean = 0.9 * extra["mean"] + 0.1 * features.mean(axis=0)
        return features, {"mean": mean, "calls": extra["calls"] + 1}

    def objective(self, params, extra, features, batch, key):
        logits = features @ params["head"]["kernel"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        hits = (logits.argmax(axis=1) == batch["label"]).sum()
        return loss, (extra, {"top1": (hits, batch["label"].size)})


def batch_of(step, size=16):
    """Returns the batch of a step: two views that differ by noise, and a class label."""
    rng = np.random.default_rng(step)
    left = rng.normal(size=(size, IN)).astype(np.float32)
    return {
        "left": left,
        "right": (left + 0.3 * rng.normal(size=left.shape)).astype(np.float32),
        "label": rng.integers(CLASSES, size=size).astype(np.int32),
    }


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


class Trainer:
    """The program of a task on a mesh, with one initial state per seed.

    It does not donate states, so that a test can use one twice.
    """

    def __init__(self, task, mesh=None, *, tx=None, **options):
        self.program = program.assemble(
            task,
            optax.adamw(3e-3) if tx is None else tx,
            lambda step: 0.1 * step,
            mesh or one_device(),
            donate=False,
            **{"seed": 0, **options},
        )
        self.mesh, self.frozen = self.program.mesh, self.program.frozen
        self.abstract = self.program.state
        self.shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def init(self, seed=0):
        return self.program.init(jax.random.key(seed))

    def step(self, state, batch):
        with jax.set_mesh(self.mesh):
            state, metrics = self.program.step(state, sharding.make_global(batch, self.mesh))
        return state, {name: float(value) for name, value in metrics.items()}

    def run(self, steps, *, state=None, first=0, size=16):
        """Returns `(state, losses)` after steps first … first + steps - 1."""
        state, losses = self.init() if state is None else state, []
        for number in range(first, first + steps):
            state, metrics = self.step(state, batch_of(number, size))
            losses.append(metrics["loss"])
        return state, losses


def equal(a, b):
    """Returns whether two trees are bit-exact equal."""
    a, b = tree.flatten(jax.device_get(a)), tree.flatten(jax.device_get(b))
    return a.keys() == b.keys() and all(
        np.asarray(a[path]).tobytes() == np.asarray(b[path]).tobytes() for path in a
    )
