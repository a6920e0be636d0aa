"""Tests of the order of examples and of pipeline phases, which are lists of named functions."""

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.pipeline.phases import Order, Pipeline, host_positions, seed_of
from mmjax.errors import UserError
from tests.messages import raises


def order(positions, *args, **kwargs):
    source, record = Order(*args, **kwargs)(tf.constant(positions, tf.int64))
    return source.numpy(), record.numpy()


@settings(deadline=None, max_examples=25)
@given(size=st.integers(1, 300), seed=st.integers(0, 2**31), epoch=st.integers(0, 10**6))
def test_each_epoch_is_a_permutation(size, seed, epoch):
    _, record = order(np.arange(size) + epoch * size, [size], seed=seed)
    assert sorted(record) == list(range(size))


def test_order_depends_on_epoch_and_seed():
    first, second = (order(np.arange(100) + e * 100, [100], seed=1)[1] for e in (0, 1))
    other = order(np.arange(100), [100], seed=2)[1]
    assert (first == second).mean() < 0.1 and (first == other).mean() < 0.1
    assert (first == np.arange(100)).mean() < 0.1
    # A position gives the same record whether it is computed alone or in a group.
    assert order([57], [100], seed=1)[1] == first[57]


def test_without_shuffling_records_are_in_order():
    assert order(np.arange(7), [3], shuffle=False)[1].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_mixture_has_exact_weights_and_visits_each_source_evenly():
    source, record = order(np.arange(20_000), [7, 40, 1000], weights=[5, 3, 2], seed=3)
    assert np.bincount(source[:10_000]).tolist() == [5000, 3000, 2000]
    assert np.bincount(source[10_000:]).tolist() == [5000, 3000, 2000]
    # All records of a source are visited equally often, up to the epoch in progress.
    for index, size in enumerate([7, 40, 1000]):
        seen = np.bincount(record[source == index], minlength=size)
        assert len(seen) == size and seen.max() - seen.min() <= 2
    early = np.bincount(source[:1000]) / 1000
    assert np.abs(early - [0.5, 0.3, 0.2]).max() < 0.06  # mixed, not one source after another


def test_weights_are_equal_by_default_and_must_be_positive_numbers_per_source():
    assert np.bincount(order(np.arange(10_000), [5, 50], seed=0)[0]).tolist() == [5000, 5000]
    for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]):
        with raises(UserError, f"data.weights={tuple(weights)}", 2, "data.train"):
            Order([5, 50], weights=weights)


def test_hosts_divide_the_positions_of_a_step():
    shares = [
        host_positions(tf.constant(5, tf.int64), batch_size=12, process_index=p, process_count=3)
        for p in range(3)
    ]
    assert np.concatenate(shares).tolist() == list(range(60, 72))


def test_functions_are_added_replaced_and_removed_by_name():
    pipeline = Pipeline()
    pipeline.remove("parse", "record")
    double = lambda features: features | {"x": features["x"] * 2}  # noqa: E731
    plus = lambda features: features | {"x": features["x"] + 1}  # noqa: E731
    pipeline.add("sample", "double", double)
    pipeline.add("sample", "plus", plus, before="double")
    pipeline.add("postprocess", "minus", lambda f: f | {"x": f["x"] - 100})
    x = {"x": tf.constant(3), "_private": tf.constant(0)}
    assert {k: int(v) for k, v in pipeline.example(x).items()} == {"x": 8}
    assert int(pipeline.batch({"x": tf.constant(3)})["x"]) == -97
    pipeline.replace("sample", "plus", double)
    assert int(pipeline.example(x)["x"]) == 12
    pipeline.remove("sample", "double")
    assert int(pipeline.example(x)["x"]) == 6
    assert pipeline.names()["sample"] == ("plus",)


def test_errors_suggest_the_nearest_valid_name():
    pipeline = Pipeline()
    with raises(UserError, "'samples'", "'sample'", "parse, postprocess, preprocess, sample"):
        pipeline.add("samples", "x", None)
    with raises(UserError, "'parse'", "'records'", "'record'"):
        pipeline.replace("parse", "records", None)
    with raises(UserError, "'parse'", "'record'", "replace()"):
        pipeline.add("parse", "record", None)
    with raises(UserError, "'parse'", "'nothing'", "record"):
        pipeline.add("parse", "x", None, before="nothing")


def test_seeds_differ_by_name_and_by_example():
    one = {"_seed": tf.constant([0, 1], tf.int64)}
    two = {"_seed": tf.constant([0, 2], tf.int64)}
    seeds = {tuple(seed_of(f, n).numpy()) for f in (one, two) for n in ("crop", "flip")}
    assert len(seeds) == 4
