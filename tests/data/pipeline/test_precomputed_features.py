"""Tests of training on precomputed features: selection, masks and invalid files."""

import errno
import itertools
import os

import numpy as np
import pytest

from mmjax.data.build import vocabulary
from mmjax.data.pipeline import loader, precomputed_features
from mmjax.data.storage import image_files, schema
from mmjax.errors import UserError
from tests.data import toy_clips as toy
from tests.messages import assert_mentions, raises

COUNT, WIDTH = 9, 5


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    touch = [image_files.encode_jpeg(np.full((16, 16, 3), 90, np.uint8))]
    payload = lambda n: schema.encode(toy.example(n, touch=touch * (n % 2)))  # noqa: E731
    built = toy.build(tmp_path_factory.mktemp("toy"), COUNT, payload=payload)
    vocabulary.write_vocabulary(str(built), extra_texts=["and"])  # inserted by `data.text.keywords`
    return built


def values(count=COUNT, variants=None, width=WIDTH):
    """Returns features whose values encode record, variant and dimension."""
    record = np.arange(count)[:, None, None] * 100
    features = record + np.arange(variants or 1)[None, :, None] * 10 + np.arange(width)
    return (features if variants else features[:, 0]).astype(np.float16)


def write(directory, *, dataset="toy", count=COUNT, split="train", **arrays):
    precomputed_features.write_description(
        directory, dataset=dataset, num_examples={split: count}, model="tiny"
    )
    for name, array in arrays.items():
        path = precomputed_features.features_path(directory, split, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        np.save(path, array)
    return str(directory)


def train(directory, *, batch_size=6, hosts=(0, 1), seed=0, **section):
    return loader.make_train_data(
        dict(train=directory, **section),
        batch_size=batch_size,
        seed=seed,
        process_index=hosts[0],
        process_count=hosts[1],
    )


def test_features_match_their_records_and_masks_are_unchanged(directory, tmp_path):
    path = write(tmp_path, image=values(), touch=values(width=3), text=values(variants=4))
    data = train(
        directory,
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


def test_variants_are_sampled_uniformly_and_depend_only_on_step_and_seed(directory, tmp_path):
    path = write(tmp_path, text=values(variants=4))

    def variants(first=0, count=100, **changes):
        data = train(directory, text=dict(features=path, candidates=1), **changes)
        batches = itertools.islice(data.iterate(first), count)
        return np.stack([batch["text"][:, 0, 0] % 100 // 10 for batch in batches])

    whole = variants()
    counts = np.bincount(whole.astype(int).ravel(), minlength=4)
    assert counts.shape == (4,) and ((counts - 150) ** 2 / 150).sum() < 16.3  # p = 0.001
    assert np.array_equal(whole[40:45], variants(40, 5))
    halves = [variants(0, 5, hosts=(host, 2)) for host in range(2)]
    assert np.array_equal(whole[:5], np.concatenate(halves, axis=1))
    assert not np.array_equal(whole[:5], variants(0, 5, seed=1))


def test_each_source_has_its_own_features(directory, tmp_path):
    other = toy.build(tmp_path / "other", 4, name="more")
    paths = (
        write(tmp_path / "a", image=values()),
        write(tmp_path / "b", dataset="more", count=4, image=-values(4, variants=2)),
    )
    data = train((directory, other), batch_size=40, image=dict(features=paths))
    batch = next(data.iterate())
    second = batch["source"] == 1
    assert 5 < second.sum() < 35
    assert np.array_equal(batch["image"][~second], values()[batch["example_id"][~second]])
    assert np.array_equal(batch["image"][second, 0] // -100, batch["example_id"][second])


def test_limit_keeps_features_and_records_aligned(directory, tmp_path):
    path = write(tmp_path, image=values())
    batch = next(train(directory, image=dict(features=path), limit=3, batch_size=3).iterate())
    assert sorted(batch["example_id"]) == [0, 3, 6]
    assert np.array_equal(batch["image"], values()[batch["example_id"]])


def test_evaluation_reads_images_and_tokens_instead_of_features(directory, tmp_path):
    section = dict(
        train=directory,
        image=dict(features=str(tmp_path / "none"), size=8),
        text=dict(features=str(tmp_path / "none"), candidates=1, max_tokens=4),
    )
    batch = next(loader.make_eval_data(section, split="train", batch_size=2).iterate())
    assert batch["image"].shape == (2, 1, 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["text"].shape == (2, 1, 4) and batch["text"].dtype == np.int32


@pytest.mark.parametrize(
    "change, facts",
    [
        (
            lambda path: write(path, dataset="other", image=values()),
            ("other/train", "toy/train", 9),
        ),
        (lambda path: write(path, count=8, image=values(8)), ("toy/train", 8, 9)),
        (lambda path: write(path, split="test", image=values()), ("toy/train", 0, 9)),
        (lambda path: None, ("DIR", "features.json")),
        (lambda path: write(path, touch=values()), ("DIR/train/image.npy",)),
        (
            lambda path: write(path, image=values(8)),
            ("DIR/train/image.npy", "float16", "[8, 5]", "[9, D]", "[9, K, D]"),
        ),
        (
            lambda path: write(path, image=np.arange(9)),
            ("DIR/train/image.npy", "int64", "[9]", "floating", "[9, D]"),
        ),
    ],
)
def test_features_that_do_not_match_the_data_are_rejected(directory, tmp_path, change, facts):
    change(tmp_path)
    with raises(UserError, "data.image.features", tmp_path) as info:
        train(directory, image=dict(features=str(tmp_path)))
    # The numbers of the temporary directory must not stand in for those of the message.
    assert_mentions(str(info.value).replace(str(tmp_path), "DIR"), *facts)


@pytest.mark.parametrize(
    "text, fact",
    [("{", "line 1 column 2"), ("[]", "list"), ('{"dataset": "toy"}', "'num_examples'")],
)
def test_invalid_features_json_is_rejected(directory, tmp_path, text, fact):
    write(tmp_path, image=values())
    (tmp_path / "features.json").write_text(text)
    with raises(UserError, tmp_path / "features.json", fact):
        train(directory, image=dict(features=str(tmp_path)))


def test_mismatched_counts_and_widths_are_rejected(directory, tmp_path):
    path = write(tmp_path / "a", image=values())
    with raises(UserError, "data.image.features", 2, "data.train", 1):
        train(directory, image=dict(features=(path, path)))
    wide = write(tmp_path / "b", image=values(width=7))
    with raises(UserError, "data.image.features", path, wide) as info:
        train((directory, directory), image=dict(features=(path, wide)))
    assert_mentions(str(info.value).replace(str(tmp_path), "DIR"), WIDTH, 7)
    with raises(UserError, "data.text.features", "data.text.candidates=1", 5):
        train(directory, text=dict(features=path))


def test_disk_space_is_reserved_when_the_file_is_created(tmp_path, monkeypatch):
    path = tmp_path / "features.npy"
    features = precomputed_features.create_array(path, (1000, 64))
    assert features.shape == (1000, 64) and features.dtype == np.float32 and not features.any()
    stat = path.stat()
    assert stat.st_blocks * 512 >= stat.st_size > 1000 * 64 * 4

    def refuses(number, reason):
        def allocate(*_):
            raise OSError(number, reason)

        monkeypatch.setattr(os, "posix_fallocate", allocate)

    refuses(errno.EOPNOTSUPP, "this file system cannot")
    assert precomputed_features.create_array(path, (1000, 64)).shape == (1000, 64)
    refuses(errno.ENOSPC, "No space left on device")
    with raises(UserError, path, "0.000238 GiB", "No space left on device"):
        precomputed_features.create_array(path, (1000, 64))
    assert not path.exists()


def test_file_that_is_not_an_array_is_rejected(directory, tmp_path):
    path = write(tmp_path, image=values())
    file = tmp_path / "train" / "image.npy"
    file.write_bytes(b"")
    with raises(UserError, "data.image.features", file):
        train(directory, image=dict(features=path))
