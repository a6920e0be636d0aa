"""Episodes against a plain account of them, and the evaluator around them."""

import jax
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.evals import few_shot


@pytest.fixture(scope="module")
def data():
    """Support and queries (x [N, D], labels [N]) of 9 classes; the last has 4 queries."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(9, 16))

    def some(counts):
        labels = rng.permutation(np.repeat(np.arange(9), counts))
        x = centres[labels] + 1.5 * rng.normal(size=(len(labels), 16)) + 3
        return x.astype(np.float32), labels.astype(np.int32)

    return some([20, 5, 6, 7, 30, 9, 8, 12, 11]), some([10, 6, 9, 12, 8, 7, 30, 10, 4])


def plain(support, queries, classes, *, ways, shots, num_queries, average, key):
    """One episode, drawn as the library draws it, judged in plain numpy."""
    of_classes, *bits = few_shot.random_bits(key, ways, shots, num_queries)
    chosen = classes[np.asarray(few_shot.draw(of_classes, len(classes))[0])]

    def pick(x, labels, bits):
        picked = []
        for label, of_class in zip(chosen, bits, strict=True):
            own = np.flatnonzero(labels == label)
            numbers, there = few_shot.draw(of_class, len(own))
            picked.append(x[own[np.asarray(numbers)[np.asarray(there)]]].astype(np.float64))
        return picked

    known, asked = pick(*support, bits[0]), pick(*queries, bits[1])
    mean = np.concatenate(known).mean(0)
    length = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    known, asked = ([length(x - mean) for x in part] for part in (known, asked))
    hits = []
    for right, several in enumerate(asked):
        for query in several:
            if average:
                distance = [np.linalg.norm(query - x.mean(0)) for x in known]
            else:
                distance = [np.linalg.norm(query - x, axis=1).min() for x in known]
            hits.append(np.argmin(distance) == right)
    return np.mean(hits)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("ways, shots, num_queries", [(5, 5, 6), (2, 1, 3), (9, 4, 1)])
def test_episodes_are_what_a_plain_loop_gives(data, average, ways, shots, num_queries):
    options = dict(ways=ways, shots=shots, num_queries=num_queries, average=average)
    classes = np.arange(9)
    found = few_shot.accuracies(*data, classes=classes, episodes=12, seed=3, **options)
    for number in range(12):
        key = jax.random.fold_in(jax.random.key(3), number)
        assert found[number] == pytest.approx(plain(*data, classes, key=key, **options))


def test_draws_are_sets_of_which_each_is_as_likely():
    bits = jax.random.bits(jax.random.key(0), (20_000, 3))
    found = np.sort(np.asarray(jax.vmap(few_shot.draw, (0, None))(bits, 5)[0]), axis=1)
    assert ((found >= 0) & (found < 5)).all() and (np.diff(found, axis=1) > 0).all()
    sets, counts = np.unique(found, axis=0, return_counts=True)
    assert len(sets) == 10
    np.testing.assert_allclose(counts / 20_000, 0.1, atol=0.01)


def test_few_are_all_taken():
    numbers, there = few_shot.draw(jax.random.bits(jax.random.key(0), (6,)), 4)
    assert sorted(np.asarray(numbers)[np.asarray(there)]) == [0, 1, 2, 3]
    numbers, there = few_shot.draw(jax.random.bits(jax.random.key(0), (6,)), 6)
    assert sorted(np.asarray(numbers)) == list(range(6)) and there.all()


def test_episodes_do_not_depend_on_how_many_there_are(data, monkeypatch):
    found = few_shot.accuracies(*data, classes=np.arange(9), episodes=30)
    monkeypatch.setattr(few_shot, "_MAX_VALUES", 7 * 55 * 16)  # blocks of 7
    np.testing.assert_array_equal(
        few_shot.accuracies(*data, classes=np.arange(9), episodes=11), found[:11]
    )
    other = few_shot.accuracies(*data, classes=np.arange(9), episodes=30, seed=1)
    assert (other != found).any()


def test_a_collapsed_model_is_at_chance(data):
    (x, labels), (asked, asked_labels) = data
    parts = (np.ones_like(x), labels), (np.ones_like(asked), asked_labels)
    found = few_shot.accuracies(*parts, classes=np.arange(9), episodes=50)
    np.testing.assert_allclose(found, 0.2, rtol=1e-5)


def arrays(x, labels):
    return {"image": np.stack([x - 0.1, x + 0.1], axis=1), "label": labels}


def test_the_evaluator(bench, data, caplog):
    support, queries = data
    half = [arrays(support[0][rows], support[1][rows]) for rows in (slice(80), slice(80, None))]
    parts = {"train": half[0], "val": half[1], "test": arrays(*queries)}
    cfg = dict(type="few_shot", feature="image", episodes=40, shots=6, seed=2)
    found = bench(parts).run(f=cfg | {"support": "train+valid", "valid_split": "val"})
    both = [np.concatenate([part[name] for part in half]) for name in ("image", "label")]
    kept = np.array([0, 2, 3, 4, 5, 6, 7, 8])  # class 1 has five
    options = dict(classes=kept, episodes=40, shots=6, seed=2)
    want = few_shot.accuracies(
        (2 * both[0].mean(1), both[1]), (2 * queries[0], queries[1]), **options
    )
    assert found["f/image/top1"] == pytest.approx(want.mean(), abs=1e-3)
    assert found["f/image/top1_std"] == pytest.approx(want.std(), abs=1e-3)
    ci95 = 1.96 * want.std() / np.sqrt(40)
    assert found["f/image/top1_ci95"] == pytest.approx(ci95, abs=1e-3)
    assert found["f/image/top1_chance"] == 0.2
    assert "1 of 9 classes have fewer than 6 support examples" in caplog.text
    assert bench(parts).run(f=cfg | {"valid_split": "val"}) != found


def test_classes_without_queries_are_left_out(bench, data):
    support, (x, labels) = data
    b = bench({"train": arrays(*support), "test": arrays(x[labels < 5], labels[labels < 5])})
    assert b.run(f=dict(type="few_shot", episodes=5))["f/image/top1"] > 0.2
    with pytest.raises(UserError, match="5 classes have at least shots=5.*ways=6 are needed"):
        b.run(f=dict(type="few_shot", ways=6))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(ways=1), "ways=1 must be a number from 2"),
        (dict(shots=0), "shots=0"),
        (dict(support="train+valid"), "needs valid_split"),
        (dict(support="valid"), "support of evaluator f"),
        (dict(way=3), "Did you mean 'ways'"),
    ],
)
def test_options_that_cannot_be(bench, data, options, message):
    b = bench({"train": arrays(*data[0]), "test": arrays(*data[1])})
    with pytest.raises(UserError, match=message):
        b.make(f=dict(type="few_shot", **options))


def test_several_labels_are_refused(bench):
    many = {"image": np.zeros((6, 1, 2), np.float32), "label": np.ones((6, 3), np.float32)}
    with pytest.raises(UserError, match="few_shot needs data with single labels"):
        bench({"train": many, "test": many}).run(f=dict(type="few_shot"))


def test_evaluations_of_one_form_share_a_compilation(data):
    sizes = []
    for seed in range(2):  # as the evaluations of a training
        few_shot.accuracies(*data, classes=np.arange(9), episodes=31, seed=seed)
        sizes.append(few_shot._episodes._cache_size())
    assert sizes[0] == sizes[1] > 0
