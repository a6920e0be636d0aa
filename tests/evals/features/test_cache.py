"""The feature cache: hits for identical inputs, misses for any change of the inputs."""

import os
import types

import numpy as np
import pytest

from mmjax import distributed
from mmjax.errors import UserError
from mmjax.evals.features import cache as feature_cache
from tests.evals.synthetic import train_and_test
from tests.messages import assert_mentions, raises


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def make(make_harness, tmp_path):
    """Makes harnesses whose data are in one file; `iterations` counts passes through the model."""
    rng = np.random.default_rng(0)
    arrays = {
        "video": rng.normal(size=(23, 2, 4)).astype(np.float32),
        "video_mask": np.ones(23, np.float32),
        "label": (np.arange(23) % 3).astype(np.int32),
    }
    file = tmp_path / "shard"
    file.write_bytes(b"original")

    def make(labels=None):
        harness = make_harness({**train_and_test(arrays), "test[:50%]": arrays})
        make_dataset = harness.make_eval_data

        def make_eval_data(data_cfg, **options):
            data = make_dataset(data_cfg, **options)
            source = types.SimpleNamespace(
                name="fake", num_examples=23, info=harness.info, directory=""
            )
            source.files = None if labels is not None else [str(file)]
            source.where = lambda record: f"{file}, record {record}"
            source.index = None
            source.identity = lambda record: (options["split"], record)
            source.labels = lambda: np.asarray(labels)
            data.sources = [source]
            return data

        harness.make_eval_data, harness.file = make_eval_data, file
        return harness

    return make


def warnings_of(caplog):
    """Returns the logged warnings as one text."""
    return "\n".join(r.getMessage() for r in caplog.records if r.levelname == "WARNING")


def features(harness, state=None, **options):
    """Returns the features from a new store, and how many times the model ran over the data."""
    before = len(harness.opened)
    (evaluator,) = harness.make(k=dict(type="linear_probe", cache=True, **options))
    result = evaluator.store.get(state or harness.state, evaluator.requests[1])
    return result, sum(opened.dataset.iterations for opened in harness.opened[before:])


def test_a_second_request_reads_from_disk_without_running_the_model(make, cache):
    first, runs = features(make())
    assert runs == 1 and len(list(cache.glob("fake-test-*.npz"))) == 1
    harness = make()
    harness.task.predict = {"features": None}  # fails when called
    again, runs = features(harness)
    assert runs == 0
    for name in ("arrays", "masks"):
        assert getattr(again, name).keys() == getattr(first, name).keys()
    np.testing.assert_array_equal(again.arrays["video"], first.arrays["video"])
    np.testing.assert_array_equal(again.masks["video"], first.masks["video"])
    np.testing.assert_array_equal(again.label, first.label)
    np.testing.assert_array_equal(again.example_id, np.arange(23))
    assert again.label.dtype == np.int32 and again.info is harness.info


def test_results_from_disk_equal_computed_results(make):
    cfg = dict(k=dict(type="knn", cache=True), p=dict(type="linear_probe", Cs=(1.0,)))
    first, harness = make().run(**cfg), make()
    assert harness.run(**cfg) == first
    assert [opened.dataset.iterations for opened in harness.opened] == [0, 0]  # shared by the probe


def test_nothing_is_written_without_the_cache_option(make, cache):
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
def test_any_change_of_the_inputs_recomputes_the_features(make, change):
    assert features(make())[1] == 1
    harness, options, state = make(labels=[1] if change == "label" else None), {}, None
    if change == "weights":
        state = {**harness.state, "params": {"scale": np.float32(2.0000002)}}
    if change == "statistics":
        state = {**harness.state, "extra": {"mean": np.ones(3, np.float32)}}
    if change == "model":
        harness.task_cfg = {"model": {"name": "another"}}
    if change == "file":
        os.utime(harness.file, (1, 1))
    if change == "split":
        options = dict(split="test[:50%]")
    if change == "limit":
        options = dict(split="train", train_limit=5)
    if change == "views":
        options = dict(views=dict(video=dict(num_frames=8)))
    if change == "config":
        harness.data_cfg["video"] = dict(num_frames=2)
    if change == "names":
        options = dict(feature=("video", "video_mask"))
        for opened in harness.splits.values():
            opened["video_mask"] = np.ones(23, np.float32)
        harness.task.predict = {
            "features": lambda p, e, batch: {n: batch[n] for n in options["feature"]}
        }
    result, runs = features(harness, state, **options)
    assert runs == 1
    if change == "weights":
        assert result.arrays["video"][0, 0, 0] != features(harness)[0].arrays["video"][0, 0, 0]


def test_each_limit_has_its_own_file(make, cache):
    harness = make()
    (evaluator,) = harness.make(
        k=dict(type="linear_probe", cache=True, train_limit=5, split="train")
    )
    assert [len(evaluator.store.get(harness.state, r)) for r in evaluator.requests] == [5, 23]
    assert len(list(cache.iterdir())) == 2


def test_irrelevant_changes_keep_the_cached_features(make):
    assert features(make())[1] == 1
    harness = make()
    harness.data_cfg |= dict(prefetch=7, threads=3, limit=5)
    harness.task_cfg = {"model": {"name": "fake"}, "total_steps": 99, "evals": {"a": {}}}
    assert features(harness, batch_size=8)[1] == 0


@pytest.mark.parametrize("damage", ["cut", "text", "bits", "pickle"])
def test_a_damaged_file_is_recomputed_and_replaced(make, cache, damage, caplog):
    first, _ = features(make())
    (path,) = cache.iterdir()
    intact = path.read_bytes()
    if damage == "cut":
        path.write_bytes(intact[: len(intact) // 2])
    if damage == "text":
        path.write_text("not an archive")
    if damage == "bits":
        middle = intact.index(first.arrays["video"].tobytes()[:64])
        path.write_bytes(intact[:middle] + b"\0" * 8 + intact[middle + 8 :])
    if damage == "pickle":
        np.savez(path, **{"output:video": np.array([{}], object), "field:example_id": [0]})
    again, runs = features(make())
    assert runs == 1
    assert_mentions(warnings_of(caplog), path)
    np.testing.assert_array_equal(again.arrays["video"], first.arrays["video"])
    assert path.read_bytes() == intact
    assert features(make())[1] == 0


def test_features_of_a_stream_are_not_written(make, cache, make_harness, caplog):
    harness = make_harness(make().splits)  # data without `sources`
    assert features(harness)[1] == 1 and features(harness)[1] == 1
    assert_mentions(warnings_of(caplog), "features", "test", "stream", "cache=True")
    assert not cache.exists()


def test_an_unwritable_cache_does_not_stop_the_evaluation(make, cache, caplog):
    cache.parent.mkdir()
    cache.write_text("a file, not a directory")
    assert features(make())[1] == 1
    assert_mentions(warnings_of(caplog), cache)


def test_all_processes_compute_if_one_lacks_the_features(make, monkeypatch, cache):
    assert features(make())[1] == 1
    before = [path.stat().st_mtime_ns for path in cache.iterdir()]
    monkeypatch.setattr(distributed, "any_process", lambda flag: True)
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    assert features(make())[1] == 1
    # Only the primary process writes.
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == before


def test_the_identity_of_records_covers_all_their_files(tmp_path):
    files = [tmp_path / name for name in ("a.png", "b.png", "table.csv")]
    for file in files:
        file.write_text("x")
    locations = [str(files[0]), f"{files[2]}, line 2: {files[1]}"]
    info = types.SimpleNamespace(name="set")

    def key(labels=(0, 1)):
        source = types.SimpleNamespace(
            name="set", num_examples=2, info=info, files=None, directory="",
            where=locations.__getitem__, labels=lambda: np.array(labels),
        )  # fmt: skip
        data = types.SimpleNamespace(sources=[source], num_examples=2)
        return feature_cache.data_identity(data, f"csv:{files[2]}", {"image": {"size": 4}})

    first = key()
    assert key() == first and key((1, 0)) != first
    for seconds, file in enumerate(files, start=1):
        os.utime(file, (seconds, seconds))
        assert key() != first
        first = key()


def test_caching_requires_the_model_config(make_harness):
    harness = make_harness({"train": {}, "test": {}})
    harness.task_cfg = None
    with raises(UserError, "cache", "task_cfg"):
        harness.make(k=dict(type="knn", cache=True))
