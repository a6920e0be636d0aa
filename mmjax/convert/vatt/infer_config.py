"""Infers the config of a VATT checkpoint from the shapes of its arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from mmjax import config
from mmjax.convert.shapes import HEAD_DIM, Shapes, encoder_options, resnet_options
from mmjax.convert.vatt import names as vatt_names
from mmjax.convert.vatt.load import VattSource
from mmjax.errors import UserError
from mmjax.models.blocks.patches import SIZES
from mmjax.models.towers.registry import TOWERS
from mmjax.published.vatt import SPECTROGRAM, finetuning_config, pretraining_config


def model_section(source: VattSource, *, head_dim: int | None = None) -> dict[str, Any]:
    """Returns the section `model` of a config.

    Args:
      source: The matched checkpoint.
      head_dim: Width of an attention head, which shapes do not determine. None uses T5's relative
        position biases if there are any (all towers of VATT have the same head width), else 64.

    Raises:
      UserError: An array that determines a size is missing, or a width is not a multiple of
        `head_dim`.
    """
    types = source.types
    shapes = Shapes(source.leaves, lambda path: vatt_names.key_of(path, source.components))
    if head_dim is None and types.get("text") == "t5":
        inner = shapes.sizes("text/encoder/layers/attention/query/kernel", 3)[2]
        head_dim = inner // shapes.sizes("text/relative_bias", 2)[1]
    head_dim = head_dim or HEAD_DIM
    towers = {
        modality: _TOWER_OPTIONS[types[modality]](shapes, modality, head_dim)
        for modality in ("video", "audio", "text")
        if modality in types
    }
    if "head" not in types:
        if len(towers) != 1 or "classifier" not in types:
            raise UserError(
                f"The checkpoint has the components {sorted(types)}; expected a pretrained model "
                "(towers and a head) or a fine-tuned model (one tower and a classifier)."
            )
        num_classes = shapes.sizes("classifier/kernel", 2)[1]
        backbone = next(iter(towers.values()))
        return dict(name="classifier", backbone=backbone, num_classes=num_classes)
    fine, coarse = (
        shapes.sizes(f"head/{name}/kernel", 2)[1] for name in ("video_hidden", "video_coarse")
    )
    head = dict(name="fac", fine=fine, coarse=coarse)
    if "" in types:
        encoder = encoder_options(shapes, "encoder", head_dim)
        sizes = (size for size in ("base", "medium", "large") if _has_size(SIZES[size], encoder))
        towers = {m: _unified_tower_options(shapes, m) for m in ("video", "audio", "text")}
        size = next(sizes, "medium")
        return dict(name="ut_fac", size=size, **encoder, **towers, head=head)
    name = "mmv_fac" if types.get("video") == "i3d" else "tx_fac"
    return dict(name=name, **towers, head=head)


def _has_size(options: Mapping[str, Any], encoder: Mapping[str, Any]) -> bool:
    return all(
        options.get(key) == encoder[key] for key in ("width", "mlp_dim", "num_layers", "num_heads")
    )


def _tower_name(prefix: str, encoder: Mapping[str, Any]) -> str:
    """Returns the name of the tower with this size; the base tower if no tower has it."""
    modality = TOWERS[f"{prefix}base"][0]  # vit_* are towers for video and for touch
    names = [name for name in TOWERS if name.startswith(prefix) and TOWERS[name][0] == modality]
    return next((name for name in names if _has_size(TOWERS[name][2], encoder)), f"{prefix}base")


_AXES = {
    "vit": ("temporal", "vertical", "horizontal"),
    "wat": ("temporal",),
    "spt": ("temporal", "spectral"),
}


def _patch_options(shapes: Shapes, modality: str, tower: str) -> dict[str, Any]:
    axes = _AXES[tower]
    *patch_size, channels, _ = shapes.sizes(f"{modality}/patch/kernel", len(axes) + 2)
    buckets = tuple(shapes.sizes(f"{modality}/positions/{axis}", 2)[0] for axis in axes)
    if tower == "wat":
        return dict(patch_size=patch_size[0], buckets=buckets[0])
    options = dict(patch_size=tuple(patch_size), buckets=buckets)
    # VATT swaps the axes of the spectrogram transformer's positions.
    return options | (dict(channels=channels) if tower == "vit" else dict(swap_axes=True))


_Options = Callable[[Shapes, str, int], dict[str, Any]]


def _patch_tower_options(tower: str) -> _Options:
    def options(shapes: Shapes, modality: str, head_dim: int) -> dict[str, Any]:
        encoder = encoder_options(shapes, f"{modality}/encoder", head_dim)
        post = f"{modality}/post_projection/kernel"
        return dict(
            name=_tower_name(f"{tower}_", encoder),
            **encoder,
            **_patch_options(shapes, modality, tower),
            pre_projection=f"{modality}/pre_projection/kernel" in shapes,
            post_projection=shapes.sizes(post, 2)[1] if post in shapes else 0,
        )

    return options


def _unified_tower_options(shapes: Shapes, modality: str) -> dict[str, Any]:
    options = dict(post_projection=shapes.sizes(f"{modality}/post_projection/kernel", 2)[1])
    if modality == "text":
        buckets = shapes.sizes("text/positions/temporal", 2)[0]
        return options | _embedding_options(shapes) | dict(buckets=buckets)
    return options | _patch_options(shapes, modality, "vit" if modality == "video" else "wat")


def _embedding_options(shapes: Shapes) -> dict[str, Any]:
    vocab_size, embedding_dim = shapes.sizes(vatt_names.WORD_EMBEDDING, 2)
    return dict(vocab_size=vocab_size, embedding_dim=embedding_dim)


def _t5_options(shapes: Shapes, modality: str, head_dim: int) -> dict[str, Any]:
    # The relative position biases determine the number of heads.
    num_buckets, num_heads = shapes.sizes("text/relative_bias", 2)
    inner = shapes.sizes("text/encoder/layers/attention/query/kernel", 3)[2]
    encoder = encoder_options(shapes, "text/encoder", inner // num_heads)
    name = _tower_name("t5_", encoder)
    return dict(name=name, **encoder, **_embedding_options(shapes), num_buckets=num_buckets)


def _bert_options(shapes: Shapes, modality: str, head_dim: int) -> dict[str, Any]:
    encoder = encoder_options(shapes, "text/encoder", head_dim)
    return dict(
        name=_tower_name("bert_", encoder),
        **encoder,
        **_embedding_options(shapes),
        buckets=shapes.sizes("text/positions/temporal", 2)[0],
        outer_agg="text/outer_agg_token" in shapes,
        pre_norm="text/encoder/final_norm/scale" in shapes,  # not in VATT's bert_small
    )


def _linear_options(shapes: Shapes, modality: str, head_dim: int) -> dict[str, Any]:
    width = shapes.sizes("text/projection/kernel", 2)[1]
    return dict(name="linear", width=width, **_embedding_options(shapes), pool_padding=True)


def _i3d_options(shapes: Shapes, modality: str, head_dim: int) -> dict[str, Any]:
    *_, channels, width = shapes.sizes("video/conv_1a/conv/kernel", 5)
    return dict(name="i3d", width_multiplier=width / 64, channels=channels)


def _resnet_options(shapes: Shapes, modality: str, head_dim: int) -> dict[str, Any]:
    options = resnet_options(shapes, "audio")
    name = "resnet2d_101" if options["blocks"] == (3, 4, 23, 3) else "resnet2d_50"
    return dict(name=name, **options)


# {type of a tower: function from shapes, modality and head width to its name and options}.
_TOWER_OPTIONS: dict[str, _Options] = {
    **{tower: _patch_tower_options(tower) for tower in _AXES},
    "i3d": _i3d_options,
    "resnet2d": _resnet_options,
    "t5": _t5_options,
    "bert": _bert_options,
    "linear": _linear_options,
}


def make_config(source: VattSource, *, head_dim: int | None = None) -> ml_collections.ConfigDict:
    """Returns a complete config: the model of the checkpoint in VATT's training config.

    The sizes of the inputs are those of the position embeddings. The model computes in float32, as
    in VATT.

    Args:
      source: The matched checkpoint.
      head_dim: See `model_section`.
    """
    model = model_section(source, head_dim=head_dim)
    if model["name"] == "classifier":
        modality = TOWERS[model["backbone"]["name"]][0]
        cfg, towers = finetuning_config(modality), {modality: model["backbone"]}
    else:
        cfg, towers = pretraining_config(), model
    cfg.model = model
    cfg.total_steps = max(cfg.total_steps, source.step)
    video, audio, text = (towers.get(m) or {} for m in ("video", "audio", "text"))
    block = 2 if video.get("channels") == 24 else 1  # space-to-depth: blocks of 2 × 2 × 2 pixels
    if "patch_size" in video:
        frames, size, _ = (
            block * p * b for p, b in zip(video["patch_size"], video["buckets"], strict=True)
        )
        cfg.data.video.update(num_frames=frames, size=size)
    if block > 1:
        cfg.augment.space_to_depth = True
    if isinstance(audio.get("patch_size"), int):
        cfg.data.audio.num_samples = audio["patch_size"] * audio["buckets"]
    elif audio:
        cfg.augment.spectrogram = SPECTROGRAM
    if "buckets" in text:
        cfg.data.text.max_tokens = text["buckets"]
    config.resolve(cfg)
    return cfg
