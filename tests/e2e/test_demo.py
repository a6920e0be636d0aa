"""The demo recipes as a user runs them: pretrain, fine-tune, evaluate."""

import json
import shutil

import numpy as np
import pytest

from mmjax import tree
from mmjax.checkpoint import Checkpoints
from tests.e2e import program


def leaves(run_dir, step):
    saved = Checkpoints(run_dir, read_only=True)
    read = tree.flatten(saved.read(step, ["params"])["params"])
    saved.close()
    return read


def printed(table):
    """{evaluator/metric: value} of a table that `format_results` made."""
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


def test_pretraining_ends_with_a_table_and_all_its_files(pretrained):
    run = pretrained.path
    steps = [line for line in pretrained.metrics if "train/loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(np.isfinite(line["train/loss"]) for line in steps)
    (final,) = [line for line in pretrained.metrics if "probe/video/top1" in line]
    shown = printed(pretrained.stdout)
    for name in (
        "probe/video/top1",
        "probe/audio/top1",
        "retrieval_text/text_to_video/R@1",
        "retrieval_audio/audio_to_video/R@1",
    ):
        assert shown[name] == float(f"{final[name]:.4g}"), name
    assert final["retrieval_text/text_to_video/R@1_chance"] == 1 / 32  # every test clip counts
    assert json.loads((run / "train_complete").read_text()) == {"step": 2}
    about = json.loads((run / "run.json").read_text())
    assert "--config=demo:smoke" in about["command"] and "jax" in about["versions"]
    assert "video/patch/kernel" in (run / "parameters.txt").read_text()
    assert json.loads((run / "config.json").read_text())["total_steps"] == 2
    assert list((run / "tensorboard").glob("events.out.tfevents*"))
    assert "step 2/2" in pretrained.log and "ETA" in pretrained.log


def test_a_complete_run_says_so_and_stays_as_it_is(pretrained, command):
    before = (pretrained.path / "config.json").read_text()
    folder = pretrained.path.parent.parent
    done = command(folder, "--config=demo:smoke", "--config.seed=1").check()
    assert "This run is complete (step 2)" in done.log and str(pretrained.path) in done.log
    assert (pretrained.path / "config.json").read_text() == before
    assert (pretrained.path / "train_complete").exists()


def test_finetuning_starts_from_the_pretrained_tower(pretrained, finetuned):
    tower = [path for path in leaves(pretrained.path, 2) if path.startswith("video/")]
    assert f"Parameters from step 2 of {pretrained.path}" in finetuned.log
    assert f"loaded     {len(tower):>5}" in finetuned.log
    assert "missing        2: classifier/bias, classifier/kernel" in finetuned.log
    (final,) = [line for line in finetuned.metrics if "shape/top1" in line]
    assert printed(finetuned.stdout)["shape/top1"] == float(f"{final['shape/top1']:.4g}")
    # The learning rate of the first step is 0: after it, the tower is still the source's.
    source, start = leaves(pretrained.path, 2), leaves(finetuned.path, 1)
    assert all(np.array_equal(source[path], start[path]) for path in tower)
    end = leaves(finetuned.path, 2)
    assert any(not np.array_equal(start[path], end[path]) for path in tower)


def test_finetuning_from_a_finetuned_run_and_from_scratch(finetuned, command, tmp_path):
    arguments = ("--task=finetune", "--config=demo:smoke", "--config.total_steps=1")
    again = command(
        tmp_path,
        *arguments,
        "--model_dir=again",
        f"--override_checkpoint={finetuned.path}/checkpoints/1",
    ).check()
    source, start = leaves(finetuned.path, 1), leaves(tmp_path / "again", 1)
    assert f"loaded     {len(source):>5}" in again.log and "missing        0" in again.log
    assert all(np.array_equal(source[path], start[path]) for path in source)
    alone = command(tmp_path, *arguments, "--model_dir=alone").check()
    assert "Parameters from" not in alone.log
    fresh = leaves(tmp_path / "alone", 1)
    assert not np.array_equal(fresh["video/patch/kernel"], source["video/patch/kernel"])


def test_the_evaluation_job_of_a_finished_run(pretrained, python, command, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(pretrained.path, copy)
    done = python(tmp_path, "--mode=eval", f"--model_dir={copy}")
    assert done.returncode == 0, done.stderr
    inside = next(line for line in pretrained.metrics if "probe/video/top1" in line)
    (line,) = program.metrics_of(copy)[len(pretrained.metrics) :]
    names = [name for name in inside if name not in ("time",)]
    assert line["step"] == 2 and line.keys() == inside.keys()
    np.testing.assert_allclose([line[n] for n in names], [inside[n] for n in names], rtol=1e-3)
    assert printed(done.stdout)["probe/video/top1"] == float(f"{line['probe/video/top1']:.4g}")
    # Nothing is done twice.
    again = command(tmp_path, "--mode=eval", f"--model_dir={copy}").check()
    assert "complete at step 2 and evaluated" in again.log
    assert len(program.metrics_of(copy)) == len(pretrained.metrics) + 1


def test_one_checkpoint_can_be_evaluated_alone(finetuned, command, tmp_path):
    before = program.metrics_of(finetuned.path)
    done = command(
        tmp_path,
        "--task=finetune",
        "--mode=eval",
        f"--override_checkpoint={finetuned.path}/checkpoints/1",
    ).check()
    assert f"Step 1 of {finetuned.path}" in done.stdout
    (line,) = program.metrics_of(finetuned.path)[len(before) :]
    assert line["step"] == 1
    assert printed(done.stdout)["shape/top1"] == pytest.approx(line["shape/top1"], abs=1e-3)
    assert not (tmp_path / "runs").exists()
