"""ut_fac and mmv_fac as a user runs them: train, stop, resume, evaluate and fine-tune."""

import functools
import signal

import numpy as np
import pytest

from tests.e2e import program
from tests.e2e.test_resume import state_of

STEPS = 3
# Shallow towers, which compile faster.
SMALL = {
    "ut_fac": ["--config.model.num_layers=1"],
    "mmv_fac": [f"--config.model.{m}={{'blocks': (1, 1)}}" for m in ("video", "audio")],
}
SMALL_BACKBONE = {
    "ut_fac": ["--config.model.backbone.num_layers=1"],
    "mmv_fac": ["--config.model.backbone.blocks=(1, 1)"],
}


@pytest.mark.parametrize("arch", SMALL)
def test_pretraining_resume_evaluation_and_finetuning(arch, command, tmp_path):
    pretrain = functools.partial(
        command,
        tmp_path,
        "--task=pretrain",
        f"--config=demo:{arch},smoke",
        f"--config.total_steps={STEPS}",
        "--config.tensorboard=False",
        "--config.evals.probe=None",
        *SMALL[arch],
    )
    whole = pretrain("--model_dir=whole").check()
    assert "retrieval_text" in whole.stdout and "probe" not in whole.stdout
    run = "whole"
    actual = expected = state_of(tmp_path / run, STEPS)
    if arch == "mmv_fac":  # with batch statistics; test_resume resumes transformers
        run = "resumed"
        stopped = pretrain(
            f"--model_dir={run}", before=functools.partial(program.signal_at, 1, signal.SIGTERM)
        ).check()
        stopped.check_log("SIGTERM", "step 2")
        pretrain(f"--model_dir={run}").check()
        assert list(program.curve(tmp_path / run)) == [1, 2, STEPS]
        actual = state_of(tmp_path / run, STEPS)
        assert expected.keys() == actual.keys()
        assert all(np.array_equal(expected[path], actual[path]) for path in expected)

    job = command(
        tmp_path, "--task=pretrain", "--mode=eval", f"--override_checkpoint={tmp_path / run}"
    ).check()
    lines = [line for line in program.metrics_of(tmp_path / run) if line["step"] == STEPS]
    in_training, in_job = (
        {name: value for name, value in line.items() if "/R@" in name} for line in lines[-2:]
    )
    assert program.lines_mentioning(job.stdout, STEPS, tmp_path / run)
    assert len(in_training) == 12
    assert in_job == pytest.approx(in_training, rel=1e-3)

    tuned = command(
        tmp_path,
        "--task=finetune",
        f"--config=demo:{arch},smoke",
        "--model_dir=tuned",
        f"--override_checkpoint={tmp_path / run}",
        *SMALL_BACKBONE[arch],
    ).check()
    tuned.check_log(2, "classifier/bias", "classifier/kernel")
    assert "shape" in tuned.stdout
    # The learning rate of step 1 is 0, so only the batch statistics have changed after it.
    start = state_of(tmp_path / "tuned", 1)
    tower = [path for path in start if path.startswith("['params']['video']")]
    assert tower and all(np.array_equal(start[path], actual[path]) for path in tower)
    statistics = [path for path in start if path.startswith("['extra']['video']")]
    assert bool(statistics) == (arch == "mmv_fac")
    assert all(not np.array_equal(start[path], actual[path]) for path in statistics)
