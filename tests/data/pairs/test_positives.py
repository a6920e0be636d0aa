"""Training on pairs: choice of the positive, corrupt records, and invalid options."""

import itertools
import logging
import os

import numpy as np
import pytest

from mmjax.data.pairs import pair_files
from mmjax.data.pipeline import loader
from mmjax.data.pipeline.examples import Examples
from mmjax.data.storage import dataset, image_files, schema, tfrecord
from mmjax.errors import UserError
from tests.data import toy_clips as toy
from tests.messages import assert_mentions, raises

COUNT = 23
CROPS = ((0.5, 1.0), (0.5, 1.0))
THREE = (*CROPS, (0.2, 1.0))
RNG = np.random.default_rng(0)
# Each record has three neighbors: the records 1, 4 and 9 positions after it.
NEIGHBORS = (np.arange(COUNT)[:, None] + [1, 4, 9]) % COUNT
SIMILARITY = np.tile([0.9, 0.8, 0.3], (COUNT, 1))


def gray_level(index):
    return 10 + 5 * index


def payload(index):
    """Returns a record whose index can be read from the gray level of its image."""
    image = image_files.encode_jpeg(np.full((40, 50, 3), gray_level(index), np.uint8))
    return schema.encode(toy.example(index, frames=[image], waveform=None))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return toy.build(tmp_path_factory.mktemp("toy"), COUNT, payload=payload)


def write(directory, neighbors=NEIGHBORS, similarity=SIMILARITY, dataset="toy", split="train"):
    pair_files.write_pairs(directory, neighbors, similarity, dataset=dataset, split=split)
    return str(directory)


def make(directory, path, batch_size=8, seed=0, hosts=(0, 1), crops=CROPS, **changes):
    options = {name: changes.pop(name) for name in ("min_similarity", "neighbors") & changes.keys()}
    section = dict(
        train=directory,
        image=dict(size=8, crops=crops),
        text=dict(max_tokens=4, candidates=1),
        label={},
        pairs=dict(path=path, **options),
    )
    return loader.make_train_data(
        section | changes,
        batch_size=batch_size,
        seed=seed,
        process_index=hosts[0],
        process_count=hosts[1],
    )


def batches(data, first=0, count=1):
    return list(itertools.islice(data.iterate(first), count))


def records_shown(batch):
    """Returns [B, V]: index of the record that each view comes from."""
    return np.rint((batch["image"].mean((2, 3, 4)) - 10) / 5).astype(int)


@pytest.mark.parametrize("read", ["pread", "tf"])
def test_only_the_second_view_comes_from_the_neighbor(directory, tmp_path, read):
    data = make(directory, write(tmp_path), read=read, crops=THREE)
    actual = batches(data, count=4)  # more than an epoch
    for step, batch in enumerate(actual):
        record = batch["example_id"]
        assert np.array_equal(data.batch_ids(step)["record"], record)
        assert np.array_equal(data.batch_ids(step)["positive"], NEIGHBORS[record, 0])
        views = np.stack([record, NEIGHBORS[record, 0], record], 1)
        assert np.array_equal(records_shown(batch), views)
        assert np.array_equal(batch["label"], record % 5) and batch["image_mask"].all()
        has_caption = [len(toy.example(n).captions) > 0 for n in record]
        assert np.array_equal(batch["text_mask"][:, 0], has_caption)
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            k: (v.shape, v.dtype) for k, v in data.spec.items()
        }
    tail = batches(make(directory, str(tmp_path), crops=THREE), 2, 2)
    assert all(toy.same(a, b) for a, b in zip(actual[2:], tail, strict=True))


def test_views_of_one_image_are_different_crops(tmp_path):
    ramp = np.tile(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], (100, 1, 3))
    encoded = lambda n: image_files.encode_jpeg(np.rot90(ramp, n % 2).copy())  # noqa: E731
    directory = toy.build(
        tmp_path / "toy",
        COUNT,
        payload=lambda n: schema.encode(toy.example(n, frames=[encoded(n)], waveform=None)),
    )
    neighbors = (np.arange(COUNT)[:, None] + 1) % (COUNT - 1)  # of the opposite parity
    path = write(tmp_path / "pairs", neighbors, np.ones((COUNT, 1)))
    data = make(directory, path, batch_size=20, crops=THREE)
    (batch,) = batches(data)
    kept = batch["example_id"] < COUNT - 2
    image = batch["image"][kept].astype(int)
    across = np.abs(np.diff(image, axis=3)).mean((2, 3, 4)) > 3  # [B, V]
    own = batch["example_id"][kept] % 2 == 0
    assert np.array_equal(across, np.stack([own, ~own, own], 1))
    assert (np.abs(image[:, 0] - image[:, 2]).mean((1, 2, 3)) > 1).mean() > 0.9


def test_hosts_together_read_the_global_batch(directory, tmp_path):
    path, options = write(tmp_path), dict(neighbors=3)
    whole = batches(make(directory, path, **options), count=3)
    parts = [batches(make(directory, path, hosts=(p, 2), **options), count=3) for p in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert toy.same(batch, {k: np.concatenate([share[k] for share in shares]) for k in batch})


def test_reading_only_the_needed_frames_gives_the_same_batches(directory, tmp_path, monkeypatch):
    expected = batches(make(directory, write(tmp_path)), count=2)
    monkeypatch.setattr(Examples, "records_per_read", 1)
    for changes in ({}, dict(corrupt="skip")):
        data = make(directory, str(tmp_path), **changes)
        assert data.examples.omitted_list == schema.FRAMES[0]
        actual = batches(data, count=2)
        assert all(toy.same(a, b) for a, b in zip(expected, actual, strict=True))
    data = make(directory, str(tmp_path))
    data.positive_pipeline.add("parse", "own", lambda features: features)
    assert data.examples.omitted_list is None


def test_the_neighbor_is_sampled_independently_at_each_visit(directory, tmp_path):
    similarity = SIMILARITY.copy()
    similarity[5, 2] = similarity[6, 1] = -0.5
    data = make(directory, write(tmp_path, similarity=similarity), neighbors=3, batch_size=COUNT)
    ids = [data.batch_ids(step) for step in range(600)]
    record, positive = (np.concatenate([i[key] for i in ids]) for key in ("record", "positive"))
    ranks = (positive[:, None] == NEIGHBORS[record]).argmax(1)
    assert np.array_equal(NEIGHBORS[record, ranks], positive)
    for index in range(COUNT):
        counts = np.bincount(ranks[record == index], minlength=3)
        expected = {5: [300, 300, 0], 6: [600, 0, 0]}.get(index, [200] * 3)
        # χ² test with two degrees of freedom; p = 10⁻⁴ for each of the 23 records.
        chi2 = ((counts - expected) ** 2 / np.maximum(expected, 1)).sum()
        assert chi2 < 18.4, (index, counts)
    by_visit = ranks.reshape(600, COUNT)
    assert abs(np.corrcoef(by_visit[:-1].ravel(), by_visit[1:].ravel())[0, 1]) < 0.05
    other = make(directory, str(tmp_path), neighbors=3, batch_size=COUNT, seed=1).batch_ids(0)
    assert not np.array_equal(other["positive"], ids[0]["positive"])


def test_records_below_min_similarity_are_skipped(directory, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mmjax.data.pairs.positives")
    neighbors, similarity = NEIGHBORS.copy(), SIMILARITY.copy()
    neighbors[[3, 11]] = -1
    similarity[[7, 8], :] = 0.05
    path = write(tmp_path, neighbors, similarity)
    data = make(directory, path, min_similarity=0.1, batch_size=19)
    assert data.num_examples == 19
    (message,) = caplog.messages
    assert_mentions(message, 19, COUNT, "toy/train", 0.1)
    assert_mentions(message, "0.050 (5%)", "0.900 (25%)", "0.900 (95%)")
    kept = sorted(set(range(COUNT)) - {3, 7, 8, 11})
    for step in range(2):
        assert sorted(data.batch_ids(step)["record"]) == kept
    (batch,) = batches(data)
    assert np.array_equal(records_shown(batch)[:, 1], neighbors[batch["example_id"], 0])
    few = make(directory, path, min_similarity=0.1, limit=4, batch_size=4)
    assert sorted(few.batch_ids(0)["record"]) == [kept[19 * n // 4] for n in range(4)]
    with raises(UserError, "toy/train", "data.pairs.min_similarity", 0.95, "0.900"):
        make(directory, path, min_similarity=0.95)


def test_each_source_has_its_own_pairs(directory, tmp_path):
    other = toy.build(tmp_path / "other", 4, name="more", shards=1, payload=payload)
    first = write(tmp_path / "a")
    second = write(tmp_path / "b", np.array([[2], [-1], [0], [0]]), np.ones((4, 1)), "more")
    data = make((directory, other), (first, second), batch_size=40, weights=(0.6, 0.4))
    (batch,) = batches(data)
    ids, from_second = data.batch_ids(0), batch["source"] == 1
    assert 5 < from_second.sum() < 30
    assert set(ids["record"][from_second]) == {0, 2, 3}
    assert np.array_equal(
        ids["positive"][from_second], [{0: 2}.get(r, 0) for r in ids["record"][from_second]]
    )
    assert np.array_equal(ids["positive"][~from_second], NEIGHBORS[ids["record"][~from_second], 0])
    assert np.array_equal(records_shown(batch)[:, 1], ids["positive"])
    with raises(UserError, "data.pairs.path", 1, "data.train", 2):
        make((directory, other), first)


def test_image_mask_is_zero_if_any_view_is_missing(tmp_path):
    without_image = lambda n: schema.encode(toy.example(n, frames=[], waveform=None))  # noqa: E731
    directory = toy.build(
        tmp_path / "toy", COUNT, payload=lambda n: (without_image if n == 7 else payload)(n)
    )
    (batch,) = batches(make(directory, write(tmp_path), batch_size=COUNT))
    missing = np.isin(batch["example_id"], (6, 7))
    assert np.array_equal(batch["image_mask"], 1 - missing)


# Corrupt records.


@pytest.mark.parametrize("read", ["pread", "tf"])
def test_a_pair_with_a_corrupt_record_is_replaced_by_the_next_pair(tmp_path, read, caplog):
    corrupt, unpaired = {4, 5, 22}, 9
    directory = toy.build(
        tmp_path / "toy",
        COUNT,
        shards=1,
        payload=lambda n: (toy.with_broken_frame if n in corrupt else payload)(n),
    )
    neighbors = NEIGHBORS[:, :1].copy()
    neighbors[unpaired] = -1
    path = write(tmp_path / "pairs", neighbors, np.ones((COUNT, 1)))
    data = make(directory, path, batch_size=22, corrupt="skip", read=read)
    used = [n for n in range(COUNT) if n != unpaired]
    good = {n for n in used if not corrupt & {n, int(neighbors[n, 0])}}

    def replacement(record):
        at = used.index(record)
        return next(n for n in used[at:] + used[:at] if n in good)

    for step, batch in enumerate(batches(data, count=2)):
        expected = [replacement(record) for record in data.batch_ids(step)["record"]]
        assert batch["example_id"].tolist() == expected
        assert np.array_equal(records_shown(batch), [[n, neighbors[n, 0]] for n in expected])
    assert data.corrupt == len(corrupt)  # 3 → 4, 4 → 5, 5 → 6, 21 → 22 and 22 → 0
    for record in range(COUNT):
        assert (f"record {record}:" in caplog.text) == (record in corrupt)


def test_error_names_the_corrupt_record_of_a_pair(tmp_path):
    directory = toy.build(
        tmp_path / "toy",
        COUNT,
        shards=1,
        payload=lambda n: (toy.with_broken_frame if n == 5 else payload)(n),
    )
    neighbors = np.full((COUNT, 1), -1)
    neighbors[[2, 5], 0] = 5, 2
    for own, positive in ((2, 5), (5, 2)):
        only = np.where(np.arange(COUNT)[:, None] == own, positive, -1)
        path = write(tmp_path / "pairs", only, np.ones((COUNT, 1)))
        with raises(UserError, "train-00000-of-00001.tfrecord", "record 5", "JPEG"):
            batches(make(directory, path))


def test_error_names_the_neighbor_with_a_wrong_crc(tmp_path):
    directory = toy.build(tmp_path / "toy", COUNT, shards=1, payload=payload)
    path = os.path.join(directory, dataset.shard_name("train", 0, 1))
    offset, length = tfrecord.read_index(path)[5]
    times = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(offset + length - 5)
        file.write(b"\xff\xfe")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    only = np.where(np.arange(COUNT)[:, None] == 2, 5, -1)
    pairs_path = write(tmp_path / "pairs", only, np.ones((COUNT, 1)))
    with raises(UserError, path, "record 5", "CRC"):
        batches(make(directory, pairs_path))


# Pairs by tokens of captions, and invalid options.


def test_nearest_captions_by_shared_tokens(tmp_path, caplog):
    caplog.set_level(logging.INFO, "mmjax.data.pairs.positives")
    captions = ["a red circle", "blue square", "the red circle", "blue square moves", "", "up"]
    directory = toy.build(
        tmp_path,
        6,
        payload=lambda n: schema.encode(
            toy.example(
                n,
                frames=schema.decode(payload(n)).frames,
                waveform=None,
                captions=[captions[n], "up"] if captions[n] else [],
            )
        ),
    )
    data = make(directory, "words", min_similarity=0.1, batch_size=4)
    ids = data.batch_ids(0)
    positives = dict(zip(ids["record"].tolist(), ids["positive"].tolist(), strict=True))
    assert positives == {0: 2, 2: 0, 1: 3, 3: 1}
    (batch,) = batches(data)
    assert np.array_equal(records_shown(batch)[:, 1], ids["positive"])
    search, kept = caplog.messages
    assert_mentions(search, 6, "toy/train")
    assert_mentions(kept, 4, 6, "toy/train", 0.1)


@pytest.mark.parametrize(
    "changes, facts",
    [
        (dict(crops=()), ("data.image.crops=((0.5, 1.0), (0.5, 1.0))", "data.pairs=None")),
        (dict(crops=CROPS[:1]), ("data.image.crops=((0.5, 1.0), (0.5, 1.0))", "data.pairs=None")),
        (dict(image=None), ("data.image.crops=((0.5, 1.0), (0.5, 1.0))", "data.pairs=None")),
        (dict(pairs={}), ("data.pairs.path=''", "mmjax neighbors", "data.pairs=None")),
        (dict(pairs=dict(path=())), ("data.pairs.path=()", "mmjax neighbors", "data.pairs=None")),
        (dict(neighbors=4), ("data.pairs.neighbors=4", "DIR", 3)),
        (dict(neighbors=0), ("data.pairs.neighbors", 0, 1)),
        (dict(min_similarity=1.5), ("data.pairs.min_similarity=1.5", -1, 1)),
        (dict(pairs=dict(directory="x")), ("data.pairs.directory", "min_similarity")),
    ],
)
def test_invalid_options_are_named(directory, tmp_path, changes, facts):
    with pytest.raises(UserError) as info:
        make(directory, write(tmp_path), **changes)
    assert_mentions(str(info.value).replace(str(tmp_path), "DIR"), *facts)


def test_evaluation_ignores_pairs(directory):
    section = dict(
        train=directory, image=dict(size=8, crops=CROPS), pairs=dict(path="nowhere", neighbors=9)
    )
    batch = next(loader.make_eval_data(section, split="train", batch_size=4).iterate())
    assert batch["image"].shape == (4, 1, 8, 8, 3)
    assert records_shown(batch)[:, 0].tolist() == [0, 1, 2, 3]
