"""A factory with DMVR's interface as a source: fields, views, resume by skipping, hosts."""

import itertools
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data import loader
from mmjax.errors import UserError


class Factory:
    """Ten examples in order; frames show the example's number."""

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
    module = types.ModuleType("somebodys_data")
    module.Factory, module.Nothing = Factory, object
    monkeypatch.setitem(sys.modules, "somebodys_data", module)
    return dict(
        train="dmvr:somebodys_data:Factory",
        video=dict(num_frames=2, size=4),
        audio=dict(num_samples=6),
        label=dict(num_classes=10),
    )


def test_training_batches_resume_and_hosts(section):
    data = loader.make_train_data(section, batch_size=4, seed=0)
    found = list(itertools.islice(data.iterate(), 3))
    assert found[0]["video"].shape == (4, 2, 4, 4, 3) and found[0]["video"].dtype == np.uint8
    assert found[0]["audio"].shape == (4, 6) and found[0]["video_mask"].tolist() == [1] * 4
    assert [b["label"].tolist() for b in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    assert found[1]["video"][:, 0, 0, 0, 0].tolist() == [4, 5, 6, 7]
    assert next(data.iterate(2))["label"].tolist() == [8, 9, 0, 1]
    second = loader.make_train_data(section, batch_size=4, seed=0, process_index=1, process_count=2)
    assert next(second.iterate())["label"].tolist() == [2, 3]
    assert data.num_classes == 10 and data.spec["audio"].shape == (4, 6)


def test_evaluation_views_and_padding(section):
    data = loader.make_eval_data(section, batch_size=4, num_clips=3)
    found = list(data.iterate())
    assert len(found) == data.num_batches == 3 and data.num_examples == 10
    assert found[0]["video"].shape == (4, 3, 2, 4, 4, 3) and found[0]["audio"].shape == (4, 1, 6)
    assert np.concatenate([b["mask"] for b in found]).tolist() == [1] * 10 + [0] * 2


def test_what_is_not_a_factory(section):
    for name, message in [("Factori", "cannot be imported"), ("Nothing", "not a DMVR factory")]:
        wrong = section | dict(train=f"dmvr:somebodys_data:{name}")
        with pytest.raises(UserError, match=message):
            loader.make_train_data(wrong, batch_size=4, seed=0)
    with pytest.raises(UserError, match="gives no text.*data.text=None"):
        data = loader.make_train_data(section | dict(text=dict()), batch_size=4, seed=0)
        next(data.iterate())


@pytest.mark.parametrize(
    "modality, options",
    [("image", {}), ("touch", {}), ("text", dict(keywords={}))],
)
def test_what_a_stream_does_not_have(section, modality, options):
    with pytest.raises(UserError, match=f"data.{modality}.*stream"):
        loader.make_train_data(section | {modality: options}, batch_size=4, seed=0)
