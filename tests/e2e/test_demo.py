"""The demo recipes as a user runs them: pretrain, fine-tune and evaluate."""

import functools
import json
import os
import shutil

import jax
import numpy as np
import pytest

from mmjax import tree
from mmjax.checkpoints.manager import Checkpoints
from tests.e2e import program
from tests.messages import assert_mentions


def leaves(run_dir, step):
    """Returns {path: array} of the parameters of a checkpoint."""
    saved = Checkpoints(run_dir, read_only=True)
    params = tree.flatten(saved.read(step, ["params"])["params"])
    saved.close()
    return params


def printed(table):
    """Returns {evaluator/metric: value} of a table written by `format_results`."""
    values, evaluator = {}, ""
    for line in table.splitlines():
        cells = line.split()
        if line[:1] != " " and len(cells) >= 3:
            evaluator, *cells = cells
        if len(cells) >= 2 and "/" in f"{evaluator}/{cells[0]}":
            try:
                values[f"{evaluator}/{cells[0]}"] = float(cells[1])
            except ValueError:
                continue
    return values


def test_pretraining_prints_a_table_and_writes_all_files(pretrained):
    run = pretrained.path
    steps = [line for line in pretrained.metrics if "train/loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:
        # The learning rate of step 1 is 0, so both losses are those of random parameters.
        losses = [line[f"train/loss_{pair}"] for pair in ("video_audio", "video_text")]
        assert line["train/loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert 0.5 * np.log(8) < line["train/loss"] < 3 * np.log(8)  # chance: log(batch size)
    (final,) = [line for line in pretrained.metrics if "probe/video/top1" in line]
    table = printed(pretrained.stdout)
    for name in (
        "probe/video/top1",
        "probe/audio/top1",
        "retrieval_text/text_to_video/R@1",
        "retrieval_audio/audio_to_video/R@1",
    ):
        assert table[name] == float(f"{final[name]:.4g}"), name
    assert final["retrieval_text/text_to_video/R@1_chance"] == 1 / 32  # all test clips
    assert json.loads((run / "train_complete").read_text()) == {"step": 2}
    record = json.loads((run / "run.json").read_text())
    assert "--config=demo:smoke" in record["command"]
    assert record["versions"]["jax"] == jax.__version__
    assert "video/patch/kernel" in (run / "parameters.txt").read_text()
    assert json.loads((run / "config.json").read_text())["total_steps"] == 2
    assert list((run / "tensorboard").glob("events.out.tfevents*"))
    assert program.lines_mentioning(pretrained.log, "2/2", "ETA")


def test_a_complete_run_is_reported_and_unchanged(pretrained, command):
    before = (pretrained.path / "config.json").read_text()
    directory = pretrained.path.parent.parent
    done = command(directory, "--config=demo:smoke", "--config.seed=1").check()
    results = os.path.relpath(pretrained.path / "metrics.jsonl", directory)
    (line,) = done.log_lines("step 2", "--model_dir", "--config.total_steps")
    assert_mentions(line, results)
    assert program.metrics_of(pretrained.path) == pretrained.metrics
    assert (pretrained.path / "config.json").read_text() == before
    assert (pretrained.path / "train_complete").exists()


def test_finetuning_is_initialized_from_the_pretrained_tower(pretrained, finetuned):
    tower = [path for path in leaves(pretrained.path, 2) if path.startswith("video/")]
    assert program.lines_mentioning(finetuned.log, "step 2", pretrained.path)
    assert program.lines_mentioning(finetuned.log, "loaded", len(tower))
    assert program.lines_mentioning(finetuned.log, 2, "classifier/bias", "classifier/kernel")
    (final,) = [line for line in finetuned.metrics if "shape/top1" in line]
    assert printed(finetuned.stdout)["shape/top1"] == float(f"{final['shape/top1']:.4g}")
    # The learning rate of step 1 is 0, so the tower is unchanged after it.
    source, start = leaves(pretrained.path, 2), leaves(finetuned.path, 1)
    assert all(np.array_equal(source[path], start[path]) for path in tower)
    end = leaves(finetuned.path, 2)
    assert any(not np.array_equal(start[path], end[path]) for path in tower)


def test_finetuning_from_a_finetuned_run_or_from_scratch(finetuned, command, tmp_path):
    arguments = ("--task=finetune", "--config=demo:smoke", "--config.total_steps=1")
    again = command(
        tmp_path,
        *arguments,
        "--model_dir=again",
        f"--override_checkpoint={finetuned.path}/checkpoints/1",
    ).check()
    source, start = leaves(finetuned.path, 1), leaves(tmp_path / "again", 1)
    again.check_log("loaded", len(source))
    again.check_log("missing", 0)
    assert all(np.array_equal(source[path], start[path]) for path in source)
    scratch = command(tmp_path, *arguments, "--model_dir=scratch").check()
    assert not scratch.log_lines("loaded")
    random = leaves(tmp_path / "scratch", 1)
    assert not np.array_equal(random["video/patch/kernel"], source["video/patch/kernel"])


def test_evaluation_job_repeats_the_metrics_of_training_once(pretrained, user_env, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(pretrained.path, copy)
    # XLA's flags are those of `pretrained`, whose compiled programs are in the cache.
    command = functools.partial(program.run, directory=tmp_path, env=user_env())
    done = command(["--mode=eval", f"--model_dir={copy}"]).check()
    in_training = next(line for line in pretrained.metrics if "probe/video/top1" in line)
    (line,) = program.metrics_of(copy)[len(pretrained.metrics) :]
    names = [name for name in in_training if name != "time"]
    assert line.pop("evaluated") == ["probe", "retrieval_audio", "retrieval_text"]
    assert line["step"] == 2 and line.keys() == in_training.keys()
    np.testing.assert_allclose([line[n] for n in names], [in_training[n] for n in names], rtol=1e-3)
    assert printed(done.stdout)["probe/video/top1"] == float(f"{line['probe/video/top1']:.4g}")
    # A second job has nothing to do.
    again = command(["--mode=eval", f"--model_dir={copy}"]).check()
    again.check_log("step 2")
    assert len(program.metrics_of(copy)) == len(pretrained.metrics) + 1


def test_override_checkpoint_evaluates_one_checkpoint(finetuned, command, tmp_path):
    before = program.metrics_of(finetuned.path)
    done = command(
        tmp_path,
        "--task=finetune",
        "--mode=eval",
        f"--override_checkpoint={finetuned.path}/checkpoints/1",
    ).check()
    assert program.lines_mentioning(done.stdout, 1, finetuned.path)
    (line,) = program.metrics_of(finetuned.path)[len(before) :]
    assert line["step"] == 1
    assert printed(done.stdout)["shape/top1"] == pytest.approx(line["shape/top1"], abs=1e-3)
    assert not (tmp_path / "runs").exists()
