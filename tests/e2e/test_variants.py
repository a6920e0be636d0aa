"""The demo with other data, other inputs, other devices: what must not matter does not."""

import itertools

import numpy as np
import pytest

from mmjax.data import dataset, loader, records, schema, sources
from tests.e2e import program
from tests.e2e.program import SMALL

WORLD = "world:tiny"


@pytest.fixture(scope="module")
def silent_texts(tmp_path_factory):
    """Sixteen clips of the world without their captions, as a dataset of their own."""
    folder = tmp_path_factory.mktemp("without") / "clips"
    source = sources.open_source(WORLD, split="train")
    examples = [schema.decode(source.fetch(number)) for number in range(16)]
    for example in examples:
        example.captions = []
    shard = dataset.shard_name("train", 0, 1)
    records.write_shard(str(folder / shard), map(schema.encode, examples))
    dataset.DatasetInfo(
        name="without captions",
        splits={"train": dataset.SplitInfo(num_examples=16, shards=[shard])},
        modalities=("video", "audio"),
        fps=source.info.fps,
        sample_rate=source.info.sample_rate,
    ).save(folder)
    return str(folder)


def test_microbatches_and_devices_do_not_change_the_losses(command, tmp_path):
    """Of a contrastive loss with batch statistics in its head."""
    three = (*SMALL, "--config.total_steps=3", "--config.model.dropout_rate=0.0")
    three += ("--config.model.video.keep_tokens=1.0", "--config.model.audio.keep_tokens=1.0")
    command(tmp_path, *three, "--model_dir=plain").check()
    command(tmp_path, *three, "--model_dir=micro", "--config.accumulate_steps=2").check()
    split = ("--config.mesh.fsdp=2", "--config.sharding=fsdp")
    command(tmp_path, *three, *split, "--model_dir=split", devices=4).check()
    plain = program.curve(tmp_path / "plain")
    assert len(plain) == 3 and len(set(plain.values())) == 3
    for other in ("micro", "split"):
        curve = program.curve(tmp_path / other)
        # Steps 1 and 2 see the first parameters (the rate starts at 0), step 3 sees an update.
        assert [curve[1], curve[2]] == pytest.approx([plain[1], plain[2]], rel=1e-5), other
        assert curve[3] == pytest.approx(plain[3], rel=1e-3), other


def test_a_mixture_whose_second_part_has_no_captions(silent_texts, command, tmp_path):
    data = loader.make_train_data(
        dict(train=(WORLD, silent_texts), text=dict(candidates=1)), batch_size=8, seed=0
    )
    batches = list(itertools.islice(data.iterate(), 2))
    for batch in batches:
        assert np.array_equal(batch["text_mask"][:, 0], batch["source"] == 0)
    assert {0, 1} == set(np.concatenate([batch["source"] for batch in batches]).tolist())
    train = f"--config.data.train={(WORLD, silent_texts)}"
    done = command(tmp_path, *SMALL, "--model_dir=run", train).check()
    assert "80 examples, 8 a step" in done.log
    for line in program.metrics_of(tmp_path / "run"):
        assert line["train/nonfinite"] == 0
        both = line["train/loss_video_text"], line["train/loss_video_audio"]
        assert np.isfinite(both).all() and line["train/loss"] == pytest.approx(np.mean(both))


def test_waveforms_instead_of_spectrograms(command, tmp_path):
    tower = "--config.model.audio={'name': 'wat_tiny', 'num_layers': 1}"
    frozen = "--config.optimizer.frozen=('^text/word_embedding$',)"
    done = command(
        tmp_path, *SMALL, "--model_dir=run", tower, "--config.augment={}", frozen
    ).check()
    assert "Frozen at random values: text/word_embedding." in done.log
    assert "audio/patch/kernel" in (tmp_path / "run" / "parameters.txt").read_text()
    assert np.isfinite(list(program.curve(tmp_path / "run").values())).all()


def test_touch_is_loaded_beside_the_others():
    section = dict(train=WORLD, video=dict(num_frames=2, size=16), touch=dict(size=16))
    batch = next(iter(loader.make_train_data(section, batch_size=8, seed=0).iterate()))
    assert batch["touch"].shape == (8, 16, 16, 3) and batch["touch"].dtype == np.uint8
    assert batch["touch_mask"].tolist() == [1] * 8
    felt = batch["touch"].astype(float)
    assert (felt.std(axis=(1, 2, 3)) > 1).all()  # something is pressed in
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
    assert "A stream of examples, 8 a step" in done.log
    assert np.isfinite(
        list(program.curve(tmp_path / "runs" / "finetune-demo-smoke").values())
    ).all()


# VATT's recipes at the size of a test: everything else is as published.
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


def test_finetuning_on_spectrograms_with_masked_stripes(command, tmp_path):
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
    assert "augment" in (tmp_path / "run" / "config.json").read_text()
    (final,) = [line for line in program.metrics_of(tmp_path / "run") if "test/top1" in line]
    assert 0 <= final["test/top1"] <= 1 and "mean_class_top1" in done.stdout


def test_finetuning_on_pictures(command, tmp_path):
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
    (final,) = [line for line in program.metrics_of(tmp_path / "run") if "test/top1" in line]
    assert 0 <= final["test/top1"] <= 1 and "mean_class_top1" in done.stdout
