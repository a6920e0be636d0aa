"""`--task=probe`: heads train as if each were alone, by the formulas of softmax regression."""

import jax
import numpy as np
import pytest

from mmjax import evals, program, sharding, tree
from mmjax.benchmark.image_encoder import architecture_section
from mmjax.config import Config
from mmjax.data_spec import DataSpec
from mmjax.end_tasks.registry import find
from mmjax.errors import UserError
from mmjax.models.decoders import registry
from mmjax.models.decoders.base import EMBEDDING, Head, dense
from mmjax.tasks.probe import Probe, num_parameters
from tests.fakes import one_device
from tests.messages import raises

WIDTH, CLASSES, EXAMPLES, SEEDS, STEPS = 6, 4, 8, 2, 5
SGD = dict(name="sgd", schedule=dict(name="constant", base=0.5))
ADAM = dict(name="adam", schedule=dict(name="constant", base=0.01))
BROKEN = dict(name="adam", schedule=dict(name="constant", base=3e38))


def make_config(groups, *, seeds=SEEDS, end_task="Pets", **sections):
    sections = {"batch_size": seeds * EXAMPLES, "total_steps": STEPS} | sections
    return Config(
        task="probe",
        data=dict(end_task=dict(name=end_task, seeds=seeds)),
        optimizer={
            "groups": {
                name: dict(pattern=f"^heads/{name}/", **section) for name, section in groups.items()
            }
        },
        **sections,
    )


def make_spec(*, images=1, seeds=SEEDS, num_classes=CLASSES):
    size = seeds * EXAMPLES
    batch = {
        "embedding": jax.ShapeDtypeStruct((size, images * WIDTH), np.float16),
        "label": jax.ShapeDtypeStruct((size,), np.int32),
        "example_id": jax.ShapeDtypeStruct((size,), np.int32),
    }
    return DataSpec(batch=batch, num_classes=num_classes)


def batch_of(step, *, images=1, seeds=SEEDS):
    """A batch; the labels depend on the features."""
    random = np.random.default_rng(step)
    x = random.normal(size=(seeds * EXAMPLES, images * WIDTH)).astype(np.float16)
    label = (x[:, :CLASSES].argmax(axis=1)).astype(np.int32)
    return {"embedding": x, "label": label, "example_id": np.arange(len(x), dtype=np.int32)}


class Trained:
    """A task that is trained on `batch_of`.

    Attributes:
      task: The task.
      start, state: The train state before and after.
      metrics: {metric: value} of each step.
    """

    def __init__(self, groups, *, images=1, seeds=SEEDS, batches=batch_of, **sections):
        mesh = one_device()
        cfg = make_config(groups, seeds=seeds, **sections)
        with jax.set_mesh(mesh):
            self.task = Probe(cfg, make_spec(images=images, seeds=seeds))
            built = program.build_program(cfg, self.task, mesh)
            state = built.init(jax.random.key(0))
            self.start = jax.device_get(state)
            self.metrics = []
            for step in range(STEPS):
                batch = batches(step, images=images, seeds=seeds)
                state, metrics = built.step(state, sharding.make_global(batch, mesh))
                self.metrics.append({name: float(value) for name, value in metrics.items()})
        self.state = jax.device_get(state)

    def heads(self, group):
        """Returns {path: array [seeds, …]} of a configuration."""
        return tree.flatten(self.state["params"]["heads"][group])


@pytest.fixture(scope="module")
def trained():
    """Two configurations and two seeds."""
    return Trained(dict(sgd=SGD, adam=ADAM))


def softmax_regression(kernel, bias, x, label):
    """Returns the cross entropy, and the gradients of kernel and bias."""
    logits = x @ kernel + bias
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = shifted / shifted.sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(label)), label]).mean()
    p[np.arange(len(label)), label] -= 1
    return loss, x.T @ p / len(label), p.mean(axis=0)


def test_heads_are_softmax_regressions(trained):
    """SGD and Adam of both seeds, on the examples of each seed."""
    losses = {group: np.zeros((STEPS, SEEDS)) for group in ("sgd", "adam")}
    for seed in range(SEEDS):
        for group in losses:
            start = tree.flatten(trained.start["params"]["heads"][group])
            w = {path: np.float64(leaf[seed]) for path, leaf in start.items()}
            m, v = ({path: 0.0 for path in w} for _ in range(2))
            for step in range(STEPS):
                batch = batch_of(step)
                part = slice(seed * EXAMPLES, (seed + 1) * EXAMPLES)
                x, label = np.float64(batch["embedding"][part]), batch["label"][part]
                loss, *grads = softmax_regression(w["linear/kernel"], w["linear/bias"], x, label)
                losses[group][step, seed] = loss
                for path, g in zip(("linear/kernel", "linear/bias"), grads, strict=True):
                    m[path] = 0.9 * m[path] + 0.1 * g
                    v[path] = 0.999 * v[path] + 0.001 * g**2
                    adam = m[path] / (1 - 0.9 ** (step + 1))
                    adam /= np.sqrt(v[path] / (1 - 0.999 ** (step + 1))) + 1e-8
                    w[path] = w[path] - (0.5 * g if group == "sgd" else 0.01 * adam)
            for path, leaf in trained.heads(group).items():
                np.testing.assert_allclose(leaf[seed], w[path], rtol=1e-4, atol=1e-5)
    for step, metrics in enumerate(trained.metrics):
        for group, each in losses.items():
            assert metrics[f"loss/{group}"] == pytest.approx(each[step].mean(), rel=1e-4)
        total = sum(each[step].sum() for each in losses.values())
        assert metrics["loss"] == pytest.approx(total, rel=1e-4)
        assert metrics["diverged"] == metrics["nonfinite"] == 0


def test_configurations_start_equally_and_seeds_differently(trained):
    start = trained.start["params"]["heads"]
    jax.tree.map(np.testing.assert_array_equal, start["sgd"], start["adam"])
    kernel = start["sgd"]["linear"]["kernel"]
    assert kernel.shape == (SEEDS, WIDTH, CLASSES) and not np.array_equal(kernel[0], kernel[1])
    limit = 1 / np.sqrt(WIDTH)
    assert 0.8 * limit < np.abs(kernel).max() <= limit  # as in PyTorch
    assert num_parameters(trained.task) == (WIDTH + 1) * CLASSES


def test_a_configuration_and_a_seed_train_as_if_alone(trained):
    def first_seed(step, **sizes):
        return {k: v[:EXAMPLES] for k, v in batch_of(step, images=sizes["images"]).items()}

    alone = Trained(dict(adam=ADAM), seeds=1, batches=first_seed)
    for path, leaf in alone.heads("adam").items():
        np.testing.assert_allclose(leaf[0], trained.heads("adam")[path][0], rtol=1e-6, atol=1e-7)


def evaluate(run, tmp_path, *, keep_best=False):
    """Returns the metrics of `evals.end_task` on 20 examples."""

    class Data:
        """Stands for `mmjax.data.pipeline.loader.make_eval_data`."""

        info = tokenizer = None
        num_examples = 20
        spec = make_spec().batch | {"mask": jax.ShapeDtypeStruct((5,), np.float32)}

        def iterate(self):
            whole = batch_of(99, seeds=3)
            for first in range(0, 20, 5):
                batch = {name: value[first : first + 5] for name, value in whole.items()}
                yield batch | {"mask": np.ones(5, np.float32)}

    mesh = one_device()
    (evaluator,) = evals.make_evaluators(
        {"test": dict(type="end_task", batch_size=5, at="final", keep_best=keep_best)},
        task=run.task,
        data_cfg={},
        mesh=mesh,
        directory=tmp_path,
        make_eval_data=lambda *args, **kwargs: Data(),
        where="train",
    )
    state = jax.device_put(run.state, sharding.replicated(mesh))
    return evaluator.run(state, STEPS)


@pytest.fixture(scope="module")
def diverged():
    """A configuration that diverges next to one that does not."""
    return Trained(dict(sgd=SGD, broken=BROKEN))


def test_a_configuration_that_diverges_does_not_affect_the_others(trained, diverged):
    assert [m["diverged"] for m in diverged.metrics] == [0, *[SEEDS] * (STEPS - 1)]
    assert all(m["nonfinite"] == 0 for m in diverged.metrics)
    for path, leaf in diverged.heads("sgd").items():
        np.testing.assert_allclose(leaf, trained.heads("sgd")[path], rtol=1e-6, atol=1e-7)
    for metrics, expected in zip(diverged.metrics, trained.metrics, strict=True):
        assert metrics["loss/sgd"] == pytest.approx(expected["loss/sgd"], rel=1e-6)
        assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("keep_best", [False, True])
def test_the_others_are_evaluated_if_a_configuration_diverges(
    trained, diverged, tmp_path, keep_best
):
    expected = evaluate(trained, tmp_path / "trained", keep_best=keep_best)
    result = evaluate(diverged, tmp_path / "diverged", keep_best=keep_best)
    names = [name for name in expected if name.startswith("test/sgd/")]
    assert {"test/sgd/top1", "test/sgd/loss", "test/sgd/seed1"} <= set(names)
    for name in names:
        assert result[name] == pytest.approx(expected[name], rel=1e-5), name
    assert np.isnan(result["test/broken/top1"]) and np.isnan(result["test/broken/loss"])


def test_a_gradient_that_overflows_does_not_stop_the_others():
    """The loss of the broken heads is finite, but not the squared norm of their gradients."""
    section = dict(end_task="THORActionPrediction", model=dict(head=dict(name="mlp", hidden=16)))
    large = dict(name="constant", base=1e19)
    broken = dict(name="adam", schedule=large, lr_multipliers=(("/hidden/", 1e-19),))
    both = Trained(dict(sgd=SGD, broken=broken), images=2, **section)
    assert 1e19 < both.metrics[1]["loss/broken"] < np.inf
    assert [m["nonfinite"] for m in both.metrics] == [0] * STEPS
    alone = Trained(dict(sgd=SGD), images=2, **section)
    for path, leaf in both.heads("sgd").items():
        np.testing.assert_allclose(leaf, alone.heads("sgd")[path], rtol=1e-5, atol=1e-6)


class CopyingHead(Head):
    """A linear head whose kernel starts as the mean of the first convolution of the encoder."""

    def __init__(self, *, num_outputs, embedding_dim, num_images, channels, rngs):
        del num_images, channels
        self.linear = dense(embedding_dim, num_outputs, rngs=rngs)

    def __call__(self, features, *, size=None, train=False):
        return self.linear(features[EMBEDDING][:, 0])

    def init_from_encoder(self, params, extra, encoder_params, encoder_extra):
        """As `mmjax.models.decoders.deeplab.DeepLab` does."""
        first = next(iter(tree.flatten(encoder_params).values())).mean()
        assert encoder_extra
        kernel = np.full_like(params["linear"]["kernel"], first)
        return {**params, "linear": {**params["linear"], "kernel": kernel}}, extra


@pytest.fixture
def on_images(monkeypatch):
    """Returns a function that makes a task with an encoder, which reads images."""
    monkeypatch.setitem(registry.HEADS, "copying", CopyingHead)

    def make(head, *, trunk=architecture_section("resnet_demo"), end_task="Pets", size=32):
        images = find(end_task).num_images
        batch = {"image": jax.ShapeDtypeStruct((SEEDS, images, size, size, 3), np.uint8)}
        cfg = make_config(
            dict(sgd=SGD, adam=ADAM), end_task=end_task, model=dict(trunk=trunk, head=head)
        )
        return Probe(cfg, DataSpec(batch=batch, num_classes=CLASSES))

    return make


def test_heads_of_all_configurations_start_from_the_encoder(on_images):
    task = on_images(dict(name="copying"))
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    random = np.random.default_rng(0)
    params, extra = jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(np.float32), abstract
    )
    new_params, new_extra = task.finish_init(params, extra)
    tower = tree.flatten(params["trunk"]["image"])
    expected = next(iter(tower.values())).mean()
    for group in ("sgd", "adam"):
        kernel = new_params["heads"][group]["linear"]["kernel"]
        np.testing.assert_array_equal(kernel, np.full_like(kernel, expected))
        bias = [tree["heads"][group]["linear"]["bias"] for tree in (params, new_params)]
        np.testing.assert_array_equal(*bias)
    jax.tree.map(np.testing.assert_array_equal, params["trunk"], new_params["trunk"])
    jax.tree.map(np.testing.assert_array_equal, extra, new_extra)


def test_what_a_task_lacks_is_named(on_images):
    groups = dict(sgd=SGD)
    with raises(UserError, "config.data.end_task.name"):
        Probe(Config(task="probe"), make_spec())
    with raises(UserError, "--override_checkpoint", "config.data.train"):
        Probe(make_config(groups), DataSpec(batch={}, num_classes=CLASSES))
    with raises(UserError, "Pets", "config.data.label"):
        Probe(make_config(groups), make_spec(num_classes=None))
    with raises(UserError, "config.model.heads", "trunk, head"):
        Probe(make_config(groups, model=dict(heads={})), make_spec())
    with raises(UserError, "config.model.head.name", "'linaer'", "'linear'"):
        on_images(dict(name="linaer"))
    with raises(UserError, "'unet'", "'siamese_unet'", 2):
        on_images(dict(name="unet"), end_task="KITTI")
    with raises(UserError, "bias", "'linear'"):
        on_images(dict(name="linear", bias=False))
