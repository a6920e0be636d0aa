"""Groups of parameters with an optimizer each: the same results as separate runs."""

import jax
import numpy as np
import optax
import pytest

from mmjax import optim, tree
from mmjax.errors import UserError
from tests.messages import raises

STEPS, BATCH = 6, 16
CONSTANT = dict(name="constant", base=0.1)
SLOW = dict(
    pattern="^heads/slow/",
    name="adamw",
    schedule=dict(name="cosine", base=0.01, warmup_steps=2),
    weight_decay_exclude=("bias$",),
    lr_multipliers=(("kernel$", 0.5),),
)
FAST = dict(pattern="^heads/fast/", name="sgd", schedule=dict(name="one_cycle", base=0.1))


def parameters():
    random = np.random.default_rng(0)
    shapes = {"slow/kernel": (3, 2), "slow/bias": (2,), "fast/kernel": (3, 2), "fast/bias": (2,)}
    leaves = {
        f"heads/{path}": random.normal(size=shape).astype(np.float32)
        for path, shape in shapes.items()
    }
    return tree.unflatten(leaves | {"encoder/kernel": np.ones(3, np.float32)})


def trainable(*groups):
    """Returns the parameters of these groups, and None elsewhere (frozen parameters)."""
    return tree.map_named(
        lambda path, leaf: leaf if any(f"/{name}/" in path for name in groups) else None,
        parameters(),
    )


def run(cfg, params):
    """Returns parameters after training: {path: array}."""
    tx, _ = optim.make_optimizer(cfg, params, total_steps=STEPS, batch_size=BATCH)
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(STEPS):
        random = np.random.default_rng(100 + step)
        # The same gradients whether or not other parameters are trained.
        grads = {
            path: random.normal(size=leaf.shape).astype(np.float32)
            for path, leaf in tree.flatten(parameters()).items()
        }
        own = tree.map_named(lambda path, leaf, grads=grads: grads[path], params)
        updates, state = update(own, state, params)
        params = optax.apply_updates(params, updates)
    return tree.flatten(params)


def without_pattern(section):
    return {key: value for key, value in section.items() if key != "pattern"}


@pytest.mark.parametrize("norm", [0.0, 0.5])
def test_each_group_trains_as_if_alone(norm):
    cfg = dict(groups=dict(slow=SLOW, fast=FAST))
    if norm:  # a norm for each group, as in runs of their own
        cfg["clip_groups"] = (("/slow/", norm), ("/fast/", norm))
    result = run(cfg, trainable("slow", "fast"))
    expected = {
        **run(without_pattern(SLOW) | dict(clip_norm=norm), trainable("slow")),
        **run(without_pattern(FAST) | dict(clip_norm=norm), trainable("fast")),
    }
    assert result.keys() == expected.keys() and len(result) == 4
    for path, start in tree.flatten(trainable("slow", "fast")).items():
        np.testing.assert_array_equal(result[path], expected[path], err_msg=path)
        assert not np.array_equal(result[path], start)


def test_one_norm_of_all_groups():
    params = trainable("slow", "fast")
    groups = {
        name: dict(pattern=f"/{name}/", name="sgd", schedule=CONSTANT) for name in ("slow", "fast")
    }
    result = run(dict(groups=groups, clip_norm=0.5), params)
    expected = run(dict(name="sgd", schedule=CONSTANT, clip_norm=0.5), params)
    jax.tree.map(np.testing.assert_array_equal, result, expected)
    unclipped, _ = optim.make_optimizer(
        dict(groups=groups, clip_norm=0.5), params, total_steps=1, batch_size=BATCH, clip=False
    )
    updates, _ = unclipped.update(params, unclipped.init(params), params)
    jax.tree.map(lambda u, p: np.testing.assert_allclose(u, -0.1 * p, rtol=1e-6), updates, params)


def test_slots_are_those_of_each_group():
    tx, _ = optim.make_optimizer(
        dict(groups=dict(slow=SLOW, fast=FAST | dict(schedule=CONSTANT))),
        trainable("slow", "fast"),
        total_steps=STEPS,
        batch_size=BATCH,
    )
    paths = [path for path in tree.flatten(tx.init(trainable("slow", "fast"))) if "heads" in path]
    assert len(paths) == 4 and all("/slow/" in path for path in paths)  # two moments; sgd has none


def test_the_first_schedule_by_name_is_reported():
    groups = {
        name: dict(pattern=f"/{other}/", name="sgd", schedule=CONSTANT | dict(base=base))
        for name, other, base in (("b", "fast", 0.1), ("a", "slow", 0.2))
    }
    _, schedule = optim.make_optimizer(
        dict(groups=groups), trainable("slow", "fast"), total_steps=STEPS, batch_size=BATCH
    )
    assert schedule(0) == np.float32(0.2)


@pytest.mark.parametrize(
    ("cfg", "facts"),
    [
        (dict(groups=()), ("config.optimizer.groups", "pattern", "()")),
        (dict(groups={}), ("config.optimizer.groups", "pattern", "{}")),
        (
            dict(groups=dict(slow=SLOW)),
            ("heads/fast/", "slow ('^heads/slow/')", "optimizer.frozen"),
        ),
        (
            dict(groups=dict(slow=SLOW, fast=FAST, rest=FAST | dict(pattern="bias$"))),
            ("heads/", "bias", "rest", "'bias$'"),
        ),
        (
            dict(groups=dict(slow=SLOW, fast=FAST, rest=FAST | dict(pattern="^encoder/"))),
            ("config.optimizer.groups.rest.pattern", "'^encoder/'", "heads/slow"),
        ),
        (
            dict(groups=dict(slow=SLOW, fast=FAST | dict(pattern="("))),
            ("config.optimizer.groups.fast.pattern", "'('"),
        ),
        (
            dict(groups=dict(slow=SLOW, fast=without_pattern(FAST))),
            ("config.optimizer.groups.fast", "pattern"),
        ),
        (
            dict(groups=dict(slow=SLOW, fast=FAST), name="adam"),
            ("'optimizer.name'", "optimizer.clip_norm, optimizer.groups"),
        ),
        (
            dict(groups=dict(slow=SLOW, fast=FAST), lr_multipliers=(("bias", 0.1),)),
            ("'optimizer.lr_multipliers'", "optimizer.groups"),
        ),
        (
            dict(groups=dict(slow=SLOW, fast=FAST | dict(clip_norm=1.0))),
            ("config.optimizer.groups.fast.clip_norm", "config.optimizer.clip_groups"),
        ),
        (
            dict(groups=dict(slow=SLOW, fast=FAST | dict(name="sdg"))),
            ("config.optimizer.groups.fast.name", "'sdg'", "'sgd'"),
        ),
        (
            dict(groups=dict(slow=SLOW, fast=FAST | dict(momentun=0.9))),
            ("'optimizer.groups.fast.momentun'", "'optimizer.groups.fast.momentum'"),
        ),
        (
            dict(groups=dict(slow=SLOW, fast=FAST | dict(momentum=0.9))),
            ("config.optimizer.groups.fast.momentum=0.9", "fast.schedule.cycle_momentum=False"),
        ),
        (
            dict(groups=dict(slow=SLOW, fast=FAST | dict(schedule=dict(name="poly", base="1")))),
            ("config.optimizer.groups.fast.schedule.base", "'1'"),
        ),
        (
            dict(
                groups=dict(
                    slow=SLOW,
                    fast=FAST | dict(schedule=dict(name="cosine", base=1.0, warmup_steps=9)),
                )
            ),
            ("config.optimizer.groups.fast.schedule.warmup_steps=9", 6),
        ),
        (
            dict(groups=dict(slow=SLOW | dict(weight_decay_exclude=("^heads/fast",)), fast=FAST)),
            ("config.optimizer.groups.slow.weight_decay_exclude", "'^heads/fast'", "heads/slow"),
        ),
        (
            dict(groups=dict(slow=SLOW | dict(lr_multipliers=(("scale", 2),)), fast=FAST)),
            ("config.optimizer.groups.slow.lr_multipliers", "'scale'", "heads/slow"),
        ),
    ],
)
def test_invalid_groups_are_an_error(cfg, facts):
    with raises(UserError, *facts):
        optim.make_optimizer(cfg, trainable("slow", "fast"), total_steps=STEPS, batch_size=BATCH)
