"""Training steps whose loss is not finite stop the run or are skipped, by `nan_policy`."""

import functools
import json
import math

from mmjax.checkpoints.find import list_steps
from mmjax.data.pipeline import loader
from tests.e2e import program

ARGUMENTS = (*program.CLASSIFIER, "--model_dir=run", "--config.log_every=2")
poison_step_2 = functools.partial(program.poison, (2,))


def test_stop_records_the_batch_and_the_run_can_be_resumed_without_it(command, tmp_path):
    done = command(tmp_path, *ARGUMENTS, before=poison_step_2).check(2)
    path = tmp_path / "run" / "nonfinite_step_2.json"
    done.check_log("loss", "step 2", path, "--config.nan_policy=skip")
    record = json.loads(path.read_text())
    assert record["step"] == 2 and not math.isfinite(float(record["metrics"]["loss"]))
    data = loader.make_train_data(
        dict(train="world:tiny", video=dict(num_frames=1, size=8)), batch_size=8, seed=0
    )
    ids = data.batch_ids(2)
    assert record["batch_ids"] == {name: value.tolist() for name, value in ids.items()}
    assert list_steps(tmp_path / "run")[-1] == 2  # the state before the poisoned step
    # The run can be resumed without the step.
    again = command(tmp_path, *ARGUMENTS, "--config.nan_policy=skip", before=poison_step_2).check()
    again.check_log("step 2", "loss", 1)
    losses = program.curve(tmp_path / "run")
    assert losses.keys() == {2, 4, 6}
    # The infinite loss is not in the mean of steps 3 and 4, and the parameters are not NaN.
    assert all(0 < loss < 2 * losses[2] for loss in losses.values())


def test_more_than_nan_limit_steps_stop_the_run(command, tmp_path):
    done = command(
        tmp_path,
        *ARGUMENTS,
        "--config.nan_policy=skip",
        "--config.nan_limit=1",
        before=functools.partial(program.poison, (2, 3)),
    ).check(2)
    done.check_log(2, "config.nan_limit=1", "step 3", tmp_path / "run" / "nonfinite_step_3.json")
    assert (tmp_path / "run" / "nonfinite_step_2.json").exists()
    assert (tmp_path / "run" / "nonfinite_step_3.json").exists()
    assert not (tmp_path / "run" / "train_complete").exists()
