"""Learning-rate schedules against closed forms, published values and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import optim
from mmjax.errors import UserError
from tests.messages import raises

BATCH = 512


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


# pyVTAB's schedules; the values are from PyTorch.


def test_step_decay():
    cfg = dict(name="step", base=0.01, step_size=50, gamma=0.1)
    np.testing.assert_allclose(values([0, 49, 50, 99, 100], **cfg), [0.01, 0.01, 1e-3, 1e-3, 1e-4])
    updates = values([0, 149, 150, 299], **cfg, steps_per_epoch=3)
    np.testing.assert_allclose(updates, [0.01, 0.01, 1e-3, 1e-3])
    np.testing.assert_allclose(values([0, 50, 500], **cfg, disabled=True), 0.01)


ONE_CYCLE = dict(name="one_cycle", base=0.01)


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (
            10,
            {
                0: (0.0004, 0.95),
                1: (0.0052, 0.90),
                2: (0.01, 0.85),
                3: (0.0085714343, 0.8642857),
                9: (4e-8, 0.95),
            },
        ),
        (
            100,
            {
                0: (0.0004, 0.95),
                1: (0.0007310345, 0.9465517),
                15: (0.0053655172, 0.8982759),
                29: (0.01, 0.85),
                30: (0.0098571434, 0.8514286),
                50: (0.0070000120, 0.88),
                98: (0.0001428966, 0.9485714),
                99: (4e-8, 0.95),
            },
        ),
    ],
)
def test_one_cycle(epochs, expected):
    rates, momenta = zip(*expected.values(), strict=True)
    np.testing.assert_allclose(values(list(expected), epochs, **ONE_CYCLE), rates, rtol=1e-6)
    schedule = optim.make_schedule(ONE_CYCLE, total_steps=epochs, batch_size=BATCH)
    np.testing.assert_allclose([schedule.momentum(e) for e in expected], momenta, rtol=1e-6)


def test_one_cycle_changes_after_every_epoch_and_keeps_its_last_value():
    per_epoch = values(range(7), 7, **ONE_CYCLE)
    per_update = values(range(25), 20, **ONE_CYCLE, steps_per_epoch=3)  # the last epoch is shorter
    np.testing.assert_array_equal(per_update[:21], np.repeat(per_epoch, 3))
    np.testing.assert_array_equal(per_update[20:], per_epoch[-1])


def test_a_disabled_one_cycle_keeps_its_first_value():
    np.testing.assert_allclose(values([0, 29, 99], **ONE_CYCLE, disabled=True), 0.0004)
    plain = optim.make_schedule(
        ONE_CYCLE | dict(cycle_momentum=False), total_steps=10, batch_size=BATCH
    )
    assert not isinstance(plain, optim.CyclingSchedule)


def test_poly_of_cityscapes():
    cfg = dict(name="poly", base=3e-4, exponent=0.9)
    expected = {0: 3e-4, 1: 2.999854e-4, 9250: 1.6076602e-4, 18_499: 4.33178e-8, 18_500: 0}
    result = values(list(expected), 18_500, **cfg)
    np.testing.assert_allclose(result, list(expected.values()), rtol=1e-5)
    # An epoch may have more updates than those that count: the rate is never negative.
    assert np.array_equal(values([18_501, 18_600], 18_500, **cfg), [0, 0])
    np.testing.assert_allclose(values([0, 9250, 18_500], 18_500, **cfg, disabled=True), 3e-4)


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 7, 10, 13])
def test_schedules_equal_those_of_torch(epochs):
    torch = pytest.importorskip("torch")

    def reference(make):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
        scheduler = make(optimizer)
        result = []
        for _ in range(epochs):
            group = optimizer.param_groups[0]
            result.append((group["lr"], group["momentum"]))
            optimizer.step()
            if len(result) < epochs:
                scheduler.step()
        return np.transpose(result)

    schedulers = torch.optim.lr_scheduler
    rates, momenta = reference(
        lambda o: schedulers.OneCycleLR(
            o, max_lr=0.01, total_steps=epochs, anneal_strategy="linear"
        )
    )
    np.testing.assert_allclose(values(range(epochs), epochs, **ONE_CYCLE), rates, rtol=2e-6)
    schedule = optim.make_schedule(ONE_CYCLE, total_steps=epochs, batch_size=BATCH)
    np.testing.assert_allclose(schedule.momentum(np.arange(epochs)), momenta, rtol=1e-6)

    rates, _ = reference(lambda o: schedulers.StepLR(o, 3, 0.5))
    cfg = dict(name="step", base=0.01, step_size=3, gamma=0.5)
    np.testing.assert_allclose(values(range(epochs), **cfg), rates, rtol=1e-6)


@pytest.mark.parametrize(
    ("cfg", "facts"),
    [
        (dict(name="step"), ("base", "step_size")),
        (dict(name="step", step_size=0), ("schedule.step_size", 1, 0)),
        (dict(name="step", step_size=1, steps_per_epoch=0), ("schedule.steps_per_epoch", 1, 0)),
        (dict(name="step", step_size=1, gamma=0.0), ("schedule.gamma", 0.0)),
        (dict(name="step", step_size=1, total_steps=5), ("'step'", "schedule.total_steps")),
        (dict(name="one_cycle", total_steps=0), ("schedule.total_steps", 1, 0)),
        (dict(name="one_cycle", steps_per_epoch=-1), ("schedule.steps_per_epoch", 1, -1)),
        (dict(name="one_cycle", warmup_examples=5), ("schedule.warmup_examples", "'one_cycle'")),
        (dict(name="poly", exponent=-0.9), ("schedule.exponent", -0.9)),
        (dict(name="poly", total_steps=0), ("schedule.total_steps", 1, 0)),
    ],
)
def test_invalid_options_are_an_error(cfg, facts):
    cfg = {"base": 0.01} | cfg if len(cfg) > 1 else cfg
    with raises(UserError, "optimizer.schedule", *facts):
        optim.make_schedule(cfg, total_steps=10, batch_size=BATCH)
