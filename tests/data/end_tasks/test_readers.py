"""Readers of the published layouts: labels, pairing, splits, and incomplete data."""

import io
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mmjax.data.sources import layouts, registry
from mmjax.data.storage import schema
from mmjax.end_tasks.registry import END_TASKS
from mmjax.errors import UserError
from tests.data.end_tasks import trees
from tests.messages import assert_mentions, raises


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return trees.write_all(tmp_path_factory.mktemp("datasets"))


def opened(root, name, split="train", more=""):
    return registry.open_source(f"end_task:{name},root={root}{more}", split=split)


def images_of(source, record):
    frames = schema.decode(source.fetch(record)).frames
    return [np.asarray(Image.open(io.BytesIO(frame))) for frame in frames]


def target_of(source, record):
    proto = tf.train.SequenceExample.FromString(source.fetch(record))
    (feature,) = proto.feature_lists.feature_list[schema.TARGET[0]].feature
    return feature.bytes_list.value[0]


# {end task: (labels of the training split, labels of the test split)}.
LABELS = {
    **dict.fromkeys(
        ("Imagenet", "Pets", "CalTech-101", "SUN397", "Eurosat", "dtd"), ([0, 1, 2], [1])
    ),
    "Imagenetv2": ([0, 10, 2], [0, 10, 2]),
    "CIFAR-100": ([2, 0, 1], [2, 0]),
    "CIFAR-10": ([2, 0, 1], [2, 0]),
    "KineticsActionPrediction": ([0, 1], [1]),
    "CLEVERNumObjects": ([2, 1], [2, 1]),
    "CLEVERDist": ([2, 10], [2, 10]),  # nearest objects: 1.2 and 5
    "THORNumSteps": ([1, 4], [1, 4]),
    "THORActionPrediction": ([4, 1], [4, 1]),
    "nuScenesActionPrediction": ([1, 0], [1]),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_follow_the_classes_of_the_training_split(root, name):
    for split, labels in zip(("train", "test"), LABELS[name], strict=True):
        source = opened(root, name, split)
        assert source.labels().tolist() == labels
        assert [schema.decode(source.fetch(n)).labels[0] for n in range(len(labels))] == labels
        assert source.info.num_classes == max(LABELS[name][0]) + 1
        assert {len(images_of(source, n)) for n in range(len(labels))} == {
            END_TASKS[name].num_images
        }
    assert registry.split_names(f"end_task:{name},root={root}") == ["train", "test"]


def test_paper_numbers_the_classes_of_each_split(root):
    source = opened(root, "Pets", "test", ",paper=true")
    assert source.labels().tolist() == [0] and source.info.class_names == ["b"]


def test_frames_of_a_clip_are_the_first_six_numbers(root):
    means = [
        round(frame.mean() / 10) for frame in images_of(opened(root, "KineticsActionPrediction"), 0)
    ]
    assert means == [4, 5, 6, 7, 8, 9]  # in alphabetical order, 10 would be the first


def test_cifar_images_are_planes_of_colors(root):
    (pixels,) = images_of(opened(root, "CIFAR-100"), 1)
    assert pixels.shape == (32, 32, 3)
    assert pixels[0, 1].tolist() == [(3072 + plane * 1024 + 1) % 256 for plane in range(3)]
    assert opened(root, "CIFAR-100").info.class_names == ["x", "y", "z"]


def test_binary_cifar_is_read(tmp_path):
    row = np.arange(3072).astype(np.uint8)
    for name in ("train", "test"):
        path = tmp_path / "cifar-100-binary" / f"{name}.bin"
        path.parent.mkdir(exist_ok=True)
        np.concatenate([[7, 3], row, [7, 1], row]).astype(np.uint8).tofile(path)
    source = opened(tmp_path, "CIFAR-100")
    assert source.labels().tolist() == [3, 1] and source.info.num_classes == 4
    assert (images_of(source, 0)[0][..., 0].ravel() == row[:1024]).all()
    with open(path, "ab") as file:
        file.write(b"x")
    with raises(UserError, path, "3074"):
        opened(tmp_path, "CIFAR-100", "test")


def test_pickles_that_call_functions_are_refused(tmp_path):
    (tmp_path / "cifar-100").mkdir()
    path = tmp_path / "cifar-100" / "train"
    path.write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
    with raises(UserError, path, "os.system", "refused"):
        opened(tmp_path, "CIFAR-100")
    path.write_bytes(pickle.dumps({"data": np.zeros((1, 3072), np.uint8)}))
    with raises(UserError, path, "fine_labels"):
        opened(tmp_path, "CIFAR-100")
    path.write_bytes(path.read_bytes()[:100])
    with raises(UserError, path, "complete"):
        opened(tmp_path, "CIFAR-100")


@pytest.mark.parametrize("name", [name for name, task in END_TASKS.items() if task.pixelwise])
def test_every_image_has_its_target(root, name):
    for split in ("train", "test"):
        source = opened(root, name, split)
        expected = {
            "EgoHands": dict(train=36, test=8),
            "Pets-Detection": dict(train=3, test=1),
            **dict.fromkeys(("KITTI", "KITTIFlow"), dict(train=9, test=1)),
        }.get(name, dict(train=1, test=1))
        assert source.num_examples == expected[split]
        assert len(images_of(source, 0)) == END_TASKS[name].num_images
        if name != "TaskonomyInpainting":
            assert target_of(source, 0)
            assert_mentions(source.where(0), ", with ")


def test_splits_of_egohands_are_videos(root):
    """The gray level of an image, and the label modulo 5, are the index of its video."""
    videos = {
        split: {
            round(images_of(source, n)[0].mean())
            for source in [opened(root, "EgoHands", split)]
            for n in range(source.num_examples)
        }
        for split in ("train", "validation", "test")
    }
    assert videos["test"] == {0, 10, 12, 19, 30, 33, 37, 43}
    assert videos["validation"] == {6, 13, 27, 46}
    assert videos["train"] == set(range(48)) - videos["test"] - videos["validation"]
    source = opened(root, "EgoHands")
    for record in range(source.num_examples):
        label = np.asarray(Image.open(io.BytesIO(target_of(source, record))))[0, 0]
        assert label == round(images_of(source, record)[0].mean()) % 5


def test_slices_and_records_have_identities(root):
    source = opened(root, "Pets", "train[:67%:stratified]")
    assert source.num_examples == 2
    assert source.identity(0)[0] == str((root / "pets/train/a/train_a_1.jpg").resolve())


# Incomplete and wrong data ------------------------------------------------------------------------


@pytest.fixture
def copy(root, tmp_path):
    """Returns a function that copies some datasets and returns their root."""

    def copied(*names):
        for name in names:
            shutil.copytree(root / name, tmp_path / name)
        return tmp_path

    return copied


def test_missing_files_are_named_by_pattern(copy):
    root = copy("CLEVR", "nyu")
    assert layouts.missing("CLEVERNumObjects", str(root)) == []
    (root / "CLEVR/scenes/CLEVR_val_scenes.json").unlink()
    assert layouts.missing("CLEVERNumObjects", str(root)) == [
        str(root / "CLEVR/scenes/CLEVR_val_scenes.json")
    ]
    opened(root, "CLEVERNumObjects")  # the training split is complete
    with raises(UserError, root / "CLEVR/scenes/CLEVR_val_scenes.json", "root="):
        opened(root, "CLEVERNumObjects", "test")
    shutil.rmtree(root / "nyu/test/depths")
    assert layouts.missing("NYUDepth", str(root)) == [str(root / "nyu/test/depths/*.tiff")]
    assert layouts.missing("NYUWalkable", str(root)) == []
    assert layouts.missing("Pets", "world") == layouts.missing("Pets", "world,train=20") == []
    assert len(layouts.missing("Imagenet", str(root))) == 2


def test_class_of_the_test_split_that_training_lacks(copy):
    root = copy("pets", "nuScenes", "thor_num_steps")
    trees.image(root / "pets/test/zebra/1.jpg")
    with raises(UserError, "pets", "'zebra'", "test"):
        opened(root, "Pets", "test")
    assert opened(root, "Pets", "test", ",paper=true").info.num_classes == 2
    text = (root / "nuScenes/nuScenes_test.json").read_text().replace("left", "back")
    (root / "nuScenes/nuScenes_test.json").write_text(text)
    with raises(UserError, "nuScenesActionPrediction", "'back'"):
        opened(root, "nuScenesActionPrediction", "test")
    trees.text(root / "thor_num_steps/val_labels.txt", "val/Floor 1/0 9\nval/Floor 1/1 1")
    with raises(UserError, "THORNumSteps", "9", "4"):
        opened(root, "THORNumSteps", "test")


def test_half_present_datasets(copy):
    root = copy("egohands", "KITTI", "thor_num_steps", "thor_action_prediction", "taskonomy")
    shutil.rmtree(root / "egohands/images/v03")
    with raises(UserError, root / "egohands", "47", "48"):
        opened(root, "EgoHands")
    (root / "KITTI/training/image_2/000003_11.png").unlink()
    with raises(UserError, "1 of 10", "000003_11.png"):
        opened(root, "KITTI")
    trees.text(root / "thor_num_steps/train_labels.txt", "train/Floor 1/0 1")
    with raises(UserError, "train_labels.txt", "1_rgb.jpg", "train/Floor 1/1 STEPS"):
        opened(root, "THORNumSteps")
    (root / "thor_action_prediction/train/Floor 1/1_rgb_b.jpg").unlink()
    with raises(UserError, "train_labels.txt", "1 of 4", "1_rgb_b.jpg"):
        opened(root, "THORActionPrediction")
    trees.image(root / "taskonomy/train/rgb/b1/point_1_domain_rgb.png")
    with raises(UserError, "1 of 2", "point_1_domain_rgb.png", "depth_zbuffer"):
        opened(root, "TaskonomyDepth")


def test_wrong_label_files(copy):
    root = copy("thor_action_prediction", "nuScenes", "kinetics400", "CLEVR", "imagenetv2")
    path = root / "thor_action_prediction/train_labels.txt"
    trees.text(path, "train/Floor 1/0 Jump")
    with raises(UserError, path, "line 1", "'Jump'", "LookUp"):
        opened(root, "THORActionPrediction")
    trees.text(root / "nuScenes/nuScenes_train.json", [{"img_a": "a", "label": "left"}])
    with raises(UserError, "nuScenes_train.json", "entry 0", "img_b"):
        opened(root, "nuScenesActionPrediction")
    trees.text(root / "kinetics400/annotations/train.json", {"a": {}})
    with raises(UserError, "annotations/train.json", "label"):
        opened(root, "KineticsActionPrediction")
    trees.text(root / "CLEVR/scenes/CLEVR_train_scenes.json", {"scenes": [{"objects": []}]})
    with raises(UserError, "CLEVR_train_scenes.json", "image_filename"):
        opened(root, "CLEVERNumObjects")
    trees.image(root / "imagenetv2/cat/x.jpeg")
    with raises(UserError, root / "imagenetv2/cat"):
        opened(root, "Imagenetv2")


def test_contradictory_labels(copy):
    root = copy("thor_num_steps", "CLEVR")
    path = root / "thor_num_steps/train_labels.txt"
    lines = path.read_text()
    path.write_text(lines + "train/Floor 1/1 4\n")  # repeats a line
    assert opened(root, "THORNumSteps").labels().tolist() == [1, 4]
    path.write_text(lines + "train/Floor 1/1 5\n")
    with raises(UserError, path, "line 4", "train/Floor 1/1", "5", "4"):
        opened(root, "THORNumSteps")
    path = root / "CLEVR/scenes/CLEVR_train_scenes.json"
    scenes = json.loads(path.read_text())["scenes"]
    scenes.append(scenes[0] | {"objects": []})
    trees.text(path, {"scenes": scenes})
    with raises(UserError, path, scenes[0]["image_filename"]):
        opened(root, "CLEVERNumObjects")


def test_paper_takes_frames_as_the_file_system_lists_them(copy, monkeypatch):
    root = copy("kinetics400")
    listed = [f"ab_c_{n}.jpg" for n in (12, 9, 10, 8, 4, 7, 5, 6)]
    actual = os.listdir
    monkeypatch.setattr(
        "os.listdir", lambda path: listed if str(path).endswith("train/ab") else actual(path)
    )
    source = opened(root, "KineticsActionPrediction", "train", ",paper=true")
    assert source.num_examples == 1
    means = [round(frame.mean() / 10) for frame in images_of(source, 0)]
    assert means == [10, 12, 4, 7, 8, 9]  # the first six, in alphabetical order


def test_wrong_specifications(root):
    for spec, facts in (
        ("Petz", ("Petz", "Pets")),
        (f"Pets,root={root},papr=true", ("papr", "paper")),
        ("Pets,paper=yes", ("paper", "'yes'")),
        (f"Pets,root={root},size=32", ("size", "root=world")),
        ("Pets,root=world,size=x", ("size", "'x'")),
    ):
        with raises(UserError, *facts):
            registry.open_source(f"end_task:{spec}", split="train")
    with raises(UserError, "EgoHands", "'dev2'", "validation"):
        opened(root, "EgoHands", "dev2")
