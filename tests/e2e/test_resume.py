"""A run that is interrupted and resumed ends in the same state as an uninterrupted run."""

import functools
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mmjax.checkpoints.find import list_steps
from tests.e2e import program
from tests.e2e.program import RECIPE, STEPS
from tests.messages import assert_mentions


def state_of(run_dir, step):
    """Returns {path: array} of the whole train state, read by Orbax without mmjax."""
    directory = run_dir / "checkpoints" / str(step) / "state"
    leaves = jax.tree_util.tree_leaves_with_path(ocp.PyTreeCheckpointer().restore(directory))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    command(directory, *RECIPE, "--model_dir=run").check()
    return directory / "run"


def test_resume_is_bit_exact_after_time_limit_sigkill_and_sigterm(uninterrupted, command, tmp_path):
    train = functools.partial(command, tmp_path, *RECIPE, "--model_dir=run")
    run = tmp_path / "run"

    timed = train("--max_hours=1e-9").check()
    timed.check_log("--max_hours=1e-09", "step 1")
    assert list_steps(run) == [1] and not (run / "train_complete").exists()

    killed = train(before=functools.partial(program.signal_at, 3, signal.SIGKILL))
    assert killed.status == -signal.SIGKILL
    killed.check_log("step 1", "run")
    assert max(list_steps(run)) <= 2  # the checkpoint of step 2 may be incomplete

    ended = train(before=functools.partial(program.signal_at, 4, signal.SIGTERM)).check()
    ended.check_log("SIGTERM", "step 5")
    assert max(list_steps(run)) == 5 and not (run / "train_complete").exists()

    other = command(tmp_path, *RECIPE, "--model_dir=other", f"--config.resume_from={run}").check()
    other.check_log("step 5", run)
    assert list(program.curve(tmp_path / "other")) == [STEPS]

    finished = train().check()
    finished.check_log("step 5", "run")
    assert (run / "train_complete").exists()

    expected, actual = state_of(uninterrupted, STEPS), state_of(run, STEPS)
    assert expected.keys() == actual.keys() and actual["['step']"] == STEPS
    parts = {path.split("'")[1] for path in actual}
    assert parts == {"step", "params", "opt", "ema", "extra"}
    branch = state_of(tmp_path / "other", STEPS)
    for path, value in expected.items():
        assert np.array_equal(value, actual[path]) and np.array_equal(value, branch[path]), path
    # All batches and random numbers in between were the same.
    assert program.curve(uninterrupted) == program.curve(run)
    assert list(program.curve(run)) == list(range(1, STEPS + 1))


def test_a_run_of_another_architecture_is_rejected_and_unchanged(uninterrupted, command, tmp_path):
    config = (uninterrupted / "config.json").read_text()
    arguments = (*RECIPE, f"--model_dir={uninterrupted}", f"--config.total_steps={STEPS + 2}")
    done = command(tmp_path, *arguments, "--config.model.head.fine=64").check(2)
    assert_mentions(done.log, f"step {STEPS}", uninterrupted, "--model_dir", "--config.init_from")
    done.check_log("ema/head/video_fine/kernel", "64", "128")
    assert (uninterrupted / "config.json").read_text() == config
    assert list_steps(uninterrupted)[-1] == STEPS and (uninterrupted / "train_complete").exists()
