"""Few-shot episodes compared with a NumPy reference, and the few-shot evaluator."""

import re

import jax
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.evals import few_shot
from tests.messages import raises


@pytest.fixture(scope="module")
def data():
    """Support and queries (x [N, D], labels [N]) of 9 classes; the last has 4 queries."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(9, 16))

    def sample(counts):
        labels = rng.permutation(np.repeat(np.arange(9), counts))
        x = centers[labels] + 1.5 * rng.normal(size=(len(labels), 16)) + 3
        return x.astype(np.float32), labels.astype(np.int32)

    return sample([20, 5, 6, 7, 30, 9, 8, 12, 11]), sample([10, 6, 9, 12, 8, 7, 30, 10, 4])


sample_subset = jax.jit(few_shot.sample_subset)  # the reference calls it hundreds of times


def reference_accuracy(support, queries, classes, *, ways, shots, num_queries, average, key):
    """Accuracy of one episode, sampled as in the library but classified in NumPy."""
    of_classes, *bits = few_shot.random_bits(key, ways, shots, num_queries)
    chosen = classes[np.asarray(sample_subset(of_classes, len(classes))[0])]

    def pick(x, labels, bits):
        picked = []
        for label, of_class in zip(chosen, bits, strict=True):
            own = np.flatnonzero(labels == label)
            indices, valid = sample_subset(of_class, len(own))
            picked.append(x[own[np.asarray(indices)[np.asarray(valid)]]].astype(np.float64))
        return picked

    shots_of, queries_of = pick(*support, bits[0]), pick(*queries, bits[1])
    mean = np.concatenate(shots_of).mean(0)
    normalize = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    shots_of, queries_of = ([normalize(x - mean) for x in part] for part in (shots_of, queries_of))
    hits = []
    for label, class_queries in enumerate(queries_of):
        for query in class_queries:
            if average:
                distance = [np.linalg.norm(query - x.mean(0)) for x in shots_of]
            else:
                distance = [np.linalg.norm(query - x, axis=1).min() for x in shots_of]
            hits.append(np.argmin(distance) == label)
    return np.mean(hits)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("ways, shots, num_queries", [(5, 5, 6), (2, 1, 3), (9, 4, 1)])
def test_accuracies_equal_the_reference(data, average, ways, shots, num_queries):
    options = dict(ways=ways, shots=shots, num_queries=num_queries, average=average)
    classes = np.arange(9)
    results = few_shot.accuracies(*data, classes=classes, episodes=12, seed=3, **options)
    for episode in range(12):
        key = jax.random.fold_in(jax.random.key(3), episode)
        expected = reference_accuracy(*data, classes, key=key, **options)
        assert results[episode] == pytest.approx(expected)


def test_samples_are_uniform_over_subsets():
    bits = jax.random.bits(jax.random.key(0), (20_000, 3))
    samples = np.sort(np.asarray(jax.vmap(few_shot.sample_subset, (0, None))(bits, 5)[0]), axis=1)
    assert ((samples >= 0) & (samples < 5)).all() and (np.diff(samples, axis=1) > 0).all()
    sets, counts = np.unique(samples, axis=0, return_counts=True)
    assert len(sets) == 10
    np.testing.assert_allclose(counts / 20_000, 0.1, atol=0.01)


def test_sampling_more_than_the_total_returns_all():
    indices, valid = few_shot.sample_subset(jax.random.bits(jax.random.key(0), (6,)), 4)
    assert sorted(np.asarray(indices)[np.asarray(valid)]) == [0, 1, 2, 3]
    indices, valid = few_shot.sample_subset(jax.random.bits(jax.random.key(0), (6,)), 6)
    assert sorted(np.asarray(indices)) == list(range(6)) and valid.all()


def test_episodes_do_not_depend_on_their_count_or_block_size(data, monkeypatch):
    results = few_shot.accuracies(*data, classes=np.arange(9), episodes=30)
    monkeypatch.setattr(few_shot, "_MAX_VALUES", 7 * 55 * 16)  # blocks of 7
    np.testing.assert_array_equal(
        few_shot.accuracies(*data, classes=np.arange(9), episodes=11), results[:11]
    )
    other = few_shot.accuracies(*data, classes=np.arange(9), episodes=30, seed=1)
    assert (other != results).any()


def test_a_collapsed_model_is_at_chance(data):
    (x, labels), (queries, query_labels) = data
    parts = (np.ones_like(x), labels), (np.ones_like(queries), query_labels)
    results = few_shot.accuracies(*parts, classes=np.arange(9), episodes=50)
    np.testing.assert_allclose(results, 0.2, rtol=1e-5)


def arrays(x, labels):
    return {"image": np.stack([x - 0.1, x + 0.1], axis=1), "label": labels}


def test_the_evaluator_reports_mean_deviation_and_confidence_interval(make_harness, data, caplog):
    support, queries = data
    halves = [arrays(support[0][part], support[1][part]) for part in (slice(80), slice(80, None))]
    parts = {"train": halves[0], "val": halves[1], "test": arrays(*queries)}
    cfg = dict(type="few_shot", feature="image", episodes=40, shots=6, seed=2)
    results = make_harness(parts).run(f=cfg | {"support": "train+valid", "valid_split": "val"})
    both = [np.concatenate([half[name] for half in halves]) for name in ("image", "label")]
    kept = np.array([0, 2, 3, 4, 5, 6, 7, 8])  # class 1 has 5 support examples
    options = dict(classes=kept, episodes=40, shots=6, seed=2)
    expected = few_shot.accuracies(
        (2 * both[0].mean(1), both[1]), (2 * queries[0], queries[1]), **options
    )
    assert results["f/image/top1"] == pytest.approx(expected.mean(), abs=1e-3)
    assert results["f/image/top1_std"] == pytest.approx(expected.std(), abs=1e-3)
    ci95 = 1.96 * expected.std() / np.sqrt(40)
    assert results["f/image/top1_ci95"] == pytest.approx(ci95, abs=1e-3)
    assert results["f/image/top1_chance"] == 0.2
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert sorted(re.findall(r"\d+", message)) == ["1", "1", "6", "9"]  # class 1; 1 of 9; 6 shots
    assert make_harness(parts).run(f=cfg | {"valid_split": "val"}) != results


def test_classes_without_queries_are_excluded(make_harness, data):
    support, (x, labels) = data
    harness = make_harness(
        {"train": arrays(*support), "test": arrays(x[labels < 5], labels[labels < 5])}
    )
    assert harness.run(f=dict(type="few_shot", episodes=5))["f/image/top1"] > 0.2
    with raises(
        UserError, "'image'", "config.evals.f.shots=5", "config.evals.f.ways=6", "'train'", "'test'"
    ):
        harness.run(f=dict(type="few_shot", ways=6))


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(ways=1), ("ways", 1, 2)),
        (dict(shots=0), ("shots", 0, 1)),
        (dict(support="train+valid"), ("support", "train+valid", "valid_split")),
        (dict(support="valid"), ("support", "'valid'", "train+valid")),
        (dict(way=3), ("'evals.f.way'", "'evals.f.ways'")),
    ],
)
def test_invalid_options_are_refused(make_harness, data, options, facts):
    harness = make_harness({"train": arrays(*data[0]), "test": arrays(*data[1])})
    with raises(UserError, *facts):
        harness.make(f=dict(type="few_shot", **options))


def test_multi_label_data_are_refused(make_harness):
    arrays = {"image": np.zeros((6, 1, 2), np.float32), "label": np.ones((6, 3), np.float32)}
    with raises(UserError, "config.evals.f", "'few_shot'", "single label", "fake", "linear_probe"):
        make_harness({"train": arrays, "test": arrays}).run(f=dict(type="few_shot"))


def test_evaluations_with_equal_options_share_a_compilation(data):
    sizes = []
    for seed in range(2):  # as in repeated evaluations of a run
        few_shot.accuracies(*data, classes=np.arange(9), episodes=31, seed=seed)
        sizes.append(few_shot._episodes._cache_size())
    assert sizes[0] == sizes[1] > 0
