"""The world: its splits, its determinism, what each sense can tell, and its cache."""

import hashlib
import io
import itertools
import os
import threading

import numpy as np
import pytest
from PIL import Image

from mmjax.data import dataset, schema, world, world_objects, world_senses, world_text
from mmjax.errors import UserError

CFG = world.WorldConfig()


def scenes(split, count, cfg=CFG):
    return [world.scene(cfg, split, index) for index in range(count)]


def combination(attributes):
    return tuple(attributes[name] for name in ("shape", "colour", "size", "motion"))


@pytest.mark.parametrize("seed", [0, 7])
def test_splits_share_no_combination_and_have_every_value(seed):
    seen = {}
    for split, count in (("train", 2000), ("valid", 96), ("test", 240)):
        everything = [world.attributes_of(seed, split, i) for i in range(count)]
        seen[split] = {combination(attributes) for attributes in everything}
        for name, values in world.ATTRIBUTES.items():
            assert {attributes[name] for attributes in everything} == set(values), (split, name)
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other
    assert len(seen["test"]) == 240  # all different: retrieval among them is well posed
    assert sum(map(len, seen.values())) == 8 * 8 * 3 * 6
    full = [tuple(world.attributes_of(seed, "test", i).values()) for i in range(4 * 240)]
    assert len(set(full)) == 4 * 240


def test_held_out_combinations_do_not_depend_on_the_seed():
    of = [{combination(world.attributes_of(s, "test", i)) for i in range(240)} for s in (0, 1)]
    assert of[0] == of[1]
    assert world.attributes_of(0, "test", 0) != world.attributes_of(1, "test", 0)


def test_deterministic_whatever_came_before():
    cfg = world.WorldConfig(dense=True)
    first = world.scene(cfg, "train", 5)
    world.scene(cfg, "train", 4)
    again = world.scene(world.WorldConfig(dense=True), "train", 5)
    for name in ("frames", "waveform", "touch", "mask", "depth", "flow"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.captions == again.captions
    others = [world.scene(cfg, "test", 5), world.scene(world.WorldConfig(seed=1), "train", 5)]
    assert all((first.frames != other.frames).any() for other in others)


@pytest.mark.parametrize("size, frames, rate", [(16, 1, 8000), (33, 3, 16000), (64, 12, 48000)])
def test_any_size(size, frames, rate):
    cfg = world.WorldConfig(
        frame_size=size, num_frames=frames, sample_rate=rate, touch_size=size, dense=True
    )
    made = world.scene(cfg, "train", 10**6)
    assert made.frames.shape == (frames, size, size, 3) and made.frames.dtype == np.uint8
    assert made.waveform.shape == (frames * rate // 10,) and made.waveform.dtype == np.float32
    assert made.touch.shape == (size, size, 3) and made.touch.dtype == np.uint8
    assert made.mask.shape == made.depth.shape == (frames, size, size)
    assert made.flow.shape == (frames, size, size, 2)
    assert np.abs(made.waveform).max() <= 1


def test_captions():
    vocabulary = set(world_text.vocabulary())
    assert len(vocabulary) < 300
    spoken, omissions, count = set(), 0, 0
    for split in ("train", "test"):
        for index in range(300):
            attributes = world.attributes_of(0, split, index)
            rng = np.random.default_rng(index)
            text = world_text.caption(rng, attributes, complete=split == "test")
            words = text.split()
            assert text == " ".join(words) and len(words) <= 16 and set(words) <= vocabulary, text
            assert words[-1] != "and" and "and and" not in text, text
            spoken |= set(words)
            absent = [
                kind
                for kind, value in attributes.items()
                if not any(wording in text for wording in world_text.WORDS[kind][value])
            ]
            assert len(absent) <= (split == "train"), (text, absent)
            omissions += len(absent)
            count += split == "train"
    assert 0.2 < omissions / count < 0.4
    assert len(spoken) > 0.9 * len(vocabulary)


def test_no_word_has_two_meanings():
    """Else a caption could fit two clips."""
    rows = [row for values in world_text.WORDS.values() for row in values.values()]
    wordings = [wording for row in rows for wording in row]
    assert len(wordings) == len(set(wordings))
    assert set(world_text.WORDS) == set(world.ATTRIBUTES)
    for kind, values in world.ATTRIBUTES.items():
        assert set(world_text.WORDS[kind]) == set(values)


def test_object_has_its_colour_size_and_place():
    """Mask against frames: inside is the colour, outside the dark; the size is the attribute's."""
    cfg = world.WorldConfig(frame_size=64, dense=True)
    extents = {size: [] for size in world.SIZES}
    for made in scenes("train", 60, cfg):
        mask = made.mask > 0
        assert (made.mask[mask] == 1 + world.SHAPES.index(made.attributes["shape"])).all()
        seen = made.frames[mask].mean(0)
        nearest = min(
            world.COLOURS, key=lambda name: _angle(np.array(world.COLOURS[name], float), seen)
        )
        assert nearest == made.attributes["colour"], seen
        assert made.frames[~mask].mean() < 0.6 * made.frames[mask].max(-1).mean()
        assert (made.depth[mask] < 1.5).all() and (made.depth[~mask] == 2).all()
        if made.attributes["shape"] == "circle" and made.attributes["motion"] == "resting":
            extents[made.attributes["size"]].append(np.ptp(np.nonzero(mask[0])[0]) + 1)
    for size, values in extents.items():
        for value in values:
            assert abs(value / 64 / (0.95 * world.SIZES[size]) - 1) < 0.1


def _angle(one, other):
    return np.arccos(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_flow_leads_to_the_next_frame(motion):
    """A pixel well inside, moved by its flow, is still inside the object one frame later."""
    cfg = world.WorldConfig(frame_size=96, dense=True)
    index = next(
        i
        for i in itertools.count()
        if (a := world.attributes_of(0, "train", i))["motion"] == motion
        and a["size"] == "large"
        and a["shape"] in ("square", "cross")
    )
    made = world.scene(cfg, "train", index)
    moved = np.abs(made.flow).max()
    assert moved == 0 if motion == "resting" else moved > 3
    hits = total = stays = 0
    for t in range(cfg.num_frames - 1):
        y, x = np.nonzero(made.mask[t])
        to_x = np.round(x + made.flow[t, y, x, 0]).astype(int)
        to_y = np.round(y + made.flow[t, y, x, 1]).astype(int)
        inside = (to_x >= 0) & (to_x < 96) & (to_y >= 0) & (to_y < 96)
        hits += (made.mask[t + 1][to_y[inside], to_x[inside]] > 0).sum()
        stays += (made.mask[t + 1][y[inside], x[inside]] > 0).sum()
        total += inside.sum()
    assert hits / total > 0.93
    assert motion in ("resting", "pulsing") or hits > stays


def test_sound_follows_what_is_seen():
    """The loudest tones of the spectrum are those of size, shape and colour."""
    for made in scenes("train", 40, world.WorldConfig(num_frames=16, noise=0.0)):
        attributes = made.attributes
        spectrum = np.abs(np.fft.rfft(made.waveform * np.hanning(made.waveform.size)))
        hertz = np.fft.rfftfreq(made.waveform.size, 1 / 8000)

        def level(low, high, spectrum=spectrum, hertz=hertz):
            return spectrum[(hertz >= low) & (hertz <= high)].max()

        tones = [2050 + 200 * step for step in range(8)]
        loudest = max(range(8), key=lambda step: level(tones[step] - 30, tones[step] + 30))
        assert tuple(world.COLOURS)[loudest] == attributes["colour"]
        pitch = {"small": 400, "medium": 260, "large": 170}[attributes["size"]]
        harmonics = [level(0.97 * pitch * h, 1.03 * pitch * h) for h in (1, 2, 3, 4)]
        sounding = tuple(int(value > 0.4 * max(harmonics)) for value in harmonics)
        assert sounding == world_senses.HARMONICS[attributes["shape"]], attributes


def test_sound_is_in_phase_with_the_motion():
    """A bouncing object is loudest about where it is lowest, a pulsing one where it is largest."""
    cfg = world.WorldConfig(num_frames=32, fps=40.0, noise=0.0, frame_size=48, dense=True)
    checked = 0
    for index in range(60):
        made = world.scene(cfg, "train", index)
        motion = made.attributes["motion"]
        if motion not in ("bouncing", "pulsing"):
            continue
        band = np.abs(np.fft.rfftfreq(made.waveform.size, 1 / cfg.sample_rate)) < 1900
        tones = np.fft.irfft(np.fft.rfft(made.waveform) * band, made.waveform.size)
        loudness = np.sqrt((tones.reshape(32, -1) ** 2).mean(1))
        if motion == "pulsing":
            assert np.corrcoef(loudness, (made.mask > 0).sum((1, 2)))[0, 1] > 0.8
        else:
            rows = np.arange(48)[:, None]
            height = [-(rows * (m > 0)).sum() / (m > 0).sum() for m in made.mask]
            assert (
                abs(np.argmin(height[2:-2]) + 2 - np.arange(32))[np.argsort(-loudness)[:6]].min()
                <= 2
            )
        checked += 1
    assert checked > 10


def test_attributes_can_be_told_from_sound_and_touch_of_held_out_clips():
    """Support vector machines on spectra and pixels, trained on `train`, judged on `test`."""
    from sklearn.svm import SVC

    def spectrum(made):
        windows = np.lib.stride_tricks.sliding_window_view(made.waveform, 256)[::128]
        levels = np.log(1e-3 + np.abs(np.fft.rfft(windows * np.hanning(256))))
        loudness = np.log(1e-2 + np.abs(windows).mean(1))
        rhythm = np.abs(np.fft.rfft(loudness - loudness.mean()))
        return np.concatenate([levels.mean(0), levels.max(0), levels.std(0), rhythm])

    train, test = scenes("train", 600), scenes("test", 150)
    senses = {
        "sound": (spectrum, {"shape": 0.7, "colour": 0.9, "size": 0.9, "motion": 0.8}),
        "touch": (lambda made: made.touch.ravel() / 255.0, {"shape": 0.8, "size": 0.9}),
    }
    for sense, (features, least) in senses.items():
        x, y = (np.stack([features(made) for made in part]) for part in (train, test))
        mean, deviation = x.mean(0), x.std(0) + 1e-6
        for name, accuracy in least.items():
            model = SVC(C=10.0)
            model.fit((x - mean) / deviation, [made.attributes[name] for made in train])
            found = model.score((y - mean) / deviation, [made.attributes[name] for made in test])
            assert found > accuracy, (sense, name, found)


def test_build_and_read(tmp_path):
    cfg = world.WorldConfig(num_frames=2, num_samples=640, dense=True, label="motion")
    info = world.build_world(tmp_path, cfg, {"train": 300, "test": 5})
    folder = dataset.DatasetFolder(tmp_path)
    assert folder.info == info and info.class_names == list(world.MOTIONS)
    assert info.modalities == tuple(schema.MODALITIES)
    train = folder.split("train")
    assert len(train) == 300 and len(train.files) == 2 and len(folder.split("test")) == 5
    for index in (0, 149, 150, 299):
        stored = schema.decode(train.read(index))
        made = world.scene(cfg, "train", index)
        assert stored.captions == made.captions and stored.labels == made.labels
        assert stored.label_texts == [made.attributes["motion"]]
        np.testing.assert_array_equal(stored.waveform, made.waveform)
        for jpeg, frame in zip(stored.frames, made.frames, strict=True):
            error = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int) - frame
            assert np.abs(error).mean() < 6
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(stored.masks[1]))), made.mask[1]
        )
        np.testing.assert_allclose(schema.decode_depth(stored.depth[1]), made.depth[1], atol=1e-3)
        np.testing.assert_allclose(schema.decode_flow(stored.flow[0]), made.flow[0], atol=1e-2)
        assert (stored.start_us, stored.end_us) == (0, 200_000)
    words = (tmp_path / info.vocabulary).read_text().split()
    assert (
        words[:4] == ["<pad>", "<unk>", "<bos>", "<eos>"] and words[4:] == world_text.vocabulary()
    )


def test_workers_write_the_same(tmp_path):
    cfg = world.WorldConfig(num_frames=1, num_samples=320)
    one = world.build_world(tmp_path / "one", cfg, {"test": 5})
    two = world.build_world(tmp_path / "two", cfg, {"test": 5}, workers=2)
    assert one == two
    (shard,) = one.splits["test"].shards
    assert (tmp_path / "one" / shard).read_bytes() == (tmp_path / "two" / shard).read_bytes()


def test_all_attributes_as_labels():
    made = world.scene(world.WorldConfig(label="all"), "train", 3)
    names = world.WorldConfig(label="all").class_names
    assert [names[label] for label in made.labels] == list(made.attributes.values())


SPEC = "world:tiny,train=6,test=4,num_frames=2,num_samples=640"


def test_ensure_world_writes_once(tmp_path, capsys, monkeypatch):
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
    assert capsys.readouterr().out.count("world: wrote 6 train + 4 test clips") == 1
    assert len(dataset.DatasetFolder(paths[0]).split("train")) == 6
    assert world.ensure_world(SPEC) == paths[0] and not capsys.readouterr().out
    assert world.ensure_world(SPEC + ",seed=1") != paths[0]


@pytest.mark.parametrize("damage", ["half written", "shard lost", "json lost"])
def test_ensure_world_replaces_leftovers(tmp_path, damage):
    path = world.ensure_world(SPEC, cache_dir=str(tmp_path))
    if damage == "half written":
        os.rename(path, f"{path}.part")
        os.remove(os.path.join(f"{path}.part", dataset.FILE))
    elif damage == "shard lost":
        os.remove(os.path.join(path, dataset.shard_name("train", 0, 1)))
    else:
        os.remove(os.path.join(path, dataset.FILE))
    assert world.ensure_world(SPEC, cache_dir=str(tmp_path)) == path
    assert len(dataset.DatasetFolder(path).split("train")) == 6
    assert not os.path.exists(f"{path}.part")


def test_ensure_world_says_where_it_cannot_write(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="MMJAX_CACHE"):
        world.ensure_world(SPEC, cache_dir=str(tmp_path / "file" / "cache"))


def test_parse_spec():
    assert world.parse_spec("world") == ("demo", *world.WORLDS["demo"])
    name, cfg, splits = world.parse_spec("world:tiny,label=motion,train=9,dense=true,fps=25")
    assert (name, cfg.label, cfg.dense, cfg.fps) == ("tiny", "motion", True, 25.0)
    assert splits == {"train": 9, "test": 32}


@pytest.mark.parametrize(
    "spec, message",
    [
        ("world:tini", "Did you mean 'tiny'"),
        ("world:tiny,frame_sise=32", "Did you mean 'frame_size'"),
        ("world:tiny,seed=x", "seed needs a value of type int"),
        ("world:tiny,dense=1", "dense needs a value of type bool"),
        ("world:tiny,label=colr", "Did you mean 'colour'"),
        ("world:tiny,sample_rate=4000", "sample_rate=4000 must be at least 8000"),
        ("world:tiny,train=0", "train=0 must be at least 1"),
        ("dataset", "does not begin with 'world'"),
    ],
)
def test_bad_specs(spec, message, tmp_path):
    with pytest.raises(UserError, match=message):
        world.ensure_world(spec, cache_dir=str(tmp_path))


def test_objects_of_evaluation_are_never_in_training():
    splits = {split: world_objects.objects_of(split) for split in world.ObjectsConfig.SPLITS}
    assert len(splits["train"]) == 48 and len(splits["novel_train"]) == 16
    assert splits["novel_train"] == splits["novel_test"]
    assert not set(splits["train"]) & set(splits["novel_test"])
    for split, each in (("train", 6), ("novel_test", 2)):
        for at, values in enumerate((world.COLOURS, world.SHAPES)):
            counts = {value: 0 for value in values}
            for names in splits[split]:
                counts[names[at]] += 1
            assert set(counts.values()) == {each}, split  # every colour and every shape


@pytest.mark.parametrize("name", ["objects", "objects_tiny"])
def test_objects_as_they_are_drawn(name):
    _, cfg, sizes = world.parse_spec(f"world:{name}")
    assert len(cfg.class_names) == 64 and cfg.class_names[9] == "orange square"
    for split, count in sizes.items():
        everything = [cfg.attributes(split, index) for index in range(count)]
        names = [cfg.names_of(attributes)[0] for attributes in everything]
        shown = {f"{colour} {shape}" for colour, shape in world_objects.objects_of(split)}
        assert set(names) == shown
        each = [names.count(one) for one in shown]
        assert max(each) - min(each) <= 1
        if split == "novel_train":
            assert min(each) >= 5  # supports of a few-shot episode
    styles = {
        (a["size"], a["texture"]) for a, n in zip(everything, names, strict=True) if n == names[0]
    }
    assert len(styles) == min(12, count // 16)


def test_pictures_of_objects_are_determined_and_described():
    cfg = world.ObjectsConfig()
    words = set(world_text.vocabulary(still=True))
    assert words < set(world_text.vocabulary()) | {"picture", "of", "is"}
    assert not {"bouncing", "swaying", "spinning", "somehow"} & words and len(words) < 110
    for split in cfg.SPLITS:
        for index in (0, 5, 700):
            made, again = (world.scene(cfg, split, index) for _ in range(2))
            assert made.frames.shape == (1, 32, 32, 3) and not made.waveform.size
            assert (made.frames == again.frames).all() and made.captions == again.captions
            other = world.scene(world.ObjectsConfig(seed=1), split, index)
            assert (made.frames != other.frames).any()
            assert cfg.class_names[made.labels[0]] == "{colour} {shape}".format(**made.attributes)
    omitted = 0
    for index in range(400):
        split = "train" if index % 2 else "novel_test"
        for text in world.scene(cfg, split, index).captions:
            tokens = text.split()
            assert set(tokens) <= words and tokens[-1] not in ("and", "is", "a"), text
            assert "and and" not in text and "is and" not in text, text
            attributes = cfg.attributes(split, index)
            absent = [
                kind
                for kind in ("shape", "colour", "size", "texture")
                if not set(world_text.WORDS[kind][attributes[kind]]) & set(tokens)
            ]
            assert len(absent) <= (split == "train"), text
            omitted += len(absent)
    assert 0.2 < omitted / 600 < 0.4


def test_objects_on_disk(tmp_path):
    path = world.ensure_world("world:objects_tiny,train=10", cache_dir=str(tmp_path))
    folder = dataset.DatasetFolder(path)
    assert folder.info.modalities == ("video", "text", "label") and folder.info.num_classes == 64
    assert folder.info.split_sizes() == {"train": 10, "novel_train": 96, "novel_test": 48}
    stored = schema.decode(folder.split("novel_test").read(3))
    assert stored.waveform is None and not stored.touch and len(stored.frames) == 1
    assert stored.label_texts == [folder.info.class_names[stored.labels[0]]]
    words = open(os.path.join(path, folder.info.vocabulary)).read().split()
    assert words[4:] == world_text.vocabulary(still=True)
    for spec, message in (
        ("world:objects_tiny,test=4", "Unknown setting"),
        ("world:tiny,label=object", "Unknown label of the world 'object'"),
        ("world:objects_tiny,label=objects", "Did you mean 'object'"),
    ):
        with pytest.raises(UserError, match=message):
            world.ensure_world(spec, cache_dir=str(tmp_path))
    with pytest.raises(UserError, match="Unknown split of the world 'test'"):
        world.scene(world.ObjectsConfig(), "test", 0)


def test_a_world_does_not_change():
    """Figures of recipes depend on it, and caches are found by its version."""
    made = [world.scene(world.WORLDS["tiny"][0], "train", index) for index in range(4)]
    told = repr([(one.captions, one.labels) for one in made])
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "399b394b349527f2"
    means = [[one.frames.mean(), one.touch.mean()] for one in made]
    np.testing.assert_allclose(
        means, [[38.44, 96.68], [47.75, 100.48], [40.75, 97.54], [80.46, 100.94]], atol=0.02
    )
    assert world_text.vocabulary()[:3] == ["a", "amber", "and"]
    assert len(world_text.vocabulary()) == 113


def test_unknown_split():
    with pytest.raises(UserError, match="Did you mean 'train'"):
        world.scene(CFG, "trian", 0)
