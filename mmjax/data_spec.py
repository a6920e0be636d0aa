"""What a task needs to know about its data before it builds a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mmjax.config import Config
from mmjax.modalities import IMAGES, INPUTS


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """Shapes and sizes of a training batch.

    Attributes:
      batch: {field: abstract array} of a global training batch.
      vocab_size: Size of the tokenizer's vocabulary; None without text.
      num_classes: Number of classes: of an end task, of segmentation masks, or of labels. None
        without any of them.
      mask_classes: Class names of segmentation masks by value; () without masks.
      sample_rate: Sample rate of the audio in Hz, after striding; None without audio.
      train: Whether the task will be trained. Otherwise only its `predict` functions are used, and
        its loss need not fit the model and the data.
    """

    batch: Mapping[str, jax.ShapeDtypeStruct]
    vocab_size: int | None = None
    num_classes: int | None = None
    mask_classes: tuple[str, ...] = ()
    sample_rate: float | None = None
    train: bool = True

    @classmethod
    def of(cls, data: Any) -> DataSpec:
        """Returns the spec of the result of `mmjax.data.pipeline.loader.make_train_data`."""
        tokenizer = data if data.tokenizer is None else data.tokenizer  # a stream knows its own
        return cls(
            batch={
                name: jax.ShapeDtypeStruct((data.batch_size, *field.shape[1:]), field.dtype)
                for name, field in data.spec.items()
            },
            vocab_size=getattr(tokenizer, "vocab_size", None),
            num_classes=data.num_classes,
            mask_classes=getattr(data, "mask_classes", ()),  # not of streams and feature tables
            sample_rate=data.sample_rate,
        )

    @classmethod
    def of_config(cls, cfg: Config, *, num_classes: int | None = None) -> DataSpec:
        """Returns the spec that follows from the config, without opening a dataset.

        Only the headers of precomputed features are read. The vocabulary is assumed to fill the
        model's token embedding, and audio without a sample rate to have 48 kHz.

        Args:
          cfg: A resolved config.
          num_classes: Number of classes if the config does not set it.
        """
        from mmjax.data.pipeline import precomputed_features  # these import TensorFlow
        from mmjax.data.pipeline.config import parse_config

        data, batch_size = parse_config(cfg.data), cfg.batch_size
        shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        if data.video:
            frames = (data.video.num_frames, data.video.size, data.video.size, 3)
            shapes |= {"video": (frames, "uint8"), "video_mask": ((), "float32")}
        if data.audio:
            shapes |= {
                "audio": ((data.audio.num_samples,), "float32"),
                "audio_mask": ((), "float32"),
            }
        if data.text:
            tokens = (data.text.candidates, data.text.max_tokens)
            shapes |= {"text": (tokens, "int32"), "text_mask": (tokens[:1], "float32")}
        for name in IMAGES:
            if options := getattr(data, name):
                views = (len(options.crops),) if getattr(options, "crops", ()) else ()
                pixels = ((*views, options.size, options.size, 3), "uint8")
                shapes |= {name: pixels, f"{name}_mask": ((), "float32")}
        if data.touch and data.touch.background:
            shapes["touch_background"] = shapes["touch"]
        for name in INPUTS:
            if directories := getattr(getattr(data, name, None), "features", ""):
                lead = shapes[f"{name}_mask"][0]
                width = precomputed_features.width_of(directories, data.split, name)
                shapes[name] = ((*lead, width), "float32")
        classes = None
        if data.end_task:
            shapes |= data.end_task.shapes(train=True)
            classes = data.end_task.task.num_outputs or num_classes or 2
        if data.label:
            classes = data.label.num_classes or num_classes or 2
            shapes["label"] = ((classes,), "float32") if data.label.multi_label else ((), "int32")
        if data.segmentation:
            shapes |= data.segmentation.shapes
            classes = data.segmentation.num_classes or num_classes or 2
        return cls(
            batch={
                name: jax.ShapeDtypeStruct((batch_size, *shape), np.dtype(dtype))
                for name, (shape, dtype) in shapes.items()
            },
            num_classes=classes,
            mask_classes=tuple(map(str, range(classes))) if data.segmentation else (),
            sample_rate=data.audio.rate(data.audio.sample_rate or 48_000) if data.audio else None,
        )
