"""One update against formulas in numpy, and the same numbers on any mesh."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax import optim, sharding, tree
from mmjax import step as step_lib
from mmjax.errors import UserError

LEFT, RIGHT, HEAD = "left/mlp/wi/kernel", "right/mlp/wi/kernel", "head/mlp/wo/kernel"
LEARNING_RATE = 10.0  # so that a gradient is not lost in the digits of its parameter


def sgd(task, mesh=None, **keywords):
    return fakes.Trainer(task, mesh, tx=optax.sgd(LEARNING_RATE), **keywords)


@pytest.fixture(scope="module")
def trainer():
    """One compilation for the tests that need nothing special."""
    return fakes.Trainer(fakes.Contrast(), ema_decay=0.25)


@pytest.fixture(scope="module")
def accumulating():
    return fakes.Trainer(fakes.Contrast(), ema_decay=0.25, accumulate_steps=4)


@pytest.fixture(scope="module")
def frozen():
    return fakes.Trainer(fakes.Contrast(), frozen=["^right/"], ema_decay=0.9)


@pytest.fixture(scope="module")
def alone(trainer):
    """`(state, losses)` of four steps on one device."""
    return trainer.run(4)


def leaves(params):
    return {path: np.asarray(leaf, np.float64) for path, leaf in tree.flatten(params).items()}


def gradients(before, after):
    """What one step of gradient descent subtracted, per learning rate."""
    before, after = leaves(before), leaves(after)
    return {path: (before[path] - after[path]) / LEARNING_RATE for path in before}


def contrast(params, batch):
    """Loss and gradients of `fakes.Contrast`, by hand."""
    x, y = batch["left"].astype(np.float64), batch["right"].astype(np.float64)
    a, b, h = params[LEFT], params[RIGHT], params[HEAD]
    u, v = x @ a @ h, y @ b @ h
    z = fakes.SCALE * u @ v.T
    rows = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    columns = np.exp(z) / np.exp(z).sum(axis=0, keepdims=True)
    eye, size = np.eye(len(z)), len(z)
    loss = -(np.log(rows[eye > 0]).mean() + np.log(columns[eye > 0]).mean()) / 2
    dz = (rows + columns - 2 * eye) / (2 * size)
    du, dv = fakes.SCALE * dz @ v, fakes.SCALE * dz.T @ u
    head = (x @ a).T @ du + (y @ b).T @ dv
    return loss, {LEFT: x.T @ du @ h.T, RIGHT: y.T @ dv @ h.T, HEAD: head}


def classify(params, x, label):
    """Loss and gradients of `fakes.Classify`, by hand."""
    x, a, h = x.astype(np.float64), params["backbone/kernel"], params["head/kernel"]
    z = x @ a @ h
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    wanted = np.eye(fakes.CLASSES)[label]
    dz = (p - wanted) / len(x)
    loss = -np.log(p[wanted > 0]).mean()
    return loss, {"backbone/kernel": x.T @ dz @ h.T, "head/kernel": (x @ a).T @ dz}


def norm(grads):
    return np.sqrt(sum((g**2).sum() for g in grads.values()))


def assert_close(found, wanted, tolerance=2e-5):
    assert found.keys() == wanted.keys()
    for path in wanted:
        scale = np.abs(wanted[path]).max()
        np.testing.assert_allclose(found[path], wanted[path], atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("accumulate_steps", [1, 4])
def test_contrastive_loss_and_gradients_are_those_of_the_formula(accumulate_steps):
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


def test_accumulated_steps_follow_the_same_path(alone, accumulating):
    (a, losses), (b, same) = alone, accumulating.run(4)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(same, losses, rtol=1e-5)
    assert_close(leaves(b["params"]), leaves(a["params"]), 1e-4)


def test_loss_per_example():
    trainer = sgd(fakes.Classify())
    state, batch = trainer.init(), fakes.batch_of(3)
    new, metrics = trainer.step(state, batch)
    params = leaves(state["params"])
    loss, grads = classify(params, batch["left"], batch["label"])
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert_close(gradients(state["params"], new["params"]), grads)
    logits = batch["left"] @ params["backbone/kernel"] @ params["head/kernel"]
    assert metrics["top1"] == pytest.approx((logits.argmax(axis=1) == batch["label"]).mean())


def test_learning_rate_is_the_schedules_at_the_step_before_counting(trainer):
    state = trainer.init()
    for number in range(3):
        state, metrics = trainer.step(state, fakes.batch_of(number))
        assert metrics["learning_rate"] == pytest.approx(0.1 * number)


def test_draws_come_from_seed_and_step_alone():
    noisy = sgd(fakes.Contrast(noise=1.0), seed=1)
    other = sgd(fakes.Contrast(noise=1.0), seed=2)
    state, batch = noisy.init(), fakes.batch_of(0)
    later = dict(state, step=state["step"] + 1)
    loss = noisy.step(state, batch)[1]["loss"]
    assert noisy.step(state, batch)[1]["loss"] == loss
    assert noisy.step(later, batch)[1]["loss"] != loss
    assert other.step(state, batch)[1]["loss"] != loss


# ---- frozen parameters and the moving average


def test_frozen_parameters_stay_and_cost_nothing(frozen):
    start = frozen.init()
    state, _ = frozen.run(3, state=start)
    before, after = tree.flatten(start["params"]), tree.flatten(state["params"])
    assert np.array_equal(before[RIGHT], after[RIGHT])
    assert not np.array_equal(before[LEFT], after[LEFT])
    slots = {path.split("/", 1)[1] for path in tree.flatten(state["opt"]) if "kernel" in path}
    assert slots == {f"{slot}/{path}" for slot in ("mu", "nu") for path in (LEFT, HEAD)}
    assert set(tree.flatten(state["ema"])) == {LEFT, HEAD}
    judged = tree.flatten(step_lib.evaluation_params(state))
    assert np.array_equal(judged[RIGHT], before[RIGHT])
    assert np.array_equal(judged[LEFT], tree.flatten(state["ema"])[LEFT])


def test_without_an_average_the_parameters_are_judged():
    state = fakes.Trainer(fakes.Contrast()).init()
    assert "ema" not in state
    assert step_lib.evaluation_params(state) is state["params"]


def test_moving_average_is_a_plain_mean_at_first(trainer):
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


# ---- steps that are not finite


@pytest.mark.parametrize("which", ["trainer", "accumulating"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing(value, which, request):
    trainer = request.getfixturevalue(which)
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


class Cliff(fakes.Contrast):
    """A loss that is finite where its gradient is not."""

    def objective(self, params, extra, features, batch, key):
        loss, rest = super().objective(params, extra, features, batch, key)
        return loss + jnp.sqrt(0.0 * params["head"]["mlp"]["wo"]["kernel"]).sum(), rest


def test_a_gradient_that_is_not_finite_counts_too():
    trainer = sgd(Cliff())
    state = trainer.init()
    new, metrics = trainer.step(state, fakes.batch_of(0))
    assert np.isfinite(metrics["loss"]) and metrics["nonfinite"] == 1
    assert fakes.equal(new["params"], state["params"]) and fakes.equal(new["opt"], state["opt"])


# ---- any mesh

MESHES = {
    "data": (dict(data=8), "dp"),
    "fsdp": (dict(data=1, fsdp=8), "fsdp"),
    "all": (dict(data=2, fsdp=2, tensor=2), "fsdp_tp"),
}


@pytest.mark.parametrize(
    "name, accumulate_steps, shape",
    [("data", 1, (64, 128)), ("fsdp", 1, (64, 16)), ("all", 1, (32, 64)), ("all", 2, (32, 64))],
)
def test_eight_devices_are_one(name, accumulate_steps, shape, alone):
    axes, preset = MESHES[name]
    trainer = fakes.Trainer(
        fakes.Contrast(),
        sharding.make_mesh(**axes),
        preset=preset,
        ema_decay=0.25,
        accumulate_steps=accumulate_steps,
    )
    state, losses = trainer.run(4)
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
    assert_close(leaves(state["params"]), leaves(alone[0]["params"]), 1e-4)
    # The whole state is split as its parameters are.
    towers = {p: leaf for p, leaf in tree.flatten(state).items() if p.endswith("wi/kernel")}
    assert len(towers) == 8  # left and right; parameters, two moments, average
    for path, leaf in towers.items():
        assert {shard.data.shape for shard in leaf.addressable_shards} == {shape}, path


# ---- clipping the gradient of each group of rows


def clip_to(limit):
    clip = optax.clip_by_global_norm(limit)
    return lambda grads: clip.update(grads, clip.init(grads))[0]


@pytest.mark.parametrize(
    "groups, axes",
    [(1, {}), (4, {}), (2, dict(data=8)), (8, dict(data=8)), (8, dict(data=2, fsdp=2, tensor=2))],
)
def test_clipping_each_group_of_rows(groups, axes):
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


def test_a_limit_that_is_never_reached_leaves_the_gradient_of_the_batch():
    keywords = dict(frozen=["^backbone/"], ema_decay=0.9)
    whole = fakes.Trainer(fakes.Classify(), **keywords).run(3)
    parts = fakes.Trainer(fakes.Classify(), clip_shards=4, clip=clip_to(1e6), **keywords).run(3)
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-5)
    assert_close(leaves(parts[0]["params"]), leaves(whole[0]["params"]))


def test_a_group_that_is_not_finite_stops_the_step():
    trainer = sgd(fakes.Classify(), clip_shards=4, clip=clip_to(1.0))
    state, batch = trainer.init(), fakes.batch_of(0)
    batch["left"][-1] = np.nan
    new, metrics = trainer.step(state, batch)
    assert metrics["nonfinite"] == 1
    assert fakes.equal(new["params"], state["params"])


def test_groups_of_parameters_with_limits_of_their_own():
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
    "task, keywords, words",
    [
        (fakes.Contrast(), dict(clip=clip_to(1.0)), "compares the examples"),
        (fakes.Classify(), dict(clip=clip_to(1.0), accumulate_steps=2), "accumulate_steps=1"),
        (fakes.Classify(), {}, "config.optimizer"),
    ],
)
def test_what_clip_shards_cannot_do_is_said_at_once(task, keywords, words):
    with pytest.raises(UserError, match=words):
        sgd(task, clip_shards=4, **keywords)


def test_groups_must_be_of_one_size():
    trainer = sgd(fakes.Classify(), clip_shards=3, clip=clip_to(1.0))
    with pytest.raises(UserError, match="batch_size=16.*clip_shards=3"):
        trainer.step(trainer.init(), fakes.batch_of(0))
