"""Arrays of pictures: names of splits, shapes, exact pixels, and what is wrong with them."""

import zipfile

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data import schema, sources
from mmjax.errors import UserError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 6, 7, 3), np.uint8)
LABELS = np.array([0, 3, 1, 1, 0])


def images(source):
    frames = [schema.decode(source.fetch(n)).frames for n in range(source.num_examples)]
    return np.stack([tf.io.decode_png(frame).numpy() for (frame,) in frames])


@pytest.mark.parametrize(
    "stored",
    [COLOUR, COLOUR[..., :1], COLOUR[..., 0], RNG.integers(0, 256, (5, 3, 3, 3), np.uint8)],
    ids=["colour", "one channel", "grey", "three by three"],
)
def test_pixels_are_exact(tmp_path, stored):
    np.savez_compressed(tmp_path / "set.npz", images=stored, labels=LABELS[:, None])
    source = sources.open_source(f"npz:{tmp_path / 'set.npz'}", split="train")
    whole = stored if stored.ndim == 4 else stored[..., None]
    assert (images(source) == np.broadcast_to(whole, (*whole.shape[:3], 3))).all()
    assert source.labels().tolist() == LABELS.tolist() and source.info.num_classes == 4
    assert [schema.decode(source.fetch(n)).labels for n in range(5)] == [[n] for n in LABELS]
    assert source.where(2).endswith("set.npz, images, row 2")


def test_pictures_are_read_when_they_are_asked_for(tmp_path):
    """A suite opens all of its sets before it looks at the first: only their heads are read."""
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
        with pytest.raises(UserError, match="set.npz: the array images cannot be read"):
            opened.fetch(0)


@pytest.mark.parametrize("keys", ["{}_images {}_labels", "x_{} y_{}"])
def test_splits_of_a_file(tmp_path, keys):
    image, label = keys.split()
    arrays = {}
    for split, count in (("train", 5), ("val", 2)):
        arrays[image.format(split)] = COLOUR[:count]
        arrays[label.format(split)] = LABELS[:count]
    np.savez(tmp_path / "set.npz", **arrays, class_names=["a", "b", "c", "d"])
    spec = f"npz:{tmp_path / 'set.npz'}"
    assert sources.split_names(spec) == ["train", "val"]
    for split, count in (("train", 5), ("validation", 2)):
        source = sources.open_source(spec, split=split)
        assert (images(source) == COLOUR[:count]).all()
        assert source.info.class_names == ["a", "b", "c", "d"]
    with pytest.raises(UserError, match="has no split 'test'. It has: train, val"):
        sources.open_source(spec, split="test")


def test_a_file_for_each_split(tmp_path):
    for split, count in (("train", 2), ("test", 3)):
        arrays = dict(images=COLOUR[:count], labels=LABELS[:count])
        np.savez(tmp_path / f"{split}.npz", **arrays)
    spec = f"npz:{tmp_path}"
    assert sorted(sources.split_names(spec)) == ["test", "train"]
    assert images(sources.open_source(spec, split="test")).shape[0] == 3
    only = sources.open_source(f"npz:{tmp_path / 'test.npz'}", split="test[1:]")
    assert (images(only) == COLOUR[1:3]).all()


@pytest.mark.parametrize(
    "arrays, message",
    [
        (dict(images=COLOUR.transpose(0, 3, 1, 2)), r"channels first; .*transpose\(0, 2, 3, 1\)"),
        (dict(images=COLOUR / 255.0), r"images is float64 .*expected uint8 \[N, H, W, 3\]"),
        (dict(images=COLOUR[..., :2]), r"images is uint8 \[5, 6, 7, 2\]"),
        (dict(images=COLOUR[:4]), "4 pictures in images but 5 labels in labels"),
        (dict(labels=LABELS / 1.0), r"labels is float64 \[5\]; expected integers"),
        (dict(labels=np.eye(5, dtype=int)), r"labels is int64 \[5, 5\]; expected integers"),
        (dict(labels=LABELS - 1), "labels is -1 in row 0"),
        (dict(labels=np.array(list("abcde"), object)), "labels cannot be read"),
        (dict(class_names=["a", "b"]), "2 class_names, but labels up to 3"),
    ],
)
def test_faults(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **(dict(images=COLOUR, labels=LABELS) | arrays))
    with pytest.raises(UserError, match=message):
        sources.open_source(f"npz:{tmp_path / 'set.npz'}", split="train")


def test_files_that_are_none(tmp_path):
    np.savez(tmp_path / "alone.npz", images=COLOUR)
    np.savez(tmp_path / "other.npz", pictures=COLOUR)
    np.save(tmp_path / "array.npy", COLOUR)
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "nought.npz").touch()
    np.savez_compressed(tmp_path / "whole.npz", images=COLOUR, labels=LABELS)
    damaged = bytearray((tmp_path / "whole.npz").read_bytes())
    damaged[60:70] = b"\xff" * 10  # inside what is compressed
    (tmp_path / "damaged.npz").write_bytes(damaged)
    for name, message in (
        ("alone.npz", "lacks the array labels; it has: images"),
        ("other.npz", "has no arrays of pictures"),
        ("array.npy", "is a single array"),
        ("text.npz", "cannot be read as .npz"),
        ("nought.npz", "cannot be read as .npz"),
        ("damaged.npz", "cannot be read"),
        ("nothing.npz", "cannot be read as .npz"),
        ("empty", "has no arrays of pictures"),
    ):
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            sources.open_source(f"npz:{tmp_path / name}", split="train")
