"""Feature tables: which examples a batch has, in which order, and errors of damaged tables."""

import itertools
import json

import numpy as np
import pytest

from mmjax.data.pipeline import feature_table, loader
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from tests.messages import raises

TRAIN, TEST, VARIANTS, WIDTH, CLASSES = 47, 13, 2, 4, 5
SEEDS, EXAMPLES, UPDATES = 2, 8, 3
BATCH = SEEDS * EXAMPLES * UPDATES


def labels_of(count):
    return (np.arange(count) % CLASSES).astype(np.int32)


def features_of(count, variants=1):
    """Features [N, R, D] that say which example and variant they are of."""
    example, variant, column = np.indices((count, variants, WIDTH))
    return (example + variant / 4 + column / 16).astype(np.float16)


def write_table(directory, **splits):
    """Writes a table; {split: (features, labels)}."""
    for split, arrays in splits.items():
        (directory / split).mkdir(parents=True)
        for name, array in zip(("embedding", "label"), arrays, strict=True):
            np.save(directory / split / f"{name}.npy", array)
    description = dict(
        dataset="things",
        num_examples={split: len(arrays[1]) for split, arrays in splits.items()},
        num_classes=CLASSES,
        class_names=list("abcde"),
    )
    (directory / "features.json").write_text(json.dumps(description))
    return f"features:{directory}"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(
        tmp_path_factory.mktemp("table"),
        train=(features_of(TRAIN, VARIANTS), labels_of(TRAIN)),
        test=(features_of(TEST), labels_of(TEST)),
    )


def section(table, *, split="train", seeds=SEEDS, examples=EXAMPLES, drop_last=False):
    options = dict(name="Pets", seeds=seeds, examples_per_update=examples, drop_last=drop_last)
    return dict(train=table, split=split, end_task=options)


def train_data(table, *, batch_size=BATCH, seed=0, **options):
    return loader.make_train_data(section(table, **options), batch_size=batch_size, seed=seed)


def examples_of(batch, *, updates=UPDATES, seeds=SEEDS):
    """Returns the examples of a batch as [updates, seeds, B]."""
    parts = batch["example_id"].reshape(-1, updates).T
    return parts.reshape(updates, seeds, -1)


def order_of(data, steps, **sizes):
    """Returns the examples of the first steps as [updates, seeds, B]."""
    batches = itertools.islice(data.iterate(), steps)
    return np.concatenate([examples_of(batch, **sizes) for batch in batches])


def test_training_resumes_at_any_step(table):
    batches = list(itertools.islice(train_data(table).iterate(), 6))
    for step in (1, 4):
        resumed = next(iter(train_data(table).iterate(step)))
        assert resumed.keys() == batches[step].keys()
        for name, value in resumed.items():
            np.testing.assert_array_equal(value, batches[step][name])
    other = next(iter(train_data(table, seed=1).iterate()))
    assert not np.array_equal(other["example_id"], batches[0]["example_id"])
    ids = train_data(table).batch_ids(4)
    np.testing.assert_array_equal(ids["record"], batches[4]["example_id"])
    np.testing.assert_array_equal(ids["position"], 4 * BATCH + np.arange(BATCH))


def test_batches_have_the_features_and_labels_of_their_examples(table):
    data = train_data(table)
    assert DataSpec.of(data).num_classes == CLASSES and data.num_examples == TRAIN
    features = features_of(TRAIN, VARIANTS)
    for batch in itertools.islice(data.iterate(), 2):
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            k: (v.shape, v.dtype) for k, v in data.spec.items()
        }
        examples = batch["example_id"]
        np.testing.assert_array_equal(batch["label"], examples % CLASSES)
        variants = ((batch["embedding"][:, 0] - examples) * 4).astype(int)
        np.testing.assert_array_equal(batch["embedding"], features[examples, variants])


def test_every_seed_passes_over_all_examples_in_an_order_of_its_own(table):
    """A pass may end in the middle of an update."""
    order = order_of(train_data(table), 4)  # 12 updates of 8: more than two passes over 47
    passes = [order[:, s].ravel()[: 2 * TRAIN].reshape(2, TRAIN) for s in range(SEEDS)]
    for one in np.concatenate(passes):
        np.testing.assert_array_equal(np.sort(one), np.arange(TRAIN))
    assert len({tuple(one) for one in np.concatenate(passes)}) == 4


def test_the_paper_drops_the_last_incomplete_batch_of_each_pass(table):
    order = order_of(train_data(table, drop_last=True), 5)
    per_pass = TRAIN // EXAMPLES
    for s, n in itertools.product(range(SEEDS), range(3)):
        one = order[n * per_pass : (n + 1) * per_pass, s].ravel()
        assert len(set(one.tolist())) == per_pass * EXAMPLES
    first, second = (set(order[n * per_pass :, 0][:per_pass].ravel().tolist()) for n in (0, 1))
    assert first != second  # others are left out in the next pass


@pytest.mark.parametrize("updates", [1, 2])
def test_the_order_depends_neither_on_updates_per_step_nor_on_the_number_of_seeds(table, updates):
    expected = order_of(train_data(table), 2)[:, 0]
    data = train_data(table, seeds=1, batch_size=updates * EXAMPLES)
    actual = order_of(data, 2 * UPDATES // updates, updates=updates, seeds=1)[:, 0]
    np.testing.assert_array_equal(actual, expected)


def test_passes_alternate_between_the_variants_of_an_example(table):
    data = train_data(table, seeds=1, batch_size=EXAMPLES)
    batches = list(itertools.islice(data.iterate(), 3 * TRAIN // EXAMPLES))
    examples, features = (
        np.concatenate([batch[name] for batch in batches]) for name in ("example_id", "embedding")
    )
    variants = (features[:, 0] - examples) * 4
    expected = np.arange(len(variants)) // TRAIN % VARIANTS
    np.testing.assert_array_equal(variants, expected)


@pytest.mark.parametrize("batch_size", [4, 13, 16])
def test_evaluation_counts_every_example_once_in_order(table, batch_size):
    data = loader.make_eval_data(section(table), split="test", batch_size=batch_size)
    batches = list(data.iterate())
    assert len(batches) == data.num_batches == -(-TEST // batch_size)
    for batch in batches:
        assert all(len(value) == batch_size for value in batch.values())
    joined = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    valid = joined.pop("mask") > 0
    np.testing.assert_array_equal(joined["example_id"][valid], np.arange(TEST))
    np.testing.assert_array_equal(joined["label"][valid], labels_of(TEST))
    np.testing.assert_array_equal(joined["embedding"][valid], features_of(TEST)[:, 0])
    assert valid.sum() == TEST and valid[:TEST].all()
    assert not joined["embedding"][~valid].any()


def test_evaluation_reads_the_first_variant_of_the_first_examples(table):
    data = loader.make_eval_data(section(table), split="train", batch_size=8, max_examples=11)
    batches = list(data.iterate())
    valid = np.concatenate([batch["mask"] for batch in batches]) > 0
    features = np.concatenate([batch["embedding"] for batch in batches])[valid]
    np.testing.assert_array_equal(features, features_of(TRAIN, VARIANTS)[:11, 0])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_equal_parts_of_the_global_batch(table, hosts):
    train, test = section(table), section(table, split="test")
    whole = list(itertools.islice(train_data(table).iterate(), 2))
    whole_test = list(loader.make_eval_data(test, split="test", batch_size=8).iterate())
    parts, test_parts = [], []
    for index in range(hosts):
        host = dict(process_index=index, process_count=hosts)
        data = loader.make_train_data(train, batch_size=BATCH, seed=0, **host)
        parts.append(list(itertools.islice(data.iterate(), 2)))
        data = loader.make_eval_data(test, split="test", batch_size=8, **host)
        test_parts.append(list(data.iterate()))
    for expected, actual in ((whole, parts), (whole_test, test_parts)):
        for step, batch in enumerate(expected):
            for name, value in batch.items():
                joined = np.concatenate([part[step][name] for part in actual])
                np.testing.assert_array_equal(joined, value)


def test_validation_examples_are_stratified_and_not_trained_on(tmp_path):
    labels = np.repeat(np.arange(CLASSES), 20)[np.random.default_rng(0).permutation(100)]
    table = write_table(tmp_path, train=(features_of(100), labels.astype(np.int32)))
    parts = {}
    for split in ("train[:90%:stratified]", "train[90%::stratified]"):
        data = loader.make_eval_data(section(table), split=split, batch_size=10)
        batches = list(data.iterate())
        # The first column of the features is the example in the file.
        parts[split] = np.concatenate([b["embedding"][:, 0] for b in batches]).astype(int)
        np.testing.assert_array_equal(
            np.concatenate([batch["label"] for batch in batches]), labels[parts[split]]
        )
    train, validation = parts.values()
    assert not set(train) & set(validation) and len(set(train) | set(validation)) == 100
    np.testing.assert_array_equal(np.bincount(labels[train]), 18)
    np.testing.assert_array_equal(np.bincount(labels[validation]), 2)
    data = train_data(table, split="train[:90%:stratified]")
    seen = set(order_of(data, 4).ravel().tolist())
    records = data.batch_ids(0)["record"]
    assert seen <= set(range(90)) and set(records.tolist()) <= set(train.tolist())


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (dict(batch_size=BATCH + 1), ["config.batch_size=49", "seeds=2", "examples_per_update=8"]),
        (dict(examples=48, batch_size=96), ["examples_per_update=48", TRAIN]),
        (dict(split="valid"), ["'valid'", "train, test"]),
        (dict(split="train+test"), ["'train+test'"]),
    ],
)
def test_sizes_and_splits_that_do_not_fit_are_named(table, options, facts):
    with raises(UserError, *facts):
        train_data(table, **options)


def test_damaged_tables_are_named(tmp_path):
    good = features_of(6), labels_of(6)

    def check(name, arrays, *facts):
        path = tmp_path / name
        table = write_table(path, train=arrays)
        with raises(UserError, path, *facts):
            train_data(table, batch_size=2, seeds=1, examples=2)
        return path

    check("matrix", (good[0][:, 0], good[1]), "embedding.npy", "float16 [6, 4]")
    check("integers", (good[0].astype(int), good[1]), "embedding.npy", "int64")
    check("short", (good[0][:5], good[1]), "embedding.npy", "[5, 1, 4]", 6)
    check("float", (good[0], good[1].astype(float)), "label.npy", "float64")
    path = tmp_path / "empty"
    path.mkdir()
    with raises(UserError, path, "features.json"):
        train_data(f"features:{path}")
    (path / "features.json").write_text("{")
    with raises(UserError, path / "features.json"):
        train_data(f"features:{path}")


def test_tables_on_disk_stay_on_disk(table):
    """Memory does not grow with the number of examples."""
    source, _ = feature_table.open_table(table.removeprefix("features:"), split="train")
    assert isinstance(source.features, np.memmap)
