"""The section `probe`: its optimizers, defaults and errors."""

import numpy as np
import pytest

from mmjax import optim
from mmjax.benchmark import options
from mmjax.benchmark.options import TrainingConfig
from mmjax.errors import UserError
from tests.messages import raises

UPDATES = 7  # per epoch


def schedule_of(epochs, *, disabled=False, **values):
    """Returns the learning rate of a training configuration as a function of the update."""
    training_config = TrainingConfig(name="c", **values)
    section = training_config.optimizer_section(
        pattern="^heads/c/", steps_per_epoch=UPDATES, disabled=disabled
    )
    params = {"heads": {"c": {"kernel": np.zeros(3, np.float32)}}}
    _, schedule = optim.make_optimizer(
        {"groups": {"c": section}}, params, total_steps=epochs * UPDATES, batch_size=1
    )
    return schedule


SGD = dict(optimizer="sgd", lr=0.01)


@pytest.mark.parametrize(
    ("epochs", "scheduler", "expected"),
    [
        (100, None, {0: 0.01, 99: 0.01}),
        (
            100,
            dict(type="StepLR", step_size=50, gamma=0.1),
            {0: 0.01, 49: 0.01, 50: 0.001, 99: 0.001},
        ),
        (10, dict(type="OneCycle"), {0: 0.0004, 1: 0.0052, 2: 0.01, 3: 0.0085714343, 9: 4e-8}),
        (100, dict(type="OneCycle"), {15: 0.0053655172, 29: 0.01, 50: 0.0070000120, 99: 4e-8}),
    ],
)
def test_schedules_of_epochs(epochs, scheduler, expected):
    """At the first and last update of an epoch, as published."""
    schedule = schedule_of(epochs, **SGD, scheduler=scheduler)
    for epoch, lr in expected.items():
        for update in (epoch * UPDATES, epoch * UPDATES + UPDATES - 1):
            assert float(schedule(update)) == pytest.approx(lr, rel=1e-4), update


def test_poly_falls_with_every_update():
    schedule = schedule_of(10, **SGD, scheduler=dict(type="Poly", exponent=0.9))
    updates = np.arange(10 * UPDATES)
    expected = 0.01 * (1 - updates / len(updates)) ** 0.9
    np.testing.assert_allclose([float(schedule(u)) for u in updates], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (dict(type="StepLR", step_size=2, gamma=0.1), 0.01),
        (dict(type="Poly", exponent=0.9), 0.01),
        (dict(type="OneCycle"), 0.0004),
    ],
)
def test_disabled_schedulers_keep_their_first_value(scheduler, expected):
    schedule = schedule_of(10, **SGD, scheduler=scheduler, disabled=True)
    values = {round(float(schedule(u)), 9) for u in range(0, 10 * UPDATES, 3)}
    assert values == {expected}


def test_momentum_is_that_of_the_configuration_or_of_one_cycle():
    def section(**values):
        one = TrainingConfig(name="c", momentum=0.9, **SGD, **values)
        return one.optimizer_section(pattern="p", steps_per_epoch=UPDATES, disabled=False)

    assert section()["momentum"] == 0.9
    assert "momentum" not in section(scheduler=dict(type="OneCycle"))


@pytest.mark.parametrize(
    ("scheduler", "facts"),
    [
        (dict(type="StepLr", step_size=1, gamma=0.1), ["probe.configs.c.scheduler", "StepLR"]),
        (dict(step_size=1), ["probe.configs.c.scheduler", "StepLR"]),
        (dict(type="StepLR", stepsize=1), ["stepsize", "step_size"]),
        (dict(type="OneCycle", gamma=0.1), ["gamma", "OneCycle"]),
    ],
)
def test_wrong_schedulers_are_named(scheduler, facts):
    with raises(UserError, *facts):
        schedule_of(10, **SGD, scheduler=scheduler)


def test_names_of_configurations_become_names_of_heads():
    groups = [
        TrainingConfig(name=n, **SGD).group for n in ("adam-0.0001-l1", "sgd 1e-3", "größe/x")
    ]
    assert groups == ["adam-0_0001-l1", "sgd_1e-3", "größe_x"]


def parse(**values):
    return options.parse(dict(end_task="Pets") | values)


def test_defaults_depend_on_the_end_task_and_the_protocol():
    cases = {
        "table": (parse(), True, 3),
        "paper": (parse(protocol="paper"), True, 1),
        "maps": (parse(end_task="NYUDepth"), False, 1),
        "each step": (parse(encode_once=False), False, 1),
        "fine-tuned": (parse(fine_tune=True), False, 1),
        "seeds": (parse(seeds=5), True, 5),
    }
    for name, (parsed, table, seeds) in cases.items():
        assert (parsed.uses_table, parsed.num_seeds) == (table, seeds), name
    (declared,) = parse(end_task="THORDepth").training_configs
    assert (declared.name, declared.lr) == ("adam-0.0001-l1", 3e-4)
    own = dict(name="mine", optimizer="sgd", lr=0.1)
    assert parse(configs=(own,)).training_configs == (TrainingConfig(**own),)


TWO = (dict(name="a", **SGD), dict(name="b", **SGD))


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        (dict(epoch=3), ["probe.epoch", "probe.epochs"]),
        (dict(epochs=-1), ["config.probe.epochs", 0, -1]),
        (dict(evaluations=0), ["config.probe.evaluations", 1]),
        (dict(repeats=0), ["config.probe.repeats", 1]),
        (dict(validation=1.0), ["config.probe.validation", 1.0]),
        (dict(protocol="papr"), ["probe.protocol", "papr", "paper"]),
        (dict(batch_size="8"), ["probe.batch_size", "'8'"]),
        (dict(end_task="Pet"), ["Pet", "'Pets'"]),
        (dict(fine_tune=True, encode_once=True), ["fine_tune", "encode_once=False"]),
        (dict(end_task="NYUDepth", encode_once=True), ["encode_once", "NYUDepth"]),
        (dict(end_task="NYUDepth", pca=8), ["config.probe.pca=8", "NYUDepth"]),
        (dict(encode_once=False, repeats=2), ["config.probe.repeats=2", "Pets"]),
        (dict(fine_tune=True, seeds=2), ["fine_tune", "2 seeds"]),
        (dict(fine_tune=True, configs=TWO), ["fine_tune", "2 configurations"]),
        (dict(configs=(dict(name="a.b", **SGD), dict(name="a_b", **SGD))), ["configs", "a_b"]),
        (dict(configs=(dict(name="a", optimizer="adam", lr=0.0),)), ["a: lr", "0.0"]),
        (dict(configs=(dict(name="a", optimizer="adam"),)), ["lr"]),
        (dict(configs=(dict(name="a", optimizer="adm", lr=1.0),)), ["optimizer", "adm"]),
        (
            dict(configs=(dict(name="a", optimizer="adam", lr=1.0, momentum=0.9),)),
            ["a: momentum=0.9", "sgd"],
        ),
    ],
)
def test_wrong_options_are_named(values, facts):
    with raises(UserError, *facts):
        parse(**values)
