"""One training step against formulas in NumPy, and equal results on any mesh."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax import config, optim, program, sharding, tree
from mmjax import step as step_lib
from mmjax.errors import UserError
from tests.messages import raises

LEFT, RIGHT, HEAD = "left/mlp/wi/kernel", "right/mlp/wi/kernel", "head/mlp/wo/kernel"
LEARNING_RATE = 10.0  # large, so that rounding of parameters does not hide the gradient


def sgd(task, mesh=None, **keywords):
    return fakes.Trainer(task, mesh, tx=optax.sgd(LEARNING_RATE), **keywords)


@pytest.fixture(scope="module")
def trainer():
    """A compiled default trainer, shared by tests without special options."""
    return fakes.Trainer(fakes.Contrast(), ema_decay=0.25)


@pytest.fixture(scope="module")
def accumulating():
    return fakes.Trainer(fakes.Contrast(), ema_decay=0.25, accumulate_steps=4)


@pytest.fixture(scope="module")
def frozen():
    return fakes.Trainer(fakes.Contrast(), frozen=["^right/"], ema_decay=0.9)


@pytest.fixture(scope="module")
def single_device(trainer):
    """Four steps on one device: (state, losses)."""
    return trainer.run(4)


def leaves(params):
    return {path: np.asarray(leaf, np.float64) for path, leaf in tree.flatten(params).items()}


def gradients(before, after):
    """Returns the gradients of one step of gradient descent, from the change of parameters."""
    before, after = leaves(before), leaves(after)
    return {path: (before[path] - after[path]) / LEARNING_RATE for path in before}


def contrast(params, batch):
    """Returns loss and gradients of `fakes.Contrast` from formulas."""
    x, y = batch["left"].astype(np.float64), batch["right"].astype(np.float64)
    a, b, h = params[LEFT], params[RIGHT], params[HEAD]
    u, v = x @ a @ h, y @ b @ h
    z = fakes.SCALE * u @ v.T
    to_right = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    to_left = np.exp(z) / np.exp(z).sum(axis=0, keepdims=True)
    eye, size = np.eye(len(z)), len(z)
    loss = -(np.log(to_right[eye > 0]).mean() + np.log(to_left[eye > 0]).mean()) / 2
    dz = (to_right + to_left - 2 * eye) / (2 * size)
    du, dv = fakes.SCALE * dz @ v, fakes.SCALE * dz.T @ u
    head = (x @ a).T @ du + (y @ b).T @ dv
    return loss, {LEFT: x.T @ du @ h.T, RIGHT: y.T @ dv @ h.T, HEAD: head}


def classify(params, x, label):
    """Returns loss and gradients of `fakes.Classify` from formulas."""
    x, a, h = x.astype(np.float64), params["backbone/kernel"], params["head/kernel"]
    z = x @ a @ h
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    targets = np.eye(fakes.CLASSES)[label]
    dz = (p - targets) / len(x)
    loss = -np.log(p[targets > 0]).mean()
    return loss, {"backbone/kernel": x.T @ dz @ h.T, "head/kernel": (x @ a).T @ dz}


def norm(grads):
    return np.sqrt(sum((g**2).sum() for g in grads.values()))


def assert_close(result, expected, tolerance=2e-5):
    assert result.keys() == expected.keys()
    for path in expected:
        scale = np.abs(expected[path]).max()
        np.testing.assert_allclose(result[path], expected[path], atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("accumulate_steps", [1, 4])
def test_contrastive_loss_and_gradients_match_the_formula(accumulate_steps):
    trainer = sgd(fakes.Contrast(), accumulate_steps=accumulate_steps)
    state, batch = trainer.init(), fakes.batch_of(0)
    new, metrics = trainer.step(state, batch)
    loss, grads = contrast(leaves(state["params"]), batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm(grads), rtol=1e-5)
    assert_close(gradients(state["params"], new["params"]), grads)
    assert int(new["step"]) == 1 and metrics["nonfinite"] == 0
    features = batch["left"] @ leaves(state["params"])[LEFT]
    np.testing.assert_allclose(new["extra"]["mean"], 0.1 * features.mean(axis=0), atol=1e-6)
    assert int(new["extra"]["calls"]) == 1


def test_accumulation_does_not_change_training(single_device, accumulating):
    expected, expected_losses = single_device
    result, losses = accumulating.run(4)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_close(leaves(result["params"]), leaves(expected["params"]), 1e-4)


def test_classification_loss_and_gradients_match_the_formula():
    trainer = sgd(fakes.Classify())
    state, batch = trainer.init(), fakes.batch_of(3)
    new, metrics = trainer.step(state, batch)
    params = leaves(state["params"])
    loss, grads = classify(params, batch["left"], batch["label"])
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert_close(gradients(state["params"], new["params"]), grads)
    logits = batch["left"] @ params["backbone/kernel"] @ params["head/kernel"]
    assert metrics["top1"] == pytest.approx((logits.argmax(axis=1) == batch["label"]).mean())


def test_the_learning_rate_is_the_schedule_at_the_zero_based_step(trainer):
    state = trainer.init()
    for number in range(3):
        state, metrics = trainer.step(state, fakes.batch_of(number))
        assert metrics["learning_rate"] == pytest.approx(0.1 * number)


def test_random_samples_depend_only_on_seed_and_step():
    noisy = sgd(fakes.Contrast(noise=1.0), seed=1)
    other = sgd(fakes.Contrast(noise=1.0), seed=2)
    state, batch = noisy.init(), fakes.batch_of(0)
    later = dict(state, step=state["step"] + 1)
    loss = noisy.step(state, batch)[1]["loss"]
    assert noisy.step(state, batch)[1]["loss"] == loss
    assert noisy.step(later, batch)[1]["loss"] != loss
    assert other.step(state, batch)[1]["loss"] != loss


# ---- frozen parameters and the moving average (EMA)


def test_frozen_parameters_do_not_change_and_have_no_slots(frozen):
    start = frozen.init()
    state, _ = frozen.run(3, state=start)
    before, after = tree.flatten(start["params"]), tree.flatten(state["params"])
    assert np.array_equal(before[RIGHT], after[RIGHT])
    assert not np.array_equal(before[LEFT], after[LEFT])
    slots = {path.split("/", 1)[1] for path in tree.flatten(state["opt"]) if "kernel" in path}
    assert slots == {f"{slot}/{path}" for slot in ("mu", "nu") for path in (LEFT, HEAD)}
    assert set(tree.flatten(state["ema"])) == {LEFT, HEAD}
    evaluated = tree.flatten(step_lib.evaluation_params(state))
    assert np.array_equal(evaluated[RIGHT], before[RIGHT])
    assert np.array_equal(evaluated[LEFT], tree.flatten(state["ema"])[LEFT])


def test_evaluation_uses_the_parameters_without_ema():
    state = fakes.Trainer(fakes.Contrast()).init()
    assert "ema" not in state
    assert step_lib.evaluation_params(state) is state["params"]


def test_ema_decay_is_smaller_in_the_first_steps(trainer):
    decay = 0.25
    state = trainer.init()
    average = leaves(state["params"])
    limits = []
    for number in range(5):
        state, _ = trainer.step(state, fakes.batch_of(number))
        d = min(decay, (1 + number) / (10 + number))
        limits.append(d == decay)
        average = {p: d * average[p] + (1 - d) * v for p, v in leaves(state["params"]).items()}
        assert_close(leaves(state["ema"]), average, 1e-6)
    assert any(limits) and not all(limits)


# ---- non-finite steps


@pytest.mark.parametrize("fixture", ["trainer", "accumulating"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_step_changes_only_the_step_count(value, fixture, request):
    trainer = request.getfixturevalue(fixture)
    state, _ = trainer.run(2)
    batch = fakes.batch_of(2)
    batch["left"][5, 7] = value
    new, metrics = trainer.step(state, batch)
    assert metrics["nonfinite"] == 1
    assert int(new["step"]) == int(state["step"]) + 1
    for part in ("params", "opt", "extra", "ema"):
        assert fakes.equal(new[part], state[part]), part
    _, metrics = trainer.step(new, fakes.batch_of(3))
    assert metrics["nonfinite"] == 0


class NonFiniteGradient(fakes.Contrast):
    """A finite loss with a non-finite gradient."""

    def objective(self, params, extra, features, batch, key):
        loss, rest = super().objective(params, extra, features, batch, key)
        return loss + jnp.sqrt(0.0 * params["head"]["mlp"]["wo"]["kernel"]).sum(), rest


def test_a_non_finite_gradient_of_a_finite_loss_changes_nothing():
    trainer = sgd(NonFiniteGradient())
    state = trainer.init()
    new, metrics = trainer.step(state, fakes.batch_of(0))
    loss, _ = contrast(leaves(state["params"]), fakes.batch_of(0))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert metrics["nonfinite"] == 1
    assert fakes.equal(new["params"], state["params"]) and fakes.equal(new["opt"], state["opt"])


# ---- meshes

MESHES = {
    "data": (dict(data=8), "dp"),
    "fsdp": (dict(data=1, fsdp=8), "fsdp"),
    "all": (dict(data=2, fsdp=2, tensor=2), "fsdp_tp"),
}


@pytest.mark.parametrize(
    ("name", "accumulate_steps", "shape"),
    [("data", 1, (64, 128)), ("fsdp", 1, (64, 16)), ("all", 1, (32, 64)), ("all", 2, (32, 64))],
)
def test_eight_devices_match_one(name, accumulate_steps, shape, single_device):
    axes, preset = MESHES[name]
    trainer = fakes.Trainer(
        fakes.Contrast(),
        sharding.make_mesh(**axes),
        preset=preset,
        ema_decay=0.25,
        accumulate_steps=accumulate_steps,
    )
    state, losses = trainer.run(4)
    np.testing.assert_allclose(losses, single_device[1], rtol=1e-5)
    assert_close(leaves(state["params"]), leaves(single_device[0]["params"]), 1e-4)
    # The whole state is split like its parameters.
    towers = {p: leaf for p, leaf in tree.flatten(state).items() if p.endswith("wi/kernel")}
    assert len(towers) == 8  # left and right; parameters, two moments, average
    for path, leaf in towers.items():
        assert {shard.data.shape for shard in leaf.addressable_shards} == {shape}, path


# ---- several updates per step


def parts_of(batch, count):
    return [{name: x[k::count] for name, x in batch.items()} for k in range(count)]


@pytest.mark.parametrize("axes", [{}, dict(data=2, fsdp=2, tensor=2)])
def test_updates_of_one_step_equal_steps_on_the_parts(axes):
    """With random noise, so random keys are the same, and with a frozen and an averaged part."""
    options = dict(ema_decay=0.25, frozen=["^right/"], seed=3)
    mesh = sharding.make_mesh(**axes) if axes else None
    one_by_one = fakes.Trainer(fakes.Contrast(noise=0.5), **options)
    together = fakes.Trainer(
        fakes.Contrast(noise=0.5), mesh, preset="fsdp_tp", updates_per_step=4, **options
    )
    expected, state = one_by_one.init(), together.init()
    for number in range(2):
        batch, several = fakes.batch_of(number, 32), []
        for part in parts_of(batch, 4):
            expected, metrics = one_by_one.step(expected, part)
            several.append(metrics)
        state, metrics = together.step(state, batch)
        assert metrics.keys() == several[0].keys()
        for name, value in metrics.items():
            assert value == pytest.approx(np.mean([m[name] for m in several]), rel=1e-5), name
    assert int(state["step"]) == 2 and int(expected["step"]) == 8
    for part in ("params", "opt", "extra", "ema"):
        assert_close(leaves(state[part]), leaves(expected[part]), 1e-4)


def test_an_update_that_is_not_finite_leaves_the_others_of_its_step():
    trainer = fakes.Trainer(fakes.Contrast(), updates_per_step=4, ema_decay=0.25)
    one_by_one = fakes.Trainer(fakes.Contrast(), ema_decay=0.25)
    batch = fakes.batch_of(0)
    batch["left"][6, 3] = np.nan  # in part 2
    expected = one_by_one.init()
    for part in parts_of(batch, 4):
        expected, _ = one_by_one.step(expected, part)
    state, metrics = trainer.step(trainer.init(), batch)
    assert metrics["nonfinite"] == 1 and np.isnan(metrics["loss"])
    assert int(state["step"]) == 1
    assert int(state["extra"]["calls"]) == int(expected["extra"]["calls"]) == 3
    for part in ("params", "ema"):
        assert_close(leaves(state[part]), leaves(expected[part]), 1e-5)
    _, metrics = trainer.step(state, fakes.batch_of(1))
    assert metrics["nonfinite"] == 0


def test_schedules_count_updates_and_their_examples():
    schedule = dict(name="poly", base=1.0, exponent=1.0, per_examples=8)
    cfg = config.Config(
        total_steps=5,
        batch_size=16,
        updates_per_step=2,
        optimizer=dict(name="sgd", schedule=schedule),
    )
    built = program.build_program(cfg, fakes.Classify(), fakes.one_device())
    np.testing.assert_allclose([built.schedule(n) for n in (0, 5, 9, 10)], [1, 0.5, 0.1, 0])
    with jax.set_mesh(built.mesh):
        state = built.init(jax.random.key(0))
        batch = sharding.make_global(fakes.batch_of(0), built.mesh)
        for first in (0, 2):
            state, metrics = built.step(state, batch)
            rates = [1 - first / 10, 1 - (first + 1) / 10]
            assert float(metrics["learning_rate"]) == pytest.approx(np.mean(rates))


@pytest.mark.parametrize("key", ["accumulate_steps", "clip_shards"])
def test_several_updates_exclude_other_divisions_of_the_batch(key):
    options = dict(
        optimizer=dict(name="sgd", clip_norm=1.0, schedule=dict(name="constant", base=1))
    )
    cfg = config.Config(batch_size=16, updates_per_step=4, **{key: 2}, **options)
    with raises(UserError, "config.updates_per_step=4", f"config.{key}=2"):
        program.build_program(cfg, fakes.Classify(), fakes.one_device())


# ---- clipping the gradient of each part of the batch


def clip_to(limit):
    clip = optax.clip_by_global_norm(limit)
    return lambda grads: clip.update(grads, clip.init(grads))[0]


@pytest.mark.parametrize(
    "groups, axes",
    [(1, {}), (4, {}), (2, dict(data=8)), (8, dict(data=8)), (8, dict(data=2, fsdp=2, tensor=2))],
)
def test_the_gradient_of_each_batch_part_is_clipped(groups, axes):
    limit = 0.12
    mesh = sharding.make_mesh(**axes) if axes else None
    trainer = sgd(fakes.Classify(), mesh, clip_shards=groups, clip=clip_to(limit))
    state, batch = trainer.init(), fakes.batch_of(1)
    new, metrics = trainer.step(state, batch)

    params = leaves(state["params"])
    total, losses, factors = {path: 0.0 for path in params}, [], []
    for part in np.split(np.arange(16), groups):
        loss, grads = classify(params, batch["left"][part], batch["label"][part])
        factors.append(min(1.0, limit / (norm(grads) / groups)))
        for path in total:
            total[path] = total[path] + factors[-1] * grads[path] / groups
        losses.append(loss)
    assert min(factors) < 0.9
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm(total), rtol=1e-5)
    assert_close(gradients(state["params"], new["params"]), total, 5e-5)
    logits = batch["left"] @ params["backbone/kernel"] @ params["head/kernel"]
    assert metrics["top1"] == pytest.approx((logits.argmax(axis=1) == batch["label"]).mean())
    mean = 0.1 * (batch["left"] @ params["backbone/kernel"]).mean(axis=0)
    np.testing.assert_allclose(new["extra"]["mean"], mean, atol=1e-6)
    assert int(new["extra"]["calls"]) == 1


def test_an_unreached_clip_norm_does_not_change_training():
    keywords = dict(frozen=["^backbone/"], ema_decay=0.9)
    expected = fakes.Trainer(fakes.Classify(), **keywords).run(3)
    result = fakes.Trainer(fakes.Classify(), clip_shards=4, clip=clip_to(1e6), **keywords).run(3)
    np.testing.assert_allclose(result[1], expected[1], rtol=1e-5)
    assert_close(leaves(result[0]["params"]), leaves(expected[0]["params"]))


def test_a_non_finite_batch_part_changes_nothing():
    trainer = sgd(fakes.Classify(), clip_shards=4, clip=clip_to(1.0))
    state, batch = trainer.init(), fakes.batch_of(0)
    batch["left"][-1] = np.nan
    new, metrics = trainer.step(state, batch)
    assert metrics["nonfinite"] == 1
    assert fakes.equal(new["params"], state["params"])


def test_clip_groups_have_their_own_norm_in_each_batch_part():
    settings = dict(clip_norm=0.05, clip_groups=(("^head/", 0.02),))
    params, _ = jax.eval_shape(fakes.Classify().init, jax.random.key(0))
    trainer = sgd(fakes.Classify(), clip_shards=2, clip=optim.make_clipping(settings, params))
    state, batch = trainer.init(), fakes.batch_of(1)
    new, _ = trainer.step(state, batch)
    params = leaves(state["params"])
    total = {path: 0.0 for path in params}
    for part in np.split(np.arange(16), 2):
        _, grads = classify(params, batch["left"][part], batch["label"][part])
        for (path, grad), limit in zip(grads.items(), (0.05, 0.02), strict=True):
            assert norm({path: grad / 2}) > limit
            total[path] = total[path] + grad * limit / norm({path: grad})
    assert_close(gradients(state["params"], new["params"]), total, 5e-5)


@pytest.mark.parametrize(
    ("task", "keywords", "facts"),
    [
        (fakes.Contrast(), dict(clip=clip_to(1.0)), ("config.clip_shards=0", "loss")),
        (
            fakes.Classify(),
            dict(clip=clip_to(1.0), accumulate_steps=2),
            ("config.accumulate_steps=1", 2),
        ),
        (fakes.Classify(), {}, ("config.optimizer", "config.clip_shards=0")),
    ],
)
def test_unsupported_uses_of_clip_shards_are_an_error(task, keywords, facts):
    with raises(UserError, "config.clip_shards=4", *facts):
        sgd(task, clip_shards=4, **keywords)


def test_a_batch_that_is_not_divisible_by_clip_shards_is_an_error():
    trainer = sgd(fakes.Classify(), clip_shards=3, clip=clip_to(1.0))
    with raises(UserError, "config.batch_size=16", "config.clip_shards=3"):
        trainer.step(trainer.init(), fakes.batch_of(0))
