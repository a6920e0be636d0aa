"""Shapes of the batches that training and evaluation pass to compiled functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from mmjax.config import Config
from mmjax.data_spec import DataSpec
from mmjax.modalities import IMAGES, INPUTS

Batch = dict[str, jax.ShapeDtypeStruct]


def training_batch(cfg: Config, spec: DataSpec) -> Batch:
    """Returns the fields of a training batch, with those that only the input pipeline adds.

    Args:
      cfg: A resolved config.
      spec: Its data spec.
    """
    fields = {"example_id": "int32"}
    if len(_sources(cfg)) > 1:
        fields["source"] = "int32"
    video = cfg.data.get("video")
    if "video" in spec.batch and _flips_on_device(video):
        fields["video_flip"] = "bool"
    return dict(spec.batch) | _vectors(fields, cfg.batch_size)


def evaluation_batch(cfg: Config) -> Batch:
    """Returns the fields of an evaluation batch with the batch size of training.

    Modalities except text have an axis of views after the first one.

    Args:
      cfg: A resolved config.
    """
    from mmjax.data.pipeline.config import parse_config  # imports TensorFlow

    section = {**cfg.data, "pairs": None}
    for name in INPUTS:
        if section.get(name):
            section[name] = {
                k: v for k, v in section[name].items() if k not in ("features", "crops")
            }
    batch = dict(DataSpec.of_config(dataclasses.replace(cfg, data=section)).batch)
    data = parse_config(section)
    views = {name: 1 for name in IMAGES} | {"touch_background": 1}
    if data.video:
        views["video"] = data.video.views
    if data.audio:
        views["audio"] = data.audio.num_clips
    for name, count in views.items():
        if name in batch:
            leaf = batch[name]
            shape = (leaf.shape[0], count, *leaf.shape[1:])
            batch[name] = jax.ShapeDtypeStruct(shape, leaf.dtype)
    return batch | _vectors({"example_id": "int32", "mask": "float32"}, cfg.batch_size)


def _sources(cfg: Config) -> tuple[str, ...]:
    train = cfg.data.get("train") or ()
    return (train,) if isinstance(train, str) else tuple(train)


def _flips_on_device(video: Mapping[str, object] | None) -> bool:
    from mmjax import config
    from mmjax.data.pipeline.video import Video  # imports TensorFlow

    options = Video(**config.keywords(Video, video or {}, "data.video"))
    return options.flip and options.flip_on == "device"


def _vectors(fields: Mapping[str, str], size: int) -> Batch:
    return {name: jax.ShapeDtypeStruct((size,), np.dtype(dtype)) for name, dtype in fields.items()}
