"""Synthetic features for tests of evaluators."""

import numpy as np


def unit(x):
    """Returns vectors [..., D] scaled to length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def labeled_arrays(rng, size, centers):
    """Returns features of two views, clustered by class, and labels in turn."""
    label = (np.arange(size) % len(centers)).astype(np.int32)
    video = centers[label][:, None] + rng.normal(size=(size, 2, centers.shape[1]))
    return {"video": video.astype(np.float32), "label": label}


def train_and_test(arrays):
    """Returns arrays as the split 'test', and similar ones, none of them equal, as 'train'."""
    train = {name: value * 1.01 if value.ndim > 2 else value for name, value in arrays.items()}
    return {
        "train": {name: value.astype(arrays[name].dtype) for name, value in train.items()},
        "test": arrays,
    }
