"""The demo with other data, inputs and devices; sharding and microbatches do not change results."""

import itertools
import re

import numpy as np
import pytest

from mmjax.data.pipeline import loader
from mmjax.data.sources import registry as sources
from mmjax.data.storage import dataset, schema, tfrecord
from tests.e2e import program
from tests.e2e.program import SMALL

WORLD = "world:tiny"


@pytest.fixture(scope="module")
def captionless(tmp_path_factory):
    """A dataset of sixteen clips of the world without their captions."""
    directory = tmp_path_factory.mktemp("without") / "clips"
    source = sources.open_source(WORLD, split="train")
    examples = [schema.decode(source.fetch(number)) for number in range(16)]
    for example in examples:
        example.captions = []
    shard = dataset.shard_name("train", 0, 1)
    tfrecord.write_shard(str(directory / shard), map(schema.encode, examples))
    dataset.DatasetInfo(
        name="without captions",
        splits={"train": dataset.SplitInfo(num_examples=16, shards=[shard])},
        modalities=("video", "audio"),
        fps=source.info.fps,
        sample_rate=source.info.sample_rate,
    ).save(directory)
    return str(directory)


def test_microbatches_and_sharding_do_not_change_the_losses(command, tmp_path):
    """The loss is contrastive, and the head has batch statistics."""
    three = (*SMALL, "--config.total_steps=3", "--config.model.dropout_rate=0.0")
    three += ("--config.model.video.keep_tokens=1.0", "--config.model.audio.keep_tokens=1.0")
    command(tmp_path, *three, "--model_dir=plain").check()
    split = ("--config.accumulate_steps=2", "--config.mesh.fsdp=2", "--config.sharding=fsdp")
    command(tmp_path, *three, *split, "--model_dir=split", devices=4).check()
    plain, curve = (program.curve(tmp_path / name) for name in ("plain", "split"))
    assert len(plain) == 3 and len(set(plain.values())) == 3
    # The learning rate of step 1 is 0, so step 3 is the first with updated parameters.
    assert [curve[1], curve[2]] == pytest.approx([plain[1], plain[2]], rel=1e-5)
    assert curve[3] == pytest.approx(plain[3], rel=1e-3)


def test_a_mixture_with_a_captionless_dataset(captionless, command, tmp_path):
    data = loader.make_train_data(
        dict(train=(WORLD, captionless), text=dict(candidates=1)), batch_size=8, seed=0
    )
    batches = list(itertools.islice(data.iterate(), 2))
    for batch in batches:
        assert np.array_equal(batch["text_mask"][:, 0], batch["source"] == 0)
    assert {0, 1} == set(np.concatenate([batch["source"] for batch in batches]).tolist())
    train = f"--config.data.train={(WORLD, captionless)}"
    done = command(tmp_path, *SMALL, "--model_dir=run", train).check()
    done.check_log(80, 8)
    for line in program.metrics_of(tmp_path / "run"):
        assert line["train/nonfinite"] == 0
        both = line["train/loss_video_text"], line["train/loss_video_audio"]
        assert line["train/loss"] == pytest.approx(np.mean(both))
        # Parameters are still almost random, so the losses are near chance, log(batch size).
        assert 0.5 * np.log(8) < min(both) and max(both) < 3 * np.log(8)


def test_waveform_input_and_frozen_random_parameters(command, tmp_path):
    tower = "--config.model.audio={'name': 'wat_tiny', 'num_layers': 1}"
    frozen = "--config.optimizer.frozen=('^text/word_embedding$',)"
    done = command(
        tmp_path, *SMALL, "--model_dir=run", tower, "--config.augment={}", frozen
    ).check()
    done.check_log("text/word_embedding", "config.init_from", "config.optimizer.frozen")
    assert "audio/patch/kernel" in (tmp_path / "run" / "parameters.txt").read_text()
    losses = program.curve(tmp_path / "run")
    assert list(losses) == list(range(1, len(losses) + 1))
    # Parameters are still almost random; with equal similarities the loss would be log(batch size).
    assert 0.5 * np.log(8) < min(losses.values()) and max(losses.values()) < 3 * np.log(8)


def test_touch_is_loaded_with_video():
    section = dict(train=WORLD, video=dict(num_frames=2, size=16), touch=dict(size=16))
    batch = next(iter(loader.make_train_data(section, batch_size=8, seed=0).iterate()))
    assert batch["touch"].shape == (8, 16, 16, 3) and batch["touch"].dtype == np.uint8
    assert batch["touch_mask"].tolist() == [1] * 8
    images = batch["touch"].astype(float)
    assert (images.std(axis=(1, 2, 3)) > 1).all()  # an object is pressed into the sensor
    assert not np.array_equal(batch["touch"], batch["video"][:, 0])


def test_finetuning_on_a_dmvr_factory(command, tmp_path):
    done = command(
        tmp_path,
        "--task=finetune",
        "--config=demo:smoke",
        "--config.model.backbone.num_layers=1",
        "--config.evals={}",
        "--config.data.train=dmvr:tests.e2e.factory:Clips",
        "--config.data.limit=0",
        "--config.data.label={'num_classes': 4}",
    ).check()
    done.check_log("examples", 8)
    assert not re.search(r"\d examples", done.log)  # the size of a stream is not known
    losses = program.curve(tmp_path / "runs" / "finetune-demo-smoke")
    assert list(losses) == [1, 2]
    assert 0.5 * np.log(4) < losses[1] < 2 * np.log(4)  # four classes; 1.5 to 2.5 by the seed


# VATT's recipes at the size of a test; all other options are the published ones.
TINY = (
    "--config.data.train=world:tiny",
    "--config.batch_size=8",
    "--config.total_steps=2",
    "--config.log_every=1",
    "--config.model.dtype=float32",
    "--config.optimizer.schedule.warmup_steps=1",
    "--config.evals.test.where=train",
    "--config.evals.test.batch_size=8",
)


def check_classifier(run, stdout):
    """Checks the loss and accuracy of a classifier that has hardly been trained."""
    losses = program.curve(run)
    assert list(losses) == [1, 2]
    assert 0.5 * np.log(8) < min(losses.values()) and max(losses.values()) < 3 * np.log(8)
    (final,) = [line for line in program.metrics_of(run) if "test/top1" in line]
    assert final["test/top1_chance"] == 1 / 8
    correct = 32 * final["test/top1"]  # of 32 test clips
    assert correct == pytest.approx(round(correct), abs=1e-4) and correct < 24
    assert program.lines_mentioning(stdout, "top1", f"{final['test/top1']:.4g}")
    assert program.lines_mentioning(stdout, "mean_class_top1")


def test_finetuning_on_spectrograms_with_spec_augment(command, tmp_path):
    tower = {"name": "spt_tiny", "num_layers": 1, "patch_size": (4, 16), "buckets": (5, 5)}
    done = command(
        tmp_path,
        "--task=finetune",
        "--config=audio:spt_base",
        *TINY,
        f"--config.model.backbone={tower}",
        "--config.data.audio.num_samples=3200",
        "--config.data.audio.sample_rate=8000",
        "--config.data.label.multi_label=False",
        "--model_dir=run",
    ).check()
    check_classifier(tmp_path / "run", done.stdout)


def test_finetuning_on_images(command, tmp_path):
    tower = {"name": "vit_tiny", "num_layers": 1, "keep_tokens": 1.0}
    done = command(
        tmp_path,
        "--task=finetune",
        "--config=imagenet:vit_base",
        *TINY,
        f"--config.model.backbone={tower}",
        "--config.data.video.size=16",
        "--model_dir=run",
    ).check()
    check_classifier(tmp_path / "run", done.stdout)
