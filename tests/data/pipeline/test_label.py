"""Labels: single, multi-label, and out of range."""

import pytest
import tensorflow as tf

from tests.data import toy_clips as toy
from tests.data.pipeline.one_record import run, train
from tests.messages import raises


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return toy.build(tmp_path_factory.mktemp("toy"), 12)


def test_single_labels_and_multi_labels(directory):
    assert run(train(directory), toy.example(0, labels=[4, 2]))["label"] == 4
    assert run(train(directory), toy.example(0, labels=[]))["label"] == -1
    multi = train(directory, label=dict(multi_label=True))
    assert run(multi, toy.example(0, labels=[4, 2, 2]))["label"].tolist() == [0, 0, 1, 0, 1]
    assert run(multi, toy.example(0, labels=[]))["label"].tolist() == [0] * 5


@pytest.mark.parametrize("labels, wrong", [([5], 5), ([-1], -1), ([0, 9], 9)])
def test_error_for_a_label_out_of_range(directory, labels, wrong):
    facts = ("class index", wrong, "[0, 5)", "data.label.num_classes")
    with raises(tf.errors.InvalidArgumentError, *facts):
        run(train(directory), toy.example(0, labels=labels))
