"""User errors end with status 2 and a message that names the culprit and the way out."""

import os
import shutil

import pytest

from mmjax import config, train
from mmjax.checkpoints.find import list_steps
from mmjax.data.pipeline import loader
from mmjax.data.storage import tfrecord
from mmjax.data.world import build as world
from mmjax.errors import UserError
from tests.e2e import program
from tests.e2e.program import CLASSIFIER, STEPS
from tests.messages import assert_mentions, raises
from tests.saved_runs import ONE_LAYER, save_run

SMOKE = "--config=demo:smoke"


@pytest.mark.parametrize(
    "arguments, facts",
    [
        (["--taks=pretrain"], ("'taks'", "task")),
        (
            ["--task=pretran"],
            (
                "--task",
                "'pretran'",
                "'pretrain'",
                "finetune, flair, guided, pretrain, probe, segment, touch",
            ),
        ),
        (["--config=dmeo"], ("--task=pretrain", "'dmeo'", "'demo'")),
        (["--config=demo.py"], ("demo.py",)),
        (["pretrain"], ("pretrain", "--name=value")),
        ([SMOKE, "--config.batch_sise=8"], ("'batch_sise'", "'batch_size'")),
        ([SMOKE, "--config.batch_size=eight"], ("config.batch_size", "int", "'eight'")),
        ([SMOKE, "--config.batch_size=6"], ("config.batch_size=6", "4 devices", 8)),
        ([SMOKE, "--model_dir=file/run"], ("--model_dir=file/run", "Not a directory")),
        ([SMOKE, "--profile=3"], ("--profile=3", "START:STOP")),
        (["--mode=eval", "--override_checkpoint=gone"], ("gone", "<run>/checkpoints/<step>")),
    ],
)
def test_errors_on_the_command_line(arguments, facts, command, tmp_path):
    (tmp_path / "file").write_text("")
    done = command(tmp_path, *arguments, devices=4).check(2)
    done.check_log(*facts)
    assert "top1" not in done.stdout and "R@1" not in done.stdout  # no table of results


SECTIONS = [
    # Misspelled keys and names: the message has the nearest valid one.
    ("data.vidio={}", ("data.vidio", "data.video")),
    ("data.video.num_frame=4", ("data.video.num_frame", "data.video.num_frames")),
    ("model.vidio=vit_tiny", ("'model.vidio'", "'model.video'")),
    ("model.video.num_layer=2", ("'model.video.num_layer'", "'model.video.num_layers'")),
    ("model.head.coarze=3", ("'model.head.coarze'", "'model.head.coarse'")),
    ("loss.temprature=1.0", ("loss.temprature", "'loss.temperature'")),
    (
        "loss.weights.video_touch=1.0",
        ("config.loss.weights", "video_touch", "audio_video", "config.model.head"),
    ),
    ("augment.color_jiter=0.5", ("augment.color_jiter", "'augment.color_jitter'")),
    ("augment.spectrogram.windw=0.1", ("spectrogram.windw", "'augment.spectrogram.window'")),
    ("optimizer.weight_decai=0.1", ("optimizer.weight_decai", "optimizer.weight_decay")),
    ("optimizer.schedule.bas=1", ("optimizer.schedule.bas", "optimizer.schedule.base")),
    ("optimizer.frozen=('^vidio/',)", ("config.optimizer.frozen", "'^vidio/'", "audio/agg_token")),
    ("evals.probe.featur=video", ("evals.probe.featur", "'evals.probe.feature'")),
    ("evals.probe.feature=vidio", ("'vidio'", "'video'")),
    ("evals.probe.split=tset", ("'tset'", "train", "test")),
    ("mesh.fspd=2", ("mesh.fspd", "'mesh.fsdp'")),
    ("mesh.data=3", ("config.mesh", "'data': 3", "3 devices", 8)),
    ("checkpoint.evry=3", ("checkpoint.evry", "'checkpoint.every'")),
    # Values of another type, also where no recipe sets the key.
    ("model.video.num_layers=two", ("model.video.num_layers", "int", "'two'")),
    ("model.video.patch_size=4", ("config.model.video.patch_size", "tuple", "got 4")),
    ("model.dtype=float7", ("dtype", "'float7'", "'float32'", "bfloat16")),
    ("loss.temperature=cold", ("loss.temperature", "float", "'cold'")),
    ("augment.color_jitter=often", ("augment.color_jitter", "float", "'often'")),
    ("optimizer.lr_multipliers=3", ("optimizer.lr_multipliers", "(('^video/', 0.1),)", 3)),
    # Options that do not fit together.
    ("data.train=/nowhere", ("/nowhere", "`mmjax build`")),
    (
        "data.audio.sample_rate=12345.0",
        ("data.audio.sample_rate=12345", "8000 Hz", "`mmjax build --sample-rate`"),
    ),
    ("data.video=None", ("config.loss.weights", "video_audio", "video", "config.data")),
    ("data.touch={}", ("touch", "config.model", "config.data.touch=None")),
    ("model.text.vocab_size=5", ("config.model.text.vocab_size=5", "117", "config.data.text")),
    ("data.audio.num_samples=10", ("(1, 64)", "patch_size", "(4, 64)")),
    ("clip_shards=2", ("config.clip_shards=2", "loss", "config.clip_shards=0")),
]


@pytest.mark.parametrize("override, facts", SECTIONS)
def test_errors_in_a_config_leave_no_run_behind(override, facts, tmp_path):
    with raises(UserError, *facts):
        train.train(config.load("pretrain", "demo:smoke", [f"--config.{override}"]), tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    "overrides, facts",
    [
        (["data.label=None"], ("--task=finetune", "config.data.label")),
        (["data.label={'num_classes': 1}"], ("num_classes", "2", "1")),
        (["model.backbone=wat_tiny"], ("config.model.backbone", "audio", "config.data")),
        (["data.image={'size': 32}"], ("image", "config.model", "config.data.image=None")),
        (["loss.label_smothing=0.1"], ("loss.label_smothing", "'loss.label_smoothing'")),
        (["model.backbone.num_layer=2"], ("vit_tiny", "'model.backbone.num_layers'")),
    ],
)
def test_errors_in_a_finetuning_config(overrides, facts, tmp_path):
    overrides = [f"--config.{override}" for override in overrides]
    with raises(UserError, *facts):
        train.train(config.load("finetune", "demo:smoke", overrides), tmp_path)


def test_weights_that_do_not_fit_are_rejected(command, tmp_path):
    pretrained = tmp_path / "pretrained"
    save_run(config.load("pretrain", "demo:smoke", ONE_LAYER), pretrained)
    small = "--config.model.backbone.num_layers=1"
    arguments = ("--task=finetune", SMOKE, small, f"--override_checkpoint={pretrained}")
    other = command(tmp_path, *arguments, "--config.model.backbone.mlp_dim=32").check(2)
    assert_mentions(other.log, pretrained, "config.init_allow", "config.init_map")
    (mismatched,) = other.log_lines("≠")
    assert_mentions(mismatched, "video/encoder/layers/mlp/", 32)
    strict = command(tmp_path, *arguments, "--config.init_allow=('^classifier/',)").check(2)
    strict.check_log("config.init_allow", "audio/agg_token")
    gone = command(tmp_path, "--task=finetune", SMOKE, "--override_checkpoint=gone").check(2)
    gone.check_log("gone", "<run>/checkpoints/<step>")
    assert not list_steps(tmp_path / "runs" / "finetune-demo-smoke")


@pytest.fixture
def damaged(tmp_path):
    """A copy of the world, and the index of a record in its fifth batch that has a flipped bit."""
    directory = tmp_path / "world"
    shutil.copytree(world.ensure_world("world:tiny"), directory)
    section = dict(train=str(directory), video=dict(num_frames=1, size=8))
    data = loader.make_train_data(section, batch_size=8, seed=0)
    record = int(data.batch_ids(4)["record"][3])
    shard = next(directory.glob("train-*.tfrecord"))
    offset, length = tfrecord.read_index(str(shard))[record]
    times = os.stat(shard)
    with open(shard, "r+b") as file:
        file.seek(offset + length // 2)
        byte = file.read(1)[0]
        file.seek(offset + length // 2)
        file.write(bytes([byte ^ 1]))
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    return directory, record


def test_training_stops_at_a_corrupt_record_and_can_skip_it(damaged, command, tmp_path):
    directory, record = damaged
    arguments = (*CLASSIFIER, "--model_dir=run", f"--config.data.train={directory}")
    stopped = command(tmp_path, *arguments).check(2)
    shard = next(directory.glob("train-*.tfrecord")).name
    stopped.check_log(shard, f"record {record}", "CRC")
    stopped.check_log("--config.data.corrupt=skip")
    assert list_steps(tmp_path / "run") == [2, 4]  # the checkpoints before it are kept
    resumed = command(tmp_path, *arguments, "--config.data.corrupt=skip").check()
    resumed.check_log("step 4", "run")
    resumed.check_log(1, "corrupt")
    assert list(program.curve(tmp_path / "run"))[-2:] == [5, STEPS]
    assert list_steps(tmp_path / "run") == [2, 4, STEPS]
