"""Each distinct input is encoded once, in batches of one size."""

import jax
import numpy as np

from mmjax.errors import UserError
from mmjax.models.distinct import encode_distinct, find_distinct
from tests.messages import raises

INPUTS = np.array([[3, 1], [2, 2], [3, 1], [0, 5], [2, 2], [2, 3], [3, 1]])


def test_distinct_inputs_are_found_in_order():
    first, index = find_distinct(INPUTS)
    np.testing.assert_array_equal(first, [0, 1, 3, 5])
    np.testing.assert_array_equal(INPUTS[first][index], INPUTS)
    np.testing.assert_array_equal(find_distinct(["b", "a", "b"])[1], [0, 1, 0])


def test_each_distinct_input_is_encoded_once_without_compiling_again():
    batches, traces = [], []

    @jax.jit
    def compiled(x):
        traces.append(x.shape)
        return {"sum": x.sum(axis=1), "square": x * x}

    def encode(x):
        batches.append(x)
        return compiled(x)

    for inputs in (INPUTS, np.arange(14).reshape(7, 2), INPUTS[[1] * 7]):
        batches.clear()
        encoded = encode_distinct(encode, inputs, batch_size=3)
        np.testing.assert_array_equal(encoded["sum"], inputs.sum(axis=1))
        np.testing.assert_array_equal(encoded["square"], inputs**2)
        count = len(np.unique(inputs, axis=0))
        assert [x.shape for x in batches] == [(3, 2)] * -(-count // 3)
    assert traces == [(3, 2)]


def test_keys_replace_the_comparison_of_inputs():
    batches = []

    def encode(x):
        batches.append(x)
        return x

    encoded = encode_distinct(encode, INPUTS[:3], batch_size=2, keys=["a", "b", "b"])
    np.testing.assert_array_equal(encoded, INPUTS[[0, 1, 1]])
    np.testing.assert_array_equal(batches, [INPUTS[:2]])


def test_empty_inputs_and_batches_are_errors():
    with raises(UserError, "0 inputs"):
        encode_distinct(np.array, INPUTS[:0], batch_size=2)
    with raises(UserError, "batch_size=0"):
        encode_distinct(np.array, INPUTS, batch_size=0)
