"""VATT's published TF2 checkpoints: which of their keys are which of our arrays.

Pure naming: nothing here reads a checkpoint. A key is an object path without its suffix
`/.ATTRIBUTES/VARIABLE_VALUE`. Kernels are laid out alike on both sides; where we have one array
for all layers, a checkpoint has one for each.

In a table, {i} is a layer that is an axis of our array, {g} and {j} are numbers that stand in both
names. Tables marked 'inferred' follow from the attributes of the published classes; those of ViT,
WaT, T5, the unified transformer, the head and the classifier were compared with real checkpoints.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from mmjax.errors import UserError

ROOT = "model/layer_with_weights-0"

_NORM = {"scale": "gamma", "bias": "beta"}
_BATCH_NORM = {**_NORM, "mean": "moving_mean", "var": "moving_variance"}
_DENSE = {"kernel": "kernel", "bias": "bias"}
_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_MLP = {"up": "wi", "down": "wo"}


def _each(ours: str, theirs: str, leaves: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}/{a}": f"{theirs}/{b}" for a, b in leaves.items()}


def _blocks(attention_norm: dict[str, str], attention: str, feed_forward: str) -> dict[str, str]:
    """A stack of blocks."""
    names = dict(attention_norm)
    for ours, theirs in _ATTENTION.items():
        names |= _each(f"encoder/layers/attention/{ours}", f"{attention}/{theirs}", _DENSE)
    for ours, theirs in _MLP.items():
        names |= _each(f"encoder/layers/mlp/{ours}", f"{feed_forward}/mlp/{theirs}", _DENSE)
    return names | _each("encoder/layers/mlp_norm", f"{feed_forward}/layer_norm", _NORM)


def _encoder(theirs: str = "tx") -> dict[str, str]:
    """VATT's own transformer encoder."""
    layer = f"{theirs}/layers/{{i}}"
    return {
        **_blocks(
            _each("encoder/layers/attention_norm", f"{layer}/layer_norm", _NORM),
            f"{layer}/mha",
            f"{layer}/feed_forward",
        ),
        **_each("encoder/final_norm", f"{theirs}/final_layer_norm", _NORM),
    }


def _positions(axes: Mapping[str, str], theirs: str = "pos_embedding_lookup") -> dict[str, str]:
    """Tables of positions; `axes` is {our name of an axis: theirs}."""
    names = _each("positions/norm", f"{theirs}/layernorm", _NORM)
    for ours, axis in axes.items():
        names[f"positions/{ours}"] = f"{theirs}/{axis}_position_embeddings/embeddings"
    return names


_SPACE_TIME = {axis: axis for axis in ("temporal", "vertical", "horizontal")}
_TIME = {"temporal": "temporal"}


def _patches(patch: str, axes: Mapping[str, str]) -> dict[str, str]:
    """A tower over patches; `patch` is their name of the first layer."""
    return {
        "agg_token": "agg_embedding",
        **_each("patch", patch, _DENSE),
        **_each("pre_projection", "pre_proj", _DENSE),
        **_each("post_projection", "post_proj", _DENSE),
        **_positions(axes),
        **_encoder(),
    }


def _unified() -> dict[str, str]:
    """All towers of the unified transformer, from the top of our tree."""
    names = _encoder()
    for modality, token in {"video": "vid", "audio": "aud", "text": "txt"}.items():
        part = {
            "agg_token": f"{token}_agg_embedding",
            **_each("pre_projection", f"pre_proj/{modality}", _DENSE),
            **_each("post_projection", f"post_proj/{modality}", _DENSE),
            **_positions(
                _SPACE_TIME if modality == "video" else _TIME, f"pos_embedding_lookup/{modality}"
            ),
        }
        if modality == "text":
            part["word_embedding"] = "raw_to_embeddings/text/embeddings"
        else:
            part |= _each("patch", f"raw_to_embeddings/{modality}", _DENSE)
        names |= {f"{modality}/{ours}": theirs for ours, theirs in part.items()}
    return names


def _words(**more: str) -> dict[str, str]:
    return {"word_embedding": "embedding/embeddings", **more}


def _t5() -> dict[str, str]:
    layer = "base_lm/layers/{i}"
    attention = f"{layer}/self_attention"
    return {
        **_words(agg_token="agg_embedding"),
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
    """Inferred. The first AGG is of the wrapper (bert_small alone has it), the second BERT's."""
    return {
        **_words(outer_agg_token="agg_embedding", agg_token="base_lm/agg_embedding"),
        "pre_projection/kernel": "pre_proj/kernel",
        **_positions(_TIME, "base_lm/pos_embedding_lookup"),
        **_encoder("base_lm/tx"),
    }


def _unit(ours: str, convolution: str, norm: str) -> dict[str, str]:
    """A convolution and its BatchNorm."""
    return {
        f"{ours}/conv/kernel": f"{convolution}/kernel",
        **_each(f"{ours}/norm", norm, _BATCH_NORM),
    }


def _i3d() -> dict[str, str]:
    """Inferred."""
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
        for ours, theirs in branches.items():
            units[f"mixed_{block}/{ours}"] = f"mixed_{block}/unit3d_{theirs}"
    names: dict[str, str] = {}
    for ours, theirs in units.items():
        names |= _unit(ours, f"{theirs}/conv3d", f"{theirs}/bn")
    return names


def _resnet() -> dict[str, str]:
    """Inferred; bottleneck blocks."""
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
    for ours, (convolution, norm) in units.items():
        names |= _unit(ours, f"{convolution}/conv2d", f"{norm}/bn")
    return names


# {kind of part: {our path in it: their key in it}}.
NAMES: dict[str, dict[str, str]] = {
    "vit": _patches("voxel_to_patch", _SPACE_TIME),
    "wat": _patches("wave_to_patch", _TIME),
    "spt": _patches("spectrum_to_patch", {**_TIME, "spectral": "spectoral"}),
    "i3d": _i3d(),
    "resnet2d": _resnet(),
    "t5": _t5(),
    "bert": _bert(),
    "linear": _words(**_each("projection", "base_lm/conv1d", _DENSE)),
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
# {kind: (where it lies in our tree, how a key that only this kind has goes on)}.
_KINDS = {
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
# Where the parts of a model lie: of pretraining, then of fine-tuning.
_PLACES = {
    f"{ROOT}/_base_layer/vid_backbone/_base": ("vit", "i3d"),
    f"{ROOT}/_base_layer/aud_backbone/_base": ("wat", "spt", "resnet2d"),
    f"{ROOT}/_base_layer/txt_backbone": ("t5", "bert", "linear"),
    f"{ROOT}/_base_layer/unified_backbone/unified_transformer": ("unified",),
    f"{ROOT}/_head_layer/_bridge_heads/0": ("fac",),
    f"{ROOT}/_base": ("vit", "i3d", "wat", "spt", "resnet2d"),
    f"{ROOT}/_ops/cls": ("classifier",),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a model: its kind (key of `NAMES`), where it lies in our tree and in their keys."""

    kind: str
    ours: str
    theirs: str

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """{our path: their key}, whole, with {i}, {g} and {j}."""
        ours = f"{self.ours}/" if self.ours else ""
        return {ours + a: f"{self.theirs}/{b}" for a, b in NAMES[self.kind].items()}


Layout = Sequence[Part]


def layout_of(keys: Iterable[str]) -> tuple[Part, ...]:
    """The parts of the model that a checkpoint with these keys is of; () if it is not VATT's."""
    keys = list(keys)
    return tuple(
        Part(kind, _KINDS[kind][0], place)
        for place, kinds in _PLACES.items()
        for kind in kinds
        if any(key.startswith(f"{place}/{_KINDS[kind][1]}") for key in keys)
    )


# Of tx_fac in pretraining.
TX_FAC = tuple(
    Part(kind, _KINDS[kind][0], next(p for p, kinds in _PLACES.items() if kind in kinds))
    for kind in ("vit", "wat", "t5", "fac")
)


@functools.cache
def _pattern(template: str) -> re.Pattern:
    return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(template)))


def _rename(name: str, template: str, other: str) -> tuple[str, int | None] | None:
    """`name` of the form `template` in the form `other`, and its layer; None if it is not."""
    match = _pattern(template).fullmatch(name)
    if match is None:
        return None
    for letter, number in match.groupdict().items():
        other = other.replace(f"{{{letter}}}", number)
    layer = match.groupdict().get("i")
    return other, None if layer is None else int(layer)


def path_of(key: str, layout: Layout = TX_FAC) -> tuple[str, int | None] | None:
    """Our path of one of their keys and the layer it is, or None; None for a key not in a table."""
    for part in layout:
        if key.startswith(part.theirs):
            for ours, theirs in part.names.items():
                if found := _rename(key, theirs, ours):
                    return found
    return None


def key_of(path: str, layout: Layout = TX_FAC) -> str:
    """Their key for one of our paths, with {i} for the layer of a stacked array.

    Args:
      path: of a parameter or statistic, e.g. 'video/encoder/layers/mlp/up/kernel'.
      layout: the parts of the model; tx_fac by default.

    Raises:
      UserError: VATT has no such array.
    """
    for part in layout:
        for ours, theirs in part.names.items():
            if found := _rename(path, ours, theirs):
                return found[0]
    raise UserError(f"VATT's checkpoints have no array for {path}.")


def keys_of(path: str, shape: tuple[int, ...], layout: Layout = TX_FAC) -> list[str]:
    """Every key that makes up our array of this path and shape: one, or one for each layer."""
    key = key_of(path, layout)
    return [key.replace("{i}", str(i)) for i in range(shape[0])] if "{i}" in key else [key]


def assemble(path: str, arrays: Sequence[np.ndarray], *, stacked: bool) -> np.ndarray:
    """Our array of a path from theirs, of all layers in order if `stacked`, else of the one."""
    array = np.stack(arrays) if stacked else arrays[0]
    if path == "text/projection/kernel" and array.ndim == 3:
        return array[0]  # a convolution over one word
    return array


def fill(
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    layout: Layout = TX_FAC,
) -> dict[str, np.ndarray]:
    """{our path: array} for these paths and shapes, from their arrays by key.

    Of a shape only the number of layers is used.
    """
    return {
        path: assemble(
            path,
            [np.asarray(read(key)) for key in keys_of(path, shape, layout)],
            stacked="{i}" in key_of(path, layout),
        )
        for path, shape in shapes.items()
    }
