"""Optimizers and schedules against NumPy in float64, and errors of their configs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from mmjax import optim, tree
from mmjax.errors import UserError
from tests.messages import raises

STEPS = 8
BATCH = 512
CONSTANT = dict(name="constant", base=0.1)
# A learning rate that changes at every step and starts at 0.
CHANGING = dict(name="cosine", base=0.1, warmup_steps=3)
RATES = [0.0, 0.1 / 3, 0.2 / 3, *(0.05 * (1 + np.cos(np.pi * i / 5)) for i in range(5))]


def parameters():
    random = np.random.default_rng(0)
    shapes = {"video/kernel": (3, 2), "video/bias": (2,), "head/kernel": (2, 4), "head/bias": (4,)}
    return tree.unflatten({k: random.normal(size=s).astype(np.float32) for k, s in shapes.items()})


def gradients(step):
    random = np.random.default_rng(100 + step)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), parameters())


def run(cfg, steps=STEPS):
    """Returns parameters after training with the optimizer of `cfg`: {path: float64 array}."""
    params = parameters()
    tx, _ = optim.make_optimizer(cfg, params, total_steps=STEPS, batch_size=BATCH)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return {k: np.asarray(v, np.float64) for k, v in tree.flatten(params).items()}


def reference(rule, slots, steps=STEPS, rates=RATES):
    """Returns the same for `rule(w, g, lr, t, *slots) -> (w, *slots)` in NumPy, in float64."""
    result = {}
    for path, value in tree.flatten(parameters()).items():
        value = value.astype(np.float64)
        state = [np.zeros_like(value) for _ in range(slots)]
        for step in range(steps):
            grad = tree.flatten(gradients(step))[path].astype(np.float64)
            value, *state = rule(value, grad, rates[step], step + 1, *state)
        result[path] = value
    return result


def assert_same(result, expected):
    assert result.keys() == expected.keys()
    for path in result:
        # 1 - 0.999 has five correct digits in float32, and so do the first updates of Adam.
        np.testing.assert_allclose(result[path], expected[path], atol=1e-5, err_msg=path)


# Update rules. In Keras, the momentum buffer includes the learning rate, and epsilon is added
# before the bias correction.


def keras_adam(w, g, lr, t, m, v, b1=0.9, b2=0.999, eps=1e-7):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    lr *= np.sqrt(1 - b2**t) / (1 - b1**t)
    return w - lr * m / (np.sqrt(v) + eps), m, v


def adam(w, g, lr, t, m, v, b1=0.9, b2=0.999, eps=1e-8, decay=0.0):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return w - lr * (step + decay * w), m, v


def keras_momentum(w, g, lr, t, v, mu=0.9, nesterov=False):
    v = mu * v - lr * g
    return w + (mu * v - lr * g if nesterov else v), v


def momentum(w, g, lr, t, v, mu=0.9, decay=0.0, nesterov=False):
    g = g + decay * w
    v = mu * v + g
    return w - lr * (g + mu * v if nesterov else v), v


def decayed(rule, decay):
    """TensorFlow Addons: parameters decay first, independently of the learning rate."""
    return lambda w, *rest: rule(w - decay * w, *rest)


RULES = {
    "adam": (dict(name="adam", eps=1e-3), lambda *a: adam(*a, eps=1e-3), 2),
    "adamw": (dict(name="adamw", weight_decay=0.1), lambda *a: adam(*a, decay=0.1), 2),
    "momentum": (
        dict(name="momentum", momentum=0.8, weight_decay=0.1),
        lambda *a: momentum(*a, mu=0.8, decay=0.1),
        1,
    ),
    "momentum, nesterov": (
        dict(name="momentum", nesterov=True),
        lambda *a: momentum(*a, nesterov=True),
        1,
    ),
    "keras_adam": (dict(name="keras_adam"), keras_adam, 2),
    "keras_adam, large epsilon": (
        dict(name="keras_adam", eps=0.1, b1=0.7, b2=0.95),
        lambda *a: keras_adam(*a, eps=0.1, b1=0.7, b2=0.95),
        2,
    ),
    "keras_momentum": (dict(name="keras_momentum"), keras_momentum, 1),
    "keras_momentum, nesterov": (
        dict(name="keras_momentum", nesterov=True),
        lambda *a: keras_momentum(*a, nesterov=True),
        1,
    ),
    "tfa_adamw": (dict(name="tfa_adamw", weight_decay=0.01), decayed(keras_adam, 0.01), 2),
    "tfa_sgdw": (dict(name="tfa_sgdw", weight_decay=0.01), decayed(keras_momentum, 0.01), 1),
}


@pytest.mark.parametrize("case", RULES)
def test_updates_equal_the_published_rule(case):
    cfg, rule, slots = RULES[case]
    assert_same(run(cfg | dict(schedule=CHANGING)), reference(rule, slots))


def test_every_optimizer_has_a_reference():
    assert {cfg["name"] for cfg, _, _ in RULES.values()} == set(optim.OPTIMIZERS)


def test_keras_momentum_differs_only_if_the_learning_rate_changes():
    def difference(schedule):
        one = run(dict(name="momentum", schedule=schedule))
        other = run(dict(name="keras_momentum", schedule=schedule))
        return max(np.abs(one[path] - other[path]).max() for path in one)

    assert difference(CONSTANT) < 1e-6
    assert difference(CHANGING) > 1e-3


def test_the_first_update_uses_the_learning_rate_of_step_0():
    start = {k: v.astype(np.float64) for k, v in tree.flatten(parameters()).items()}
    for name in ("adam", "keras_adam", "keras_momentum"):
        assert_same(run(dict(name=name, schedule=CHANGING), steps=1), start)


# Options of every optimizer.


@pytest.mark.parametrize("name", ["adamw", "tfa_adamw"])
def test_excluded_parameters_do_not_decay(name):
    cfg = dict(name=name, schedule=CONSTANT, weight_decay=0.1)
    some = run(cfg | dict(weight_decay_exclude=("bias$",)))
    everywhere, nowhere = run(cfg), run(cfg | dict(weight_decay=0.0))
    for path in some:
        expected = nowhere if path.endswith("bias") else everywhere
        np.testing.assert_array_equal(some[path], expected[path])
        assert np.any(everywhere[path] != nowhere[path])


def test_the_first_matching_lr_multiplier_applies():
    cfg = dict(name="keras_momentum", schedule=CHANGING)
    result = run(cfg | dict(lr_multipliers=(("^video/bias", 0.0), ("^video/", 0.1))))
    for path, factor in {"video/bias": 0.0, "video/kernel": 0.1, "head/kernel": 1.0}.items():
        rates = [factor * rate for rate in RATES]
        expected = reference(keras_momentum, 1, rates=rates)
        np.testing.assert_allclose(result[path], expected[path], atol=1e-6)


def norm(leaves):
    return np.sqrt(sum(np.sum(np.square(np.asarray(x, np.float64))) for x in leaves))


def test_each_clip_group_has_its_own_norm():
    grads = tree.flatten(gradients(0))
    clip = optim.make_clipping(dict(clip_norm=0.75, clip_groups=(("^head/", 0.5),)), parameters())
    clipped = tree.flatten(jax.jit(clip)(gradients(0)))
    for group, limit in (("video", 0.75), ("head", 0.5)):
        before = [g for path, g in grads.items() if path.startswith(group)]
        assert norm(before) > limit
        for path in grads:
            if path.startswith(group):
                expected = grads[path] * limit / norm(before)
                np.testing.assert_allclose(clipped[path], expected, rtol=1e-6)


def test_small_and_zero_gradients_are_not_clipped():
    clip = optim.make_clipping(dict(clip_norm=1e3), parameters())
    for grads in (gradients(0), jax.tree.map(jnp.zeros_like, gradients(0))):
        jax.tree.map(np.testing.assert_array_equal, clip(grads), grads)


def test_a_norm_of_zero_disables_clipping():
    assert optim.make_clipping(dict(clip_norm=0.0), parameters()) is None
    clip = optim.make_clipping(dict(clip_norm=0.5, clip_groups=(("^head/", 0),)), parameters())
    clipped = clip(gradients(0))
    jax.tree.map(np.testing.assert_array_equal, clipped["head"], gradients(0)["head"])
    np.testing.assert_allclose(norm(jax.tree.leaves(clipped["video"])), 0.5, rtol=1e-6)


def test_clipping_precedes_the_update_rule_and_can_be_omitted():
    cfg = dict(name="momentum", momentum=0.0, schedule=CONSTANT, clip_norm=0.5)
    params = parameters()
    sizes = []
    for clip in (True, False):
        tx, _ = optim.make_optimizer(cfg, params, total_steps=STEPS, batch_size=BATCH, clip=clip)
        updates, _ = tx.update(gradients(0), tx.init(params), params)
        sizes.append(norm(jax.tree.leaves(updates)))
    np.testing.assert_allclose(sizes, [0.1 * 0.5, 0.1 * norm(jax.tree.leaves(gradients(0)))], 1e-6)


def without_head(values):
    return values | {"head": jax.tree.map(lambda _: None, values["head"])}


def test_missing_leaves_have_no_slots_and_do_not_count_in_the_norm(tmp_path):
    cfg = dict(
        name="adamw",
        schedule=CONSTANT,
        weight_decay_exclude=("bias$",),
        lr_multipliers=(("kernel", 0.5),),
        clip_norm=0.5,
    )
    params = without_head(parameters())
    tx, _ = optim.make_optimizer(cfg, params, total_steps=STEPS, batch_size=BATCH)
    state = jax.jit(tx.init)(params)
    names = list(tree.flatten(state))
    assert sum("video/kernel" in name for name in names) == 2  # two moments
    assert not any("head" in name for name in names)
    update = jax.jit(tx.update)
    updates, state = update(without_head(gradients(0)), state, params)
    assert updates["head"] == {"kernel": None, "bias": None}

    # The state is a plain pytree, which Orbax saves and restores.
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "opt", state)
        restored = checkpointer.restore(
            tmp_path / "opt",
            ocp.args.PyTreeRestore(
                item=state, restore_args=ocp.checkpoint_utils.construct_restore_args(state)
            ),
        )
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


# Schedules.


def values(steps, total_steps=100, **cfg):
    schedule = optim.make_schedule(cfg, total_steps=total_steps, batch_size=BATCH)
    traced = jax.jit(jax.vmap(schedule))(jnp.asarray(steps))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, [schedule(step) for step in steps], rtol=1e-6)
    return traced


def test_constant():
    result = values([0, 1, 4, 50], name="constant", base=2.0, warmup_steps=4, warmup_from=1.0)
    np.testing.assert_allclose(result, [1.0, 1.25, 2.0, 2.0])


def test_cosine():
    cfg = dict(name="cosine", base=0.005, warmup_steps=20)
    result = values([0, 10, 20, 40, 60, 100, 120], **cfg)
    quarter = 0.0025 * (1 + np.sqrt(0.5))
    np.testing.assert_allclose(result, [0, 0.0025, 0.005, quarter, 0.0025, 0, 0], atol=1e-9)
    result = values([20, 60, 100], end=0.001, **cfg)
    np.testing.assert_allclose(result, [0.005, 0.003, 0.001], rtol=1e-6)
    # The schedule can be shorter than the run.
    result = values([20, 35, 50], **(cfg | dict(total_steps=50)))
    np.testing.assert_allclose(result, [0.005, 0.0025, 0], atol=1e-9)


def test_cosine_of_lgssl_holds_its_maximum_for_one_step():
    cfg = dict(name="cosine", base=1e-3, warmup_from=1e-5, warmup_steps=4999, hold_steps=1)
    schedule = optim.make_schedule(cfg | dict(end=1e-6), total_steps=250_000, batch_size=BATCH)
    values = {
        0: 1e-5,
        1: 1.0198e-5,
        4999: 1e-3,
        5000: 1e-3,
        127_500: 5.005e-4,
        250_000: 1e-6,
    }
    for step, value in values.items():
        assert float(schedule(step)) == pytest.approx(value, rel=1e-5), step
    with raises(UserError, "config.optimizer.schedule.hold_steps", "hold_steps=5000", 4999):
        optim.make_schedule(cfg, total_steps=4999, batch_size=BATCH)


def test_stepwise_cosine():
    cfg = dict(name="stepwise_cosine", levels=(1e-3, 4e-4, 1e-4), boundaries=(10, 50, 90))
    steps = [0, 5, 10, 30, 50, 70, 90, 95, 100, 101]
    expected = [1e-5, 5.05e-4, 1e-3, 7e-4, 4e-4, 2.5e-4, 1e-4, 5e-5, 0, 0]
    np.testing.assert_allclose(
        values(steps, warmup_from=1e-5, **cfg), expected, rtol=1e-5, atol=1e-9
    )


def test_stepwise_cosine_of_vatt_is_finite_at_its_last_step():
    cfg = dict(name="stepwise_cosine", levels=(1e-4, 5e-5), boundaries=(5_000, 500_000))
    steps = [0, 5_000, 252_500, 499_999, 500_000, 500_001]
    expected = [0, 1e-4, 7.5e-5, 5e-5, 5e-5, 5e-5]
    result = values(steps, total_steps=500_000, **cfg)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_rsqrt():
    result = values([0, 5, 10, 40, 130], name="rsqrt", base=0.6, warmup_steps=10, timescale=10)
    expected = [0, 0.3, 0.6, 0.3, 0.6 * np.sqrt(1 / 13)]
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_learning_rate_and_warmup_scale_with_the_batch_size():
    """The recipe of TVL: 3e-4 per 256 examples, 10 of 200 epochs of warm-up, batch size 512."""
    epoch = 100  # steps
    cfg = dict(
        name="cosine", base=3e-4, per_examples=256, warmup_examples=10 * epoch * BATCH, end=1e-6
    )
    result = values([0, 500, 1000, 10_500, 20_000], total_steps=200 * epoch, **cfg)
    middle = (6e-4 + 1e-6) / 2
    np.testing.assert_allclose(result, [0, 3e-4, 6e-4, middle, 1e-6], rtol=1e-5, atol=1e-10)
    cfg = dict(name="stepwise_cosine", levels=(1.0, 0.5), boundaries=(2, 50), per_examples=1024)
    result = values([1, 2, 50], **cfg)
    np.testing.assert_allclose(result, [0.25, 0.5, 0.25], rtol=1e-6)


# Invalid configs.

GOOD = dict(name="adamw", schedule=CONSTANT)


@pytest.mark.parametrize(
    ("cfg", "facts"),
    [
        (dict(schedule=CONSTANT), ("optimizer", "name", "adam, adamw, keras_adam")),
        (
            GOOD | dict(name="adammw"),
            ("optimizer", "'adammw'", "'adamw'", "adam, adamw, keras_adam"),
        ),
        (
            GOOD | dict(weigth_decay=0.1),
            ("'adamw'", "optimizer.weigth_decay", "'optimizer.weight_decay'"),
        ),
        (GOOD | dict(clip=1.0), ("'adamw'", "'optimizer.clip'", "'optimizer.clip_norm'")),
        (
            GOOD | dict(momentum=0.9),
            ("'adamw'", "optimizer.momentum", "optimizer.b1, optimizer.b2, optimizer.clip_groups"),
        ),
        (
            GOOD | dict(mask=None),
            ("'adamw'", "optimizer.mask", "optimizer.b1, optimizer.b2, optimizer.clip_groups"),
        ),
        (
            dict(name="adam"),
            ("optimizer.schedule", "dict(name='constant'", "constant, cosine, rsqrt"),
        ),
        (
            GOOD | dict(schedule=dict(base=1.0)),
            ("optimizer.schedule", "name", "constant, cosine, rsqrt"),
        ),
        (
            GOOD | dict(schedule=dict(name="cosin", base=1.0)),
            ("optimizer.schedule", "'cosin'", "'cosine'"),
        ),
        (GOOD | dict(schedule=dict(name="cosine")), ("optimizer.schedule", "'cosine'", "base")),
        (
            GOOD | dict(schedule=dict(name="cosine", base=1.0, warmup=5)),
            (
                "optimizer.schedule",
                "optimizer.schedule.warmup",
                "optimizer.schedule.warmup_from",
                "warmup_steps",
            ),
        ),
        (
            GOOD | dict(schedule=dict(name="cosine", base=1.0, warmup_steps=9)),
            ("config.optimizer.schedule.warmup_steps", "warmup_steps=9", 8),
        ),
        (
            GOOD | dict(schedule=dict(name="stepwise_cosine", levels=(1, 2), boundaries=(3,))),
            ("stepwise_cosine", "boundaries", "levels", 1, 2),
        ),
        (
            GOOD | dict(schedule=dict(name="stepwise_cosine", levels=(1, 2), boundaries=(5, 3))),
            ("stepwise_cosine", "boundaries", "(5, 3)"),
        ),
        (
            GOOD | dict(schedule=dict(name="stepwise_cosine", levels=(1, 2), boundaries=(5, 9))),
            ("stepwise_cosine", "boundaries", "(5, 9)", 8),
        ),
        (
            GOOD
            | dict(schedule=dict(name="cosine", base=1.0, warmup_steps=1, warmup_examples=512)),
            ("optimizer.schedule.warmup_examples", "warmup_steps", "'cosine'"),
        ),
        (
            GOOD
            | dict(
                schedule=dict(
                    name="stepwise_cosine", levels=(1,), boundaries=(1,), warmup_examples=512
                )
            ),
            ("optimizer.schedule.warmup_examples", "'stepwise_cosine'", "levels, boundaries"),
        ),
        (
            GOOD | dict(schedule=CONSTANT | dict(per_examples=-1)),
            ("optimizer.schedule.per_examples", -1, "0"),
        ),
        (
            GOOD | dict(weight_decay_exclude=("scale$",)),
            ("optimizer.weight_decay_exclude", "'scale$'", "head/bias"),
        ),
        (
            dict(name="adam", schedule=CONSTANT, weight_decay_exclude=("bias$",)),
            ("optimizer.weight_decay_exclude", "'adam'", "adamw, momentum"),
        ),
        (
            GOOD | dict(lr_multipliers=(("^audio/", 0.1),)),
            ("optimizer.lr_multipliers", "'^audio/'", "head/bias"),
        ),
        (
            GOOD | dict(lr_multipliers=("^video/", 0.1)),
            ("optimizer.lr_multipliers", "('^video/', 0.1)", "(('^video/', 0.1),)"),
        ),
        (
            GOOD | dict(clip_groups=(("^cls", 0.1),)),
            ("optimizer.clip_groups", "'^cls'", "head/bias"),
        ),
        (GOOD | dict(clip_norm=-1.0), ("optimizer", "-1.0")),
    ],
)
def test_invalid_configs_are_an_error(cfg, facts):
    with raises(UserError, *facts):
        optim.make_optimizer(cfg, parameters(), total_steps=STEPS, batch_size=BATCH)
