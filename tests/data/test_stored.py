"""Features in place of pictures and words: which row comes, and what is refused."""

import errno
import itertools
import os

import numpy as np
import pytest

from mmjax.data import loader, schema, stored
from mmjax.errors import UserError
from mmjax.tools import index
from tests.data import toy_clips as toy

COUNT, WIDTH = 9, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    touch = [schema.encode_jpeg(np.full((16, 16, 3), 90, np.uint8))]
    payload = lambda n: schema.encode(toy.example(n, touch=touch * (n % 2)))  # noqa: E731
    built = toy.build(tmp_path_factory.mktemp("toy"), COUNT, payload=payload)
    index.vocabulary(str(built), also=["and"])  # which `data.text.keywords` inserts
    return built


def values(count=COUNT, variants=None, width=WIDTH):
    """Every number says its record, variant and place."""
    record = np.arange(count)[:, None, None] * 100
    rows = record + np.arange(variants or 1)[None, :, None] * 10 + np.arange(width)
    return (rows if variants else rows[:, 0]).astype(np.float16)


def write(folder, *, dataset="toy", count=COUNT, split="train", **arrays):
    stored.write_description(folder, dataset=dataset, num_examples={split: count}, model="tiny")
    for name, array in arrays.items():
        path = stored.features_path(folder, split, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        np.save(path, array)
    return str(folder)


def train(folder, *, batch_size=6, hosts=(0, 1), seed=0, **section):
    return loader.make_train_data(
        dict(train=folder, **section),
        batch_size=batch_size,
        seed=seed,
        process_index=hosts[0],
        process_count=hosts[1],
    )


def test_rows_come_with_their_records_and_masks_stay(folder, tmp_path):
    path = write(tmp_path, image=values(), touch=values(width=3), text=values(variants=4))
    data = train(
        folder,
        image=dict(features=path),
        touch=dict(features=path, background="recording"),
        text=dict(features=path, candidates=1, keywords={}),
    )
    assert {k: (v.shape, v.dtype) for k, v in data.spec.items() if k in ("image", "text")} == {
        "image": ((6, WIDTH), np.float32),
        "text": ((6, 1, WIDTH), np.float32),
    }
    for batch in itertools.islice(data.iterate(), 3):
        record = batch["example_id"]
        assert np.array_equal(batch["image"], values()[record])
        assert np.array_equal(batch["touch"], values(width=3)[record])
        assert np.array_equal(batch["touch_mask"], record % 2)
        assert batch["image_mask"].all() and "touch_background" not in batch
        captions = [len(toy.example(n).captions) > 0 for n in record]
        assert np.array_equal(batch["text_mask"][:, 0], captions)
        assert np.array_equal(batch["text"][:, 0] // 100, np.tile(record[:, None], WIDTH))


def test_variants_are_drawn_uniformly_and_without_state(folder, tmp_path):
    path = write(tmp_path, text=values(variants=4))

    def variants(first=0, number=100, **changes):
        data = train(folder, text=dict(features=path, candidates=1), **changes)
        batches = itertools.islice(data.iterate(first), number)
        return np.stack([batch["text"][:, 0, 0] % 100 // 10 for batch in batches])

    whole = variants()
    counts = np.bincount(whole.astype(int).ravel(), minlength=4)
    assert counts.shape == (4,) and ((counts - 150) ** 2 / 150).sum() < 16.3  # p = 0.001
    assert np.array_equal(whole[40:45], variants(40, 5))
    halves = [variants(0, 5, hosts=(host, 2)) for host in range(2)]
    assert np.array_equal(whole[:5], np.concatenate(halves, axis=1))
    assert not np.array_equal(whole[:5], variants(0, 5, seed=1))


def test_each_source_has_its_own(folder, tmp_path):
    other = toy.build(tmp_path / "other", 4, name="more")
    paths = (
        write(tmp_path / "a", image=values()),
        write(tmp_path / "b", dataset="more", count=4, image=-values(4, variants=2)),
    )
    data = train((folder, other), batch_size=40, image=dict(features=paths))
    batch = next(data.iterate())
    second = batch["source"] == 1
    assert 5 < second.sum() < 35
    assert np.array_equal(batch["image"][~second], values()[batch["example_id"][~second]])
    assert np.array_equal(batch["image"][second, 0] // -100, batch["example_id"][second])


def test_a_limit_does_not_change_whose_features_come(folder, tmp_path):
    path = write(tmp_path, image=values())
    batch = next(train(folder, image=dict(features=path), limit=3, batch_size=3).iterate())
    assert sorted(batch["example_id"]) == [0, 3, 6]
    assert np.array_equal(batch["image"], values()[batch["example_id"]])


def test_evaluation_takes_pictures_and_words(folder, tmp_path):
    section = dict(
        train=folder,
        image=dict(features=str(tmp_path / "none"), size=8),
        text=dict(features=str(tmp_path / "none"), candidates=1, max_words=4),
    )
    batch = next(loader.make_eval_data(section, split="train", batch_size=2).iterate())
    assert batch["image"].shape == (2, 1, 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["text"].shape == (2, 1, 4) and batch["text"].dtype == np.int32


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda path: write(path, dataset="other", image=values()), "9 examples of other/train"),
        (lambda path: write(path, count=8, image=values(8)), "8 examples of toy/train, but the tr"),
        (lambda path: write(path, split="test", image=values()), "is of 0 examples of toy/train"),
        (lambda path: None, "is no folder of features: it has no features.json"),
        (lambda path: write(path, touch=values()), "there is no .*train/image.npy"),
        (lambda path: write(path, image=values(8)), r"float16 \[8, 5\]; expected .*\[9, D\] or"),
        (lambda path: write(path, image=np.arange(9)), r"int64 \[9\]; expected floating point"),
    ],
)
def test_wrong_features_are_refused(folder, tmp_path, change, message):
    change(tmp_path)
    with pytest.raises(UserError, match=f"data.image.features.*{message}"):
        train(folder, image=dict(features=str(tmp_path)))


@pytest.mark.parametrize("text", ["{", "[]", '{"dataset": "toy"}'])
def test_a_description_that_is_none_is_refused(folder, tmp_path, text):
    write(tmp_path, image=values())
    (tmp_path / "features.json").write_text(text)
    with pytest.raises(UserError, match="features.json does not describe features"):
        train(folder, image=dict(features=str(tmp_path)))


def test_numbers_that_do_not_fit_are_refused(folder, tmp_path):
    path = write(tmp_path / "a", image=values())
    with pytest.raises(UserError, match="names 2 folders, but data.train 1 sources"):
        train(folder, image=dict(features=(path, path)))
    wide = write(tmp_path / "b", image=values(width=7))
    with pytest.raises(UserError, match=r"different sizes: .*a 5, .*b 7"):
        train((folder, folder), image=dict(features=(path, wide)))
    with pytest.raises(UserError, match="data.text.candidates=1, not 5"):
        train(folder, text=dict(features=path))


def test_the_room_for_rows_is_taken_at_once(tmp_path, monkeypatch):
    path = tmp_path / "rows.npy"
    rows = stored.new_rows(path, (1000, 64))
    assert rows.shape == (1000, 64) and rows.dtype == np.float32 and not rows.any()
    stat = path.stat()
    assert stat.st_blocks * 512 >= stat.st_size > 1000 * 64 * 4

    def refuses(number, words):
        def allocate(*_):
            raise OSError(number, words)

        monkeypatch.setattr(os, "posix_fallocate", allocate)

    refuses(errno.EOPNOTSUPP, "this file system cannot")
    assert stored.new_rows(path, (1000, 64)).shape == (1000, 64)
    refuses(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match=r"no room for .*rows.npy, 0.000239 GiB: No space left"):
        stored.new_rows(path, (1000, 64))
    assert not path.exists()


def test_files_that_are_no_arrays(folder, tmp_path):
    path = write(tmp_path, image=values())
    (tmp_path / "train" / "image.npy").write_bytes(b"")
    with pytest.raises(UserError, match="image.npy is not an array"):
        train(folder, image=dict(features=path))
