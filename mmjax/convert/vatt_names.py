"""VATT's published TF2 checkpoints: which of their keys are which of our arrays.

Pure naming: nothing here reads a checkpoint. A key is an object path without its suffix
`/.ATTRIBUTES/VARIABLE_VALUE`. Kernels are laid out alike on both sides; a checkpoint has one array
for each layer where we have one for all, with the layer as its first axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmjax.errors import UserError

ROOT = "model/layer_with_weights-0"
# Where the parts of a model lie in a pretraining checkpoint of tx_fac.
PRETRAIN = {
    "video": f"{ROOT}/_base_layer/vid_backbone/_base",
    "audio": f"{ROOT}/_base_layer/aud_backbone/_base",
    "text": f"{ROOT}/_base_layer/txt_backbone",
    "head": f"{ROOT}/_head_layer/_bridge_heads/0",
}
# The same in the checkpoint of a fine-tuned classifier.
FINETUNE = {
    "video": f"{ROOT}/_base",
    "audio": f"{ROOT}/_base",
    "classifier": f"{ROOT}/_ops/cls",
}

_NORM = {"scale": "gamma", "bias": "beta"}
_BATCH_NORM = {**_NORM, "mean": "moving_mean", "var": "moving_variance"}
_DENSE = {"kernel": "kernel", "bias": "bias"}
_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_MLP = {"up": "wi", "down": "wo"}


def _each(ours: str, theirs: str, leaves: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}/{a}": f"{theirs}/{b}" for a, b in leaves.items()}


def _layers(attention_norm: dict[str, str], attention: str, feed_forward: str) -> dict[str, str]:
    """A stack of blocks; {i} is the layer."""
    names = dict(attention_norm)
    for ours, theirs in _ATTENTION.items():
        names |= _each(f"encoder/layers/attention/{ours}", f"{attention}/{theirs}", _DENSE)
    for ours, theirs in _MLP.items():
        names |= _each(f"encoder/layers/mlp/{ours}", f"{feed_forward}/mlp/{theirs}", _DENSE)
    return names | _each("encoder/layers/mlp_norm", f"{feed_forward}/layer_norm", _NORM)


def _patches(patch: str, axes: Mapping[str, str]) -> dict[str, str]:
    """A tower over patches; `patch` is their name of the first layer, `axes` theirs by ours."""
    names = {
        "agg_token": "agg_embedding",
        **_each("patch", patch, _DENSE),
        **_each("pre_projection", "pre_proj", _DENSE),
        **_each("post_projection", "post_proj", _DENSE),
        **_each("positions/norm", "pos_embedding_lookup/layernorm", _NORM),
        **_each("encoder/final_norm", "tx/final_layer_norm", _NORM),
    }
    for ours, theirs in axes.items():
        names[f"positions/{ours}"] = f"pos_embedding_lookup/{theirs}_position_embeddings/embeddings"
    layer = "tx/layers/{i}"
    attention_norm = _each("encoder/layers/attention_norm", f"{layer}/layer_norm", _NORM)
    return names | _layers(attention_norm, f"{layer}/mha", f"{layer}/feed_forward")


_T5_LAYER = "base_lm/layers/{i}"
_T5_ATTENTION = f"{_T5_LAYER}/self_attention"

# {kind of tower or head: {our path in it: their key in it}}.
NAMES: dict[str, dict[str, str]] = {
    "vit": _patches("voxel_to_patch", {a: a for a in ("temporal", "vertical", "horizontal")}),
    "wat": _patches("wave_to_patch", {"temporal": "temporal"}),
    "spt": _patches("spectrum_to_patch", {"temporal": "temporal", "spectral": "spectoral"}),
    "t5": {
        "word_embedding": "embedding/embeddings",
        "agg_token": "agg_embedding",
        "pre_projection/kernel": "pre_proj/kernel",
        "relative_bias": (
            "base_lm/layers/0/self_attention/attention/relative_attention_bias/embeddings"
        ),
        "encoder/final_norm/scale": "base_lm/final_layer_norm/weight",
        **_layers(
            {"encoder/layers/attention_norm/scale": f"{_T5_ATTENTION}/layer_norm/weight"},
            f"{_T5_ATTENTION}/attention",
            f"{_T5_LAYER}/feed_forward",
        ),
    },
    "fac": {
        "video_hidden/kernel": "vid_to_hid/kernel",
        **_each("video_hidden_norm", "hid_to_va/pre_bn", _BATCH_NORM),
        "video_fine/kernel": "hid_to_va/dense/kernel",
        **_each("video_fine_norm", "hid_to_va/bn", _BATCH_NORM),
        **_each("audio_fine", "aud_to_va", _DENSE),
        "video_coarse/kernel": "va_to_vat/dense/kernel",
        **_each("video_coarse_norm", "va_to_vat/bn", _BATCH_NORM),
        **_each("text_coarse", "txt_to_vat", _DENSE),
    },
    "classifier": _DENSE,
}


def key_of(path: str, *, parts: Mapping[str, str] = PRETRAIN, audio: str = "wat") -> str:
    """Their key for one of our paths, with {i} for the layer of a stacked array.

    Args:
      path: of a parameter or statistic, e.g. 'video/encoder/layers/mlp/up/kernel'.
      parts: `PRETRAIN` or `FINETUNE`.
      audio: 'wat' or 'spt', the kind of audio tower.

    Raises:
      UserError: VATT has no such array.
    """
    part, _, rest = path.partition("/")
    table = {"video": "vit", "audio": audio, "text": "t5", "head": "fac"}.get(part, part)
    if part not in parts or rest not in NAMES.get(table, {}):
        raise UserError(f"VATT's checkpoints have no array for {path}.")
    return f"{parts[part]}/{NAMES[table][rest]}"


def keys_of(path: str, shape: tuple[int, ...], **options: Any) -> list[str]:
    """Every key that makes up our array of this path and shape: one, or one for each layer."""
    key = key_of(path, **options)
    return [key.replace("{i}", str(i)) for i in range(shape[0])] if "{i}" in key else [key]


def fill(
    shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray], **options: Any
) -> dict[str, np.ndarray]:
    """{our path: array} for these paths and shapes, from their arrays by key; layers are stacked.

    Of a shape only the number of layers is used: an array of another shape (a table of positions
    for another input) comes back as it is, for the caller to resize or refuse.
    """
    out = {}
    for path, shape in shapes.items():
        arrays = [np.asarray(read(key)) for key in keys_of(path, shape, **options)]
        stacked = "{i}" in key_of(path, **options)
        out[path] = np.stack(arrays) if stacked else arrays[0]
    return out
