"""VATT's names for the arrays in its published TensorFlow 2 checkpoints.

This module only handles names; it reads no checkpoints. A key is an object path without its suffix
`/.ATTRIBUTES/VARIABLE_VALUE`. Arrays have the same layout as in mmjax, except that mmjax stacks the
arrays of all layers, where a checkpoint has one array per layer.

In the tables, {i} is the index of a layer, which is an axis of mmjax's array. {g} and {j} are
indices that are part of both names. All tables were compared with checkpoints that VATT's code
wrote.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from mmjax.errors import UserError
from mmjax.formats.name_rules import template_pattern

ROOT = "model/layer_with_weights-0"
WORD_EMBEDDING = "text/word_embedding"  # path of the token embedding

_NORM = {"scale": "gamma", "bias": "beta"}
_BATCH_NORM = {**_NORM, "mean": "moving_mean", "var": "moving_variance"}
_DENSE = {"kernel": "kernel", "bias": "bias"}
_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_MLP = {"up": "wi", "down": "wo"}


def _each(path: str, key: str, leaves: Mapping[str, str]) -> dict[str, str]:
    """Returns {path: key} of the arrays of one layer, {name in mmjax: name in VATT}."""
    return {f"{path}/{a}": f"{key}/{b}" for a, b in leaves.items()}


def _blocks(attention_norm: dict[str, str], attention: str, feed_forward: str) -> dict[str, str]:
    """Returns the names of a stack of transformer blocks."""
    names = dict(attention_norm)
    for name, key in _ATTENTION.items():
        names |= _each(f"encoder/layers/attention/{name}", f"{attention}/{key}", _DENSE)
    for name, key in _MLP.items():
        names |= _each(f"encoder/layers/mlp/{name}", f"{feed_forward}/mlp/{key}", _DENSE)
    return names | _each("encoder/layers/mlp_norm", f"{feed_forward}/layer_norm", _NORM)


def _encoder(key: str = "tx") -> dict[str, str]:
    """Returns the names of VATT's transformer encoder."""
    layer = f"{key}/layers/{{i}}"
    return {
        **_blocks(
            _each("encoder/layers/attention_norm", f"{layer}/layer_norm", _NORM),
            f"{layer}/mha",
            f"{layer}/feed_forward",
        ),
        **_each("encoder/final_norm", f"{key}/final_layer_norm", _NORM),
    }


def _positions(axes: Mapping[str, str], key: str = "pos_embedding_lookup") -> dict[str, str]:
    """Returns the names of position embeddings; `axes` is {axis in mmjax: axis in VATT}."""
    names = _each("positions/norm", f"{key}/layernorm", _NORM)
    for name, axis in axes.items():
        names[f"positions/{name}"] = f"{key}/{axis}_position_embeddings/embeddings"
    return names


_SPACE_TIME = {axis: axis for axis in ("temporal", "vertical", "horizontal")}
_TIME = {"temporal": "temporal"}


def _patches(patch: str, axes: Mapping[str, str]) -> dict[str, str]:
    """Returns the names of a patch tower; `patch` is the key of its first layer."""
    return {
        "agg_token": "agg_embedding",
        **_each("patch", patch, _DENSE),
        **_each("pre_projection", "pre_proj", _DENSE),
        **_each("post_projection", "post_proj", _DENSE),
        **_positions(axes),
        **_encoder(),
    }


def _unified() -> dict[str, str]:
    """Returns the names of all towers of the unified transformer, as paths of the model."""
    names = _encoder()
    for modality, token in {"video": "vid", "audio": "aud", "text": "txt"}.items():
        tower = {
            "agg_token": f"{token}_agg_embedding",
            **_each("pre_projection", f"pre_proj/{modality}", _DENSE),
            **_each("post_projection", f"post_proj/{modality}", _DENSE),
            **_positions(
                _SPACE_TIME if modality == "video" else _TIME, f"pos_embedding_lookup/{modality}"
            ),
        }
        if modality == "text":
            tower["word_embedding"] = "raw_to_embeddings/text/embeddings"
        else:
            tower |= _each("patch", f"raw_to_embeddings/{modality}", _DENSE)
        names |= {f"{modality}/{path}": key for path, key in tower.items()}
    return names


def _word_embedding(**more: str) -> dict[str, str]:
    return {"word_embedding": "embedding/embeddings", **more}


def _t5() -> dict[str, str]:
    layer = "base_lm/layers/{i}"
    attention = f"{layer}/self_attention"
    return {
        **_word_embedding(agg_token="agg_embedding"),
        "pre_projection/kernel": "pre_proj/kernel",
        "relative_bias": (
            "base_lm/layers/0/self_attention/attention/relative_attention_bias/embeddings"
        ),
        "encoder/final_norm/scale": "base_lm/final_layer_norm/weight",
        **_blocks(
            {"encoder/layers/attention_norm/scale": f"{attention}/layer_norm/weight"},
            f"{attention}/attention",
            f"{layer}/feed_forward",
        ),
    }


def _bert() -> dict[str, str]:
    """Returns BERT's names. The outer AGG token belongs to the wrapper; only bert_small has it."""
    return {
        **_word_embedding(outer_agg_token="agg_embedding", agg_token="base_lm/agg_embedding"),
        "pre_projection/kernel": "pre_proj/kernel",
        **_positions(_TIME, "base_lm/pos_embedding_lookup"),
        **_encoder("base_lm/tx"),
    }


def _unit(path: str, convolution: str, norm: str) -> dict[str, str]:
    """Returns the names of a convolution with BatchNorm."""
    return {
        f"{path}/conv/kernel": f"{convolution}/kernel",
        **_each(f"{path}/norm", norm, _BATCH_NORM),
    }


def _i3d() -> dict[str, str]:
    """Returns the names of I3D."""
    units = {"conv_1a": "conv3d_1a_7x7", "conv_2b": "conv3d_2b_1x1", "conv_2c": "conv3d_2c_3x3"}
    branches = {
        "b0": "b0_0",
        "b1a": "b1_0",
        "b1b": "b1_1",
        "b2a": "b2_0",
        "b2b": "b2_1",
        "b3": "b3_1",
    }
    for block in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
        for path, key in branches.items():
            units[f"mixed_{block}/{path}"] = f"mixed_{block}/unit3d_{key}"
    names: dict[str, str] = {}
    for path, key in units.items():
        names |= _unit(path, f"{key}/conv3d", f"{key}/bn")
    return names


def _resnet() -> dict[str, str]:
    """Returns the names of ResNet2D, with bottleneck blocks."""
    stem, block = "initial_conv_relu_max_pool", "block_groups/{g}/layers/{j}"
    main = f"{block}/conv_relu_dropblock_layers"
    units = {
        "stem": (f"{stem}/0", f"{stem}/2"),
        "groups/{g}/{j}/shortcut": (f"{block}/projection_layers/0", f"{block}/projection_layers/1"),
        "groups/{g}/{j}/reduce": (f"{main}/0", f"{main}/1"),
        "groups/{g}/{j}/spatial": (f"{main}/3", f"{main}/4"),
        "groups/{g}/{j}/expand": (f"{main}/6", f"{main}/7"),
    }
    names: dict[str, str] = {}
    for path, (convolution, norm) in units.items():
        names |= _unit(path, f"{convolution}/conv2d", f"{norm}/bn")
    return names


# {type of a component: {path in the component: key in the component}}.
NAMES: dict[str, dict[str, str]] = {
    "vit": _patches("voxel_to_patch", _SPACE_TIME),
    "wat": _patches("wave_to_patch", _TIME),
    "spt": _patches("spectrum_to_patch", {**_TIME, "spectral": "spectoral"}),
    "i3d": _i3d(),
    "resnet2d": _resnet(),
    "t5": _t5(),
    "bert": _bert(),
    "linear": _word_embedding(**_each("projection", "base_lm/conv1d", _DENSE)),
    "unified": _unified(),
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
# {type: (path of the component, start of a key that only this type has)}.
_TYPES = {
    "vit": ("video", "voxel_to_patch/"),
    "i3d": ("video", "conv3d_1a_7x7/"),
    "wat": ("audio", "wave_to_patch/"),
    "spt": ("audio", "spectrum_to_patch/"),
    "resnet2d": ("audio", "initial_conv_relu_max_pool/"),
    "t5": ("text", "base_lm/layers/"),
    "bert": ("text", "base_lm/tx/"),
    "linear": ("text", "base_lm/conv1d/"),
    "unified": ("", "raw_to_embeddings/"),
    "fac": ("head", "vid_to_hid/"),
    "classifier": ("classifier", "kernel"),
}
# {key of a component: its possible types}, for pretraining and then for fine-tuning.
_COMPONENTS = {
    f"{ROOT}/_base_layer/vid_backbone/_base": ("vit", "i3d"),
    f"{ROOT}/_base_layer/aud_backbone/_base": ("wat", "spt", "resnet2d"),
    f"{ROOT}/_base_layer/txt_backbone": ("t5", "bert", "linear"),
    f"{ROOT}/_base_layer/unified_backbone/unified_transformer": ("unified",),
    f"{ROOT}/_head_layer/_bridge_heads/0": ("fac",),
    f"{ROOT}/_base": ("vit", "i3d", "wat", "spt", "resnet2d"),
    f"{ROOT}/_ops/cls": ("classifier",),
}


@dataclasses.dataclass(frozen=True)
class Component:
    """A component of a model in a checkpoint.

    Attributes:
      type: Key of `NAMES`.
      path: Its path in mmjax; '' for the whole model.
      key: Prefix of its keys in the checkpoint.
    """

    type: str
    path: str
    key: str

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """{path: key} with prefixes, and with {i}, {g} and {j} for indices."""
        prefix = f"{self.path}/" if self.path else ""
        return {prefix + path: f"{self.key}/{key}" for path, key in NAMES[self.type].items()}


Components = Sequence[Component]


def find_components(keys: Iterable[str]) -> tuple[Component, ...]:
    """Returns the components of the model in a checkpoint; () if it is not VATT's."""
    keys = list(keys)
    return tuple(
        Component(type_, _TYPES[type_][0], prefix)
        for prefix, types in _COMPONENTS.items()
        for type_ in types
        if any(key.startswith(f"{prefix}/{_TYPES[type_][1]}") for key in keys)
    )


# The components of tx_fac in pretraining.
TX_FAC = tuple(
    Component(
        type_, _TYPES[type_][0], next(k for k, types in _COMPONENTS.items() if type_ in types)
    )
    for type_ in ("vit", "wat", "t5", "fac")
)


def _rename(name: str, template: str, other: str) -> tuple[str, int | None] | None:
    """Returns `other` with the numbers of `name`, and the layer; None if `template` differs."""
    match = template_pattern(template).fullmatch(name)
    if match is None:
        return None
    for letter, number in match.groupdict().items():
        other = other.replace(f"{{{letter}}}", number)
    layer = match.groupdict().get("i")
    return other, None if layer is None else int(layer)


def path_of(key: str, components: Components = TX_FAC) -> tuple[str, int | None] | None:
    """Returns the path of a key, and the layer of a stacked array or None.

    Returns:
      None if the key is in no table.
    """
    for component in components:
        if key.startswith(component.key):
            for path, template in component.names.items():
                if result := _rename(key, template, path):
                    return result
    return None


def key_of(path: str, components: Components = TX_FAC) -> str:
    """Returns the key of a path, with {i} for the layer of a stacked array.

    Args:
      path: Path of a parameter or statistic, for example 'video/encoder/layers/mlp/up/kernel'.
      components: The components of the model.

    Raises:
      UserError: VATT has no such array.
    """
    for component in components:
        for template, key in component.names.items():
            if result := _rename(path, template, key):
                return result[0]
    raise UserError(f"VATT's checkpoints have no array for {path}.")


def keys_of(path: str, shape: tuple[int, ...], components: Components = TX_FAC) -> list[str]:
    """Returns the keys of an array: one per layer of a stacked array, otherwise one.

    Args:
      path: Path of the array.
      shape: Its shape; only the number of layers is used.
      components: The components of the model.
    """
    key = key_of(path, components)
    return [key.replace("{i}", str(i)) for i in range(shape[0])] if "{i}" in key else [key]


def assemble(path: str, arrays: Sequence[np.ndarray], *, stacked: bool) -> np.ndarray:
    """Returns the array of a path from the arrays of its keys: all layers, or one."""
    return without_unit_axes(path, np.stack(arrays) if stacked else arrays[0])


def without_unit_axes(path: str, array: np.ndarray) -> np.ndarray:
    """Returns the array of a path without the kernel size 1 of a convolution."""
    unit = path == "text/projection/kernel" and array.ndim == 3 and len(array) == 1
    return array[0] if unit else array


def fill(
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    components: Components = TX_FAC,
) -> dict[str, np.ndarray]:
    """Returns {path: array}.

    Args:
      shapes: {path: shape}; only the number of layers is used.
      read: Function from a key to its array.
      components: The components of the model.
    """
    return {
        path: assemble(
            path,
            [np.asarray(read(key)) for key in keys_of(path, shape, components)],
            stacked="{i}" in key_of(path, components),
        )
        for path, shape in shapes.items()
    }
