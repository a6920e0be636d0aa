"""Infers the options of towers from the shapes of their arrays."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.errors import UserError

HEAD_DIM = 64  # of all published models


class Shapes(dict):
    """{path: shape} of the arrays in a source. A missing path raises a UserError.

    Args:
      leaves: {path: leaf}, where a leaf has a `shape`.
      key_of: Function from a path to the source's key, for error messages.
    """

    def __init__(self, leaves: Mapping[str, Any], key_of: Callable[[str], str] = str):
        super().__init__({path: leaf.shape for path, leaf in leaves.items()})
        self._key_of = key_of

    def __missing__(self, path: str) -> tuple[int, ...]:
        raise UserError(
            f"The source has no array {self._key_of(path)}. Its shape is needed to determine the "
            "size of the model. Check that the file is complete."
        )

    def sizes(self, path: str, ndim: int) -> tuple[int, ...]:
        """Returns the shape of an array that determines sizes of the model.

        Raises:
          UserError: The array is missing, does not have `ndim` axes, or has an empty one.
        """
        shape = self[path]
        if len(shape) != ndim or 0 in shape:
            raise UserError(
                f"The array {self._key_of(path)}, for {path}, has the shape {tuple(shape)}; "
                f"expected {ndim} axes. The file is damaged, or of another model."
            )
        return tuple(shape)


def nearest_name(configs: Mapping[str, Mapping], options: Mapping[str, Any]) -> str:
    """Returns the name of the config that has the most of these options."""
    return max(configs, key=lambda name: sum(configs[name].get(k) == v for k, v in options.items()))


def encoder_options(shapes: Shapes, prefix: str, head_dim: int) -> dict[str, Any]:
    """Returns the options of a transformer encoder.

    Args:
      shapes: {path: shape}.
      prefix: Path of the encoder.
      head_dim: Width of an attention head.

    Raises:
      UserError: The width of the attention is not a multiple of `head_dim`.
    """
    num_layers, width, inner = shapes.sizes(f"{prefix}/layers/attention/query/kernel", 3)
    if inner % head_dim:
        raise UserError(
            f"{prefix}: the attention width {inner} is not a multiple of the head dimension "
            f"{head_dim}. Set the head dimension with --head-dim."
        )
    return dict(
        width=width,
        num_layers=num_layers,
        num_heads=inner // head_dim,
        head_dim=head_dim,
        mlp_dim=shapes.sizes(f"{prefix}/layers/mlp/up/kernel", 3)[2],
        use_bias=f"{prefix}/layers/attention/query/bias" in shapes,
    )


def block_counts(shapes: Mapping, prefix: str) -> tuple[int, ...]:
    """Returns the number of blocks in each group of a convolutional network.

    Raises:
      UserError: A block has an index that is too large for the number of arrays.
    """
    counts: dict[int, int] = collections.defaultdict(int)
    for path in shapes:
        if match := re.match(rf"{prefix}/groups/(\d+)/(\d+)/", path):
            group, block = map(int, match.groups())
            if group + block > len(shapes):
                raise UserError(
                    f"{path}: group {group} or block {block} cannot exist in a file with "
                    f"{len(shapes)} arrays. The file is damaged."
                )
            counts[group] = max(counts[group], 1 + block)
    return tuple(counts[group] for group in range(1 + max(counts, default=-1)))


def resnet_options(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Returns the options of a ResNet at a path."""
    return dict(
        blocks=block_counts(shapes, prefix),
        width_multiplier=shapes.sizes(f"{prefix}/stem/conv/kernel", 4)[3] / 64,
    )


def image_resnet_options(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Returns the options, without the name, of a ResNet over single images at a path."""
    projection = f"{prefix}/projection/kernel"
    third = any(path.startswith(f"{prefix}/groups/") and "/third/" in path for path in shapes)
    return dict(
        resnet_options(shapes, prefix),
        bottleneck=third,
        projection=shapes.sizes(projection, 2)[1] if projection in shapes else 0,
    )


def projection_width(shapes: Shapes, tower: str) -> int:
    """Returns the width of the projection of a tower; 0 without one."""
    path = f"{tower}/projection/kernel"
    return shapes.sizes(path, 2)[1] if path in shapes else 0


def patch_options(shapes: Shapes, tower: str) -> dict[str, Any]:
    """Returns the sizes of the images and patches of a ViT at a path.

    Raises:
      UserError: The images, patches or channels are not supported.
    """
    height, width, channels, _ = shapes.sizes(f"{tower}/patch/kernel", 4)
    patches = shapes.sizes(f"{tower}/positions", 2)[0] - 1
    side = math.isqrt(max(patches, 0))
    if height != width or channels != 3 or side * side != patches or not side:
        raise UserError(
            f"{tower}: the tower has patches of {height} × {width} × {channels} and {patches} "
            "positions without the class token. mmjax supports square RGB images in square patches."
        )
    return dict(image_size=side * height, patch_size=height)


def vit_options(shapes: Shapes, path: str, head_dim: int) -> dict[str, Any]:
    """Returns the options, without the name, of timm's or torchvision's ViT at a path.

    Args:
      shapes: {path: shape}.
      path: Path of the tower.
      head_dim: Width of an attention head.
    """
    mean = f"{path}/pool_norm/scale" in shapes  # timm's fc_norm follows mean pooling
    return dict(
        **encoder_options(shapes, f"{path}/encoder", head_dim),
        **patch_options(shapes, path),
        patch_bias=f"{path}/patch/bias" in shapes,
        input_norm=f"{path}/pre_norm/scale" in shapes,
        pool="mean" if mean else "class",
        pool_norm=mean,
        final_norm="layer" if f"{path}/encoder/final_norm/scale" in shapes else "none",
        projection=projection_width(shapes, path),
    )
