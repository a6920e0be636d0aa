"""Labeled images in .npz files: split names, shapes, exact pixels and error messages."""

import zipfile

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data.sources import registry as sources
from mmjax.data.storage import schema
from mmjax.errors import UserError
from tests.messages import assert_mentions, raises

RNG = np.random.default_rng(0)
COLOR_IMAGES = RNG.integers(0, 256, (5, 6, 7, 3), np.uint8)
LABELS = np.array([0, 3, 1, 1, 0])


def images(source):
    frames = [schema.decode(source.fetch(n)).frames for n in range(source.num_examples)]
    return np.stack([tf.io.decode_png(frame).numpy() for (frame,) in frames])


@pytest.mark.parametrize(
    "stored",
    [
        COLOR_IMAGES,
        COLOR_IMAGES[..., :1],
        COLOR_IMAGES[..., 0],
        RNG.integers(0, 256, (5, 3, 3, 3), np.uint8),
    ],
    ids=["color", "one channel", "gray", "three by three"],
)
def test_decoded_pixels_equal_the_array(tmp_path, stored):
    np.savez_compressed(tmp_path / "set.npz", images=stored, labels=LABELS[:, None])
    source = sources.open_source(f"npz:{tmp_path / 'set.npz'}", split="train")
    whole = stored if stored.ndim == 4 else stored[..., None]
    assert (images(source) == np.broadcast_to(whole, (*whole.shape[:3], 3))).all()
    assert source.labels().tolist() == LABELS.tolist() and source.info.num_classes == 4
    assert [schema.decode(source.fetch(n)).labels for n in range(5)] == [[n] for n in LABELS]
    assert_mentions(source.where(2).replace(str(tmp_path), ""), "set.npz", "images", 2)


def test_pixels_are_read_on_the_first_fetch(tmp_path):
    """Opening a source reads only array headers: an evaluation suite opens all datasets first."""
    large = RNG.integers(0, 256, (5, 200, 100, 3), np.uint8)
    np.savez_compressed(tmp_path / "set.npz", images=large, labels=LABELS)
    source = sources.open_source(f"npz:{tmp_path / 'set.npz'}", split="train")
    content = bytearray((tmp_path / "set.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "set.npz") as archive:
        (start,) = [m.header_offset for m in archive.infolist() if m.filename == "images.npy"]
        (size,) = [m.compress_size for m in archive.infolist() if m.filename == "images.npy"]
    end = start + size
    content[end - 40 : end - 20] = bytes(20)
    (tmp_path / "set.npz").write_bytes(content)
    again = sources.open_source(f"npz:{tmp_path / 'set.npz'}", split="train")
    assert again.info.frame_size == (200, 100) and again.labels().tolist() == LABELS.tolist()
    for opened in (source, again):
        with raises(UserError, tmp_path / "set.npz", "images.npy", "CRC-32"):
            opened.fetch(0)


@pytest.mark.parametrize("keys", ["{}_images {}_labels", "x_{} y_{}"])
def test_one_file_may_hold_several_splits(tmp_path, keys):
    image, label = keys.split()
    arrays = {}
    for split, count in (("train", 5), ("val", 2)):
        arrays[image.format(split)] = COLOR_IMAGES[:count]
        arrays[label.format(split)] = LABELS[:count]
    np.savez(tmp_path / "set.npz", **arrays, class_names=["a", "b", "c", "d"])
    spec = f"npz:{tmp_path / 'set.npz'}"
    assert sources.split_names(spec) == ["train", "val"]
    for split, count in (("train", 5), ("validation", 2)):
        source = sources.open_source(spec, split=split)
        assert (images(source) == COLOR_IMAGES[:count]).all()
        assert source.info.class_names == ["a", "b", "c", "d"]
    with raises(UserError, tmp_path / "set.npz", "'test'", "train, val"):
        sources.open_source(spec, split="test")


def test_each_split_may_have_its_own_file(tmp_path):
    for split, count in (("train", 2), ("test", 3)):
        arrays = dict(images=COLOR_IMAGES[:count], labels=LABELS[:count])
        np.savez(tmp_path / f"{split}.npz", **arrays)
    spec = f"npz:{tmp_path}"
    assert sorted(sources.split_names(spec)) == ["test", "train"]
    assert images(sources.open_source(spec, split="test")).shape[0] == 3
    part = sources.open_source(f"npz:{tmp_path / 'test.npz'}", split="test[1:]")
    assert (images(part) == COLOR_IMAGES[1:3]).all()


@pytest.mark.parametrize(
    "arrays, facts",
    [
        (
            dict(images=COLOR_IMAGES.transpose(0, 3, 1, 2)),
            ("images", "[5, 3, 6, 7]", "[N, H, W, C]", "images.transpose(0, 2, 3, 1)"),
        ),
        (dict(images=COLOR_IMAGES / 255.0), ("images", "float64", "uint8", "[N, H, W, 3]")),
        (dict(images=COLOR_IMAGES[..., :2]), ("images", "uint8", "[5, 6, 7, 2]", "[N, H, W, 3]")),
        (dict(images=COLOR_IMAGES[:4]), ("images", 4, "labels", 5)),
        (dict(labels=LABELS / 1.0), ("labels", "float64", "[5]", "integer")),
        (dict(labels=np.eye(5, dtype=int)), ("labels", "int64", "[5, 5]", "integer")),
        (dict(labels=np.array([0, 3, 1, -7, 0])), ("labels", "-7", 3)),
        (dict(labels=LABELS - 1), ("labels", "-1", 0)),
        (dict(labels=np.array(list("abcde"), object)), ("labels", "object", "allow_pickle")),
        (dict(class_names=["a", "b"]), ("class_names", 2, "labels", 3)),
    ],
)
def test_error_for_invalid_arrays(tmp_path, arrays, facts):
    path = tmp_path / "set.npz"
    np.savez(path, **(dict(images=COLOR_IMAGES, labels=LABELS) | arrays))
    with raises(UserError, path) as info:
        sources.open_source(f"npz:{path}", split="train")
    assert_mentions(str(info.value).replace(str(path), ""), *facts)


def test_error_for_files_without_usable_arrays(tmp_path):
    np.savez(tmp_path / "alone.npz", images=COLOR_IMAGES)
    np.savez(tmp_path / "other.npz", pictures=COLOR_IMAGES)
    np.save(tmp_path / "array.npy", COLOR_IMAGES)
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero_bytes.npz").touch()
    np.savez_compressed(tmp_path / "whole.npz", images=COLOR_IMAGES, labels=LABELS)
    damaged = bytearray((tmp_path / "whole.npz").read_bytes())
    damaged[60:70] = b"\xff" * 10  # inside the compressed data
    (tmp_path / "damaged.npz").write_bytes(damaged)
    names = ("train_images", "train_labels", "x_train", "y_train")
    for name, facts in (
        ("alone.npz", ("labels", "images")),
        ("other.npz", names),
        ("array.npy", (".npy", "uint8 [5, 6, 7, 3]", ".npz", "images", "labels")),
        ("text.npz", (".npz", "numpy.savez")),
        ("zero_bytes.npz", (".npz", "numpy.savez")),
        ("damaged.npz", ("images", "decompressing")),
        ("nothing.npz", ("does not exist",)),
        ("empty", names),
    ):
        path = tmp_path / name
        with raises(UserError, path) as info:
            sources.open_source(f"npz:{path}", split="train")
        assert_mentions(str(info.value).replace(str(path), ""), *facts)
