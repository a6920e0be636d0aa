"""What the shapes of a file's arrays tell of the towers that they are of."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping
from typing import Any

from mmjax.errors import UserError

HEAD_DIM = 64  # of every published model


class Shapes(dict):
    """Shapes by our path; one that is not there is an error that names it."""

    def __missing__(self, path: str) -> tuple[int, ...]:
        raise UserError(
            f"The files have nothing for {path}, whose shape says how the model is built. Nothing "
            "can be made of them without."
        )


def named(configs: Mapping[str, Mapping], options: Mapping[str, Any]) -> str:
    """The name whose options are most like these."""
    return max(configs, key=lambda name: sum(configs[name].get(k) == v for k, v in options.items()))


def encoder_options(shapes: Mapping, at: str, head_dim: int) -> dict[str, Any]:
    """Options of the transformer below `at`.

    Raises:
      UserError: its width is not made of such heads.
    """
    num_layers, width, inner = shapes[f"{at}/layers/attention/query/kernel"]
    if inner % head_dim:
        raise UserError(
            f"{at}: queries of {inner} features are not heads of {head_dim}. Give the size of a "
            "head with --head-dim."
        )
    return dict(
        width=width,
        num_layers=num_layers,
        num_heads=inner // head_dim,
        head_dim=head_dim,
        mlp_dim=shapes[f"{at}/layers/mlp/up/kernel"][2],
        use_bias=f"{at}/layers/attention/query/bias" in shapes,
    )


def block_counts(shapes: Mapping, at: str) -> tuple[int, ...]:
    """How many blocks each group below `at` has."""
    counts: dict[int, int] = collections.defaultdict(int)
    for path in shapes:
        if match := re.match(rf"{at}/groups/(\d+)/(\d+)/", path):
            group, number = map(int, match.groups())
            counts[group] = max(counts[group], 1 + number)
    return tuple(counts[group] for group in range(1 + max(counts, default=-1)))


def resnet_options(shapes: Mapping, at: str) -> dict[str, Any]:
    """Options of the ResNet below `at`."""
    return dict(
        blocks=block_counts(shapes, at),
        width_multiplier=shapes[f"{at}/stem/conv/kernel"][3] / 64,
    )


def image_resnet_options(shapes: Mapping, at: str) -> dict[str, Any]:
    """Options of the ResNet over single images below `at`, all but its name."""
    projection = f"{at}/projection/kernel"
    return dict(
        resnet_options(shapes, at),
        bottleneck=any(path.startswith(f"{at}/groups/") and "/third/" in path for path in shapes),
        projection=shapes[projection][1] if projection in shapes else 0,
    )
