"""DMVR factories as data sources: fields, views, resuming by skipping batches, several hosts."""

import itertools
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data.pipeline import loader
from mmjax.errors import UserError
from tests.messages import raises


class Factory:
    """Yields ten examples in order; the pixel values encode the example's index."""

    def __init__(self, subset):
        self.subset = subset

    def configure(self, is_training=True, num_frames=1, num_test_clips=1, num_samples=10, other=7):
        assert other == 7
        self.frames = num_frames * (1 if is_training else num_test_clips)
        self.samples = num_samples

    def make_dataset(self, shuffle, num_epochs, batch_size, drop_remainder):
        def example(number):
            return {
                "image": tf.ones([self.frames, 4, 4, 3]) * tf.cast(number, tf.float32) / 255,
                "audio": tf.ones([self.samples, 1]) * tf.cast(number, tf.float32),
                "label": tf.cast(number, tf.int32),
            }

        dataset = tf.data.Dataset.range(10).map(example).repeat(num_epochs)
        return dataset.batch(batch_size, drop_remainder=drop_remainder)


@pytest.fixture
def section(monkeypatch):
    module = types.ModuleType("third_party_data")
    module.Factory, module.Nothing = Factory, object
    monkeypatch.setitem(sys.modules, "third_party_data", module)
    return dict(
        train="dmvr:third_party_data:Factory",
        video=dict(num_frames=2, size=4),
        audio=dict(num_samples=6),
        label=dict(num_classes=10),
    )


def test_training_batches_resume_and_are_sharded_over_hosts(section):
    data = loader.make_train_data(section, batch_size=4, seed=0)
    result = list(itertools.islice(data.iterate(), 3))
    assert result[0]["video"].shape == (4, 2, 4, 4, 3) and result[0]["video"].dtype == np.uint8
    assert result[0]["audio"].shape == (4, 6) and result[0]["video_mask"].tolist() == [1] * 4
    assert [b["label"].tolist() for b in result] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    assert result[1]["video"][:, 0, 0, 0, 0].tolist() == [4, 5, 6, 7]
    assert next(data.iterate(2))["label"].tolist() == [8, 9, 0, 1]
    second = loader.make_train_data(section, batch_size=4, seed=0, process_index=1, process_count=2)
    assert next(second.iterate())["label"].tolist() == [2, 3]
    assert data.num_classes == 10 and data.spec["audio"].shape == (4, 6)


def test_evaluation_has_views_and_a_padded_last_batch(section):
    data = loader.make_eval_data(section, batch_size=4, num_clips=3)
    result = list(data.iterate())
    assert len(result) == data.num_batches == 3 and data.num_examples == 10
    assert result[0]["video"].shape == (4, 3, 2, 4, 4, 3) and result[0]["audio"].shape == (4, 1, 6)
    assert np.concatenate([b["mask"] for b in result]).tolist() == [1] * 10 + [0] * 2


def test_error_for_an_invalid_factory(section):
    for name, fact in [("Factori", "PYTHONPATH"), ("Nothing", "configure()")]:
        wrong = section | dict(train=f"dmvr:third_party_data:{name}")
        with raises(UserError, wrong["train"], fact):
            loader.make_train_data(wrong, batch_size=4, seed=0)
    with raises(UserError, section["train"], "audio, image, label", "data.text=None"):
        data = loader.make_train_data(section | dict(text=dict()), batch_size=4, seed=0)
        next(data.iterate())


@pytest.mark.parametrize(
    "modality, options, facts",
    [
        ("image", {}, ("data.image", "mmjax build", "data.image=None")),
        ("touch", {}, ("data.touch", "mmjax build", "data.touch=None")),
        ("text", dict(keywords={}), ("data.text.keywords=None",)),
        ("text", dict(features="x", candidates=1), ("data.text.features=''",)),
    ],
)
def test_error_for_options_that_a_dmvr_factory_does_not_support(section, modality, options, facts):
    with raises(UserError, section["train"], *facts):
        loader.make_train_data(section | {modality: options}, batch_size=4, seed=0)
