"""Features on disk that CKA compares: embeddings of encoders, and layers of encoders."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

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


def find(out: str | os.PathLike, table: Table) -> list[Similarity]:
    """Returns CKA between the encoders of a table and between their layers, as far as possible.

    Encoders are compared on the test images of the end task for which most of them have features
    in the cache. Layers are compared for encoders with a file of `mmjax.benchmark.layers`.

    Args:
      out: Directory of the benchmark.
      table: The results.
    """
    encoders = [encoder.name for encoder in table.encoders]
    found = []
    best: dict[str, np.ndarray] = {}
    title = ""
    for column in table.columns:
        embeddings = _embeddings(out, encoders, column.run)
        if len(embeddings) > max(1, len(best)):
            best, title = embeddings, f"Similarity of encoders on {column.title}"
    if best:
        found += _similarity(dict(list(best.items())[:_MAX_ROWS]), title)
    return found + _of_layers(out, encoders)


def _similarity(features: Mapping[str, np.ndarray], title: str) -> list[Similarity]:
    try:
        return [cka.similarity(features, title=title)]
    except UserError:  # files of others, or of fewer than four examples
        return []


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


def _of_layers(out: str | os.PathLike, encoders: list[str]) -> list[Similarity]:
    """Returns CKA between the layers of all encoders, one for each set of images."""
    groups: dict[bytes, dict[str, np.ndarray]] = {}
    for encoder in encoders:
        try:
            images, arrays = _read_layers(layers_path(out, encoder))
        except (UserError, OSError):
            continue
        group = groups.setdefault(images, {})
        if len(group) + len(arrays) <= _MAX_ROWS:
            group |= {f"{encoder} {name}": array for name, array in arrays.items()}
    return [one for g in groups.values() if g for one in _similarity(g, "Similarity of layers")]
