"""The segment task as a user runs it: cross entropy, texts, a server, interruptions."""

import functools
import signal

import numpy as np
import pytest

from mmjax.checkpoints.find import list_steps
from tests.e2e import program
from tests.e2e.test_resume import state_of
from tests.messages import assert_mentions
from tests.vlm_server import VlmServer

STEPS = 5
SMALL = ("--task=segment", "--config.tensorboard=False", "--model_dir=run")
LENGTH = (
    f"--config.total_steps={STEPS}",
    "--config.checkpoint={'every': 2, 'keep': 9}",
    "--config.evals={}",
)
# Some texts are written anew and some reused; negatives depend on the step.
TEXTS = (
    *SMALL,
    *LENGTH,
    "--config=demo:contrastive,smoke",
    "--config.batch_size=4",
    "--config.data.limit=8",
    "--config.text.cache={'percentile': 0.5, 'smoothing': 0.5, 'reuse': True}",
    "--config.text.negatives.count=3",
    "--config.loss.text.name=grouped_paired_negative",
)


@pytest.fixture(scope="module")
def text_encoder(command, tmp_path_factory):
    """A run of --task=flair."""
    directory = tmp_path_factory.mktemp("flair")
    options = ["--task=flair", "--config=demo:smoke", "--config.total_steps=1"]
    options += [f"--config.model.{tower}.num_layers=1" for tower in ("image", "text")]
    options += ["--config.evals={}", "--config.tensorboard=False", "--model_dir=run"]
    command(directory, *options).check()
    return directory / "run"


def steps_of(run, name="train/loss"):
    return program.curve(run, name)


def test_cross_entropy_trains_and_is_evaluated(command, tmp_path):
    done = command(tmp_path, *SMALL, "--config=demo:smoke").check()
    assert "miou" in done.stdout
    run = tmp_path / "run"
    assert not (run / "enrichment").exists()
    last = program.metrics_of(run)[-1]
    assert 0 < last["masks/miou"] < 1
    assert steps_of(run)[2] == steps_of(run, "train/loss_ce")[2]


def test_rescaling_keeps_the_cross_entropy(command, text_encoder, tmp_path):
    options = ("--config=demo:rescale,smoke", f"--config.text.encoder={text_encoder}")
    command(tmp_path, *SMALL, *options, "--config.evals={}").check()
    run = tmp_path / "run"
    rescaled, plain = steps_of(run), steps_of(run, "train/loss_ce")
    assert list(rescaled) == [1, 2] and steps_of(run, "train/text/pairs")[1] > 0
    for step, value in rescaled.items():
        assert value == pytest.approx(plain[step], rel=0.02)  # means of images of unequal sizes


@pytest.mark.parametrize("staleness", [0, 2])
def test_resume_with_texts_is_bit_exact(staleness, command, text_encoder, tmp_path):
    options = (
        *TEXTS,
        f"--config.text.encoder={text_encoder}",
        f"--config.text.staleness={staleness}",
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    command(whole, *options).check()
    stop = functools.partial(program.signal_at, 3, signal.SIGTERM)
    command(parts, *options, before=stop).check().check_log("SIGTERM")
    stopped = max(list_steps(parts / "run"))
    assert stopped < STEPS and not (parts / "run" / "train_complete").exists()
    command(parts, *options).check().check_log(f"step {stopped}", "run")

    expected, actual = state_of(whole / "run", STEPS), state_of(parts / "run", STEPS)
    assert all(np.array_equal(value, actual[path]) for path, value in expected.items())
    for name in ("loss", "loss_text", "text/pairs", "text/similarity"):
        name = f"train/{name}"
        assert steps_of(whole / "run", name) == steps_of(parts / "run", name), name
    cached = [run / "run" / "enrichment" / str(STEPS) for run in (whole, parts)]
    for path in cached[0].rglob("*.*"):
        assert path.read_bytes() == (cached[1] / path.relative_to(cached[0])).read_bytes(), path


def test_a_server_that_dies_stops_training_with_a_checkpoint(command, text_encoder, tmp_path):
    with VlmServer(size=64) as server:
        writer = dict(
            name="vlm",
            url=server.url,
            model="gemma3:4b",
            examples="",
            failure_limit=6,
            connection=dict(attempts=1),
        )
        options = (
            *TEXTS,
            f"--config.text.encoder={text_encoder}",
            "--config.text.staleness=0",
            f"--config.text.writer={writer}",
        )
        server.inject("empty", times=2)
        dies = functools.partial(_kill_server_at, 3, server.url)
        stopped = command(tmp_path, *options, before=dies)
        assert stopped.status not in (0, -signal.SIGKILL)
        assert_mentions(stopped.log, "failure_limit", server.url)
        run = tmp_path / "run"
        at = max(list_steps(run))
        assert 0 < at < STEPS and (run / "enrichment" / str(at)).exists()
        failed = steps_of(run, "train/text/failed")
        assert failed[1] == 2 and steps_of(run, "train/text/pairs")[1] > 0
        server.clear_faults()
        command(tmp_path, *options).check().check_log(f"step {at}", "run")
        assert list(steps_of(run)) == list(range(1, STEPS + 1))


def _kill_server_at(step, url):
    """Makes a server drop all connections from a step on."""
    import json
    import urllib.request

    def change(now, batch):
        if now == step:
            body = json.dumps({"fault": "drop", "times": -1}).encode()
            headers = {"Content-Length": str(len(body))}
            urllib.request.urlopen(urllib.request.Request(f"{url}/_stub", body, headers))
        return batch

    program._change_batches(change)


def test_mistakes(command, text_encoder, tmp_path):
    run = functools.partial(command, tmp_path, *TEXTS)
    encoder = f"--config.text.encoder={text_encoder}"
    port = 9  # nothing listens there
    server = dict(name="vlm", url=f"http://127.0.0.1:{port}", model="gemma3:4b")
    for options, facts in (
        ((), ("config.text.encoder", "flair-differences")),
        ((encoder, "--config.model.adaptation.width=64"), ("width", "64", "128")),
        ((encoder, "--config.text.staleness=-1"), ("config.text.staleness", "-1")),
        ((encoder, f"--config.text.writer={server}"), (server["url"],)),
        ((encoder, "--config.text.writer.name=oracle"), ("config.text.writer.name", "oracle")),
        ((encoder, "--config.data.segmentation=None"), ("data.segmentation",)),
    ):
        done = run(*options).check(2)
        assert_mentions(done.log, *facts)
        assert not (tmp_path / "run" / "config.json").exists(), options


def test_four_devices_give_the_losses_of_one(command, text_encoder, tmp_path):
    options = (*TEXTS, f"--config.text.encoder={text_encoder}", "--config.total_steps=2")
    curves = []
    for devices in (1, 4):
        where = tmp_path / str(devices)
        where.mkdir()
        command(where, *options, devices=devices).check()
        curves.append([steps_of(where / "run", f"train/{name}") for name in ("loss", "loss_text")])
    assert curves[0] == [
        {step: pytest.approx(value, rel=1e-3) for step, value in curve.items()}
        for curve in curves[1]
    ]
