"""One vector per example from the embeddings of its views or captions."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mmjax.evals.features.arrays import Features


def normalize(x: np.ndarray) -> np.ndarray:
    """Returns vectors [..., D] scaled to length 1; a zero vector stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def aggregate_views(embeddings: np.ndarray, how: Literal["embd", "cosine"]) -> np.ndarray:
    """Returns one vector [N, D] from the embeddings [N, V, D] of several views, as in VATT.

    Args:
      embeddings: float [N, V, D].
      how: 'embd' normalizes the mean of the views. 'cosine' is the mean of the normalized views, so
        that an inner product with it is the mean of the views' cosines.
    """
    if how == "embd":
        return normalize(embeddings.mean(axis=1))
    return normalize(embeddings).mean(axis=1)


def first_caption(present: np.ndarray) -> np.ndarray:
    """Returns a mask [N, L] of the first caption of each example among those `present` [N, L]."""
    return present & (np.cumsum(present, axis=1) == 1)


def example_vectors(features: Features, modality: str, other: str) -> np.ndarray:
    """Returns normalized embeddings [N, D] of a modality for comparison with another one.

    Views are averaged. For text, the first caption is used; examples without one are zero.

    Args:
      features: Has the array 'modality/other'.
      modality: Modality that is embedded.
      other: Modality that it is compared with.
    """
    embeddings = features.arrays[f"{modality}/{other}"]
    if modality != "text":
        return aggregate_views(embeddings, "embd")
    first = first_caption(features.present("text"))
    return normalize(np.sum(embeddings * first[..., None], axis=1))
