"""Memory banks and queues against explicitly constructed contents."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.memory import Bank, Queues
from tests.messages import raises


def embeddings(count, features=3, seed=0):
    return np.random.default_rng(seed).normal(size=(count, features)).astype(np.float32)


def test_bank_is_initialized_with_unit_vectors():
    bank = Bank(size=50, features=4, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(np.linalg.norm(bank.rows[...], axis=1), 1.0, rtol=1e-5)


def test_full_bank_wraps_around_and_drops_the_overflow():
    bank, size = Bank(size=10, features=3, rngs=nnx.Rngs(0)), 10
    expected, start = np.asarray(bank.rows[...]).copy(), 0
    for seed in range(7):
        batch = embeddings(4, seed=seed)
        bank.add(batch)
        room = min(4, size - start)
        expected[start : start + room] = batch[:room]
        start = 0 if start + 4 >= size else start + 4
        np.testing.assert_array_equal(bank.rows[...], expected)
        assert int(bank.next[...]) == start


def test_bank_skips_masked_examples():
    bank = Bank(size=10, features=3, rngs=nnx.Rngs(0))
    batch, before = embeddings(4), np.asarray(bank.rows[...])
    bank.add(batch, np.array([1, 0, 1, 0]))
    np.testing.assert_array_equal(bank.rows[...][:2], batch[[0, 2]])
    np.testing.assert_array_equal(bank.rows[...][2:], before[2:])
    assert int(bank.next[...]) == 2


def test_nearest_returns_the_stored_embedding_of_highest_cosine_without_gradient():
    bank = Bank(size=6, features=3, rngs=nnx.Rngs(0))
    stored = embeddings(6) * np.array([[1], [2], [3], [4], [5], [6]], np.float32)
    bank.add(stored)
    queries = embeddings(5, seed=1)
    cosines = queries @ (stored / np.linalg.norm(stored, axis=1, keepdims=True)).T
    np.testing.assert_allclose(bank.nearest(queries), stored[cosines.argmax(axis=1)], rtol=1e-6)
    assert not jax.grad(lambda q: bank.nearest(q).sum())(queries).any()


def test_queues_start_at_the_start_step_and_report_when_full():
    queues = Queues(views=2, size=5, features=3, start=1)
    first, second, third = (
        np.stack([embeddings(2, seed=n), embeddings(2, seed=n + 9)]) for n in range(3)
    )
    queues.push(first)
    assert not queues.rows[...].any()  # before the start step
    queues.push(second)
    queues.push(third)
    np.testing.assert_array_equal(queues.rows[...][:, :4], np.concatenate([third, second], axis=1))
    assert not queues.full().any()
    queues.push(first)
    assert queues.full().all()
    np.testing.assert_array_equal(queues.rows[...][:, 4], second[:, 0])


def test_queues_skip_masked_examples():
    queues = Queues(views=1, size=5, features=3, start=0)
    first, second = embeddings(3)[None], embeddings(3, seed=1)[None]
    queues.push(first, np.array([1, 0, 1]))
    queues.push(second, np.array([0, 1, 1]))
    expected = np.concatenate([second[0, 1:], first[0, [0, 2]], np.zeros((1, 3), np.float32)])
    np.testing.assert_array_equal(queues.rows[...][0], expected)


def test_batch_larger_than_the_memory_raises_an_error():
    key = "config.loss.nnclr.bank_size"
    with raises(UserError, 41, 37, key, "config.batch_size"):
        bank = Bank(size=37, features=3, size_key=key, rngs=nnx.Rngs(0))
        bank.add(jnp.zeros((41, 3)))
    key = "config.loss.swav.queue_length"
    with raises(UserError, 41, 37, key, "config.batch_size"):
        queues = Queues(views=1, size=37, features=3, start=0, size_key=key)
        queues.push(jnp.zeros((1, 41, 3)))
