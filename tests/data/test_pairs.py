"""Pairs of records: the folder, who comes beside whom, and what damage does to them."""

import itertools
import json
import logging
import os

import numpy as np
import pytest

from mmjax.data import dataset, loader, pairs, records, schema
from mmjax.errors import UserError
from tests.data import toy_clips as toy

COUNT = 23
CROPS = ((0.5, 1.0), (0.5, 1.0))
THREE = (*CROPS, (0.2, 1.0))
DRAW = np.random.default_rng(0)
# Three neighbours of each record: the next one, the fourth, the ninth after it.
NEIGHBOURS = (np.arange(COUNT)[:, None] + [1, 4, 9]) % COUNT
SIMILARITY = np.tile([0.9, 0.8, 0.3], (COUNT, 1))


def grey(number):
    return 10 + 5 * number


def payload(number):
    """A record whose picture tells its number."""
    picture = schema.encode_jpeg(np.full((40, 50, 3), grey(number), np.uint8))
    return schema.encode(toy.example(number, frames=[picture], waveform=None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy.build(tmp_path_factory.mktemp("toy"), COUNT, payload=payload)


def write(folder, neighbours=NEIGHBOURS, similarity=SIMILARITY, dataset="toy", split="train"):
    pairs.write_pairs(folder, neighbours, similarity, dataset=dataset, split=split)
    return str(folder)


def make(folder, path, batch_size=8, seed=0, hosts=(0, 1), crops=CROPS, **changes):
    options = {
        name: changes.pop(name) for name in ("min_similarity", "neighbours") & changes.keys()
    }
    section = dict(
        train=folder,
        image=dict(size=8, crops=crops),
        text=dict(max_words=4, candidates=1),
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


def batches(data, first=0, number=1):
    return list(itertools.islice(data.iterate(first), number))


def shown(batch):
    """[B, V]: the numbers of the records whose pictures these are."""
    return np.rint((batch["image"].mean((2, 3, 4)) - 10) / 5).astype(int)


# The folder.


def test_what_is_written_can_be_opened(folder, tmp_path):
    neighbours = np.where(DRAW.random((COUNT, 3)) < 0.3, -1, NEIGHBOURS)
    pairs.write_pairs(
        tmp_path, neighbours, SIMILARITY, dataset="toy", split="train", encoder="bow", scope=None
    )
    assert pairs.read_description(tmp_path) == dict(
        dataset="toy", split="train", num_examples=COUNT, encoder="bow", scope=None
    )
    assert sorted(os.listdir(tmp_path)) == ["neighbours.npy", "pairs.json", "similarity.npy"]
    (source,) = make(folder, write(tmp_path / "all")).sources
    opened = pairs.open_pairs(tmp_path, source=source, split="train")
    assert opened.neighbours.dtype == np.int32 and opened.similarity.dtype == np.float32
    assert np.array_equal(opened.neighbours, neighbours)
    wanted = np.where(neighbours < 0, 0, SIMILARITY.astype(np.float32))
    assert np.array_equal(opened.similarity, wanted)
    assert pairs.read_description(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "neighbours, similarity, message",
    [
        ([1, 0], [1.0, 1.0], r"not both \[2, K\]"),
        ([[1], [0]], [[1.0, 1.0]] * 2, r"neighbours \[2, 1\] and similarity \[2, 2\]"),
        ([[1], [2]], [[1.0], [1.0]], "neighbours between 1 and 2 are not among the 2 records"),
        ([[-2], [0]], [[1.0], [1.0]], "neighbours between -2 and 0"),
        ([[1], [0]], [[1.0], [np.nan]], "a similarity is not a number"),
    ],
)
def test_pairs_that_are_none_are_not_written(tmp_path, neighbours, similarity, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path, np.array(neighbours), np.array(similarity))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda path: write(path, dataset="other"), "23 records of other/train, but the training"),
        (lambda path: write(path, split="test"), "23 records of toy/test"),
        (
            lambda path: write(path, np.zeros((9, 1)), np.ones((9, 1))),
            "9 records of toy/train, but .* 23 of toy/train",
        ),
        (lambda path: os.remove(write(path) + "/pairs.json"), "no folder of pairs: it has no pair"),
        (lambda path: os.remove(write(path) + "/similarity.npy"), "similarity.npy is missing or"),
        (lambda path: np.save(write(path) + "/neighbours.npy", NEIGHBOURS[:9]), r"both \[23, K\]"),
        (lambda path: np.save(write(path) + "/neighbours.npy", NEIGHBOURS + 1), "between 1 and 23"),
        (
            lambda path: np.save(write(path) + "/neighbours.npy", NEIGHBOURS / 1),
            "neighbours are float64",
        ),
    ],
)
def test_folders_that_do_not_fit_are_refused(folder, tmp_path, change, message):
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        make(folder, str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", '{"dataset": "toy"}', '{"dataset": 3}'])
def test_a_description_that_is_none_is_refused(folder, tmp_path, text):
    (tmp_path / "pairs.json").write_text(text)
    with pytest.raises(UserError, match="pairs.json does not describe pairs"):
        make(folder, str(tmp_path))


def test_a_folder_that_is_half_written_has_no_description(tmp_path, monkeypatch):
    write(tmp_path)

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert pairs.read_description(tmp_path) is None


# Who comes beside whom.


@pytest.mark.parametrize("read", ["pread", "tf"])
def test_the_second_view_is_the_neighbours_and_all_else_the_records_own(folder, tmp_path, read):
    data = make(folder, write(tmp_path), read=read, crops=THREE)
    found = batches(data, number=4)  # more than an epoch
    for step, batch in enumerate(found):
        record = batch["example_id"]
        assert np.array_equal(data.batch_ids(step)["record"], record)
        assert np.array_equal(data.batch_ids(step)["partner"], NEIGHBOURS[record, 0])
        assert np.array_equal(shown(batch), np.stack([record, NEIGHBOURS[record, 0], record], 1))
        assert np.array_equal(batch["label"], record % 5) and batch["image_mask"].all()
        own = [len(toy.example(n).captions) > 0 for n in record]
        assert np.array_equal(batch["text_mask"][:, 0], own)
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            k: (v.shape, v.dtype) for k, v in data.spec.items()
        }
    tail = batches(make(folder, str(tmp_path), crops=THREE), 2, 2)
    assert all(toy.same(a, b) for a, b in zip(found[2:], tail, strict=True))


def test_views_of_one_picture_are_other_parts_of_it(tmp_path):
    ramp = np.tile(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], (100, 1, 3))
    picture = lambda n: schema.encode_jpeg(np.rot90(ramp, n % 2).copy())  # noqa: E731
    folder = toy.build(
        tmp_path / "toy",
        COUNT,
        payload=lambda n: schema.encode(toy.example(n, frames=[picture(n)], waveform=None)),
    )
    neighbours = (np.arange(COUNT)[:, None] + 1) % (COUNT - 1)  # of the other parity
    path = write(tmp_path / "pairs", neighbours, np.ones((COUNT, 1)))
    data = make(folder, path, batch_size=20, crops=THREE)
    (batch,) = batches(data)
    kept = batch["example_id"] < COUNT - 2
    image = batch["image"][kept].astype(int)
    across = np.abs(np.diff(image, axis=3)).mean((2, 3, 4)) > 3  # [B, V]
    own = batch["example_id"][kept] % 2 == 0
    assert np.array_equal(across, np.stack([own, ~own, own], 1))
    assert (np.abs(image[:, 0] - image[:, 2]).mean((1, 2, 3)) > 1).mean() > 0.9


def test_hosts_together_have_the_global_batch(folder, tmp_path):
    path, options = write(tmp_path), dict(neighbours=3)
    whole = batches(make(folder, path, **options), number=3)
    parts = [batches(make(folder, path, hosts=(p, 2), **options), number=3) for p in range(2)]
    for batch, *rows in zip(whole, *parts, strict=True):
        assert toy.same(batch, {k: np.concatenate([row[k] for row in rows]) for k in batch})


def test_large_records_make_the_same_batches(folder, tmp_path, monkeypatch):
    want = batches(make(folder, write(tmp_path)), number=2)
    monkeypatch.setattr(loader._Data, "_records_per_read", lambda data: 1)
    for changes in ({}, dict(corrupt="skip")):
        data = make(folder, str(tmp_path), **changes)
        assert data._without == schema.FRAMES[0]
        assert all(toy.same(a, b) for a, b in zip(want, batches(data, number=2), strict=True))
    data = make(folder, str(tmp_path))
    data.partner_pipeline.add("parse", "own", lambda features: features)
    assert data._without is None


def test_a_neighbour_is_drawn_anew_at_each_visit(folder, tmp_path):
    similarity = SIMILARITY.copy()
    similarity[5, 2] = similarity[6, 1] = -0.5
    data = make(folder, write(tmp_path, similarity=similarity), neighbours=3, batch_size=COUNT)
    ids = [data.batch_ids(step) for step in range(600)]
    record, partner = (np.concatenate([i[key] for i in ids]) for key in ("record", "partner"))
    ranks = (partner[:, None] == NEIGHBOURS[record]).argmax(1)
    assert np.array_equal(NEIGHBOURS[record, ranks], partner)
    for number in range(COUNT):
        counts = np.bincount(ranks[record == number], minlength=3)
        fair = {5: [300, 300, 0], 6: [600, 0, 0]}.get(number, [200] * 3)
        # χ² with two degrees of freedom, p = 10⁻⁴ of each of 23 records
        assert ((counts - fair) ** 2 / np.maximum(fair, 1)).sum() < 18.4, (number, counts)
    by_visit = ranks.reshape(600, COUNT)
    assert abs(np.corrcoef(by_visit[:-1].ravel(), by_visit[1:].ravel())[0, 1]) < 0.05
    other = make(folder, str(tmp_path), neighbours=3, batch_size=COUNT, seed=1).batch_ids(0)
    assert not np.array_equal(other["partner"], ids[0]["partner"])


def test_records_without_a_near_neighbour_are_left_out(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mmjax.data.pairs")
    neighbours, similarity = NEIGHBOURS.copy(), SIMILARITY.copy()
    neighbours[[3, 11]] = -1
    similarity[[7, 8], :] = 0.05
    path = write(tmp_path, neighbours, similarity)
    data = make(folder, path, min_similarity=0.1, batch_size=19)
    assert data.num_examples == 19
    assert "19 of 23 records of toy/train have a neighbour of similarity 0.1" in caplog.text
    assert "0.050 (5 %), 0.900 (25 %)" in caplog.text and "0.900 (95 %)" in caplog.text
    left = sorted(set(range(COUNT)) - {3, 7, 8, 11})
    for step in range(2):
        assert sorted(data.batch_ids(step)["record"]) == left
    (batch,) = batches(data)
    assert np.array_equal(shown(batch)[:, 1], neighbours[batch["example_id"], 0])
    few = make(folder, path, min_similarity=0.1, limit=4, batch_size=4)
    assert sorted(few.batch_ids(0)["record"]) == [left[19 * n // 4] for n in range(4)]
    with pytest.raises(UserError, match=r"no record of toy/train has .* 0.95 or more.*0.900"):
        make(folder, path, min_similarity=0.95)


def test_each_source_has_pairs_of_its_own(folder, tmp_path):
    other = toy.build(tmp_path / "other", 4, name="more", shards=1, payload=payload)
    first = write(tmp_path / "a")
    second = write(tmp_path / "b", np.array([[2], [-1], [0], [0]]), np.ones((4, 1)), "more")
    data = make((folder, other), (first, second), batch_size=40, weights=(0.6, 0.4))
    (batch,) = batches(data)
    ids, from_second = data.batch_ids(0), batch["source"] == 1
    assert 5 < from_second.sum() < 30
    assert set(ids["record"][from_second]) == {0, 2, 3}
    assert np.array_equal(
        ids["partner"][from_second], [{0: 2}.get(r, 0) for r in ids["record"][from_second]]
    )
    assert np.array_equal(ids["partner"][~from_second], NEIGHBOURS[ids["record"][~from_second], 0])
    assert np.array_equal(shown(batch)[:, 1], ids["partner"])
    with pytest.raises(UserError, match="names 1 folders, but data.train 2 sources"):
        make((folder, other), first)


def test_the_mask_is_of_all_views(tmp_path):
    blind = lambda n: schema.encode(toy.example(n, frames=[], waveform=None))  # noqa: E731
    folder = toy.build(
        tmp_path / "toy", COUNT, payload=lambda n: blind(n) if n == 7 else payload(n)
    )
    (batch,) = batches(make(folder, write(tmp_path), batch_size=COUNT))
    missing = np.isin(batch["example_id"], (6, 7))
    assert np.array_equal(batch["image_mask"], 1 - missing)


# Damage.


@pytest.mark.parametrize("read", ["pread", "tf"])
def test_a_damaged_partner_makes_room_for_the_next_pair(tmp_path, read, caplog):
    bad, without = {4, 5, 22}, 9
    folder = toy.build(
        tmp_path / "toy",
        COUNT,
        shards=1,
        payload=lambda n: (toy.with_broken_frame if n in bad else payload)(n),
    )
    neighbours = NEIGHBOURS[:, :1].copy()
    neighbours[without] = -1
    path = write(tmp_path / "pairs", neighbours, np.ones((COUNT, 1)))
    data = make(folder, path, batch_size=22, corrupt="skip", read=read)
    used = [n for n in range(COUNT) if n != without]
    good = {n for n in used if not bad & {n, int(neighbours[n, 0])}}

    def instead(record):
        at = used.index(record)
        return next(n for n in used[at:] + used[:at] if n in good)

    found = batches(data, number=2)
    for step, batch in enumerate(found):
        wanted = [instead(record) for record in data.batch_ids(step)["record"]]
        assert batch["example_id"].tolist() == wanted
        assert np.array_equal(shown(batch), [[n, neighbours[n, 0]] for n in wanted])
    assert data.corrupt == len(bad)  # 3 → 4, 4 → 5, 5 → 6, 21 → 22 and 22 → 0
    for record in range(COUNT):
        assert (f"record {record}:" in caplog.text) == (record in bad)


def test_the_record_that_is_at_fault_is_named(tmp_path):
    folder = toy.build(
        tmp_path / "toy",
        COUNT,
        shards=1,
        payload=lambda n: (toy.with_broken_frame if n == 5 else payload)(n),
    )
    neighbours = np.full((COUNT, 1), -1)
    neighbours[[2, 5], 0] = 5, 2
    for own, partner in ((2, 5), (5, 2)):
        only = np.where(np.arange(COUNT)[:, None] == own, partner, -1)
        path = write(tmp_path / "pairs", only, np.ones((COUNT, 1)))
        with pytest.raises(UserError, match="00001.tfrecord, record 5: .*JPEG"):
            batches(make(folder, path))


def test_a_wrong_crc_of_a_partner_is_named(tmp_path):
    folder = toy.build(tmp_path / "toy", COUNT, shards=1, payload=payload)
    path = os.path.join(folder, dataset.shard_name("train", 0, 1))
    offset, length = records.read_index(path)[5]
    times = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(offset + length - 5)
        file.write(b"\xff\xfe")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    only = np.where(np.arange(COUNT)[:, None] == 2, 5, -1)
    pairs_path = write(tmp_path / "pairs", only, np.ones((COUNT, 1)))
    with pytest.raises(UserError, match="record 5: the CRC of the payload"):
        batches(make(folder, pairs_path))


# Words, and what is refused.


def test_the_nearest_captions_by_their_words(tmp_path, caplog):
    caplog.set_level(logging.INFO, "mmjax.data.pairs")
    captions = ["a red circle", "blue square", "the red circle", "blue square moves", "", "up"]
    folder = toy.build(
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
    data = make(folder, "words", min_similarity=0.1, batch_size=4)
    ids = data.batch_ids(0)
    pairs_found = dict(zip(ids["record"].tolist(), ids["partner"].tolist(), strict=True))
    assert pairs_found == {0: 2, 2: 0, 1: 3, 3: 1}
    (batch,) = batches(data)
    assert np.array_equal(shown(batch)[:, 1], ids["partner"])
    assert "nearest of 6 captions of toy/train by their words in" in caplog.text
    assert "4 of 6 records" in caplog.text


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(crops=()), r"set data\.image\.crops=\(\(0\.5, 1\.0\), \(0\.5, 1\.0\)\)"),
        (dict(crops=CROPS[:1]), "two or more"),
        (dict(image=None), r"set data\.image\.crops"),
        (dict(pairs={}), r"data\.pairs\.path='': name the folder of pairs that `mmjax neighbours`"),
        (dict(pairs=dict(path=())), "name the folder of pairs"),
        (dict(neighbours=4), "data.pairs.neighbours=4, but .* has 3"),
        (dict(neighbours=0), "data.pairs.neighbours must be at least 1"),
        (dict(min_similarity=1.5), "data.pairs.min_similarity=1.5 is a cosine"),
        (dict(pairs=dict(folder="x")), r"Unknown config key data\.pairs\.folder"),
    ],
)
def test_wrong_options_are_named(folder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        make(folder, write(tmp_path), **changes)


def test_evaluation_knows_no_pairs(folder):
    section = dict(
        train=folder, image=dict(size=8, crops=CROPS), pairs=dict(path="nowhere", neighbours=9)
    )
    batch = next(loader.make_eval_data(section, split="train", batch_size=4).iterate())
    assert batch["image"].shape == (4, 1, 8, 8, 3)
    assert shown(batch)[:, 0].tolist() == [0, 1, 2, 3]


def test_the_description_is_plain_json(tmp_path):
    with open(os.path.join(write(tmp_path), "pairs.json"), encoding="utf-8") as file:
        assert json.load(file) == dict(dataset="toy", split="train", num_examples=COUNT)
