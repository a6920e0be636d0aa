"""Mistakes as the user meets them: a message with culprit and way out, status 2, no traceback."""

import os
import re
import shutil

import pytest

from mmjax import config, train
from mmjax.checkpoint import list_steps
from mmjax.data import loader, records, world
from mmjax.errors import UserError
from tests.e2e.program import RECIPE, STEPS

SMOKE = "--config=demo:smoke"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--taks=pretrain"], "flag 'taks'. Did you mean: task"),
        (
            ["--task=pretran"],
            r"--task=pretran: value should be one of <finetune\|guided\|pretrain\|touch>",
        ),
        (["--config=dmeo"], "Unknown recipe for --task=pretrain 'dmeo'. Did you mean 'demo'"),
        (["--config=demo.py"], "demo.py: no such file"),
        (["pretrain"], "Not a flag: pretrain. Flags look like --name=value"),
        ([SMOKE, "--config.batch_sise=8"], "'batch_sise'. Did you mean 'batch_size'"),
        ([SMOKE, "--config.batch_size=eight"], "config.batch_size must be int, not 'eight'"),
        ([SMOKE, "--config.batch_size=6"], "6 is not divisible by 4 devices.*Nearest that is: 8"),
        ([SMOKE, "--model_dir=file/run"], "--model_dir=file/run cannot be written to"),
        ([SMOKE, "--profile=3"], "START:STOP"),
        (["--mode=eval", "--override_checkpoint=gone"], "gone: not a run directory"),
    ],
)
def test_on_the_command_line(arguments, message, command, tmp_path):
    (tmp_path / "file").write_text("")
    done = command(tmp_path, *arguments, devices=4).check(2)
    assert re.search(message, done.log, re.DOTALL), done.log
    assert "evaluator" not in done.stdout


SECTIONS = [
    ("data.vidio={}", r"data\.vidio\. Did you mean data\.video"),
    ("data.video.num_frame=4", r"data\.video\.num_frame\. Did you mean data\.video\.num_frames"),
    ("model.vidio=vit_tiny", "'vidio'. Did you mean 'video'"),
    ("model.video.num_layer=2", "'num_layer'. Did you mean 'num_layers'"),
    ("model.head.coarze=3", "'coarze'. Did you mean 'coarse'"),
    ("loss.temprature=1.0", "temprature'. Did you mean 'loss.temperature'"),
    ("loss.weights.video_touch=1.0", "the head does not compare video_touch"),
    ("augment.color_jiter=0.5", "color_jiter'. Did you mean 'augment.color_jitter'"),
    ("augment.spectrogram.windw=0.1", "windw'. Did you mean 'augment.spectrogram.window'"),
    ("optimizer.weight_decai=0.1", "'weight_decai'. Did you mean 'weight_decay'"),
    ("optimizer.schedule.bas=1", "'bas'. Did you mean 'base'"),
    ("optimizer.frozen=('^vidio/',)", r"optimizer.frozen: the pattern '\^vidio/' matches nothing"),
    ("evals.probe.featur=video", r"evals\.probe\.featur.*Did you mean 'feature'"),
    ("evals.probe.feature=vidio", "'vidio'. Did you mean 'video'"),
    ("evals.probe.split=tset", "no shards for the split 'tset'. It has: train"),
    ("mesh.fspd=2", "fspd'. Did you mean 'mesh.fsdp'"),
    ("mesh.data=3", "needs 3 devices, there are 8"),
    ("checkpoint.evry=3", "evry'. Did you mean 'checkpoint.every'"),
    # Types of values that no recipe sets, too.
    ("model.video.num_layers=two", r"model\.video\.num_layers must be int, not 'two'"),
    ("model.video.patch_size=4", r"patch_size"),
    ("model.dtype=float7", "float7"),
    ("loss.temperature=cold", r"loss\.temperature must be float, not 'cold'"),
    ("augment.color_jitter=often", r"augment\.color_jitter must be float, not 'often'"),
    ("optimizer.lr_multipliers=3", "lr_multipliers"),
    # What does not fit together.
    ("data.train=/nowhere", "no dataset at /nowhere.*mmjax build"),
    ("data.audio.sample_rate=12345.0", r"8000 Hz.*mmjax build --sample-rate"),
    ("data.video=None", "needs video, which config.data does not load"),
    ("data.touch={}", "config.data loads touch, for which config.model has no tower"),
    ("model.text.vocab_size=5", "vocab_size=5 is smaller than the tokenizer's vocabulary"),
    ("data.audio.num_samples=10", "no whole patch"),
    ("clip_shards=2", "compares the examples"),
]


@pytest.mark.parametrize("override, message", SECTIONS)
def test_in_a_section(override, message, tmp_path):
    """Nothing is left that looks like a run."""
    with pytest.raises(UserError, match=re.compile(message, re.DOTALL)):
        train.train(config.load("pretrain", "demo:smoke", [f"--config.{override}"]), tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["data.label=None"], "needs labels: set config.data.label"),
        (["data.label={'num_classes': 1}"], "num_classes must be at least 2"),
        (["model.backbone=wat_tiny"], "takes audio, which config.data does not load"),
        (["data.image={'size': 32}"], "loads image, for which config.model has no tower"),
        (["loss.label_smothing=0.1"], "Did you mean 'loss.label_smoothing'"),
        (["model.backbone.num_layer=2"], "Did you mean 'num_layers'"),
    ],
)
def test_in_finetuning(overrides, message, tmp_path):
    overrides = [f"--config.{override}" for override in overrides]
    with pytest.raises(UserError, match=message):
        train.train(config.load("finetune", "demo:smoke", overrides), tmp_path)


def test_a_source_that_does_not_fit(pretrained, command, tmp_path):
    arguments = ("--task=finetune", SMOKE, f"--override_checkpoint={pretrained.path}")
    other = command(tmp_path, *arguments, "--config.model.backbone.mlp_dim=32").check(2)
    assert re.search(
        r"mismatched +\d+: video/.* ≠ .*Not allowed.*other shapes", other.log, re.DOTALL
    )
    strict = command(tmp_path, *arguments, "--config.init_allow=('^classifier/',)").check(2)
    assert re.search(r"Not allowed by config.init_allow: audio/", strict.log)
    gone = command(tmp_path, "--task=finetune", SMOKE, "--override_checkpoint=gone").check(2)
    assert "gone: not a run directory" in gone.log
    assert not list_steps(tmp_path / "runs" / "finetune-demo-smoke")


@pytest.fixture
def damaged(tmp_path):
    """A copy of the world, and the record of its fifth batch that has a flipped byte."""
    folder = tmp_path / "world"
    shutil.copytree(world.ensure_world("world:tiny"), folder)
    section = dict(train=str(folder), video=dict(num_frames=1, size=8))
    data = loader.make_train_data(section, batch_size=8, seed=0)
    record = int(data.batch_ids(4)["record"][3])
    shard = next(folder.glob("train-*.tfrecord"))
    offset, length = records.read_index(str(shard))[record]
    times = os.stat(shard)
    with open(shard, "r+b") as file:
        file.seek(offset + length // 2)
        byte = file.read(1)[0]
        file.seek(offset + length // 2)
        file.write(bytes([byte ^ 1]))
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    return folder, record


def test_a_damaged_record_in_the_middle_of_a_training(damaged, command, tmp_path):
    folder, record = damaged
    arguments = (*RECIPE, "--model_dir=run", f"--config.data.train={folder}")
    stopped = command(tmp_path, *arguments).check(2)
    assert re.search(rf"train-\S+: record {record}: the CRC", stopped.log), stopped.log
    assert "--config.data.corrupt=skip" in stopped.log
    assert list_steps(tmp_path / "run") == [2, 4]  # all before it was done, and is kept
    going_on = command(tmp_path, *arguments, "--config.data.corrupt=skip").check()
    assert "Resumed from step 4" in going_on.log
    assert "1 corrupt records were left out of training" in going_on.log
    assert list_steps(tmp_path / "run") == [2, 4, STEPS]
