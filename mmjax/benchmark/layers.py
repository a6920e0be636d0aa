"""Features of the layers of an encoder, which the report of a benchmark compares by CKA.

from mmjax.benchmark import layers
layers.write("out", "mine", "RUN_OR_FILE", end_task="Pets", root="datasets")
"""

from __future__ import annotations

import hashlib
import os
import pathlib

import jax
import numpy as np

from mmjax import files
from mmjax.benchmark import names
from mmjax.benchmark.image_encoder import ImageEncoder, open_encoder
from mmjax.benchmark.report.cached_features import IMAGES, layers_path
from mmjax.end_tasks.registry import find

_BATCH_SIZE = 50


def write(
    out: str | os.PathLike,
    experiment: str,
    source: str,
    *,
    end_task: str,
    root: str = "datasets",
    examples: int = 1000,
) -> pathlib.Path:
    """Writes the features of all layers of an encoder, averaged over positions; returns the file.

    The layers are the feature maps and the embedding. `mmjax benchmark --report_only` shows the CKA
    between all layers of all encoders that have such a file of the same images.

    Args:
      out: Directory of the benchmark.
      experiment: Name of the encoder in the benchmark.
      source: Its weights; see `open_encoder`.
      end_task: The end task whose first test images are encoded.
      root: Directory of the data sets.
      examples: Number of images.

    Raises:
      UserError: The encoder or the data cannot be read.
    """
    from mmjax.data.pipeline import loader

    path = layers_path(out, names.check_name(experiment, "experiment"))
    encoder = open_encoder(source)
    data = {
        "train": f"end_task:{end_task},root={root}",
        "split": "test",
        "end_task": dict(name=end_task, size=encoder.trunk.size, paper=False),
        "label": None if find(end_task).pixelwise else {},
    }
    opened = loader.make_eval_data(data, split="test", batch_size=_BATCH_SIZE)
    count, digest, parts = 0, hashlib.sha256(), []
    for batch in opened.iterate():
        valid = np.asarray(batch["mask"]) > 0
        images = np.asarray(batch["image"])[valid][: examples - count, :1]
        digest.update(images.tobytes())
        parts.append(_encode(encoder, images))
        count += len(images)
        if count >= examples:
            break
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_open(path, "wb") as file:
        np.savez(file, **arrays, **{IMAGES: np.frombuffer(digest.digest(), np.uint8)})
    return path


def _encode(encoder: ImageEncoder, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {layer: float32 [B, C]} of images uint8 [B, 1, H, W, 3]."""
    trunk, arguments = encoder.trunk, (encoder.params, encoder.extra, images)
    maps = jax.jit(trunk.maps)(*arguments) if trunk.map_names() else {}
    names_in_order = sorted(set(maps) - {"img"}, key=lambda name: (name != "conv", name))
    result = {name: maps[name].mean(axis=(1, 2, 3)) for name in names_in_order}
    result["embedding"] = jax.jit(trunk.embedding)(*arguments)[:, 0]
    return {name: np.asarray(value, np.float32) for name, value in result.items()}
