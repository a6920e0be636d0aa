"""Directories of pairs: writing, reading, and errors of damaged files."""

import json
import os

import numpy as np
import pytest

from mmjax.data.pairs import pair_files
from mmjax.data.sources import registry as sources
from mmjax.errors import UserError
from tests.data import toy_clips as toy
from tests.messages import assert_mentions, raises

COUNT = 23
NEIGHBORS = (np.arange(COUNT)[:, None] + [1, 4, 9]) % COUNT
SIMILARITY = np.tile([0.9, 0.8, 0.3], (COUNT, 1))
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = toy.build(tmp_path_factory.mktemp("toy"), COUNT)
    return sources.open_source(directory, split="train")


def write(directory, neighbors=NEIGHBORS, similarity=SIMILARITY, dataset="toy", split="train"):
    pair_files.write_pairs(directory, neighbors, similarity, dataset=dataset, split=split)
    return str(directory)


def open_pairs(directory, source):
    return pair_files.open_pairs(directory, source=source, split="train")


def test_written_pairs_can_be_opened(source, tmp_path):
    neighbors = np.where(RNG.random((COUNT, 3)) < 0.3, -1, NEIGHBORS)
    pair_files.write_pairs(
        tmp_path, neighbors, SIMILARITY, dataset="toy", split="train", encoder="bow", scope=None
    )
    assert pair_files.read_description(tmp_path) == dict(
        format=1, dataset="toy", split="train", num_examples=COUNT, encoder="bow", scope=None
    )
    assert sorted(os.listdir(tmp_path)) == ["neighbors.npy", "pairs.json", "similarity.npy"]
    opened = open_pairs(tmp_path, source)
    assert opened.neighbors.dtype == np.int32 and opened.similarity.dtype == np.float32
    assert np.array_equal(opened.neighbors, neighbors)
    expected = np.where(neighbors < 0, 0, SIMILARITY.astype(np.float32))
    assert np.array_equal(opened.similarity, expected)
    assert pair_files.read_description(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "neighbors, similarity, facts",
    [
        ([1, 0], [1.0, 1.0], ("neighbors", "similarity", "[2]", "[2, K]")),
        ([[1], [0]], [[1.0, 1.0]] * 2, ("[2, 1]", "[2, 2]", "[2, K]")),
        ([[1], [2]], [[1.0], [1.0]], ("neighbors[1, 0]", 2, -1)),
        ([[-2], [0]], [[1.0], [1.0]], ("neighbors[0, 0]", -2, -1)),
        ([[1], [0]], [[1.0], [np.nan]], ("similarity[1, 0]", "nan")),
    ],
)
def test_invalid_pairs_are_not_written(tmp_path, neighbors, similarity, facts):
    with raises(UserError, "toy/train", *facts):
        write(tmp_path, np.array(neighbors), np.array(similarity))
    assert not (tmp_path / "pairs.json").exists()


@pytest.mark.parametrize(
    "change, facts",
    [
        (lambda path: write(path, dataset="other"), ("other/train", "toy/train", 23)),
        (lambda path: write(path, split="test"), ("toy/test", "toy/train", 23)),
        (
            lambda path: write(path, np.zeros((9, 1)), np.ones((9, 1))),
            ("toy/train", 9, 23),
        ),
        (lambda path: os.remove(write(path) + "/pairs.json"), ("DIR", "pairs.json")),
        (lambda path: os.remove(write(path) + "/similarity.npy"), ("DIR/similarity.npy",)),
        (
            lambda path: np.save(write(path) + "/neighbors.npy", NEIGHBORS[:9]),
            ("[9, 3]", "[23, 3]", "[23, K]"),
        ),
        (
            lambda path: np.save(write(path) + "/neighbors.npy", NEIGHBORS + 1),
            ("neighbors", 1, 23, -1),
        ),
        (
            lambda path: np.save(write(path) + "/neighbors.npy", NEIGHBORS / 1),
            ("neighbors", "float64"),
        ),
    ],
)
def test_pairs_of_other_data_and_damaged_arrays_are_rejected(source, tmp_path, change, facts):
    change(tmp_path)
    with raises(UserError, "data.pairs.path", tmp_path) as info:
        open_pairs(str(tmp_path), source)
    # The numbers of the temporary directory must not stand in for those of the message.
    assert_mentions(str(info.value).replace(str(tmp_path), "DIR"), *facts)


@pytest.mark.parametrize(
    "text, facts",
    [
        ("{", ("line 1 column 2",)),
        ("[]", ("JSON object", "list")),
        ('{"dataset": "toy"}', ("the key 'split' is missing",)),
        ('{"dataset": 3}', ("'dataset'", "str", 3)),
        (
            '{"format": 2, "dataset": "toy", "split": "train", "num_examples": 23}',
            ("format 1", 2),
        ),
    ],
)
def test_invalid_pairs_json_is_rejected(source, tmp_path, text, facts):
    (tmp_path / "pairs.json").write_text(text)
    with raises(UserError, tmp_path / "pairs.json", *facts):
        open_pairs(str(tmp_path), source)


def test_an_interrupted_write_leaves_no_description(tmp_path, monkeypatch):
    write(tmp_path)

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert pair_files.read_description(tmp_path) is None


def test_pairs_json_holds_dataset_split_and_count(tmp_path):
    with open(os.path.join(write(tmp_path), "pairs.json"), encoding="utf-8") as file:
        assert json.load(file) == dict(format=1, dataset="toy", split="train", num_examples=COUNT)


def test_pairs_of_the_previous_version_are_read(source, tmp_path):
    """They have no format and another file name."""
    write(tmp_path)
    (tmp_path / "neighbors.npy").rename(tmp_path / "neighbours.npy")
    content = dict(dataset="toy", split="train", num_examples=COUNT)
    (tmp_path / "pairs.json").write_text(json.dumps(content))
    assert np.array_equal(open_pairs(tmp_path, source).neighbors, NEIGHBORS)
    (tmp_path / "neighbours.npy").unlink()
    with raises(UserError, "neighbours.npy", "mmjax neighbors"):
        open_pairs(tmp_path, source)
