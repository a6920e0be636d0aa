"""Reads parameters by path from any supported source: runs, checkpoints of others, word vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmjax import tree
from mmjax.checkpoints.find import find
from mmjax.checkpoints.manager import Checkpoints
from mmjax.convert.clip import load as clip_load
from mmjax.convert.flair import load as flair_load
from mmjax.convert.segmentation import load as segmentation_load
from mmjax.convert.vatt import load as vatt_load
from mmjax.convert.vatt.names import WORD_EMBEDDING
from mmjax.convert.vision import load as vision_load
from mmjax.formats import tf_checkpoint, torch_reader, word_vectors
from mmjax.monitor import nonfinite


def load_params(source: str) -> tuple[dict[str, np.ndarray], str]:
    """Returns the parameters and statistics of one source, and a description for the log.

    A warning in the log names arrays with values that are not finite. See `_load`.
    """
    leaves, description = _load(source)
    nonfinite.warn_about_weights(leaves, source)
    return leaves, description


def _load(source: str) -> tuple[dict[str, np.ndarray], str]:
    """Returns the parameters and statistics of one source.

    Args:
      source: One of
        - a run directory (its newest checkpoint) or `<run>/checkpoints/<step>`. If the run keeps a
          moving average of the parameters, it is read instead of the parameters;
        - the prefix of a TensorFlow checkpoint of VATT (`…/ckpt-500000`);
        - a PyTorch file (.pth, .safetensors, …) with TVL's touch encoder, OpenCLIP's towers,
          FLAIR, a segmentation model, an image backbone (ResNet, MobileNet, ViT) or an LGSSL
          model;
        - a file of word vectors (.npz, .npy, .pkl).

    Returns:
      `(leaves, description)`: {path: array} with statistics below `extra/`, and a description for
      the log.

    Raises:
      UserError: The source is none of these or cannot be read.
    """
    if word_vectors.is_word_vectors(source):
        return {WORD_EMBEDDING: word_vectors.load(source)}, f"the word vectors {source}"
    if prefix := tf_checkpoint.find(source):
        return vatt_load.load(prefix)
    if torch_reader.is_file(source):
        for reader in (flair_load, segmentation_load, vision_load):
            if reader.fits(source):
                return reader.load(source)
        return clip_load.load(source)
    run_dir, step = find(source)
    checkpoints = Checkpoints(run_dir, read_only=True)
    parts = {path.split("/")[0] for path in checkpoints.shapes(step)}
    state = checkpoints.read(step, [p for p in ("params", "ema", "extra") if p in parts])
    checkpoints.close()
    leaves = tree.flatten(state["params"]) | tree.flatten(state.get("ema", {}))
    leaves |= {f"extra/{k}": v for k, v in tree.flatten(state.get("extra", {})).items()}
    return leaves, f"step {step} of {run_dir}"


def load_sources(sources: Sequence[str]) -> tuple[dict[str, np.ndarray], str]:
    """Returns the parameters of several sources; the first source of a path is used.

    Args:
      sources: See `load_params`.
    """
    leaves: dict[str, np.ndarray] = {}
    descriptions = []
    for source in sources:
        arrays, description = load_params(source)
        leaves = arrays | leaves
        descriptions.append(description)
    return leaves, " and ".join(descriptions)
