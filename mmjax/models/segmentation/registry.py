"""Segmentation models by name: built-in ones, and classes from other packages.

A config selects a model by a name in `MODELS`, or by `package.module:Name` for a class outside this
package, with options:

    --config.model.name=deeplabv3_resnet18 --config.model.num_classes=5

The interface of a class is described in `mmjax.models.segmentation.base.SegmentationModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import nnx

from mmjax import config, registry
from mmjax.errors import UserError
from mmjax.models.segmentation import deeplab, fpn, lraspp, segformer
from mmjax.models.segmentation.adapters import build_adapter
from mmjax.models.segmentation.base import SegmentationModel, SegmentationOutput


class ModelEntry(NamedTuple):
    """A named model.

    Attributes:
      cls: Class of the model.
      options: Options that the name stands for.
    """

    cls: type[SegmentationModel]
    options: Mapping[str, Any]


MODELS: dict[str, ModelEntry] = {
    **{name: ModelEntry(lraspp.LRASPP, options) for name, options in lraspp.CONFIGS.items()},
    **{name: ModelEntry(cls, options) for name, (cls, options) in deeplab.CONFIGS.items()},
    **{name: ModelEntry(fpn.FPN, options) for name, options in fpn.CONFIGS.items()},
    **{
        name: ModelEntry(segformer.SegFormer, options)
        for name, options in segformer.CONFIGS.items()
    },
}


def find_model(name: str, where: str = "model") -> ModelEntry:
    """Returns the entry of a model.

    Args:
      name: A name in `MODELS`, or `package.module:Name`.
      where: Config section of the model, for error messages.

    Raises:
      UserError: The model does not exist, or is no `SegmentationModel`.
    """
    entry = registry.resolve(f"config.{where}.name", name, MODELS)
    if isinstance(entry, ModelEntry):
        return entry
    if not isinstance(entry, type) or not issubclass(entry, SegmentationModel):
        raise UserError(
            f"config.{where}.name={name} must be a subclass of "
            f"mmjax.models.segmentation.base.SegmentationModel; got {entry!r}."
        )
    return ModelEntry(entry, {})


def build_segmentation(
    name: str,
    *,
    adaptation: str | Mapping[str, Any] | None = None,
    rngs: nnx.Rngs,
    where: str = "model",
    **options: Any,
) -> SegmentationModel:
    """Returns a segmentation model.

    Args:
      name: A name in `MODELS`, or `package.module:Name`.
      adaptation: Bottleneck adapter, which becomes the submodule `adapter`; None for none. See
        `mmjax.models.segmentation.adapters`.
      rngs: Random number generators for initialization.
      where: Config section of the model, for error messages.
      **options: Options of the model, for example `num_classes`; they override those of the name.

    Raises:
      UserError: An unknown model, or an unknown or invalid option.
    """
    entry = find_model(name, where)
    options = config.keywords(
        entry.cls, options, where, provided=("rngs",), also=("adaptation",), owner=name
    )
    try:
        model = entry.cls(rngs=rngs, **{**entry.options, **options})
    except UserError as error:
        raise UserError(f"config.{where} ({name!r}): {error}") from None
    if adaptation is not None:
        model.adapter = build_adapter(
            adaptation,
            bottleneck_width=model.bottleneck_width,
            dtype=model.cfg.dtype,
            param_dtype=model.cfg.param_dtype,
            rngs=rngs,
            where=f"{where}.adaptation",
        )
    return model


__all__ = [
    "MODELS",
    "ModelEntry",
    "SegmentationModel",
    "SegmentationOutput",
    "build_segmentation",
    "find_model",
]
