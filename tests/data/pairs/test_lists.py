"""`mmjax pairs`: lists in LGSSL's format to directories of pairs and back."""

import json

import numpy as np
import pytest

from mmjax.data.pairs import pair_files
from mmjax.data.sources import registry as sources
from mmjax.data.storage import schema
from mmjax.tools import cli
from tests.data import toy_clips as toy
from tests.data.importers.importing import assert_line_mentions
from tests.messages import assert_mentions

COUNT = 40
RNG = np.random.default_rng(3)
DIRS = [f"{('old_cars', 'cats')[n % 2]}_{2015 + n // 2 % 3}_{n // 8:06}" for n in range(COUNT)]


def example(record):
    return schema.Example(captions=["a thing"], filename=f"{DIRS[record]}/item{record}.jpg")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "toy"
    return toy.build(directory, COUNT, payload=lambda n: schema.encode(example(n)))


def read(path, data):
    source = sources.open_source(data, split="train")
    return pair_files.open_pairs(path, source=source, split="train")


def test_pairs_survive_export_to_a_list_and_import(data, tmp_path, capsys):
    neighbors = (np.arange(COUNT)[:, None] + [1, 4]) % COUNT
    similarity = np.sort(RNG.random((COUNT, 2)).astype(np.float32))[:, ::-1]
    arguments = dict(dataset="toy", split="train")
    pair_files.write_pairs(tmp_path / "pairs", neighbors, similarity, **arguments)
    path, out = tmp_path / "list.json", tmp_path / "again"
    assert cli.main(["pairs", str(tmp_path / "pairs"), "--data", data, "--out", str(path)]) == 0
    entries = json.loads(path.read_text())
    result = read(tmp_path / "pairs", data)
    other = result.neighbors[7, 0]
    assert [[DIRS[7], "item7"], [DIRS[other], f"item{other}"]] in [e[:2] for e in entries]
    assert len(entries) == 2 * COUNT
    entries.append([["elsewhere", "1"], [DIRS[0], "item0"], 0.99])
    path.write_text(json.dumps(entries))
    assert cli.main(["pairs", str(path), "--data", data, "--out", str(out)]) == 0
    assert_line_mentions(capsys.readouterr().out, out, "40 of 40", 81, 1, "toy/train")
    again = read(out, data)
    np.testing.assert_allclose(again.similarity, result.similarity, atol=1e-6)
    assert np.array_equal(again.neighbors, result.neighbors)


def test_min_similarity_and_min_ratio_filter_lists(data, tmp_path):
    def entry(one, other, *values):
        return [[DIRS[one], f"item{one}"], [DIRS[other], f"item{other}"], *values]

    path, out = tmp_path / "list.json", tmp_path / "pairs"
    listed = [entry(0, 1, 0.9), entry(1, 2, 0.4), entry(2, 3, 0.8, 0.5), entry(3, 0, 0.7, 1.5)]
    path.write_text(json.dumps(listed))
    options = ["--data", data, "--out", str(out), "--min-similarity", "0.5", "--min-ratio", "0.9"]
    assert cli.main(["pairs", str(path), *options]) == 0
    assert read(out, data).neighbors[:5, 0].tolist() == [1, -1, -1, 0, -1]
    assert pair_files.read_description(out)["made"]["below"] == 2


def test_repeated_pair_of_a_list_becomes_one_neighbor(data, tmp_path):
    path, out = tmp_path / "list.json", tmp_path / "pairs"
    names = [[directory, f"item{n}"] for n, directory in enumerate(DIRS)]
    listed = [(0, 1, 0.5), (0, 2, 0.8), (0, 1, 0.9), (5, 6, 0.7)]
    path.write_text(json.dumps([[names[a], names[b], value] for a, b, value in listed]))
    assert cli.main(["pairs", str(path), "--data", data, "--out", str(out)]) == 0
    result = read(out, data)
    assert result.neighbors[[0, 5]].tolist() == [[1, 2], [6, -1]]
    np.testing.assert_allclose(result.similarity[[0, 5]], [[0.9, 0.8], [0.7, 0.0]])


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("{", ("JSON", "line 1 column 2")),
        ("{}", ("similarity]",)),
        ('[[["a", "1"], ["b", "2"]]]', (0, "similarity]", '[["a", "1"], ["b", "2"]]')),
        ('[[["a", "1"], ["b", "2"], "near"]]', (0, "similarity]", '"near"]')),
        ('[[["a", "1"], "b", 0.5]]', (0, "similarity]", '"b", 0.5]')),
        ('[[["a", "1"], ["b", "2"], 0.5, 1, 1]]', (0, "similarity]", "0.5, 1, 1]")),
    ],
)
def test_malformed_lists_are_named(data, tmp_path, capsys, content, facts):
    path = tmp_path / "list.json"
    path.write_text(content)
    assert cli.main(["pairs", str(path), "--data", data, "--out", str(tmp_path / "out")]) == 2
    assert_line_mentions(capsys.readouterr().err, path, *facts)


def test_list_of_another_dataset_writes_nothing(data, tmp_path, capsys):
    path, out = tmp_path / "list.json", tmp_path / "pairs"
    path.write_text(json.dumps([[["elsewhere", "1"], [DIRS[0], "item0"], 0.9]]))
    assert cli.main(["pairs", str(path), "--data", data, "--out", str(out)]) == 2
    facts = (path, "toy/train", "0 of 40", 1, f"{DIRS[0]}/item0")
    assert_line_mentions(capsys.readouterr().err, *facts)
    assert not out.exists()


def test_ambiguous_record_names_are_refused(tmp_path, capsys):
    def twice(record):
        return schema.encode(schema.Example(captions=["x"], filename=f"{record}/d/same.jpg"))

    data = toy.build(tmp_path / "toy", 2, payload=twice)
    (tmp_path / "list.json").write_text("[]")
    options = ["--data", data, "--out", str(tmp_path / "out")]
    assert cli.main(["pairs", str(tmp_path / "list.json"), *options]) == 2
    assert_mentions(capsys.readouterr().err, "toy/train", "d/same", "records 0 and 1")
