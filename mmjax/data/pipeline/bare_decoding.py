"""Decodes the frames that a pipeline samples, and nothing else: the upper bound of its speed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from mmjax.data.pipeline import loader

_MIN_CLIPS = 128  # clips to sample, so that caches do not hold all of them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frames:
    """Sampled frames of some clips.

    Attributes:
      encoded: JPEGs, object [N, T].
      windows: (top, left, height, width) of each clip's crop, int32 [N, 4]; None without cropping.
    """

    encoded: np.ndarray
    windows: np.ndarray | None

    @property
    def mean_bytes(self) -> float:
        """The mean size of a JPEG in bytes."""
        return sum(len(frame) for clip in self.encoded for frame in clip) / self.encoded.size


def sample_frames(data_cfg: Mapping[str, Any], *, batch_size: int, seed: int) -> Frames:
    """Returns the frames that the training pipeline of a `data` section samples first."""
    others = {n: None for n in ("audio", "text", "label", "touch", "reference") if n in data_cfg}
    data = loader.make_train_data({**data_cfg, **others}, batch_size=batch_size, seed=seed)

    def keep_encoded(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        window = {"window": features["_window"]} if "_window" in features else {}
        return {"frames": features["_frames"], **window}

    data.pipeline.replace("decode", "video", keep_encoded)
    for name in data.pipeline.names()["preprocess"]:
        data.pipeline.remove("preprocess", name)
    batches = list(itertools.islice(data.iterate(0), max(1, _MIN_CLIPS // data.batch_size)))
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return Frames(encoded=joined["frames"], windows=joined.get("window"))


def decode(frames: Frames, data: loader.TrainData, *, crop: bool) -> Iterator[np.ndarray]:
    """Yields batches of decoded clips forever, on as many threads as a pipeline uses.

    Args:
      frames: The frames to decode.
      data: The pipeline, for the batch size, the threads and the decoding method.
      crop: Whether to decode only the windows.
    """
    method = {"fast": "INTEGER_FAST", "accurate": "INTEGER_ACCURATE"}[data.cfg.video.dct]
    encoded = tf.constant(frames.encoded)
    windows = tf.constant(frames.windows) if crop else None

    def decode_clip(index: tf.Tensor) -> tf.Tensor:
        index %= len(frames.encoded)
        pixels = []
        for jpeg in tf.unstack(encoded[index], frames.encoded.shape[1]):
            if windows is None:
                image = tf.io.decode_jpeg(jpeg, channels=3, dct_method=method)
            else:
                image = tf.io.decode_and_crop_jpeg(
                    jpeg, windows[index], channels=3, dct_method=method
                )
            pixels.append(tf.cast(image[0, 0, 0], tf.int32))  # otherwise decoding is optimized away
        return tf.add_n(pixels)

    dataset = tf.data.Dataset.range(2**62).map(decode_clip, num_parallel_calls=data.threads)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.max_intra_op_parallelism = 1
    options.threading.private_threadpool_size = data.threads
    return dataset.batch(data.batch_size).prefetch(2).with_options(options).as_numpy_iterator()
