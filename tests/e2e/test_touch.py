"""The touch task as a user runs it: train image and text towers, then a touch tower on them."""

import contextlib
import functools
import json
import signal

import numpy as np
import pytest

import mmjax
from mmjax import config, embed, tree
from mmjax.checkpoints.manager import Checkpoints
from tests.e2e import program
from tests.e2e.test_resume import state_of

STEPS = 4
SMALL = (
    "--task=touch",
    f"--config.total_steps={STEPS}",
    "--config.tensorboard=False",
    "--config.model.image.num_layers=1",
    "--config.model.text.num_layers=1",
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def clip(command, directory):
    """A run that trains the image and text towers."""
    done = command(directory, *SMALL, "--config=demo:clip,smoke", "--model_dir=clip").check()
    assert "text_to_image/R@1" in done.stdout and "touch_to" not in done.stdout
    return directory / "clip"


@pytest.fixture(scope="module")
def joined(command, clip, directory):
    """A run that trains a touch tower on frozen towers, stopped and resumed.

    `whole` in the same directory is not interrupted.
    """
    run = functools.partial(
        command,
        directory,
        *SMALL,
        "--config=demo:frozen,smoke",
        "--config.model.touch.num_layers=1",
        "--config.ema_decay=0.9",
        "--config.checkpoint={'every': 2, 'keep': 1, 'best': 'retrieval/touch_to_text/mean_rank',"
        " 'best_of': 'min'}",
        "--config.evals.retrieval.every=1",
        "--config.evals.shape.modality=touch",
        f"--override_checkpoint={clip}",
    )
    run("--model_dir=whole").check()
    stopped = run("--model_dir=run", before=functools.partial(program.signal_at, 2, signal.SIGTERM))
    stopped.check().check_log("SIGTERM", "step 3")
    return directory / "run", run("--model_dir=run").check()


def test_resume_is_bit_exact_after_sigterm(joined, directory):
    expected, actual = state_of(directory / "whole", STEPS), state_of(joined[0], STEPS)
    assert expected.keys() == actual.keys()
    assert all(np.array_equal(expected[path], actual[path]) for path in expected)


def test_frozen_towers_do_not_change_and_are_saved_once(joined, clip):
    (once,) = (joined[0] / "checkpoints").glob("frozen-*")
    states = []
    for run in (clip, joined[0]):
        with contextlib.closing(Checkpoints(run, read_only=True)) as saved:
            states.append(tree.flatten(saved.read(STEPS, ["params", "ema"])))
    before, after = states
    frozen = [p for p in before if p.startswith(("params/image/", "params/text/"))]
    assert len(frozen) > 20 and all(np.array_equal(before[p], after[p]) for p in frozen)
    assert {p.split("/")[1] for p in after if p.startswith("ema/")} == {"touch", "logit_scale"}
    own = state_of(joined[0], STEPS)  # the arrays saved in the step's own directory
    assert any("opt" in path and "touch" in path for path in own)
    assert not any("image" in path or "text" in path for path in own)


def test_the_best_checkpoint_survives_the_interruption(joined):
    run = joined[0]
    best = json.loads((run / "best" / "best.json").read_text())
    name = "retrieval/touch_to_text/mean_rank"
    values = {line["step"]: line[name] for line in program.metrics_of(run) if name in line}
    assert set(values) == {1, 2, 3, 4}  # that of step 3 is done on resume, after the signal
    assert best["value"] == min(values.values())
    assert best["step"] == max(s for s, v in values.items() if v == best["value"])
    model = mmjax.load(run / "best")
    assert model.embed_touch(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 128)


def test_final_table_figure_and_evaluation_job(joined, command, directory):
    run, done = joined
    for text in ("touch_to_image/R@1", "touch_to_text/R@1", "shape", "touch/top1", "diagonal"):
        assert text in done.stdout, text
    (figure,) = (run / "figures").glob(f"affinity-*{STEPS}.png")
    assert figure.stat().st_size > 10_000
    job = command(directory, "--task=touch", "--mode=eval", f"--override_checkpoint={run}").check()
    assert program.lines_mentioning(job.stdout, STEPS, run)
    in_training, in_job = (
        {name: value for name, value in line.items() if "/R@" in name}
        for line in [m for m in program.metrics_of(run) if "shape/touch/top1" in m][-2:]
    )
    assert len(in_training) == 12 and in_job == pytest.approx(in_training, rel=1e-3)


def test_precomputed_features_replace_frozen_towers(clip, joined, command, directory):
    """The command that computes them is tested in tests/test_embed.py."""
    overrides = [o for o in SMALL if o.startswith("--config.model")]
    overrides.append("--config.model.touch.num_layers=1")
    cfg = config.load("touch", "demo:frozen,smoke", overrides)
    embed.embed(
        cfg, ["image", "text"], weights=[str(clip)], out=str(directory / "features"), progress=False
    )
    run = functools.partial(
        command,
        directory,
        *SMALL,
        "--config=demo:frozen,smoke",
        "--config.model.touch.num_layers=1",
        "--config.evals={}",
        "--config.data.image.features=features",
        "--config.data.text.features=features",
    )
    run("--model_dir=fast", f"--override_checkpoint={clip}").check()
    # The losses are close to those of the run that computes the features from augmented inputs.
    assert program.curve(directory / "fast") == pytest.approx(
        program.curve(directory / "whole"), rel=0.1
    )
    wrong = run("--model_dir=wrong").check(2)  # without `clip`, its towers are random
    wrong.check_log("config.data.image.features=features", "config.init_from", "mmjax embed")


def test_four_modalities_pretrain_together(command, directory):
    done = command(
        directory,
        "--task=pretrain",
        "--config=four_modalities:smoke",
        "--model_dir=four",
        "--config.tensorboard=False",
        *(f"--config.model.{m}.num_layers=1" for m in ("video", "audio", "text", "touch")),
        "--config.loss.weights={'touch_video': 1.0, 'audio_touch': 0.5, 'video_text': 2.0}",
        "--config.evals.probe=None",
    ).check()
    line = program.metrics_of(directory / "four")[0]
    losses = [line[f"train/loss_{pair}"] for pair in ("touch_video", "audio_touch", "video_text")]
    assert "train/loss_touch_text" not in line
    assert line["train/loss"] == pytest.approx(np.dot(losses, [1.0, 0.5, 2.0]) / 3.5, rel=1e-5)
    assert "touch_to_video/R@1" in done.stdout and "touch_to_text/R@1" in done.stdout
