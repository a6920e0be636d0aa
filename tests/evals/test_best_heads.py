"""The best heads of a run of `--task=probe`: selected for each seed, kept in a file."""

import jax
import numpy as np
import pytest

from mmjax import tree
from mmjax.errors import UserError
from mmjax.evals.end_task import BestHeads
from tests.messages import raises

SEEDS = 3


def state_of(value):
    """A train state whose heads have this value."""
    heads = {
        "a": {"linear": {"kernel": np.full((SEEDS, 2, 4), value, np.float32)}},
        "a-b": {"linear": {"kernel": np.full((SEEDS, 2, 4), -value, np.float32)}},
    }
    mean = {"a": {"norm": {"mean": np.full((SEEDS, 2), value, np.float32)}}}
    return {
        "params": {"heads": heads, "trunk": {"kernel": np.float32(value)}},
        "extra": {"heads": mean},
        "ema": {"kernel": np.float32(value)},
    }


def after(steps, *, higher_is_better=True):
    """Returns the best heads after evaluations {step: {configuration: metric of each seed}}."""
    best = None
    for step, values in steps.items():
        values = {"a-b": [0] * SEEDS, **values}
        values = {group: np.array(each, float) for group, each in values.items()}
        new = BestHeads.of(state_of(step), values, step)
        best = new if best is None else best.merged(new, higher_is_better=higher_is_better)
    return best


def test_each_seed_of_each_configuration_keeps_its_own_best_step():
    steps = {1: {"a": [0.5, 0.2, 0.9], "a-b": [0, 0, 0]}, 2: {"a": [0.6, 0.2, 0.8], "a-b": [1] * 3}}
    best = after(steps)
    assert best.values["a"].tolist() == [0.6, 0.2, 0.9]
    assert best.steps["a"].tolist() == [2, 1, 1]  # of equal ones, the earlier
    assert best.steps["a-b"].tolist() == [2, 2, 2]
    arrays = best.of_group("a")
    assert set(arrays) == {"params/linear/kernel", "extra/norm/mean"}
    for array in arrays.values():
        np.testing.assert_array_equal(array.reshape(SEEDS, -1).T, [[2, 1, 1]] * array[0].size)
    lowest = after(steps, higher_is_better=False)
    assert lowest.values["a"].tolist() == [0.5, 0.2, 0.8]


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_heads_that_are_not_finite_are_never_the_best(higher_is_better):
    nan = np.nan
    steps = {1: {"a": [nan, 0.5, nan]}, 2: {"a": [0.1, nan, nan]}, 3: {"a": [nan] * 3}}
    best = after(steps, higher_is_better=higher_is_better)
    np.testing.assert_array_equal(best.values["a"], [0.1, 0.5, nan])
    assert best.steps["a"].tolist() == [2, 1, 1]


def test_the_file_replaces_the_heads_of_a_state_and_nothing_else(tmp_path):
    path = tmp_path / "best.npz"
    after({4: {"a": [1] * SEEDS, "a-b": [1] * SEEDS}}).write(path)
    best = BestHeads.read(path)
    assert best.steps["a"].tolist() == [4] * SEEDS
    replaced = best.replaced(jax.device_put(state_of(9)))
    expected = tree.flatten({k: v for k, v in state_of(4).items() if k != "ema"})
    expected["params/trunk/kernel"] = np.float32(9)
    actual = tree.flatten(jax.device_get(replaced))
    assert actual.keys() == expected.keys()  # without the average, which would be evaluated
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_only_better_heads_are_a_change():
    first = after({1: {"a": [0.5, 0.5, 0.5]}})
    for values, changed in (([0.5, 0.4, 0.1], False), ([0.5, 0.6, 0.1], True)):
        both = after({1: {"a": [0.5, 0.5, 0.5]}, 2: {"a": values}})
        assert both.changed(first) == changed


def test_a_missing_file_is_named(tmp_path):
    with raises(UserError, tmp_path / "best.npz", "keep_best", "config.evals"):
        BestHeads.read(tmp_path / "best.npz")
