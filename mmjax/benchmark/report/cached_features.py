"""Features on disk that CKA compares: embeddings of encoders, and layers of encoders."""

from __future__ import annotations

import contextlib
import os
import pathlib

import numpy as np

from mmjax import files
from mmjax.benchmark import names
from mmjax.benchmark.report import cka
from mmjax.benchmark.report.cka import Similarity
from mmjax.benchmark.report.table import Table
from mmjax.errors import UserError
from mmjax.formats import npy

IMAGES = "images_sha256"  # entry of a file of layers: the hash of the images
_PREFIX = "features:"  # of `data.train` in the config of a run on features that are computed once
_MAX_ROWS = 60  # of a heat map


def find(out: str | os.PathLike, table: Table) -> dict[str, Similarity]:
    """Returns CKA between the encoders of a table and between their layers, as far as possible.

    Encoders are compared on the test images of the end task for which most of them have features
    in the cache. Layers are compared for the encoders with a file of `mmjax.benchmark.layers`; if
    these are of different images, for the largest group with the same ones.

    Args:
      out: Directory of the benchmark.
      table: The results.

    Returns:
      {'cka_encoders' or 'cka_layers': similarity}.
    """
    encoders = [encoder.name for encoder in table.encoders]
    best: dict[str, np.ndarray] = {}
    title = ""
    for column in table.columns:
        embeddings = _embeddings(out, encoders, column.run)
        if len(embeddings) > max(1, len(best)):
            best, title = embeddings, f"Similarity of encoders on {column.title}"
    groups = {
        "cka_encoders": (best, title),
        "cka_layers": (_layers(out, encoders), "Similarity of layers"),
    }
    found = {}
    for name, (features, title) in groups.items():
        features = dict(list(features.items())[:_MAX_ROWS])
        with contextlib.suppress(UserError):  # fewer than four examples, or damaged
            if features:
                found[name] = cka.similarity(features, title=title)
    return found


def _embeddings(out: str | os.PathLike, encoders: list[str], run: str) -> dict[str, np.ndarray]:
    """Returns {encoder: features [N, D] of the test images of a run}, all of the same examples."""
    result: dict[str, np.ndarray] = {}
    first: np.ndarray | None = None
    for encoder in encoders:
        try:
            config = files.read_object(names.run_directory(out, encoder, run) / "config.json", "")
            data = config.get("data")
            spec = data.get("train") if isinstance(data, dict) else None
            if not isinstance(spec, str) or not spec.startswith(_PREFIX):
                continue
            directory = pathlib.Path(spec.removeprefix(_PREFIX)).expanduser() / "test"
            labels = npy.open_array(directory / "label.npy")
            features = npy.open_array(directory / "embedding.npy")
        except (UserError, OSError):  # removed from the cache, or on another host
            continue
        first = labels if first is None else first
        if features.ndim == 3 and len(features) == len(labels) and np.array_equal(labels, first):
            result[encoder] = features[:, 0]
    return result


def layers_path(out: str | os.PathLike, experiment: str) -> pathlib.Path:
    """Returns the file of the layers of an encoder, which `mmjax.benchmark.layers` writes.

    It is an .npz file with float32 [N, C] for each layer, and `IMAGES`.
    """
    return pathlib.Path(out, experiment, "layers.npz")


def _read_layers(path: pathlib.Path) -> tuple[bytes, dict[str, np.ndarray]]:
    """Returns the hash of the images, and {layer: float32 [N, C]}."""
    with npy.Archive(path) as file:
        arrays = {name: file.read(name) for name in file.names}
    return arrays.pop(IMAGES, np.zeros(0)).tobytes(), arrays


def _layers(out: str | os.PathLike, encoders: list[str]) -> dict[str, np.ndarray]:
    """Returns {encoder and layer: features [N, C]}, all of the same images."""
    groups: dict[bytes, dict[str, np.ndarray]] = {}
    for encoder in encoders:
        try:
            images, arrays = _read_layers(layers_path(out, encoder))
        except (UserError, OSError):  # it has none, or it is damaged
            continue
        group = groups.setdefault(images, {})
        group |= {f"{encoder} {name}": array for name, array in arrays.items()}
    return max(groups.values(), key=len, default={})
