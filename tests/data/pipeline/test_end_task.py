"""The section `data.end_task`: fields, determinism, resuming, and records that are wrong."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mmjax.data.end_tasks.framing import NUM_DRAWS
from mmjax.data.pipeline import loader
from mmjax.data.pipeline.config import parse_config
from mmjax.data.pipeline.end_task import EndTaskOptions, count_outputs
from mmjax.data.sources import registry
from mmjax.data.storage import schema
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.end_tasks.registry import END_TASKS
from mmjax.errors import UserError
from tests.data import toy_clips as toy
from tests.data.end_tasks import trees
from tests.messages import raises

SIZES = dict(size=16, train_size=(16, 24), test_size=(32, 48))


@pytest.fixture(scope="module")
def world_cache(tmp_path_factory):
    """The directory of small stand-ins, which the tests of this module share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def section(name, root="world,size=24,train=6,test=3", *, paper=False, **options):
    return dict(
        train=f"end_task:{name},root={root}" + (",paper=true" if paper else ""),
        end_task=dict(name=name, paper=paper, **options),
    )


def train(cfg, seed=0):
    return loader.make_train_data(cfg, batch_size=2, seed=seed)


def evaluate(cfg, **views):
    return loader.make_eval_data(cfg, split="test", batch_size=2, **views)


def batches(data, first=0, number=1):
    return list(itertools.islice(data.iterate(first), number))


def check_target(task, target, size):
    """Checks the shape, type and values of a target [H, W, K]."""
    if task.target == "classes":
        assert target.shape == (*size, 1) and target.dtype == np.int32
        assert set(np.unique(target)) <= set(range(-1, task.num_outputs))
        return
    assert target.shape == (*size, task.num_outputs) and target.dtype == np.float32
    known = target[np.isfinite(target)]
    assert known.size > target.size / 4
    assert task.target == "values" or set(np.unique(known)) <= {0.0, 1.0}


@pytest.mark.usefixtures("world_cache")
@pytest.mark.parametrize("name", END_TASKS)
def test_stand_ins_of_all_end_tasks_have_the_declared_shapes(name):
    task, cfg = END_TASKS[name], section(name, **SIZES)
    options = EndTaskOptions(**cfg["end_task"])
    for split, size in (("train", (16, 24)), ("test", (32, 48))):
        source = registry.open_source(cfg["train"], split=split)
        proto = tf.train.SequenceExample.FromString(source.fetch(0))
        images, targets = (
            [one.bytes_list.value[0] for one in proto.feature_lists.feature_list[key[0]].feature]
            for key in (schema.FRAMES, schema.TARGET)
        )
        framer = options.framer(train=split == "train")
        example = framer.decode(images, targets[0] if targets else None)
        image, target = framer.frame(example, np.random.default_rng(0).random(NUM_DRAWS))
        assert image.shape == (task.num_images, *size, 3) and image.dtype == np.uint8
        assert image.std() > 5
        if task.pixelwise:
            check_target(task, target, size)
            assert source.info.num_classes == 0
        else:
            assert target is None and 0 <= source.labels()[0] < source.info.num_classes


@pytest.mark.usefixtures("world_cache")
@pytest.mark.parametrize("name", ["KineticsActionPrediction", "EgoHands", "KITTIFlow"])
def test_batches_have_the_fields_of_the_target_type(name):
    task, cfg = END_TASKS[name], section(name, **SIZES)
    data = train(cfg)
    for batch, size in (
        (batches(data)[0], (16, 24)),
        (next(iter(evaluate(cfg).iterate())), (32, 48)),
    ):
        assert batch["image"].shape == (2, task.num_images, *size, 3)
        assert batch["image"].dtype == np.uint8
        if task.pixelwise:
            assert "label" not in batch and data.num_classes == task.num_outputs
            for target in batch["target"]:
                check_target(task, target, size)
        else:
            assert "target" not in batch
            assert batch["label"].shape == (2,) and batch["label"].dtype == np.int32
            assert (0 <= batch["label"]).all() and (batch["label"] < data.num_classes).all()


@pytest.mark.usefixtures("world_cache")
@pytest.mark.parametrize(
    ("name", "paper"), [("CityscapesSemanticSegmentation", False), ("KITTI", True)]
)
def test_batches_depend_on_the_seed_and_the_step_only(name, paper):
    cfg = section(name, paper=paper, **SIZES)
    whole = batches(train(cfg), number=7)
    for first in (0, 4):
        for a, b in zip(whole[first:], batches(train(cfg), first, 7 - first), strict=True):
            assert a.keys() == b.keys() == {"image", "target", "example_id"}
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])  # NaN equals NaN
    assert (batches(train(cfg, seed=1))[0]["image"] != whole[0]["image"]).any()
    ids = np.concatenate([batch["example_id"] for batch in whole])
    images = np.concatenate([batch["image"] for batch in whole])
    first, second = np.flatnonzero(ids == ids[0])[:2]
    assert (images[first] != images[second]).any()  # another window in the next epoch


@pytest.fixture
def root(tmp_path):
    return trees.write_all(tmp_path)


def test_batches_have_the_values_of_the_files(root):
    batch = batches(train(section("CLEVERNumObjects", root, size=8)))[0]
    order = batch["example_id"]
    assert batch["label"].tolist() == [[2, 1][n] for n in order]
    assert batch["image"].mean((1, 2, 3, 4)).tolist() == order.tolist()  # gray levels 0 and 1
    batch = batches(train(section("NYUDepth", root, size=4)))[0]
    np.testing.assert_array_equal(batch["target"][0, :, :, 0], [[2.5, 2.5, np.nan, np.nan]] * 4)
    batch = batches(train(section("NYUDepth", root, paper=True, size=4)))[0]
    assert np.isfinite(batch["target"]).all() and (batch["target"] > 2).any()
    batch = batches(train(section("KITTIFlow", root, train_size=(4, 8))))[0]
    left = np.broadcast_to([3.5, -2], (4, 4, 2))
    np.testing.assert_array_equal(batch["target"][0, :, :4], left)
    assert np.isnan(batch["target"][0, :, 4:]).all()
    assert batch["image"][0].mean((1, 2, 3)).tolist() == [10, 11]


def test_every_test_example_is_scored(root):
    cfg = section("EgoHands", root, test_size=(4, 4))
    ids = [n for b in evaluate(cfg).iterate() for n in b["example_id"][b["mask"] > 0]]
    assert sorted(ids) == list(range(8))


# Records that are wrong ---------------------------------------------------------------------------


def test_damaged_images_and_targets_are_named(root):
    path = root / "nyu/train/images/rgb_1.png"
    content = path.read_bytes()
    path.write_bytes(content[:60])
    with raises(UserError, path, "truncated"):
        batches(train(section("NYUDepth", root)))
    path.write_bytes(content)
    path = root / "nyu/train/depths/depth_1.tiff"
    path.write_bytes(b"no image")
    with raises(UserError, path, "target"):
        batches(train(section("NYUDepth", root)))
    path = root / "CLEVR/images/train/CLEVR_train_000000.png"
    path.write_bytes(b"")
    with raises(UserError, path, "empty"):
        batches(train(section("CLEVERNumObjects", root)))


def test_a_mask_of_another_size_is_named(root):
    path = root / "pets/annotations/trimaps/train_b_1.png"
    Image.new("L", (7, 6), 2).save(path)
    with raises(UserError, path, "8×6", "7×6"):
        batches(train(section("Pets-Detection", root)), number=2)


def test_targets_with_unknown_classes_are_named(root):
    path = root / "coco/annotations/panoptic_labels_train2017/1.png"
    trees.mask(path, 201)
    with raises(UserError, path, "201", "0 to 200"):
        batches(train(section("COCODetection", root)))


def test_labels_out_of_range_are_errors(root, monkeypatch):
    monkeypatch.chdir(root)
    cfg = section("Pets", root) | dict(train="tests.data.pipeline.test_end_task:WrongLabel")
    with raises(UserError, "Pets", "3", "third image"):
        batches(train(cfg))


class WrongLabel:
    """A source whose label exceeds the classes that it declares."""

    directory, files, index, name, num_examples = "", None, None, "wrong", 1
    info = DatasetInfo(name="wrong", num_classes=3, modalities=("video", "label"))

    def __init__(self, *, split):
        pass

    def fetch(self, record):
        return schema.encode(toy.example(0, labels=[3], frames=toy.example(0).frames[:1]))

    def where(self, record):
        return "third image"

    def labels(self):
        return np.array([3])


def test_records_with_another_number_of_images_are_errors(root):
    cfg = section("Pets", root) | dict(end_task=dict(name="THORActionPrediction", size=8))
    with raises(UserError, "1 images", "2", "end_task:THORActionPrediction", "train_"):
        batches(train(cfg))


def test_skipped_records_are_counted(root):
    (root / "pets/train/b/train_b_1.jpg").write_bytes(b"no image")
    data = train(section("Pets", root, size=8) | dict(corrupt="skip"))
    ids = {int(n) for batch in batches(data, number=4) for n in batch["example_id"]}
    assert data.corrupt > 0 and ids == {0, 2}


# The section --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (dict(), ("data.end_task.name",)),
        (dict(name="Petz"), ("Petz", "Pets")),
        (dict(name="Pets", sise=3), ("sise", "size")),
        (dict(name="Pets", size=0), ("data.end_task.size", "0")),
        (dict(name="Pets", train_size=(3,)), ("data.end_task.train_size", "(3,)")),
    ],
)
def test_wrong_options(options, facts):
    with raises(UserError, *facts):
        parse_config(dict(train="world", end_task=options))


def test_end_tasks_need_no_other_images():
    with raises(UserError, "data.end_task", "data.video"):
        parse_config(dict(train="world", end_task=dict(name="Pets"), video={}))


def test_sizes_are_declared_or_those_of_the_section():
    def sizes(name, **options):
        cfg = EndTaskOptions(name=name, **options)
        return [cfg.framer(train=is_train).size for is_train in (True, False)]

    assert sizes("Pets", size=96) == [(96, 96)] * 2
    assert sizes("CityscapesSemanticSegmentation", size=96) == [(450, 450), (1024, 2048)]
    assert sizes("KITTI", size=96) == [(96, 96), (376, 1242)]
    assert sizes("EgoHands", test_size=(3, 4)) == [(513, 513), (3, 4)]


def test_the_number_of_classes_is_declared_or_that_of_the_data():
    infos = [DatasetInfo(name="one", num_classes=3), DatasetInfo(name="two", num_classes=4)]
    assert count_outputs(EndTaskOptions(name="Pets"), infos[:1]) == 3
    assert count_outputs(EndTaskOptions(name="EgoHands"), infos) == 5
    with raises(UserError, "Pets", "one: 3", "two: 4"):
        count_outputs(EndTaskOptions(name="Pets"), infos)
    with raises(UserError, "Pets", "unknown"):
        count_outputs(EndTaskOptions(name="Pets"), [DatasetInfo(name="none")])
