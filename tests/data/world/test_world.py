"""Tests of the procedural world: splits, determinism, information per modality, and cache."""

import hashlib
import io
import itertools
import os
import threading

import numpy as np
import pytest
from PIL import Image

from mmjax import files
from mmjax.data.storage import dataset, schema
from mmjax.data.world import build as world
from mmjax.data.world import captions as world_captions
from mmjax.data.world import render
from mmjax.data.world.attributes import ATTRIBUTES, COLORS, MOTIONS, SHAPES, SIZES
from mmjax.data.world.config import WorldConfig, attributes_of
from mmjax.data.world.objects import ObjectsConfig, objects_of
from mmjax.data.world.scene import make_scene
from mmjax.errors import UserError
from mmjax.modalities import STORED
from tests.messages import assert_mentions, raises

CFG = WorldConfig()


def scenes(split, count, cfg=CFG):
    return [make_scene(cfg, split, index) for index in range(count)]


def combination(attributes):
    return tuple(attributes[name] for name in ("shape", "color", "size", "motion"))


@pytest.mark.parametrize("seed", [0, 7])
def test_splits_share_no_combination_and_have_every_value(seed):
    combinations = {}
    for split, count in (("train", 2000), ("valid", 96), ("test", 240)):
        scene_attributes = [attributes_of(seed, split, i) for i in range(count)]
        combinations[split] = {combination(attributes) for attributes in scene_attributes}
        for name, values in ATTRIBUTES.items():
            actual = {attributes[name] for attributes in scene_attributes}
            assert actual == set(values), (split, name)
    for one, other in itertools.combinations(combinations.values(), 2):
        assert not one & other
    assert len(combinations["test"]) == 240  # All differ, so that retrieval is well posed.
    assert sum(map(len, combinations.values())) == 8 * 8 * 3 * 6
    full = [tuple(attributes_of(seed, "test", i).values()) for i in range(4 * 240)]
    assert len(set(full)) == 4 * 240


def test_held_out_combinations_do_not_depend_on_the_seed():
    first, second = (
        {combination(attributes_of(seed, "test", i)) for i in range(240)} for seed in (0, 1)
    )
    assert first == second
    assert attributes_of(0, "test", 0) != attributes_of(1, "test", 0)


def test_scenes_do_not_depend_on_scenes_generated_before():
    cfg = WorldConfig(dense=True)
    first = make_scene(cfg, "train", 5)
    make_scene(cfg, "train", 4)
    repeated = make_scene(WorldConfig(dense=True), "train", 5)
    for name in ("frames", "waveform", "touch", "mask", "depth", "flow"):
        np.testing.assert_array_equal(getattr(first, name), getattr(repeated, name))
    assert first.captions == repeated.captions
    others = [make_scene(cfg, "test", 5), make_scene(WorldConfig(seed=1), "train", 5)]
    assert all((first.frames != other.frames).any() for other in others)


@pytest.mark.parametrize("size, frames, rate", [(16, 1, 8000), (33, 3, 16000), (64, 12, 48000)])
def test_shapes_and_types_follow_the_config(size, frames, rate):
    cfg = WorldConfig(
        frame_size=size, num_frames=frames, sample_rate=rate, touch_size=size, dense=True
    )
    scene = make_scene(cfg, "train", 10**6)
    assert scene.frames.shape == (frames, size, size, 3) and scene.frames.dtype == np.uint8
    assert scene.waveform.shape == (frames * rate // 10,) and scene.waveform.dtype == np.float32
    assert scene.touch.shape == (size, size, 3) and scene.touch.dtype == np.uint8
    assert scene.mask.shape == scene.depth.shape == (frames, size, size)
    assert scene.flow.shape == (frames, size, size, 2)
    assert np.abs(scene.waveform).max() <= 1


def test_captions_use_the_vocabulary_and_omit_attributes_only_in_training():
    vocabulary = set(world_captions.vocabulary())
    assert len(vocabulary) < 300
    used, omissions, count = set(), 0, 0
    for split in ("train", "test"):
        for index in range(300):
            attributes = attributes_of(0, split, index)
            rng = np.random.default_rng(index)
            text = world_captions.caption(rng, attributes, complete=split == "test")
            words = text.split()
            assert text == " ".join(words) and len(words) <= 16 and set(words) <= vocabulary, text
            assert words[-1] != "and" and "and and" not in text, text
            used |= set(words)
            absent = [
                attribute
                for attribute, value in attributes.items()
                if not any(wording in text for wording in world_captions.WORDS[attribute][value])
            ]
            assert len(absent) <= (split == "train"), (text, absent)
            omissions += len(absent)
            count += split == "train"
    assert 0.2 < omissions / count < 0.4
    assert len(used) > 0.9 * len(vocabulary)


def test_no_wording_has_two_meanings():
    """Otherwise a caption could describe two clips."""
    lists = [wordings for values in world_captions.WORDS.values() for wordings in values.values()]
    wordings = [wording for one in lists for wording in one]
    assert len(wordings) == len(set(wordings))
    assert set(world_captions.WORDS) == set(ATTRIBUTES)
    for attribute, values in ATTRIBUTES.items():
        assert set(world_captions.WORDS[attribute]) == set(values)


def test_frames_agree_with_mask_depth_and_color():
    """Frames have the object's color inside the mask and are dark outside it."""
    cfg = WorldConfig(frame_size=64, dense=True)
    for scene in scenes("train", 60, cfg):
        mask = scene.mask > 0
        assert (scene.mask[mask] == 1 + SHAPES.index(scene.attributes["shape"])).all()
        mean = scene.frames[mask].mean(0)
        nearest = min(
            COLORS,
            key=lambda name: _angle(np.array(COLORS[name], float), mean),
        )
        assert nearest == scene.attributes["color"], mean
        assert scene.frames[~mask].mean() < 0.6 * scene.frames[mask].max(-1).mean()
        assert (scene.depth[mask] < 1.5).all() and (scene.depth[~mask] == 2).all()


def test_diameter_of_resting_circles_is_the_size_attribute():
    cfg = WorldConfig(frame_size=64, dense=True)
    checked = set()
    for index in range(402):
        attributes = attributes_of(0, "train", index)
        if (attributes["shape"], attributes["motion"]) != ("circle", "resting"):
            continue
        mask = make_scene(cfg, "train", index).mask[0] > 0
        diameter = np.ptp(np.nonzero(mask)[0]) + 1
        expected = 0.95 * SIZES[attributes["size"]]
        assert abs(diameter / 64 / expected - 1) < 0.1, (index, diameter)
        checked.add(attributes["size"])
    assert checked == set(SIZES)


def _angle(one, other):
    return np.arccos(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("motion", MOTIONS)
def test_flow_maps_the_object_to_the_next_frame(motion):
    """A pixel of the object, moved by its flow, is inside the object one frame later."""
    cfg = WorldConfig(frame_size=96, dense=True)
    index = next(
        i
        for i in itertools.count()
        if (a := attributes_of(0, "train", i))["motion"] == motion
        and a["size"] == "large"
        and a["shape"] in ("square", "cross")
    )
    scene = make_scene(cfg, "train", index)
    moved = np.abs(scene.flow).max()
    assert moved == 0 if motion == "resting" else moved > 3
    hits = total = stays = 0
    for t in range(cfg.num_frames - 1):
        y, x = np.nonzero(scene.mask[t])
        to_x = np.round(x + scene.flow[t, y, x, 0]).astype(int)
        to_y = np.round(y + scene.flow[t, y, x, 1]).astype(int)
        inside = (to_x >= 0) & (to_x < 96) & (to_y >= 0) & (to_y < 96)
        hits += (scene.mask[t + 1][to_y[inside], to_x[inside]] > 0).sum()
        stays += (scene.mask[t + 1][y[inside], x[inside]] > 0).sum()
        total += inside.sum()
    assert hits / total > 0.93
    assert motion in ("resting", "pulsing") or hits > stays


def test_audio_encodes_color_size_and_shape():
    """The loudest tone gives the color, the pitch the size, and the harmonics the shape."""
    for scene in scenes("train", 40, WorldConfig(num_frames=16, noise=0.0)):
        attributes = scene.attributes
        spectrum = np.abs(np.fft.rfft(scene.waveform * np.hanning(scene.waveform.size)))
        hertz = np.fft.rfftfreq(scene.waveform.size, 1 / 8000)

        def level(low, high, spectrum=spectrum, hertz=hertz):
            return spectrum[(hertz >= low) & (hertz <= high)].max()

        tones = [2050 + 200 * step for step in range(8)]
        loudest = max(range(8), key=lambda step: level(tones[step] - 30, tones[step] + 30))
        assert tuple(COLORS)[loudest] == attributes["color"]
        pitch = {"small": 400, "medium": 260, "large": 170}[attributes["size"]]
        harmonics = [level(0.97 * pitch * h, 1.03 * pitch * h) for h in (1, 2, 3, 4)]
        audible = tuple(int(value > 0.4 * max(harmonics)) for value in harmonics)
        assert audible == render.HARMONICS[attributes["shape"]], attributes


def test_audio_is_in_phase_with_the_motion():
    """A bouncing object is loudest near its lowest point, a pulsing one when it is largest."""
    cfg = WorldConfig(num_frames=32, fps=40.0, noise=0.0, frame_size=48, dense=True)
    checked = 0
    for index in range(60):
        scene = make_scene(cfg, "train", index)
        motion = scene.attributes["motion"]
        if motion not in ("bouncing", "pulsing"):
            continue
        band = np.abs(np.fft.rfftfreq(scene.waveform.size, 1 / cfg.sample_rate)) < 1900
        tones = np.fft.irfft(np.fft.rfft(scene.waveform) * band, scene.waveform.size)
        loudness = np.sqrt((tones.reshape(32, -1) ** 2).mean(1))
        if motion == "pulsing":
            assert np.corrcoef(loudness, (scene.mask > 0).sum((1, 2)))[0, 1] > 0.8
        else:
            rows = np.arange(48)[:, None]
            height = [-(rows * (m > 0)).sum() / (m > 0).sum() for m in scene.mask]
            assert (
                abs(np.argmin(height[2:-2]) + 2 - np.arange(32))[np.argsort(-loudness)[:6]].min()
                <= 2
            )
        checked += 1
    assert checked > 10


def test_attributes_of_held_out_clips_can_be_predicted_from_audio_and_touch():
    """Support vector machines on spectra and pixels, trained on `train`, evaluated on `test`."""
    from sklearn.svm import SVC

    def spectrum(scene):
        windows = np.lib.stride_tricks.sliding_window_view(scene.waveform, 256)[::128]
        levels = np.log(1e-3 + np.abs(np.fft.rfft(windows * np.hanning(256))))
        loudness = np.log(1e-2 + np.abs(windows).mean(1))
        rhythm = np.abs(np.fft.rfft(loudness - loudness.mean()))
        return np.concatenate([levels.mean(0), levels.max(0), levels.std(0), rhythm])

    train, test = scenes("train", 600), scenes("test", 150)
    modalities = {
        "audio": (spectrum, {"shape": 0.7, "color": 0.9, "size": 0.9, "motion": 0.8}),
        "touch": (lambda scene: scene.touch.ravel() / 255.0, {"shape": 0.8, "size": 0.9}),
    }
    for modality, (features, thresholds) in modalities.items():
        x, y = (np.stack([features(scene) for scene in part]) for part in (train, test))
        mean, deviation = x.mean(0), x.std(0) + 1e-6
        for name, threshold in thresholds.items():
            model = SVC(C=10.0)
            model.fit((x - mean) / deviation, [scene.attributes[name] for scene in train])
            labels = [scene.attributes[name] for scene in test]
            accuracy = model.score((y - mean) / deviation, labels)
            assert accuracy > threshold, (modality, name, accuracy)


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


def test_label_all_gives_one_label_per_attribute():
    scene = make_scene(WorldConfig(label="all"), "train", 3)
    names = WorldConfig(label="all").class_names
    assert [names[label] for label in scene.labels] == list(scene.attributes.values())


SPEC = "world:tiny,train=6,test=4,num_frames=2,num_samples=640"


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


def test_parse_spec_overrides_config_and_split_sizes():
    assert world.parse_spec("world") == ("demo", *world.WORLDS["demo"])
    name, cfg, splits = world.parse_spec("world:tiny,label=motion,train=9,dense=true,fps=25")
    assert (name, cfg.label, cfg.dense, cfg.fps) == ("tiny", "motion", True, 25.0)
    assert splits == {"train": 9, "test": 32}


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


def test_evaluation_objects_are_never_in_training():
    splits = {split: objects_of(split) for split in ObjectsConfig.SPLITS}
    assert len(splits["train"]) == 48 and len(splits["novel_train"]) == 16
    assert splits["novel_train"] == splits["novel_test"]
    assert not set(splits["train"]) & set(splits["novel_test"])
    for split, each in (("train", 6), ("novel_test", 2)):
        for at, values in enumerate((COLORS, SHAPES)):
            counts = {value: 0 for value in values}
            for names in splits[split]:
                counts[names[at]] += 1
            assert set(counts.values()) == {each}, split  # Every color and every shape.


@pytest.mark.parametrize("name", ["objects", "objects_tiny"])
def test_each_split_samples_its_objects_evenly_and_in_many_styles(name):
    _, cfg, sizes = world.parse_spec(f"world:{name}")
    assert len(cfg.class_names) == 64 and cfg.class_names[9] == "orange square"
    for split, count in sizes.items():
        scene_attributes = [cfg.attributes(split, index) for index in range(count)]
        names = [cfg.names_of(attributes)[0] for attributes in scene_attributes]
        expected = {f"{color} {shape}" for color, shape in objects_of(split)}
        assert set(names) == expected
        counts = [names.count(name) for name in expected]
        assert max(counts) - min(counts) <= 1
        if split == "novel_train":
            assert min(counts) >= 5  # supports of a few-shot episode
    styles = {
        (attributes["size"], attributes["texture"])
        for attributes, name in zip(scene_attributes, names, strict=True)
        if name == names[0]
    }
    assert len(styles) == min(12, count // 16)


def test_object_images_are_deterministic_and_captions_describe_them():
    cfg = ObjectsConfig()
    words = set(world_captions.vocabulary(still=True))
    assert words < set(world_captions.vocabulary()) | {"picture", "of", "is"}
    assert not {"bouncing", "swaying", "spinning", "somehow"} & words and len(words) < 110
    for split in cfg.SPLITS:
        for index in (0, 5, 700):
            scene, repeated = (make_scene(cfg, split, index) for _ in range(2))
            assert scene.frames.shape == (1, 32, 32, 3) and not scene.waveform.size
            assert (scene.frames == repeated.frames).all()
            assert scene.captions == repeated.captions
            other = make_scene(ObjectsConfig(seed=1), split, index)
            assert (scene.frames != other.frames).any()
            assert cfg.class_names[scene.labels[0]] == "{color} {shape}".format(**scene.attributes)
    omitted = 0
    for index in range(400):
        split = "train" if index % 2 else "novel_test"
        for text in make_scene(cfg, split, index).captions:
            tokens = text.split()
            assert set(tokens) <= words and tokens[-1] not in ("and", "is", "a"), text
            assert "and and" not in text and "is and" not in text, text
            attributes = cfg.attributes(split, index)
            absent = [
                attribute
                for attribute in ("shape", "color", "size", "texture")
                if not set(world_captions.WORDS[attribute][attributes[attribute]]) & set(tokens)
            ]
            assert len(absent) <= (split == "train"), text
            omitted += len(absent)
    assert 0.2 < omitted / 600 < 0.4


def test_written_objects_have_images_captions_and_labels_only(tmp_path):
    path = world.ensure_world("world:objects_tiny,train=10", cache_dir=str(tmp_path))
    directory = dataset.DatasetDir(path)
    assert (
        directory.info.modalities == ("video", "text", "label") and directory.info.num_classes == 64
    )
    assert directory.info.split_sizes() == {"train": 10, "novel_train": 96, "novel_test": 48}
    stored = schema.decode(directory.split("novel_test").read(3))
    assert stored.waveform is None and not stored.touch and len(stored.frames) == 1
    assert stored.label_texts == [directory.info.class_names[stored.labels[0]]]
    words = open(os.path.join(path, directory.info.vocabulary)).read().split()
    assert words[4:] == world_captions.vocabulary(still=True)
    for spec, facts in (
        ("world:objects_tiny,test=4", ("'world:objects_tiny,test=4'", "'test'", "'novel_test'")),
        ("world:tiny,label=object", ("label", "'object'", "color, motion, shape")),
        ("world:objects_tiny,label=objects", ("label", "'objects'", "'object'")),
    ):
        with raises(UserError, *facts):
            world.ensure_world(spec, cache_dir=str(tmp_path))
    with raises(UserError, "split", "'test'", "'novel_test'", "train"):
        make_scene(ObjectsConfig(), "test", 0)


def test_generated_data_does_not_change():
    """Published results depend on it, and caches are identified by the world's version."""
    first_scenes = [make_scene(world.WORLDS["tiny"][0], "train", index) for index in range(4)]
    described = repr([(one.captions, one.labels) for one in first_scenes])
    assert hashlib.sha256(described.encode()).hexdigest()[:16] == "399b394b349527f2"
    means = [[one.frames.mean(), one.touch.mean()] for one in first_scenes]
    np.testing.assert_allclose(
        means, [[38.44, 96.68], [47.75, 100.48], [40.75, 97.54], [80.46, 100.94]], atol=0.02
    )
    assert world_captions.vocabulary()[:3] == ["a", "amber", "and"]
    assert len(world_captions.vocabulary()) == 113


def test_unknown_split_is_named_with_the_nearest():
    with raises(UserError, "split", "'trian'", "'train'"):
        make_scene(CFG, "trian", 0)
