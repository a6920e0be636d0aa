"""Heads of end tasks by name: built-in ones, and classes from other packages.

A config selects a head by a name in `HEADS`, or by `package.module:Name` for a class outside this
package, with options:

    --config.head.name=mlp --config.head.hidden=1024

The interface of a class is described in `mmjax.models.decoders.base.Head`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flax import nnx

from mmjax import config, registry
from mmjax.errors import UserError
from mmjax.models.decoders.base import EMBEDDING, GRID, MAPS, Head
from mmjax.models.decoders.deeplab import DeepLab, DeepLabClassifier, PlainDeepLab
from mmjax.models.decoders.image_level import LinearHead, MultiEmbeddingHead
from mmjax.models.decoders.pyramid import WIDTH, PyramidHead, level_channels
from mmjax.models.decoders.unet import SiameseUNet, UNet

HEADS: dict[str, type[nnx.Module]] = {
    "linear": LinearHead,
    "mlp": MultiEmbeddingHead,
    "unet": UNet,
    "siamese_unet": SiameseUNet,
    "deeplab": DeepLab,
    "deeplab_plain": PlainDeepLab,
    "deeplab_classifier": DeepLabClassifier,
}
# Arguments of heads that configs do not set.
_PROVIDED = ("num_outputs", "embedding_dim", "num_images", "channels", "rngs")
# Heads that read a ResNet itself, so that a pyramid cannot replace its maps.
_RESNET_HEADS = {"deeplab": "deeplab_plain", "deeplab_classifier": "linear"}


def find_head(name: str, where: str = "head") -> type[nnx.Module]:
    """Returns the class of a head.

    Args:
      name: A name in `HEADS`, or `package.module:Name`.
      where: Config section of the head, for error messages.

    Raises:
      UserError: The head does not exist, or is no module with the attribute `needs`.
    """
    cls = registry.resolve(f"config.{where}.name", name, HEADS)
    if not isinstance(cls, type) or not issubclass(cls, nnx.Module) or not hasattr(cls, "needs"):
        raise UserError(
            f"config.{where}.name={name} must be a subclass of flax.nnx.Module with the attribute "
            f"`needs`; got {cls!r}. The interface is described in mmjax/models/decoders/base.py."
        )
    return cls


def uses_pyramid(name: str, available: Collection[str], where: str = "head") -> bool:
    """Returns whether the feature maps of a head are made from the grid of a transformer.

    Args:
      name: Name of the head.
      available: Keys of the features that the encoder offers.
      where: Config section of the head, for error messages.
    """
    missing = set(find_head(name, where).needs) - set(available)
    return bool(missing) and missing <= set(MAPS) and GRID in available


def default_head(name: str, encoder_params: Mapping[str, Any]) -> str:
    """Returns the head of an end task, or the one that replaces it on encoders that it cannot read.

    Args:
      name: Name of the head that the end task declares.
      encoder_params: Parameters of the tower, abstract or not.
    """
    return "deeplab_plain" if name == "deeplab" and not DeepLab.fits(encoder_params) else name


def check_features(name: str, available: Collection[str], where: str = "head") -> None:
    """Raises UserError unless an encoder offers the features that a head needs.

    Args:
      name: Name of the head.
      available: Keys of the features that the encoder offers, for example 'embedding', 'block1' to
        'block4', or 'grid' of a vision transformer.
      where: Config section of the head, for error messages.
    """
    needs = find_head(name, where).needs
    missing = [key for key in needs if key not in available]
    if not missing:
        return
    offers = ", ".join(available) or "none"
    if uses_pyramid(name, available, where):
        if name in _RESNET_HEADS:
            raise UserError(
                f"config.{where}.name={name} needs the feature maps of a ResNet ({', '.join(needs)}"
                f"), but the encoder offers: {offers}. Set config.{where}.name="
                f"{_RESNET_HEADS[name]}."
            )
        return
    if set(missing) & set(MAPS):
        hint = (
            "Use an encoder with feature maps (a ResNet, MobileNetV2 or vision transformer for "
            "images), or an end task that needs only an embedding."
        )
    else:
        hint = "Use another encoder or head."
    raise UserError(
        f"config.{where}.name={name} needs the features {', '.join(missing)}, but the encoder "
        f"offers: {offers}. {hint}"
    )


def build_head(
    name: str,
    *,
    num_outputs: int,
    embedding_dim: int,
    num_images: int = 1,
    channels: Mapping[str, int] | None = None,
    rngs: nnx.Rngs,
    where: str = "head",
    pyramid_width: int = WIDTH,
    **options: Any,
) -> nnx.Module:
    """Returns a head.

    If the encoder is a vision transformer, heads that read feature maps get a `PyramidHead`.

    Args:
      name: A name in `HEADS`, or `package.module:Name`.
      num_outputs: Number of classes, or of maps.
      embedding_dim: Width of the embedding; 0 if the encoder has none.
      num_images: Number of images per example.
      channels: {key: channels} of the feature maps that the encoder offers.
      rngs: Random number generators for initialization.
      where: Config section of the head, for error messages.
      pyramid_width: Channels of the maps of a `PyramidHead`; used only with such encoders.
      **options: Options of the head.

    Raises:
      UserError: An unknown head, an unknown or invalid option, or the encoder lacks features that
        the head needs.
    """
    channels = dict(channels or {})
    available = ([EMBEDDING] if embedding_dim else []) + list(channels)
    check_features(name, available, where)
    cls = find_head(name, where)
    options = config.keywords(cls, options, where, provided=_PROVIDED, owner=name)
    if pyramid_width < 1:
        raise UserError(f"config.{where}.pyramid_width must be at least 1; got {pyramid_width}.")
    grid = channels.get(GRID, 0) if uses_pyramid(name, available, where) else 0
    maps = level_channels(pyramid_width) if grid else channels
    try:
        head = cls(
            num_outputs=num_outputs,
            embedding_dim=embedding_dim,
            num_images=num_images,
            channels=maps,
            rngs=rngs,
            **options,
        )
        if not grid:
            return head
        dtype = options.get("dtype", "float32")
        return PyramidHead(head=head, in_features=grid, width=pyramid_width, dtype=dtype, rngs=rngs)
    except UserError as error:
        raise UserError(f"config.{where} ({name!r}): {error}") from None


__all__ = [
    "HEADS",
    "Head",
    "build_head",
    "check_features",
    "default_head",
    "find_head",
    "uses_pyramid",
]
