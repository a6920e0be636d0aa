"""Optimizers against NumPy in float64, and errors of their configs."""

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
    "sgd": (dict(name="sgd"), lambda w, g, lr, t: (w - lr * g,), 0),
    "sgd, momentum": (
        dict(name="sgd", momentum=0.8, weight_decay=0.1),
        lambda *a: momentum(*a, mu=0.8, decay=0.1),
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


def test_sgd_without_momentum_has_no_slots():
    def slots(**cfg):
        cfg = dict(name="sgd", schedule=CONSTANT) | cfg
        tx, _ = optim.make_optimizer(cfg, parameters(), total_steps=STEPS, batch_size=BATCH)
        return [path for path in tree.flatten(tx.init(parameters())) if "kernel" in path]

    assert not slots()
    assert len(slots(momentum=0.9)) == 2


# The momentum of `one_cycle`. STEPS = 8 updates in epochs of two: four values.

CYCLE = dict(name="one_cycle", base=0.1, steps_per_epoch=2)
CYCLE_RATES, CYCLE_MOMENTA = [], []
for _epoch in range(4):
    _down = max(_epoch - 0.2, 0) / 2.8  # the peak is at 0.3 * 4 - 1 = 0.2, the end at 3
    _share = (1 - _down) if _epoch else 0.0  # of the way from the start to the peak
    _floor = 0.004 if not _epoch else 0.1 / 25e4
    CYCLE_RATES += 2 * [_floor + _share * (0.1 - _floor)]
    CYCLE_MOMENTA += 2 * [0.95 - 0.1 * _share]


def cycling(rule, **options):
    """Returns a rule for `reference` whose momentum is that of update t - 1."""
    return lambda w, g, lr, t, *slots: rule(w, g, lr, t, *slots, CYCLE_MOMENTA[t - 1], **options)


@pytest.mark.parametrize(
    ("cfg", "rule", "slots"),
    [
        (dict(name="sgd", weight_decay=0.1), cycling(momentum, decay=0.1), 1),
        (dict(name="sgd", nesterov=True), cycling(momentum, nesterov=True), 1),
        (dict(name="adam", eps=1e-3), cycling(adam, eps=1e-3), 2),
    ],
)
def test_one_cycle_determines_the_momentum_of_every_update(cfg, rule, slots):
    result = run(cfg | dict(schedule=CYCLE))
    assert_same(result, reference(rule, slots, rates=CYCLE_RATES))
    fixed = dict(b1=0.9) if cfg["name"] == "adam" else dict(momentum=0.9)
    constant = run(cfg | fixed | dict(schedule=CYCLE | dict(cycle_momentum=False)))
    assert max(np.abs(result[path] - constant[path]).max() for path in result) > 1e-3


def test_a_disabled_one_cycle_has_a_momentum_of_95_percent():
    schedule = CYCLE | dict(disabled=True)
    for name, rule, slots in (("sgd", momentum, 1), ("adam", adam, 2)):
        expected = reference(lambda *a, rule=rule: rule(*a, 0.95), slots, rates=[0.004] * STEPS)
        assert_same(run(dict(name=name, schedule=schedule)), expected)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_one_cycle_trains_as_in_torch(name):
    torch = pytest.importorskip("torch")
    weights = {
        p: torch.nn.Parameter(torch.tensor(v)) for p, v in tree.flatten(parameters()).items()
    }
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name]
    optimizer = make(weights.values(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=STEPS // 2, anneal_strategy="linear"
    )
    for step in range(STEPS):
        for path, grad in tree.flatten(gradients(step)).items():
            weights[path].grad = torch.tensor(grad)
        optimizer.step()
        if step % 2 and step < STEPS - 1:
            scheduler.step()
    expected = {path: weight.detach().numpy() for path, weight in weights.items()}
    assert_same(run(dict(name=name, schedule=CYCLE)), expected)


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
            ("optimizer.schedule", "dict(name='constant'", "constant, cosine, one_cycle"),
        ),
        (
            GOOD | dict(schedule=dict(base=1.0)),
            ("optimizer.schedule", "name", "constant, cosine, one_cycle"),
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
        (
            GOOD | dict(schedule=CYCLE),
            ("config.optimizer.schedule", "'adamw'", "adam, sgd", "schedule.cycle_momentum=False"),
        ),
        (
            dict(name="sgd", momentum=0.9, schedule=CYCLE),
            ("config.optimizer.momentum=0.9", "schedule.cycle_momentum=False"),
        ),
        (
            dict(name="adam", b1=0.8, schedule=CYCLE),
            ("config.optimizer.b1=0.8", "schedule.cycle_momentum=False"),
        ),
        (
            dict(name="sgd", nesterov=True, schedule=CONSTANT),
            ("config.optimizer.nesterov", "momentum"),
        ),
    ],
)
def test_invalid_configs_are_an_error(cfg, facts):
    with raises(UserError, *facts):
        optim.make_optimizer(cfg, parameters(), total_steps=STEPS, batch_size=BATCH)
