"""Features that are computed once: their values, variants, projection and reuse."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest

from mmjax.benchmark import encode as encode_lib
from mmjax.benchmark.encode import EncodeOptions, encode
from mmjax.cache import cache_dir
from mmjax.data.storage import schema
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.errors import UserError
from tests.benchmark.images import CLASSES, SIZE, color_encoder, write_classes
from tests.data import toy_clips as toy
from tests.messages import raises

QUIET = dict(batch_size=8, progress=False)  # the last batch of 21 and of 9 examples is padded


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def images(root):
    return write_classes(root)


def section(root, **options):
    data = dict(train=f"end_task:Pets,root={root}", end_task=dict(name="Pets", size=SIZE))
    return data | dict(label={}, **options)


def encoded(root, encoder=None, data=None, **options):
    """Encodes Pets; returns the directory."""
    path = encode(
        encoder or color_encoder(), data or section(root), options=EncodeOptions(**QUIET | options)
    )
    return pathlib.Path(path)


def read(directory, split="train"):
    return [np.load(directory / split / f"{name}.npy") for name in ("embedding", "label")]


def embed(encoder, images):
    """Returns the embeddings of images [N, H, W, 3]."""
    return np.asarray(encoder.trunk.embedding(encoder.params, encoder.extra, images[:, None]))[:, 0]


def test_features_are_those_of_the_encoder_in_the_order_of_the_data(root, images):
    directory = encoded(root)
    for split, (pixels, labels) in images.items():
        features, stored = read(directory, split)
        assert features.dtype == np.float16 and stored.dtype == np.int32
        np.testing.assert_array_equal(stored, labels)
        expected = embed(color_encoder(), pixels)[:, None]
        np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-3)
    description = json.loads((directory / "features.json").read_text())
    assert description["num_examples"] == {"train": 21, "test": 9}
    assert description["class_names"] == list(CLASSES) and description["num_classes"] == 3
    assert description["made"]["weights"] == color_encoder().fingerprint


def test_repeats_are_training_images_with_other_colors(root, images):
    train, _ = read(encoded(root, repeats=3))
    test, _ = read(encoded(root, repeats=3), "test")
    assert train.shape == (21, 3, 5) and test.shape == (9, 1, 5)
    np.testing.assert_allclose(test[:, 0], embed(color_encoder(), images["test"][0]), atol=2e-3)
    plain = embed(color_encoder(), images["train"][0])
    for first, second in ((train[:, 0], train[:, 1]), (train[:, 1], train[:, 2])):
        assert (np.abs(first - second).max(axis=1) > 1e-3).mean() > 0.9
        assert (np.abs(first - plain).max(axis=1) > 1e-3).mean() > 0.9
    # Of each example, whatever the batch.
    other, _ = read(encoded(root, color_encoder(offset=1.0), repeats=3, batch_size=16))
    np.testing.assert_allclose(other, train + 1.0, atol=5e-3)


def test_principal_components_equal_those_of_a_singular_value_decomposition(root, images):
    directory = encoded(root, color_encoder(width=6), pca=2)
    plain = [read(encoded(root, color_encoder(width=6)), s)[0] for s in ("train", "test")]
    train, test = (np.float64(x[:, 0]) for x in plain)
    mean = train.mean(axis=0)
    _, scales, components = np.linalg.svd(train - mean, full_matrices=False)
    assert scales[1] > 1.1 * scales[2]
    for x, split in ((train, "train"), (test, "test")):
        features, labels = read(directory, split)
        assert features.shape == (len(x), 1, 2) and features.dtype == np.float16
        expected = (x - mean) @ components[:2].T
        signs = np.sign((expected * features[:, 0]).sum(axis=0))
        np.testing.assert_allclose(features[:, 0] * signs, expected, rtol=5e-3, atol=5e-3)
        np.testing.assert_array_equal(labels, images[split][1])
    both, _ = read(encoded(root, color_encoder(width=6), pca=2, repeats=2))
    assert both.shape == (21, 2, 2)


def test_components_are_fitted_to_the_first_variant_of_some_examples(monkeypatch):
    monkeypatch.setattr(encode_lib, "_PCA_EXAMPLES", 10)
    features = np.random.default_rng(0).normal(size=(25, 2, 4)).astype(np.float16)
    mean, components = encode_lib.fit_pca(features, 3)
    used = np.float64(features[::3, 0])  # at most ten
    np.testing.assert_allclose(mean, used.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(components.T @ components, np.eye(3), atol=1e-5)
    with raises(UserError, "pca=5", 4, "9 examples"):
        encode_lib.fit_pca(features, 5)


@pytest.fixture
def calls(monkeypatch):
    """The number of images that encoders have encoded, padding included."""
    counted = []
    make = encode_lib.encoder_function

    def counting(encoder):
        function = make(encoder)

        def call(batch, key=None):
            counted.append(len(batch["image"]))
            return function(batch, key)

        return call

    monkeypatch.setattr(encode_lib, "encoder_function", counting)
    return counted


def test_features_are_computed_once_for_what_determines_them(root, images, calls):
    first = encoded(root)
    assert sum(calls) == 24 + 16
    assert encoded(root) == first and encoded(root, batch_size=16) == first
    assert sum(calls) == 24 + 16
    renamed = color_encoder(source="elsewhere")  # the same weights
    assert encoded(root, renamed) == first
    others = {
        "weights": encoded(root, color_encoder(seed=1)),
        "statistics": encoded(root, color_encoder(offset=0.5)),
        "section": encoded(root, dataclasses.replace(color_encoder(), section={"task": "x"})),
        "pca": encoded(root, pca=1),
        "repeats": encoded(root, repeats=2),
        "size": encoded(root, data=section(root) | dict(end_task=dict(name="Pets", size=4))),
    }
    assert len({first, *others.values()}) == 1 + len(others)
    calls.clear()
    write_classes(root, train=8)  # another image per class
    assert encoded(root) != first and sum(calls) == 24 + 16
    path = root / "pets/train/a/0.png"
    calls.clear()
    os.utime(path, (1, 1))  # an image was replaced
    encoded(root)
    assert sum(calls) == 24 + 16


def test_a_split_can_be_encoded_alone(root, images, calls):
    options = EncodeOptions(**QUIET)
    directory = encode(color_encoder(), section(root), splits=("test",), options=options)
    assert sum(calls) == 16 and not (pathlib.Path(directory) / "train").exists()
    assert len(read(pathlib.Path(directory), "test")[1]) == 9


def test_images_that_cannot_be_decoded_are_named_and_leave_nothing_behind(root, images):
    path = root / "pets/train/b/2.png"
    content = path.read_bytes()
    path.write_bytes(content[:60])
    with raises(UserError, path):
        encoded(root)
    assert [p.suffix for p in (cache_dir() / "features").iterdir()] == [".lock"]
    directory = encoded(root, data=section(root, corrupt="skip"))
    features, labels = read(directory)
    assert len(features) == 20 and np.bincount(labels).tolist() == [7, 6, 7]
    kept = np.delete(images["train"][0], 9, axis=0)
    np.testing.assert_allclose(features[:, 0], embed(color_encoder(), kept), atol=2e-3)
    assert json.loads((directory / "features.json").read_text())["num_examples"]["train"] == 20


def test_an_embedding_that_is_not_finite_is_named(root, images):
    encoder = color_encoder()
    values = embed(encoder, images["train"][0])
    index = int(np.abs(values).max(axis=1).argmax())
    scale = 65504 / np.sort(np.abs(values).max(axis=1))[-2:].mean()  # only the largest overflows
    broken = dataclasses.replace(encoder, params={"kernel": encoder.params["kernel"] * scale})
    label, number = divmod(index, 7)
    with raises(UserError, root / "pets/train" / CLASSES[label] / f"{number}.png", "float16"):
        encoded(root, broken)


class Unlabeled:
    """A source whose second record has no label."""

    directory, files, index, name, num_examples = "", None, None, "unlabeled", 2
    info = DatasetInfo(name="unlabeled", num_classes=3, modalities=("video", "label"))

    def __init__(self, *, split):
        pass

    def fetch(self, record):
        labels = [] if record else [1]
        return schema.encode(toy.example(0, labels=labels, frames=toy.example(0).frames[:1]))

    def where(self, record):
        return f"image {record}"

    def labels(self):
        return np.array([1, -1])


def test_examples_without_a_label_are_named(root):
    data = section(root) | dict(train="tests.benchmark.test_encode:Unlabeled")
    with raises(UserError, "image 1", "1 examples of train"):
        encoded(root, data=data)


@pytest.mark.parametrize(
    ("options", "facts"),
    [(dict(batch_size=0), ["batch_size", 0]), (dict(pca=-1), ["pca", -1])],
)
def test_options_out_of_range_are_named(options, facts):
    with raises(UserError, *facts):
        EncodeOptions(**options)
