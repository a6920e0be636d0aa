"""Small datasets whose values encode the example and the time, for tests of the input pipeline."""

import os

import numpy as np
import tensorflow as tf

from mmjax.data.storage import dataset, image_files, schema, tfrecord
from mmjax.data.text import word_vocab

FPS, RATE, FRAMES, SIZE = 10.0, 1000.0, 20, 32
WORDS = ("red", "blue", "circle", "square", "moves", "up")


def frame(example: int, time: int) -> np.ndarray:
    """Returns a frame: red and green encode the time (10 · time + 3), blue the example."""
    image = np.full((SIZE, SIZE + 8, 3), 10 * time + 3, np.int32)
    image[..., 2] = 40 + 5 * (example % 40)
    return image.astype(np.uint8)


def waveform(seconds: float = FRAMES / FPS) -> np.ndarray:
    """Returns a ramp that rises from 0 by 1 / 10 000 per sample: a value encodes its position."""
    return np.arange(int(seconds * RATE), dtype=np.float32) / 10_000


def example(number: int, **changes) -> schema.Example:
    fields = dict(
        frames=[image_files.encode_jpeg(frame(number, t), quality=100) for t in range(FRAMES)],
        waveform=waveform(),
        captions=[f"{WORDS[(number + k) % 6]} {WORDS[k % 6]}" for k in range(number % 4)],
        labels=[number % 5],
        filename=f"clip {number}",
    )
    return schema.Example(**(fields | changes))


def build(
    directory, count: int = 23, *, shards: int = 2, split: str = "train", payload=None, **info
):
    """Writes a dataset directory of `payload(number)` records (default: `example(number)`)."""
    payload = payload or (lambda number: schema.encode(example(number)))
    names = [dataset.shard_name(split, shard, shards) for shard in range(shards)]
    bounds = [count * shard // shards for shard in range(shards + 1)]
    for name, first, last in zip(names, bounds, bounds[1:], strict=False):
        tfrecord.write_shard(
            os.path.join(directory, name), [payload(n) for n in range(first, last)]
        )
    vocab = word_vocab.build_word_vocab(WORDS)
    word_vocab.write_word_vocab(os.path.join(directory, "vocab.txt"), vocab)
    fields = dict(
        name="toy",
        splits={split: dataset.SplitInfo(num_examples=count, shards=names)},
        modalities=("video", "audio", "text", "label"),
        num_classes=5,
        fps=FPS,
        sample_rate=RATE,
        vocabulary="vocab.txt",
    )
    dataset.DatasetInfo(**(fields | info)).save(directory)
    return str(directory)


def with_broken_frame(number: int) -> bytes:
    """Returns a record with truncated JPEG frames."""
    stored = example(number)
    stored.frames = [image[:40] for image in stored.frames]
    return schema.encode(stored)


def without_samples(number: int) -> bytes:
    """Returns a record with a waveform of length zero."""
    proto = tf.train.SequenceExample.FromString(schema.encode(example(number, waveform=None)))
    proto.feature_lists.feature_list[schema.WAVEFORM[0]].feature.add().float_list.SetInParent()
    return proto.SerializeToString()


def of_class_7(number: int) -> bytes:
    """Returns a record with class 7, which is out of range for the dataset."""
    return schema.encode(example(number, labels=[7]))


def section(directory, **changes) -> dict:
    """Returns the config section `data` of a recipe that reads this dataset directory."""
    fields = dict(
        train=directory,
        video=dict(num_frames=4, size=16, min_resize=20),
        audio=dict(num_samples=300),
        text=dict(max_tokens=4, candidates=2),
        label=dict(),
    )
    return fields | changes


def same(a: dict, b: dict) -> bool:
    """Returns whether two batches are bit-identical."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a
    )
