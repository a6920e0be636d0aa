"""A run that is stopped in every way there is, and goes on, ends where an undisturbed one does."""

import functools
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mmjax.checkpoint import list_steps
from tests.e2e import program
from tests.e2e.program import RECIPE, STEPS


def state_of(run_dir, step):
    """{path: array} of the whole train state, read by Orbax alone."""
    folder = run_dir / "checkpoints" / str(step) / "state"
    leaves = jax.tree_util.tree_leaves_with_path(ocp.PyTreeCheckpointer().restore(folder))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    command(folder, *RECIPE, "--model_dir=run").check()
    return folder / "run"


def test_however_it_is_stopped_a_run_ends_the_same(undisturbed, command, tmp_path):
    train = functools.partial(command, tmp_path, *RECIPE, "--model_dir=run")
    run = tmp_path / "run"

    timed = train("--max_hours=1e-9").check()
    assert "Stopped by --max_hours=1e-09 at step 1; saved." in timed.log
    assert list_steps(run) == [1] and not (run / "train_complete").exists()

    killed = train(before=functools.partial(program.signal_at, 3, signal.SIGKILL))
    assert killed.status == -signal.SIGKILL and "Resumed from step 1" in killed.log
    assert max(list_steps(run)) <= 2  # step 2 was being saved

    ended = train(before=functools.partial(program.signal_at, 4, signal.SIGTERM)).check()
    assert "Stopped by SIGTERM at step 5; saved." in ended.log
    assert max(list_steps(run)) == 5 and not (run / "train_complete").exists()

    other = command(tmp_path, *RECIPE, "--model_dir=other", f"--config.resume_from={run}").check()
    assert f"Resumed from step 5 of {run}" in other.log
    assert list(program.curve(tmp_path / "other")) == [STEPS]

    finished = train().check()
    assert "Resumed from step 5" in finished.log and (run / "train_complete").exists()

    wanted, found = state_of(undisturbed, STEPS), state_of(run, STEPS)
    assert wanted.keys() == found.keys() and found["['step']"] == STEPS
    parts = {path.split("'")[1] for path in found}
    assert parts == {"step", "params", "opt", "ema", "extra"}
    branch = state_of(tmp_path / "other", STEPS)
    for path, value in wanted.items():
        assert np.array_equal(value, found[path]) and np.array_equal(value, branch[path]), path
    # Every batch and every draw on the way was the same.
    assert program.curve(undisturbed) == program.curve(run)
    assert list(program.curve(run)) == list(range(1, STEPS + 1))


def test_a_run_of_another_architecture_is_left_alone(undisturbed, command, tmp_path):
    config = (undisturbed / "config.json").read_text()
    arguments = (*RECIPE, f"--model_dir={undisturbed}", f"--config.total_steps={STEPS + 2}")
    done = command(tmp_path, *arguments, "--config.model.head.fine=64").check(2)
    assert "is of another architecture or optimizer" in done.log
    assert "head/" in done.log and "here (" in done.log
    assert (undisturbed / "config.json").read_text() == config
    assert list_steps(undisturbed)[-1] == STEPS and (undisturbed / "train_complete").exists()
