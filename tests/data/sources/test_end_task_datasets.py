"""End tasks on datasets of `mmjax build` and TFDS, in place of the published layouts."""

import io

import numpy as np
import pytest
from PIL import Image

from mmjax.data.pipeline import loader
from mmjax.data.sources import end_task_datasets, layouts, registry, tfds
from mmjax.data.storage import schema
from mmjax.data.storage.dataset import SplitInfo, shard_name
from mmjax.end_tasks.registry import END_TASKS, PAPER, find
from mmjax.errors import UserError
from tests.data import toy_clips as toy
from tests.data.end_tasks import trees
from tests.messages import raises

KINETICS = "KineticsActionPrediction"


@pytest.fixture(autouse=True)
def tfds_directory(tmp_path, monkeypatch):
    """TFDS's default directory, which is empty."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


def build(directory, names, sizes=(6, 4), **changes):
    """Writes a dataset directory with several splits."""
    directory.mkdir(parents=True)
    splits = {
        name: SplitInfo(num_examples=count, shards=[shard_name(name, 0, 1)])
        for name, count in zip(names, sizes, strict=True)
    }
    for name, count in zip(names, sizes, strict=True):
        toy.build(directory, count, split=name, shards=1, **changes | dict(splits=splits))
    return directory


def opened(root, name, split="train"):
    return registry.open_source(f"end_task:{name},root={root}", split=split)


def times_of(record):
    """Returns the time index that each frame encodes."""
    frames = schema.decode(record).frames
    return [round((np.asarray(Image.open(io.BytesIO(f)))[..., 0].mean() - 3) / 10) for f in frames]


def test_frames_of_built_clips_are_evenly_spaced(tmp_path):
    build(tmp_path / "kinetics400", ("train", "validate"))
    with raises(UserError, "kinetics400", "annotations"):  # 'validate' is no name of a split
        opened(tmp_path, KINETICS)
    build(tmp_path / "other/kinetics400", ("train", "validation"))
    root = tmp_path / "other"
    assert layouts.missing(KINETICS, str(root)) == []
    source = opened(root, KINETICS, "test")
    assert source.num_examples == 4 and source.labels().tolist() == [0, 1, 2, 3]
    assert times_of(source.fetch(1)) == [1, 5, 8, 11, 15, 18]
    assert schema.decode(source.fetch(1)).labels == [1]
    assert registry.split_names(f"end_task:{KINETICS},root={root}") == ["train", "test"]
    data = loader.make_train_data(
        dict(
            train=f"end_task:{KINETICS},root={root}",
            split="train[:50%]",
            end_task=dict(name=KINETICS, size=8),
        ),
        batch_size=3,
        seed=0,
    )
    batch = next(data.iterate(0))
    assert batch["image"].shape == (3, 6, 8, 8, 3) and data.num_classes == 5
    assert sorted(batch["label"].tolist()) == [0, 1, 2]


def test_images_of_a_built_dataset_are_sliced_by_class(tmp_path):
    build(
        tmp_path / "imagenet",
        ("train", "validation"),
        sizes=(20, 5),
        payload=lambda n: schema.encode(toy.example(n, frames=toy.example(n).frames[:1])),
    )
    spec = f"end_task:Imagenet,root={tmp_path}"
    source = registry.open_source(spec, split="train[50%::stratified]")
    assert np.bincount(source.labels()).tolist() == [2] * 5
    cfg = dict(train=spec, end_task=dict(name="Imagenet", size=8))
    batch = next(iter(loader.make_eval_data(cfg, split="test", batch_size=5).iterate()))
    assert batch["image"].shape == (5, 1, 8, 8, 3) and batch["label"].tolist() == [0, 1, 2, 3, 4]


def test_clips_with_too_few_frames_are_named(tmp_path):
    build(
        tmp_path / "kinetics400",
        ("train", "test"),
        payload=lambda n: schema.encode(toy.example(n, frames=toy.example(n).frames[:5])),
    )
    with raises(UserError, "5 frames", "6", "train-00000-of-00001"):
        opened(tmp_path, KINETICS).fetch(0)


def test_the_published_layout_is_preferred(tmp_path):
    trees.write_all(tmp_path)
    (tmp_path / "kinetics400/dataset.json").write_text("{}")  # not read
    assert opened(tmp_path, KINETICS).num_examples == 2
    assert layouts.prepared(find(KINETICS), str(tmp_path)) is None


def test_a_part_of_the_published_layout_is_named_as_incomplete(tmp_path):
    build(tmp_path / "kinetics400", ("train", "test"))
    assert layouts.missing(KINETICS, str(tmp_path)) == []
    trees.image(tmp_path / "kinetics400/train/ab/abc_1.jpg")
    assert len(layouts.missing(KINETICS, str(tmp_path))) == 3
    with raises(UserError, "kinetics400/annotations/train.json"):
        opened(tmp_path, KINETICS)


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (["train", "val"], dict(train="train", test="val")),
        (["training", "dev", "testing"], dict(train="training", validation="dev", test="testing")),
        (["train"], dict(train="train")),
    ],
)
def test_the_validation_split_is_the_test_split_of_datasets_without_one(available, expected):
    assert end_task_datasets.splits_of(available) == expected


# {end task: numbers of training and test images of its TFDS dataset, from the splits of TFDS}.
SIZES = {
    "sun397/standard-part1-120k": dict(train=76_128, validation=10_875, test=21_750),
    "dtd": dict(train=1880, validation=1880, test=1880),
    "oxford_iiit_pet": dict(train=3680, test=3669),
    "cifar100": dict(train=50_000, test=10_000),
    "eurosat": dict(train=27_000),
    "clevr": dict(train=70_000, validation=15_000, test=15_000),
}
PAPER_SIZES = {  # of pyVTAB's training splits
    "SUN397": 87_003,
    "dtd": 3760,
    "Pets": 3680,
    "CIFAR-100": 50_000,
    "Eurosat": 21_600,
    "CLEVERNumObjects": 70_000,
}


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_splits_of_tfds_have_the_sizes_of_the_paper(name, tmp_path, tfds_directory):
    text, train, _ = end_task_datasets._TFDS[name]
    prepared = tfds_directory / text.partition(",")[0] / "1.0.0"
    prepared.mkdir(parents=True)
    assert end_task_datasets.find_prepared(find(name), str(tmp_path / "empty"), []) is None
    (prepared / "dataset_info.json").touch()
    assert layouts.missing(name, str(tmp_path / "empty")) == []
    found = layouts.prepared(find(name), str(tmp_path / "empty"))
    assert found.spec == f"tfds:{text},data_dir={tfds_directory}"
    sizes = SIZES[text.partition(",")[0]]
    parts = registry.split_slicing.parse(found.splits["train"])
    bounds = [part.bounds(sizes[part.name]) for part in parts]
    assert sum(stop - start for start, stop in bounds) == PAPER_SIZES[name]
    tested = {part.name for part in registry.split_slicing.parse(found.splits["test"])}
    assert tested <= sizes.keys() and (len(sizes) == 1 or tested.isdisjoint(p.name for p in parts))


def test_only_end_tasks_of_one_image_and_class_come_from_tfds():
    for name in end_task_datasets._TFDS:
        assert END_TASKS[name].num_images == 1 and not END_TASKS[name].pixelwise
    assert len(set(PAPER) & set(end_task_datasets._TFDS)) == 8


def test_objects_of_clevr_are_counted():
    names, label_of = tfds.LABELS["num_objects"]
    for count in (3, 10):
        index = label_of({"objects": {"color": np.zeros(count)}})
        assert index == count and names[index] == str(count)


def test_clips_keep_their_locations(tmp_path):
    path = build(tmp_path / "mine", ("train", "test"))
    plain = registry.open_source(str(path), split="train")
    source = end_task_datasets.Frames(plain, 6)
    assert source.where(2) == plain.where(2) and source.info.num_frames == 6
