"""Memory banks and queues against a bank that is filled row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.memory import Bank, Queues


def rows(count, features=3, seed=0):
    return np.random.default_rng(seed).normal(size=(count, features)).astype(np.float32)


def test_a_bank_begins_with_unit_vectors():
    bank = Bank(size=50, features=4, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(np.linalg.norm(bank.rows[...], axis=1), 1.0, rtol=1e-5)


def test_a_bank_fills_up_and_starts_again_dropping_what_is_beyond():
    bank, size = Bank(size=10, features=3, rngs=nnx.Rngs(0)), 10
    expected, start = np.asarray(bank.rows[...]).copy(), 0
    for number in range(7):
        batch = rows(4, seed=number)
        bank.add(batch)
        room = min(4, size - start)
        expected[start : start + room] = batch[:room]
        start = 0 if start + 4 >= size else start + 4
        np.testing.assert_array_equal(bank.rows[...], expected)
        assert int(bank.next[...]) == start


def test_rows_that_do_not_exist_are_not_kept():
    bank = Bank(size=10, features=3, rngs=nnx.Rngs(0))
    batch, before = rows(4), np.asarray(bank.rows[...])
    bank.add(batch, np.array([1, 0, 1, 0]))
    np.testing.assert_array_equal(bank.rows[...][:2], batch[[0, 2]])
    np.testing.assert_array_equal(bank.rows[...][2:], before[2:])
    assert int(bank.next[...]) == 2


def test_the_nearest_is_by_cosine_as_it_was_stored_and_without_gradient():
    bank = Bank(size=6, features=3, rngs=nnx.Rngs(0))
    kept = rows(6) * np.array([[1], [2], [3], [4], [5], [6]], np.float32)
    bank.add(kept)
    queries = rows(5, seed=1)
    cosines = queries @ (kept / np.linalg.norm(kept, axis=1, keepdims=True)).T
    np.testing.assert_allclose(bank.nearest(queries), kept[cosines.argmax(axis=1)], rtol=1e-6)
    assert not jax.grad(lambda q: bank.nearest(q).sum())(queries).any()


def test_queues_start_late_and_are_full_when_the_last_row_is():
    queues = Queues(views=2, size=5, features=3, start=1)
    first, second, third = (np.stack([rows(2, seed=n), rows(2, seed=n + 9)]) for n in range(3))
    queues.push(first)
    assert not queues.rows[...].any()  # too early
    queues.push(second)
    queues.push(third)
    np.testing.assert_array_equal(queues.rows[...][:, :4], np.concatenate([third, second], axis=1))
    assert not queues.full().any()
    queues.push(first)
    assert queues.full().all()
    np.testing.assert_array_equal(queues.rows[...][:, 4], second[:, 0])


def test_rows_that_do_not_exist_are_not_queued():
    queues = Queues(views=1, size=5, features=3, start=0)
    first, second = rows(3)[None], rows(3, seed=1)[None]
    queues.push(first, np.array([1, 0, 1]))
    queues.push(second, np.array([0, 1, 1]))
    expected = np.concatenate([second[0, 1:], first[0, [0, 2]], np.zeros((1, 3), np.float32)])
    np.testing.assert_array_equal(queues.rows[...][0], expected)


def test_a_batch_larger_than_the_memory_is_refused():
    with pytest.raises(UserError, match="does not fit a memory bank of 3"):
        Bank(size=3, features=3, rngs=nnx.Rngs(0)).add(jnp.zeros((4, 3)))
    with pytest.raises(UserError, match="does not fit a queue of 3"):
        Queues(views=1, size=3, features=3, start=0).push(jnp.zeros((1, 4, 3)))
