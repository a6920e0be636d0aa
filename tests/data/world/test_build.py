"""Tests of worlds on disk: records, workers, specs, and the cache."""

import io
import os
import threading

import numpy as np
import pytest
from PIL import Image

from mmjax import files
from mmjax.data.storage import dataset, schema
from mmjax.data.world import build as world
from mmjax.data.world import captions as world_captions
from mmjax.data.world.attributes import MOTIONS
from mmjax.data.world.config import WorldConfig
from mmjax.data.world.scene import make_scene
from mmjax.errors import UserError
from mmjax.modalities import STORED
from tests.messages import assert_mentions, raises

SPEC = "world:tiny,train=6,test=4,num_frames=2,num_samples=640"


def test_written_world_reads_back_as_generated(tmp_path):
    cfg = WorldConfig(num_frames=2, num_samples=640, dense=True, label="motion")
    info = world.build_world(tmp_path, cfg, {"train": 300, "test": 5})
    directory = dataset.DatasetDir(tmp_path)
    assert directory.info == info and info.class_names == list(MOTIONS)
    assert info.modalities == STORED
    train = directory.split("train")
    assert len(train) == 300 and len(train.files) == 2 and len(directory.split("test")) == 5
    for index in (0, 149, 150, 299):
        stored = schema.decode(train.read(index))
        scene = make_scene(cfg, "train", index)
        assert stored.captions == scene.captions and stored.labels == scene.labels
        assert stored.label_texts == [scene.attributes["motion"]]
        np.testing.assert_array_equal(stored.waveform, scene.waveform)
        for jpeg, frame in zip(stored.frames, scene.frames, strict=True):
            error = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int) - frame
            assert np.abs(error).mean() < 6
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(stored.masks[1]))), scene.mask[1]
        )
        np.testing.assert_allclose(schema.decode_depth(stored.depth[1]), scene.depth[1], atol=1e-3)
        np.testing.assert_allclose(schema.decode_flow(stored.flow[0]), scene.flow[0], atol=1e-2)
        assert (stored.start_us, stored.end_us) == (0, 200_000)
    words = (tmp_path / info.vocabulary).read_text().split()
    assert (
        words[:4] == ["<pad>", "<unk>", "<bos>", "<eos>"]
        and words[4:] == world_captions.vocabulary()
    )


def test_number_of_workers_does_not_change_the_files(tmp_path):
    cfg = WorldConfig(num_frames=1, num_samples=320)
    one = world.build_world(tmp_path / "one", cfg, {"test": 5})
    two = world.build_world(tmp_path / "two", cfg, {"test": 5}, workers=2)
    assert one == two
    (shard,) = one.splits["test"].shards
    assert (tmp_path / "one" / shard).read_bytes() == (tmp_path / "two" / shard).read_bytes()


def test_ensure_world_writes_once_from_concurrent_threads(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    paths = []
    threads = [
        threading.Thread(target=lambda: paths.append(world.ensure_world(SPEC))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1 and paths[0].startswith(str(tmp_path / "cache" / "world-tiny-"))
    (line,) = capsys.readouterr().out.splitlines()
    assert_mentions(line, "6 train", "4 test", paths[0])
    assert len(dataset.DatasetDir(paths[0]).split("train")) == 6
    assert world.ensure_world(SPEC) == paths[0] and not capsys.readouterr().out
    assert world.ensure_world(SPEC + ",seed=1") != paths[0]


@pytest.mark.parametrize("damage", ["incomplete", "missing shard", "missing json"])
def test_ensure_world_replaces_incomplete_data(tmp_path, damage):
    path = world.ensure_world(SPEC, cache_dir=str(tmp_path))
    if damage == "incomplete":
        leftover = f"{files.partial_path(path)}0"  # of another process
        os.rename(path, leftover)
        os.remove(os.path.join(leftover, dataset.FILE))
    elif damage == "missing shard":
        os.remove(os.path.join(path, dataset.shard_name("train", 0, 1)))
    else:
        os.remove(os.path.join(path, dataset.FILE))
    assert world.ensure_world(SPEC, cache_dir=str(tmp_path)) == path
    assert len(dataset.DatasetDir(path).split("train")) == 6
    assert sorted(os.listdir(tmp_path)) == [
        os.path.basename(path),
        f"{os.path.basename(path)}.lock",
    ]


def test_ensure_world_names_a_cache_it_cannot_write(tmp_path):
    (tmp_path / "file").touch()
    with raises(UserError, tmp_path / "file" / "cache", "MMJAX_CACHE", "Errno"):
        world.ensure_world(SPEC, cache_dir=str(tmp_path / "file" / "cache"))


@pytest.mark.parametrize(
    "spec, facts",
    [
        ("world:tini", ("'tini'", "'tiny'", "demo, objects")),
        ("world:tiny,frame_sise=32", ("'frame_sise'", "'frame_size'")),
        ("world:tiny,seed=x", ("'world:tiny,seed=x'", "seed", "int")),
        ("world:tiny,dense=1", ("'world:tiny,dense=1'", "dense", "bool")),
        ("world:tiny,label=colr", ("label", "'colr'", "'color'")),
        ("world:tiny,sample_rate=4000", ("sample_rate=4000", 8000)),
        ("world:tiny,train=0", ("train=0", 1)),
        ("dataset", ("'dataset'", "'world'")),
    ],
)
def test_invalid_specs_are_named(spec, facts, tmp_path):
    with raises(UserError, *facts):
        world.ensure_world(spec, cache_dir=str(tmp_path))


def test_parse_spec_overrides_config_and_split_sizes():
    assert world.parse_spec("world") == ("demo", *world.WORLDS["demo"])
    name, cfg, splits = world.parse_spec("world:tiny,label=motion,train=9,dense=true,fps=25")
    assert (name, cfg.label, cfg.dense, cfg.fps) == ("tiny", "motion", True, 25.0)
    assert splits == {"train": 9, "test": 32}
