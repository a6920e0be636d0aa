"""The config that builds the model of a VATT checkpoint, inferred from the shapes of its arrays."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from mmjax import config
from mmjax.configs.pretrain._vatt import SPECTROGRAM
from mmjax.convert.shapes import HEAD_DIM, encoder_options, resnet_options
from mmjax.convert.vatt import names as vatt_names
from mmjax.convert.vatt.load import Contents
from mmjax.errors import UserError
from mmjax.models.blocks.patches import SIZES
from mmjax.models.towers.registry import TOWERS


class _Shapes(dict):
    """Shapes by our path; one that is not there is an error that names the key."""

    def __init__(self, contents: Contents):
        super().__init__({path: leaf.shape for path, leaf in contents.leaves.items()})
        self._layout = contents.layout

    def __missing__(self, path: str) -> tuple[int, ...]:
        key = vatt_names.key_of(path, self._layout)
        raise UserError(
            f"The checkpoint has no {key}, whose shape says how its model is built. Nothing can "
            "be made of it without."
        )


def model_section(contents: Contents, *, head_dim: int | None = None) -> dict[str, Any]:
    """The section `model` of a config: `name` and every size.

    Args:
      contents: of the checkpoint.
      head_dim: features of an attention head, which no shape tells. None is what T5's table of
        relative positions tells, if there is one (VATT has one size for all its towers), else 64.

    Raises:
      UserError: an array that tells a size is missing, or `head_dim` divides no width.
    """
    shapes, kinds = _Shapes(contents), contents.kinds
    if head_dim is None and kinds.get("text") == "t5":
        inner = shapes["text/encoder/layers/attention/query/kernel"][2]
        head_dim = inner // shapes["text/relative_bias"][1]
    head_dim = head_dim or HEAD_DIM
    towers = {
        modality: _TOWERS[kinds[modality]](shapes, modality, head_dim)
        for modality in ("video", "audio", "text")
        if modality in kinds
    }
    if "head" not in kinds:
        if len(towers) != 1 or "classifier" not in kinds:
            raise UserError(
                f"The checkpoint has the parts {sorted(kinds)}: neither a pretrained model (towers "
                "and a head) nor a fine-tuned one (a tower and a classifier)."
            )
        classes = shapes["classifier/kernel"][1]
        return dict(name="classifier", backbone=next(iter(towers.values())), num_classes=classes)
    fine, coarse = (shapes[f"head/{name}/kernel"][1] for name in ("video_hidden", "video_coarse"))
    head = dict(name="fac", fine=fine, coarse=coarse)
    if "" in kinds:
        encoder = encoder_options(shapes, "encoder", head_dim)
        size = next((n for n in ("base", "medium", "large") if _is(SIZES[n], encoder)), "medium")
        towers = {m: _unified_tower(shapes, m) for m in ("video", "audio", "text")}
        return dict(name="ut_fac", size=size, **encoder, **towers, head=head)
    name = "mmv_fac" if kinds.get("video") == "i3d" else "tx_fac"
    return dict(name=name, **towers, head=head)


def _is(options: Mapping[str, Any], encoder: Mapping[str, Any]) -> bool:
    return all(
        options.get(key) == encoder[key] for key in ("width", "mlp_dim", "num_layers", "num_heads")
    )


def _named(prefix: str, encoder: Mapping[str, Any]) -> str:
    """The name of the tower of this size, else of the base one, for its other options."""
    kind = TOWERS[f"{prefix}base"][0]  # vit_ begins towers of video, and of touch
    names = [name for name in TOWERS if name.startswith(prefix) and TOWERS[name][0] == kind]
    return next((name for name in names if _is(TOWERS[name][2], encoder)), f"{prefix}base")


_AXES = {
    "vit": ("temporal", "vertical", "horizontal"),
    "wat": ("temporal",),
    "spt": ("temporal", "spectral"),
}


def _patches(shapes: Mapping, modality: str, kind: str) -> dict[str, Any]:
    *patch_size, channels, _ = shapes[f"{modality}/patch/kernel"]
    buckets = tuple(shapes[f"{modality}/positions/{axis}"][0] for axis in _AXES[kind])
    if kind == "wat":
        return dict(patch_size=patch_size[0], buckets=buckets[0])
    options = dict(patch_size=tuple(patch_size), buckets=buckets)
    # The spectrogram transformer's positions are in VATT's order.
    return options | (dict(channels=channels) if kind == "vit" else dict(swap_axes=True))


def _patch_tower(kind: str):
    def options(shapes: Mapping, modality: str, head_dim: int) -> dict[str, Any]:
        encoder = encoder_options(shapes, f"{modality}/encoder", head_dim)
        post = f"{modality}/post_projection/kernel"
        return dict(
            name=_named(f"{kind}_", encoder),
            **encoder,
            **_patches(shapes, modality, kind),
            pre_projection=f"{modality}/pre_projection/kernel" in shapes,
            post_projection=shapes[post][1] if post in shapes else 0,
        )

    return options


def _unified_tower(shapes: Mapping, modality: str) -> dict[str, Any]:
    own = dict(post_projection=shapes[f"{modality}/post_projection/kernel"][1])
    if modality == "text":
        return own | _words(shapes) | dict(buckets=shapes["text/positions/temporal"][0])
    return own | _patches(shapes, modality, "vit" if modality == "video" else "wat")


def _words(shapes: Mapping) -> dict[str, Any]:
    vocab_size, embedding_dim = shapes["text/word_embedding"]
    return dict(vocab_size=vocab_size, embedding_dim=embedding_dim)


def _t5(shapes: Mapping, modality: str, head_dim: int) -> dict[str, Any]:
    del head_dim  # the table of relative positions tells the number of heads
    num_buckets, num_heads = shapes["text/relative_bias"]
    inner = shapes["text/encoder/layers/attention/query/kernel"][2]
    encoder = encoder_options(shapes, "text/encoder", inner // num_heads)
    return dict(name=_named("t5_", encoder), **encoder, **_words(shapes), num_buckets=num_buckets)


def _bert(shapes: Mapping, modality: str, head_dim: int) -> dict[str, Any]:
    encoder = encoder_options(shapes, "text/encoder", head_dim)
    return dict(
        name=_named("bert_", encoder),
        **encoder,
        **_words(shapes),
        buckets=shapes["text/positions/temporal"][0],
        outer_agg="text/outer_agg_token" in shapes,
        pre_norm="text/encoder/final_norm/scale" in shapes,  # VATT's bert_small has none
    )


def _linear(shapes: Mapping, modality: str, head_dim: int) -> dict[str, Any]:
    width = shapes["text/projection/kernel"][1]
    return dict(name="linear", width=width, **_words(shapes), pool_padding=True)


def _i3d(shapes: Mapping, modality: str, head_dim: int) -> dict[str, Any]:
    *_, channels, width = shapes["video/conv_1a/conv/kernel"]
    return dict(name="i3d", width_multiplier=width / 64, channels=channels)


def _resnet(shapes: Mapping, modality: str, head_dim: int) -> dict[str, Any]:
    options = resnet_options(shapes, "audio")
    name = "resnet2d_101" if options["blocks"] == (3, 4, 23, 3) else "resnet2d_50"
    return dict(name=name, **options)


_TOWERS = {
    **{kind: _patch_tower(kind) for kind in _AXES},
    "i3d": _i3d,
    "resnet2d": _resnet,
    "t5": _t5,
    "bert": _bert,
    "linear": _linear,
}


def make_config(contents: Contents, *, head_dim: int | None = None) -> ml_collections.ConfigDict:
    """A whole config: the model of the checkpoint in the published recipe of its task.

    Inputs have the size that the tables of positions are for. The model computes in float32, as
    VATT's did.
    """
    model = model_section(contents, head_dim=head_dim)
    if model["name"] == "classifier":
        modality = TOWERS[model["backbone"]["name"]][0]
        recipe, towers = f"finetune.{modality}", {modality: model["backbone"]}
    else:
        recipe, towers = f"pretrain.{model['name']}", model
    cfg = importlib.import_module(f"mmjax.configs.{recipe}").get_config()
    cfg.model = model
    cfg.total_steps = max(cfg.total_steps, contents.step)
    video, audio, text = (towers.get(m) or {} for m in ("video", "audio", "text"))
    folded = 2 if video.get("channels") == 24 else 1  # blocks of 2 × 2 × 2 pixels
    if "patch_size" in video:
        frames, rows, _ = (
            folded * p * b for p, b in zip(video["patch_size"], video["buckets"], strict=True)
        )
        cfg.data.video.update(num_frames=frames, size=rows)
    if folded > 1:
        cfg.augment.space_to_depth = True
    if isinstance(audio.get("patch_size"), int):
        cfg.data.audio.num_samples = audio["patch_size"] * audio["buckets"]
    elif audio:
        cfg.augment.spectrogram = SPECTROGRAM
    if "buckets" in text:
        cfg.data.text.max_tokens = text["buckets"]
    config.resolve(cfg)
    return cfg
