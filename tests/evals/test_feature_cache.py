"""Features on disk: found again by what they were made from, and only then."""

import os
import types

import numpy as np
import pytest

from mmjax import distributed
from mmjax.errors import UserError
from mmjax.evals import feature_cache


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def make(bench, tmp_path):
    """A bench whose data lie in one file; `iterations` says how often they went through a model."""
    rng = np.random.default_rng(0)
    arrays = {
        "video": rng.normal(size=(23, 2, 4)).astype(np.float32),
        "video_mask": np.ones(23, np.float32),
        "label": (np.arange(23) % 3).astype(np.int32),
    }
    file = tmp_path / "shard"
    file.write_bytes(b"as it was")

    def make(labels=None):
        b = bench({split: arrays for split in ("train", "test", "test[:50%]")})
        made = b.make_eval_data

        def make_eval_data(data_cfg, **options):
            data = made(data_cfg, **options)
            source = types.SimpleNamespace(name="fake", num_examples=23, info=b.info, folder="")
            source.files = None if labels is not None else [str(file)]
            source.where = lambda record: f"{file}, row {record}"
            source.labels = lambda: np.asarray(labels)
            data.sources = [source]
            return data

        b.make_eval_data, b.file = make_eval_data, file
        return b

    return make


def features(b, state=None, **options):
    """(features, how many times the model ran) of an evaluator of a fresh store."""
    before = len(b.opened)
    (evaluator,) = b.make(k=dict(type="linear_probe", cache=True, **options))
    found = evaluator.store.get(state or b.state, evaluator.requests[1])
    return found, sum(opened.made.iterations for opened in b.opened[before:])


def test_the_second_time_no_model_runs(make, cache):
    first, runs = features(make())
    assert runs == 1 and len(list(cache.glob("fake-test-*.npz"))) == 1
    b = make()
    b.task.predict = {"features": None}  # would fail if it were called
    again, runs = features(b)
    assert runs == 0
    for name in ("arrays", "masks"):
        assert getattr(again, name).keys() == getattr(first, name).keys()
    np.testing.assert_array_equal(again.arrays["video"], first.arrays["video"])
    np.testing.assert_array_equal(again.masks["video"], first.masks["video"])
    np.testing.assert_array_equal(again.label, first.label)
    np.testing.assert_array_equal(again.example_id, np.arange(23))
    assert again.label.dtype == np.int32 and again.info is b.info


def test_results_are_the_same_from_disk(make):
    cfg = dict(k=dict(type="knn", cache=True), p=dict(type="linear_probe", strengths=(1.0,)))
    first, b = make().run(**cfg), make()
    assert b.run(**cfg) == first
    assert [opened.made.iterations for opened in b.opened] == [0, 0]  # the probe shares them


def test_without_the_option_nothing_is_kept(make, cache):
    make().run(k=dict(type="knn"))
    assert not cache.exists()


@pytest.mark.parametrize(
    "change",
    [
        "weights",
        "statistics",
        "model",
        "file",
        "label",
        "split",
        "limit",
        "views",
        "config",
        "names",
    ],
)
def test_what_changes_them_has_them_computed_again(make, change):
    assert features(make())[1] == 1
    b, options, state = make(labels=[1] if change == "label" else None), {}, None
    if change == "weights":
        state = {**b.state, "params": {"scale": np.float32(2.0000002)}}
    if change == "statistics":
        state = {**b.state, "extra": {"mean": np.ones(3, np.float32)}}
    if change == "model":
        b.made_by = {"model": {"name": "another"}}
    if change == "file":
        os.utime(b.file, (1, 1))
    if change == "split":
        options = dict(split="test[:50%]")
    if change == "limit":
        options = dict(split="train", train_limit=5)
    if change == "views":
        options = dict(views=dict(video=dict(num_frames=8)))
    if change == "config":
        b.data_cfg["video"] = dict(num_frames=2)
    if change == "names":
        options = dict(feature=("video", "video_mask"))
        for opened in b.splits.values():
            opened["video_mask"] = np.ones(23, np.float32)
        b.task.predict = {"features": lambda p, e, batch: {n: batch[n] for n in options["feature"]}}
    found, runs = features(b, state, **options)
    assert runs == 1
    if change == "weights":
        assert found.arrays["video"][0, 0, 0] != features(b)[0].arrays["video"][0, 0, 0]


def test_a_limit_of_another_request_is_another_file(make, cache):
    b = make()
    (evaluator,) = b.make(k=dict(type="linear_probe", cache=True, train_limit=5, split="train"))
    assert [len(evaluator.store.get(b.state, r)) for r in evaluator.requests] == [5, 23]
    assert len(list(cache.iterdir())) == 2


def test_what_changes_nothing_does_not(make):
    assert features(make())[1] == 1
    b = make()
    b.data_cfg |= dict(prefetch=7, threads=3, limit=5)
    b.made_by = {"model": {"name": "fake"}, "total_steps": 99, "evals": {"a": {}}}
    assert features(b, batch_size=8)[1] == 0


@pytest.mark.parametrize("damage", ["cut", "text", "bits", "pickle"])
def test_a_damaged_file_is_computed_again(make, cache, damage, caplog):
    first, _ = features(make())
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    if damage == "text":
        path.write_text("not what it was")
    if damage == "bits":
        middle = whole.index(first.arrays["video"].tobytes()[:64])
        path.write_bytes(whole[:middle] + b"\0" * 8 + whole[middle + 8 :])
    if damage == "pickle":
        np.savez(path, **{"output:video": np.array([{}], object), "field:example_id": [0]})
    again, runs = features(make())
    assert runs == 1 and "is damaged" in caplog.text
    np.testing.assert_array_equal(again.arrays["video"], first.arrays["video"])
    assert path.read_bytes() == whole  # written again
    assert features(make())[1] == 0


def test_a_stream_is_not_kept(make, cache, bench, caplog):
    b = bench(make().splits)  # data without `sources`
    assert features(b)[1] == 1 and features(b)[1] == 1
    assert "features of a stream are not kept" in caplog.text and not cache.exists()


def test_a_folder_that_cannot_be_written_to_costs_nothing_else(make, cache, caplog):
    cache.parent.mkdir()
    cache.write_text("a file, not a folder")
    assert features(make())[1] == 1
    assert "Features cannot be kept" in caplog.text


def test_one_process_without_them_has_all_compute(make, monkeypatch, cache):
    assert features(make())[1] == 1
    before = [path.stat().st_mtime_ns for path in cache.iterdir()]
    monkeypatch.setattr(distributed, "any_process", lambda flag: True)
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    assert features(make())[1] == 1
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == before  # others do not write


def test_records_of_several_files_are_known_by_all_of_them(tmp_path):
    files = [tmp_path / name for name in ("a.png", "b.png", "table.csv")]
    for file in files:
        file.write_text("x")
    places = [str(files[0]), f"{files[2]}, row 2: {files[1]}"]
    info = types.SimpleNamespace(name="set")

    def key(labels=(0, 1)):
        source = types.SimpleNamespace(
            name="set", num_examples=2, info=info, files=None, folder="",
            where=places.__getitem__, labels=lambda: np.array(labels),
        )  # fmt: skip
        data = types.SimpleNamespace(sources=[source], num_examples=2)
        return feature_cache.data_identity(data, f"csv:{files[2]}", {"image": {"size": 4}})

    first = key()
    assert key() == first and key((1, 0)) != first
    for number, file in enumerate(files):
        os.utime(file, (number + 1, number + 1))
        assert key() != first
        first = key()


def test_it_needs_to_know_the_model(bench):
    b = bench({"train": {}, "test": {}})
    b.made_by = None
    with pytest.raises(UserError, match="cache=True needs made_by"):
        b.make(k=dict(type="knn", cache=True))
