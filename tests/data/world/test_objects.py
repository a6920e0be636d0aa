"""Tests of the world of single images: held-out objects, styles and captions."""

import os

import pytest

from mmjax.data.storage import dataset, schema
from mmjax.data.world import build as world
from mmjax.data.world import captions as world_captions
from mmjax.data.world.attributes import COLORS, SHAPES
from mmjax.data.world.objects import ObjectsConfig, objects_of
from mmjax.data.world.scene import make_scene
from mmjax.errors import UserError
from tests.messages import raises


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
