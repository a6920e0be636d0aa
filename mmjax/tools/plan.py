"""What a recipe needs on devices that are not here: bytes of every array, operations of a step."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from mmjax import config, sharding, train
from mmjax.data.config import parse_config
from mmjax.errors import UserError
from mmjax.monitor import report
from mmjax.tasks import DataFacts


def facts_of_config(cfg: Any, *, num_classes: int | None = None) -> DataFacts:
    """What a training batch will look like, by the config alone: no dataset is opened.

    A vocabulary is taken to fill the model's own word table.
    """
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
    if data.touch:
        shapes |= {
            "touch": ((data.touch.size, data.touch.size, 3), "uint8"),
            "touch_mask": ((), "float32"),
        }
    classes = None
    if data.label:
        classes = data.label.num_classes or num_classes or 2
        shapes["label"] = ((classes,), "float32") if data.label.multi_label else ((), "int32")
    return DataFacts(
        spec={
            name: jax.ShapeDtypeStruct((rows, *shape), np.dtype(dtype))
            for name, (shape, dtype) in shapes.items()
        },
        num_classes=classes,
        sample_rate=data.audio.rate(48_000) if data.audio else None,
    )


def plan(cfg: Any, *, data: int, fsdp: int = 1, tensor: int = 1, full: bool = False) -> str:
    """A table for a mesh of any size, computed from shapes alone.

    Raises:
      UserError: what would stop the run itself: a batch that does not divide, a rule that cannot
      be.
    """
    if min(data, fsdp, tensor) < 1:
        raise UserError(f"A mesh of {data} × {fsdp} × {tensor} devices: its sizes are at least 1.")
    mesh = AbstractMesh(
        (data, fsdp, tensor), sharding.AXES, axis_types=(AxisType.Auto,) * len(sharding.AXES)
    )
    facts = facts_of_config(cfg)
    program = train.build_program(cfg, facts, mesh)
    rows = cfg.batch_size // (data * fsdp)
    batch = sum(math.prod(s.shape[1:]) * s.dtype.itemsize for s in facts.spec.values())
    flops = program.task.flops(facts.spec)
    devices = data * fsdp * tensor
    return "\n".join(
        [
            f"{devices} devices (data {data} × fsdp {fsdp} × tensor {tensor}), "
            f"rules '{cfg.sharding}'",
            "",
            program.plan(full=full),
            "",
            f"batch: {cfg.batch_size} examples, {rows} a device, "
            f"{report.format_bytes(rows * batch)} a device as it travels",
            f"one step: {flops:.3g} floating point operations (forward and backward, without "
            f"rematerialisation), {flops / devices:.3g} a device",
            "Activations are not counted: they depend on what is rematerialised (model.remat).",
        ]
    )
