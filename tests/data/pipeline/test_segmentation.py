"""The section `data.segmentation`: joint augmentation, missing and invalid masks, classes."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from mmjax.data.pipeline import loader
from mmjax.data.storage import schema
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from tests.data.pipeline import one_record
from tests.data.quarters import CLASSES, COLORS, build, classes_of, example
from tests.messages import raises


def train(directory, *, batch_size=12, seed=0, **options):
    section = dict(train=directory, segmentation=dict(size=24) | options)
    return loader.make_train_data(section, batch_size=batch_size, seed=seed)


def batch_of(directory, **options):
    return next(iter(train(directory, **options).iterate()))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return build(tmp_path_factory.mktemp("quarters"))


def assert_colors_fit_classes(batch):
    """Every pixel has the color of its class, except at borders of classes and crops."""
    for image, mask in zip(batch["image"], batch["segmentation"], strict=True):
        known = mask < len(COLORS)
        different = np.abs(image.astype(int) - COLORS[np.where(known, mask, 0)]).max(-1) > 60
        largest = ndimage.maximum_filter(mask, 7, mode="constant", cval=255)
        inner = known & (largest == ndimage.minimum_filter(mask, 7))
        assert not (different & inner).any() and inner.any()


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(shorter_side=30, scale=(0.5, 2.0)),
        dict(shorter_side=64, nearest="floor"),
        dict(crop="center", flip=False),
        dict(size=64, scale=(0.4, 0.6)),
    ],
    ids=["default", "scaled", "enlarged", "center", "padded"],
)
def test_image_and_mask_show_the_same_part(directory, options):
    batch = batch_of(directory, **options)
    size = options.get("size", 24)
    assert batch["image"].shape == (12, size, size, 3) and batch["image"].dtype == np.uint8
    assert batch["segmentation"].shape == (12, size, size)
    assert batch["segmentation"].dtype == np.uint8
    assert_colors_fit_classes(batch)
    padded = batch["segmentation"] == 255
    assert padded.any() == ("scale" in options)
    assert (batch["image"][padded] == (124, 116, 104)).all()


def test_examples_are_mirrored_independently(directory):
    # Without mirroring, red is always on the left of green.
    plain = batch_of(directory, crop="center", size=70, flip=False)
    mirrored = batch_of(directory, crop="center", size=70)
    is_same = (plain["segmentation"] == mirrored["segmentation"]).all((1, 2))
    assert 0 < is_same.sum() < 12
    for name in ("image", "segmentation"):
        expected = np.where(
            is_same.reshape(-1, *(1,) * (plain[name].ndim - 1)),
            plain[name],
            plain[name][:, :, ::-1],
        )
        assert (mirrored[name] == expected).mean() > 0.97  # a window may move by a pixel


def test_an_example_depends_only_on_seed_and_position(directory):
    options = dict(scale=(0.5, 2.0))
    whole = batch_of(directory, **options)
    halves = list(itertools.islice(train(directory, batch_size=6, **options).iterate(), 2))
    for name, values in whole.items():
        assert np.array_equal(values, np.concatenate([half[name] for half in halves])), name
    other = batch_of(directory, seed=1, **options)
    assert (other["segmentation"] != whole["segmentation"]).any()


def test_evaluation_takes_the_center(directory):
    section = dict(train=directory, segmentation=dict(size=24, scale=(0.5, 2.0)))
    data = loader.make_eval_data(section, split="train", batch_size=6)
    batches = list(data.iterate())
    masks = np.concatenate([batch["segmentation"] for batch in batches])
    assert np.concatenate([batch["mask"] for batch in batches]).sum() == 12
    for number in range(12):
        mask = classes_of(number)
        top, left = (round((side - 24) / 2) for side in mask.shape)
        assert np.array_equal(masks[number], mask[top : top + 24, left : left + 24])
    assert {k: v.shape for k, v in data.spec.items()} == {k: v.shape for k, v in batches[0].items()}


def test_examples_without_a_mask_have_no_class(directory):
    data = train(directory)
    batch = one_record.run(data, example(0, masks=[]))
    assert (batch["segmentation"] == 255).all() and batch["image_mask"] == 1
    batch = one_record.run(data, example(0, masks=[], frames=[]))
    assert (batch["segmentation"] == 255).all() and batch["image_mask"] == 0


def test_videos_show_a_frame_with_its_own_mask(directory):
    clip = example(
        0,
        frames=[example(k).frames[0] for k in (0, 35)],
        masks=[example(k).masks[0] for k in (0, 35)],
    )
    data = train(directory, crop="center", flip=False, size=64)
    batches = [one_record.run(data, clip, position) for position in range(12)]
    batch = {name: np.stack([b[name] for b in batches]) for name in ("image", "segmentation")}
    assert_colors_fit_classes(batch)
    assert len({mask.tobytes() for mask in batch["segmentation"]}) == 2


@pytest.mark.parametrize(
    "changes, facts",
    [
        (dict(masks=[schema.encode_mask(np.full((40, 70), 7, np.uint8))]), ("7", "4 classes")),
        (dict(masks=[schema.encode_mask(np.zeros((4, 70), np.uint8))]), ("4, 70", "40, 70")),
        (dict(masks=example(0).masks * 2), ("1", "2", "masks")),
        (dict(frames=[]), ("masks",)),
    ],
    ids=["unknown class", "another size", "too many", "no image"],
)
def test_invalid_masks_are_refused(directory, changes, facts):
    with raises(tf.errors.InvalidArgumentError, *facts):
        one_record.run(train(directory), example(0, **changes))


def test_an_unknown_class_in_a_dataset_names_record_and_value(tmp_path):
    path = build(tmp_path, payload=lambda n: example(n, masks=example(0).masks), count=2)
    bad = build(tmp_path, count=4, mask_classes=CLASSES[:2])
    assert path == bad
    with raises(UserError, "train-00000-of-00001.tfrecord, record", "2 classes", "num_classes"):
        batch_of(bad, batch_size=2)


def test_classes_are_those_of_the_datasets(directory, tmp_path):
    data = train(directory)
    assert data.mask_classes == tuple(CLASSES) and data.num_classes == 4
    spec = DataSpec.of(data)
    assert spec.mask_classes == tuple(CLASSES) and spec.num_classes == 4
    assert train(directory, num_classes=6).mask_classes == ("0", "1", "2", "3", "4", "5")
    other = build(tmp_path, 2, mask_classes=["red", "blue"])
    section = dict(train=(directory, other), segmentation=dict(size=24))
    with raises(UserError, "red, green, blue, yellow", "red, blue", "num_classes"):
        loader.make_train_data(section, batch_size=2, seed=0)
    section["segmentation"] |= dict(num_classes=4)
    assert loader.make_train_data(section, batch_size=2, seed=0).num_classes == 4


@pytest.mark.parametrize(
    "options, key",
    [
        (dict(size=0), "size"),
        (dict(shorter_side=-1), "shorter_side"),
        (dict(scale=(2.0, 1.0)), "scale"),
        (dict(scale=(0.0, 1.0)), "scale"),
        (dict(num_classes=256), "num_classes"),
        (dict(nearest="round"), "nearest"),
    ],
)
def test_invalid_options_are_refused(directory, options, key):
    with raises(UserError, f"data.segmentation.{key}"):
        train(directory, **options)


def test_images_cannot_be_made_twice(directory):
    section = dict(train=directory, segmentation=dict(size=24), image=dict(size=24))
    with raises(UserError, "data.segmentation", "data.image"):
        loader.make_train_data(section, batch_size=2, seed=0)


def test_datasets_without_masks_are_refused(tmp_path):
    counts = dict(examples_with=dict(video=3))
    path = build(tmp_path, 3, payload=lambda n: example(n, masks=[]), statistics=counts)
    with raises(UserError, "data.segmentation", "mask", "has video"):
        train(path)
