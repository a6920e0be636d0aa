"""Infers the config of segmentation models from the shapes of their arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_collections

from mmjax import config
from mmjax.convert.segmentation import adapter_names, names
from mmjax.convert.segmentation import load as segmentation_load
from mmjax.convert.shapes import HEAD_DIM, Shapes, block_counts, nearest_name
from mmjax.convert.torch_source import TorchSource
from mmjax.errors import UserError
from mmjax.models.segmentation import deeplab, fpn
from mmjax.models.segmentation.registry import MODELS
from mmjax.published.segmentation import segmentation_config

_NUM_CLASSES = 21  # of the published models, and the default
# {family: path of an array, and its axis with the channels of the bottleneck}.
_BOTTLENECKS = {
    "lraspp": ("backbone/last/conv/kernel", 3),
    "lraspp_demo": ("backbone/last/conv/kernel", 3),
    "deeplabv3_mobilenet": ("backbone/last/conv/kernel", 3),
    "deeplabv3_resnet": ("head/aspp/branch1/conv/kernel", 2),
    "fpn_resnet": ("head/lateral/5/kernel", 2),
    "segformer": ("backbone/stages/3/patch/kernel", 3),
}


def _last(shapes: Shapes, path: str) -> int:
    """Returns the output channels of a convolution."""
    return shapes.sizes(f"{path}/kernel", 4)[3]


def _lraspp(shapes: Shapes, *, head_dim: int | None) -> dict[str, Any]:
    del head_dim
    return dict(name="lraspp_mobilenet_v3_large", width=_last(shapes, "head/reduce/conv"))


def _demo(shapes: Shapes, *, head_dim: int | None) -> dict[str, Any]:
    return _lraspp(shapes, head_dim=head_dim) | dict(name="lraspp_demo")


def _deeplab_mobilenet(shapes: Shapes, *, head_dim: int | None) -> dict[str, Any]:
    del head_dim
    return dict(
        name="deeplabv3_mobilenet_v3_large",
        width=_last(shapes, "head/hidden/conv"),
        aux_head="aux_head/classifier/kernel" in shapes,
    )


def _resnet(shapes: Shapes) -> dict[str, Any]:
    return dict(
        blocks=block_counts(shapes, "backbone"),
        bottleneck="backbone/groups/0/0/third/conv/kernel" in shapes,
        width_multiplier=_last(shapes, "backbone/stem/conv") / 64,
    )


def _deeplab_resnet(shapes: Shapes, *, head_dim: int | None) -> dict[str, Any]:
    del head_dim
    options = dict(_resnet(shapes), width=_last(shapes, "head/hidden/conv"))
    configs = {
        name: dict(bottleneck=False) | options
        for name, (cls, options) in deeplab.CONFIGS.items()
        if cls is deeplab.DeepLabResNet
    }
    return dict(name=nearest_name(configs, options), **options)


def _fpn(shapes: Shapes, *, head_dim: int | None) -> dict[str, Any]:
    del head_dim
    options = dict(
        _resnet(shapes),
        pyramid_width=_last(shapes, "head/lateral/5"),
        width=_last(shapes, "head/levels/2/0/conv"),
    )
    return dict(name=nearest_name(fpn.CONFIGS, options), **options)


def _segformer(shapes: Shapes, *, head_dim: int | None) -> dict[str, Any]:
    """Returns the options; published mix transformers have 1, 2, 5 and 8 heads at any width."""
    stages = [f"backbone/stages/{stage}" for stage in range(4)]
    widths = tuple(_last(shapes, f"{stage}/patch") for stage in stages)
    reductions = tuple(
        shapes.sizes(f"{stage}/blocks/0/attention/reduce/kernel", 4)[0]
        if f"{stage}/blocks/0/attention/reduce/kernel" in shapes
        else 1
        for stage in stages
    )
    hidden = shapes.sizes(f"{stages[0]}/blocks/0/mlp/up/kernel", 2)[1]
    return dict(
        name="segformer_mit_b0",
        widths=widths,
        depths=tuple(_depth(shapes, stage) for stage in stages),
        num_heads=tuple(_heads(width, head_dim) for width in widths) if head_dim else (1, 2, 5, 8),
        reductions=reductions,
        mlp_ratio=hidden // widths[0],
        width=_last(shapes, "head/fuse/conv"),
    )


def _depth(shapes: Shapes, stage: str) -> int:
    count = 0
    while f"{stage}/blocks/{count}/attention/query/kernel" in shapes:
        count += 1
    return count


_OPTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "lraspp": _lraspp,
    "lraspp_demo": _demo,
    "deeplabv3_mobilenet": _deeplab_mobilenet,
    "deeplabv3_resnet": _deeplab_resnet,
    "fpn_resnet": _fpn,
    "segformer": _segformer,
}


def _heads(width: int, head_dim: int) -> int:
    if width % head_dim:
        raise UserError(
            f"The attention width {width} is not a multiple of the head dimension {head_dim}. Set "
            "the head dimension with --head-dim."
        )
    return width // head_dim


def _adaptation(
    adapter: str, shapes: Shapes, bottleneck_width: int, head_dim: int
) -> tuple[str | dict[str, Any], str]:
    """Returns the option `adaptation`, and a note for the user or ''."""
    if adapter == adapter_names.MATRIX:
        fan_in, fan_out = shapes.sizes("adapter/linear/kernel", 2)
        if fan_in == fan_out == bottleneck_width:
            note = (
                "The adapter is a square matrix: it may project texts (contrastive_global), which "
                "is assumed, or the bottleneck (contrastive_diff, contrastive_global_bside_1). "
                "Change config.model.adaptation otherwise."
            )
            return _with_width("contrastive_global", fan_in), note
        if fan_out == bottleneck_width:
            return _with_width("contrastive_global", fan_in), ""
        return _with_width("contrastive_diff", fan_out), ""
    if adapter.startswith("conv_attn_pool"):
        width = shapes.sizes("adapter/pooling/out/kernel", 2)[1]
        return _with_width(adapter, width, num_heads=_heads(width, head_dim)), ""
    layer = "linear" if adapter == "GAP_linear" else "second"
    return _with_width(adapter, shapes[f"adapter/{layer}/kernel"][-1]), ""


def _with_width(name: str, width: int, num_heads: int = 8) -> str | dict[str, Any]:
    """Returns the name, with its options where they are not the default."""
    options = dict(width=width) if width != 512 else {}
    options |= dict(num_heads=num_heads) if num_heads != 8 else {}
    return dict(name=name, **options) if options else name


def model_section(
    source: TorchSource, *, head_dim: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Returns the section `model` of a config, and notes for the user.

    Args:
      source: The entries of the file.
      head_dim: Width of an attention head, which shapes do not determine; None for the published
        one.

    Raises:
      UserError: An array that determines a size is missing, or its shape is not supported.
    """
    shapes = Shapes(source.leaves)
    family = source.components[segmentation_load.MODEL]
    options = _OPTIONS[family](shapes, head_dim=head_dim)
    classes = {"lraspp": "head/low", "lraspp_demo": "head/low"}.get(family, "head/classifier")
    options["num_classes"] = _last(shapes, classes)
    entry = MODELS[options["name"]]
    defaults = {
        key: parameter.default for key, parameter in config.parameters(entry.cls).items()
    } | dict(entry.options)
    model = {
        key: value
        for key, value in options.items()
        if key in ("name", "num_classes") or value != defaults[key]
    }
    notes: list[str] = []
    if adapter := source.components.get(segmentation_load.ADAPTER):
        path, axis = _BOTTLENECKS[family]
        model["adaptation"], note = _adaptation(
            adapter, shapes, shapes.sizes(path, 4)[axis], head_dim or HEAD_DIM
        )
        notes += [note] if note else []
    return model, notes


def make_config(
    source: TorchSource, *, name: str, head_dim: int | None = None
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """Returns a complete config, TTDL's with the model of the file in float32, and notes.

    Args:
      source: The entries of the file.
      name: Path of the file, for error messages.
      head_dim: See `model_section`.

    Raises:
      UserError: See `model_section`; or the file contains only a backbone.
    """
    family = source.components[segmentation_load.MODEL]
    if family in names.BACKBONES:
        raise UserError(
            f"{name} contains only a backbone ({family}), without a segmentation head. To train a "
            f"model from it, pass --override_checkpoint={name} and "
            "--config.init_allow=\"('^(extra/)?(head|aux_head|adapter)/',)\"."
        )
    model, notes = model_section(source, head_dim=head_dim)
    image_size = MODELS[model["name"]].options.get("image_size", 520)
    cfg = segmentation_config(image_size=image_size)
    cfg.model = model
    config.resolve(cfg)
    return cfg, notes


def config_of(source: str) -> ml_collections.ConfigDict:
    """Returns the config of a file, to use it without a run directory.

    Raises:
      UserError: The file cannot be read or contains no such model, or a size is undetermined.
    """
    return make_config(segmentation_load.read(source), name=source)[0]
