"""Tasks: what is learned, and from which fields of the batch. One file per `--task`.

A task has no state. It builds the model from the config and offers pure functions, which
`mmjax.step` and the evaluators compile:

    init(key) -> (params, extra)
    encode(params, extra, batch, key) -> (features, extra)   per example; may run on microbatches
    objective(params, extra, features, batch, key) -> (loss, (extra, metrics))   the whole batch
    predict: {name: function(params, extra, batch) -> {name: array}}   on evaluation batches
    flops(spec) -> floating point operations of one training step, counted analytically
    check(params): if there is one, raises for parameters that do not go with the data

The loss is `objective ∘ encode`. The cut between them lets gradient accumulation stay exact for
losses that compare examples with each other. Metrics are (sum, count) pairs.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from mmjax import config
from mmjax.errors import choose

# Where the class of each task is; imported when asked for.
TASKS = {
    "pretrain": "mmjax.tasks.pretrain:Pretrain",
    "finetune": "mmjax.tasks.finetune:Finetune",
    "touch": "mmjax.tasks.touch:Touch",
    "guided": "mmjax.tasks.guided:Guided",
}

Metrics = dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """What a task needs to know of its data before it can build a model.

    Attributes:
      spec: {field: abstract array} of a global training batch.
      vocab_size: of the tokenizer; None without text.
      num_classes: of the labels; None without labels.
      sample_rate: of the windows of sound in Hz, after their stride; None without audio.
    """

    spec: Mapping[str, jax.ShapeDtypeStruct]
    vocab_size: int | None = None
    num_classes: int | None = None
    sample_rate: float | None = None

    @classmethod
    def of(cls, data: Any) -> DataFacts:
        """The facts of what `mmjax.data.loader.make_train_data` made."""
        return cls(
            spec={
                name: jax.ShapeDtypeStruct((data.batch_size, *rows.shape[1:]), rows.dtype)
                for name, rows in data.spec.items()
            },
            vocab_size=data.tokenizer.vocab_size if data.tokenizer is not None else None,
            num_classes=data.num_classes,
            sample_rate=data.sample_rate,
        )

    @classmethod
    def of_config(cls, cfg: Any, *, num_classes: int | None = None) -> DataFacts:
        """What a training batch will look like, by the config alone: no dataset is opened, but the
        head of a file of features that take a tower's place.

        A vocabulary is taken to fill the model's own word table, sound without a rate to be of
        48 kHz.

        Args:
          cfg: a recipe.
          num_classes: of labels, if the config does not say.
        """
        from mmjax.data import stored  # these import TensorFlow
        from mmjax.data.config import parse_config

        data, rows = parse_config(config.plain(cfg.data)), cfg.batch_size
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
            words = (data.text.candidates, data.text.max_words)
            shapes |= {"text": (words, "int32"), "text_mask": (words[:1], "float32")}
        for name in ("image", "touch"):
            if picture := getattr(data, name):
                views = (len(picture.crops),) if getattr(picture, "crops", ()) else ()
                square = ((*views, picture.size, picture.size, 3), "uint8")
                shapes |= {name: square, f"{name}_mask": ((), "float32")}
        if data.touch and data.touch.background:
            shapes["touch_background"] = shapes["touch"]
        for name in ("image", "text", "touch"):
            if folders := getattr(getattr(data, name), "features", ""):
                lead = shapes[f"{name}_mask"][0]
                shapes[name] = ((*lead, stored.width_of(folders, data.split, name)), "float32")
        classes = None
        if data.label:
            classes = data.label.num_classes or num_classes or 2
            shapes["label"] = ((classes,), "float32") if data.label.multi_label else ((), "int32")
        return cls(
            spec={
                name: jax.ShapeDtypeStruct((rows, *shape), np.dtype(dtype))
                for name, (shape, dtype) in shapes.items()
            },
            num_classes=classes,
            sample_rate=data.audio.rate(data.audio.sample_rate or 48_000) if data.audio else None,
        )


class Task(Protocol):
    """What the trainer and the evaluators call; see the module's text."""

    predict: Mapping[str, Callable[..., dict[str, jax.Array]]]
    dtype: str  # of matrix products, for MFU

    def init(self, key: jax.Array) -> tuple[dict, dict]: ...

    def encode(self, params, extra, batch, key) -> tuple[Any, dict]: ...

    def objective(self, params, extra, features, batch, key): ...

    def flops(self, spec: Mapping[str, jax.ShapeDtypeStruct]) -> float: ...


def make_task(cfg: Any, facts: DataFacts) -> Task:
    """The task `cfg.task`, built from its config sections."""
    module, name = choose("--task", cfg.task, TASKS).split(":")
    return getattr(importlib.import_module(module), name)(cfg, facts)
