"""The order of examples: shuffling, mixtures, hosts and replacements of corrupt records."""

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.pipeline.order import (
    EvalOrder,
    HostBatch,
    Shuffle,
    TrainOrder,
    as_numpy,
    as_tensors,
)
from mmjax.errors import UserError
from tests.messages import raises


def order(positions, *args, **kwargs):
    source, record = Shuffle(*args, **kwargs)(tf.constant(positions, tf.int64))
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
            Shuffle([5, 50], weights=weights)


def test_hosts_divide_the_positions_of_a_step():
    hosts = [HostBatch(batch_size=12, process_index=p, process_count=3) for p in range(3)]
    shares = [host.positions(tf.constant(5, tf.int64)) for host in hosts]
    assert np.concatenate(shares).tolist() == list(range(60, 72))
    assert [host.slice for host in hosts] == [slice(0, 4), slice(4, 8), slice(8, 12)]


def ids(order, positions):
    return as_numpy(order.ids(tf.constant(positions, tf.int64)))


def test_evaluation_reads_the_records_in_order():
    order = EvalOrder(9, max_examples=7)
    assert (order.length, order.num_examples) == (7, 7) and EvalOrder(9).length == 9
    assert ids(order, [0, 3, 6])["record"].tolist() == [0, 3, 6]


def test_a_corrupt_record_is_replaced_by_the_next_one_of_its_source():
    order = TrainOrder([3, 5], seed=0)
    item = {"position": 7, "source": 1, "record": 3}
    for attempt, record in ((0, 3), (1, 4), (2, 0)):
        replaced = order.replacement(as_tensors(item), tf.constant(attempt, tf.int64))
        assert as_numpy(replaced) == item | {"record": record}


def test_limit_applies_to_each_source():
    order = TrainOrder([10, 4], limit=5, seed=1)
    result = ids(order, np.arange(2000))
    seen = [set(result["record"][result["source"] == source]) for source in (0, 1)]
    assert seen == [{0, 2, 4, 6, 8}, {0, 1, 2, 3}] and order.num_examples == 9
