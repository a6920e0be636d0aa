"""Runs one record through the pipeline of the loader, for tests of its modalities."""

import numpy as np
import tensorflow as tf

from mmjax.data.pipeline import loader
from mmjax.data.storage import schema
from tests.data import toy_clips as toy


def run(data, stored, position=0):
    """Runs all per-example phases and batching on one record, which may not be in the dataset."""
    serialized = stored if isinstance(stored, bytes) else schema.encode(stored)
    features = {
        "_serialized": tf.constant(serialized),
        "_seed": tf.constant([0, position], tf.int64),
        "_source": tf.constant(0, tf.int64),
    }
    batch = data.pipeline.batch({k: v[None] for k, v in data.pipeline.example(features).items()})
    return {key: value.numpy()[0] for key, value in batch.items()}


def train(directory, **changes):
    return loader.make_train_data(toy.section(directory, **changes), batch_size=4, seed=0)


def evaluate(directory, **views):
    section = toy.section(directory, train=directory, split="train")
    return loader.make_eval_data(section, split="train", batch_size=4, **views)


def times_of(video):
    """Returns the time index encoded in each frame of [..., H, W, 3]."""
    return np.round((video[..., 0].mean((-1, -2)) - 3) / 10).astype(int)
