"""What becomes of steps that are not finite."""

import functools
import json
import math

import numpy as np

from mmjax.checkpoint import list_steps
from mmjax.data import loader
from tests.e2e import program

ARGUMENTS = (*program.RECIPE, "--model_dir=run", "--config.log_every=2")
spoiled = functools.partial(program.poison, (2,))


def test_stop_puts_the_batch_on_record(command, tmp_path):
    done = command(tmp_path, *ARGUMENTS, before=spoiled).check(2)
    path = tmp_path / "run" / "nonfinite_step_2.json"
    assert "Not finite: loss " in done.log and "at step 2" in done.log and str(path) in done.log
    assert "--config.nan_policy=skip" in done.log
    record = json.loads(path.read_text())
    assert record["step"] == 2 and not math.isfinite(float(record["metrics"]["loss"]))
    data = loader.make_train_data(
        dict(train="world:tiny", video=dict(num_frames=1, size=8)), batch_size=8, seed=0
    )
    ids = data.batch_ids(2)
    assert record["batch_ids"] == {name: value.tolist() for name, value in ids.items()}
    assert list_steps(tmp_path / "run")[-1] == 2  # before the step that spoiled nothing
    # Once what spoiled it is gone, the run goes on.
    again = command(tmp_path, *ARGUMENTS).check()
    assert "Resumed from step 2" in again.log
    assert program.curve(tmp_path / "run").keys() == {2, 4, 6}


def test_skip_leaves_the_step_out(command, tmp_path):
    done = command(tmp_path, *ARGUMENTS, "--config.nan_policy=skip", before=spoiled).check()
    assert "Not finite, step left out (1 so far)" in done.log
    losses = program.curve(tmp_path / "run")
    assert losses.keys() == {2, 4, 6} and np.isfinite(list(losses.values())).all()
    assert (tmp_path / "run" / "nonfinite_step_2.json").exists()


def test_too_many_are_too_many(command, tmp_path):
    done = command(
        tmp_path,
        *ARGUMENTS,
        "--config.nan_policy=skip",
        "--config.nan_limit=1",
        before=functools.partial(program.poison, (2, 3)),
    ).check(2)
    assert "2 steps were not finite, more than config.nan_limit=1" in done.log
    assert "Lower the learning rate" in done.log
    assert (tmp_path / "run" / "nonfinite_step_2.json").exists()
    assert (tmp_path / "run" / "nonfinite_step_3.json").exists()
    assert not (tmp_path / "run" / "train_complete").exists()
