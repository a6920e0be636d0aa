"""Operations on video clips on the device, inside jit; see `color` for colors."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.errors import UserError


def flip_video(video: jax.Array, mirror: jax.Array) -> jax.Array:
    """Mirrors clips left to right.

    Args:
      video: [..., T, H, W, 3].
      mirror: Which clips to mirror, bool [...].
    """
    return jnp.where(mirror[..., None, None, None, None], video[..., ::-1, :], video)


def space_to_depth(video: jax.Array, *, block: tuple[int, int, int] = (2, 2, 2)) -> jax.Array:
    """Moves blocks of pixels into the channels.

    Args:
      video: [..., T, H, W, C].
      block: Size (t, h, w) of a block.

    Returns:
      [..., T/t, H/h, W/w, t·h·w·C], channels in the order (t, h, w, c).

    Raises:
      UserError: The clip is not divisible into blocks.
    """
    *lead, frames, height, width, channels = video.shape
    t, h, w = block
    if frames % t or height % h or width % w:
        raise UserError(
            f"Clips of {frames}x{height}x{width} (frames x height x width) are not divisible into "
            f"blocks of {block}. Change config.data.video, or set "
            "config.augment.space_to_depth=False."
        )
    video = video.reshape(*lead, frames // t, t, height // h, h, width // w, w, channels)
    n = len(lead)
    order = (*range(n), n, n + 2, n + 4, n + 1, n + 3, n + 5, n + 6)
    return video.transpose(order).reshape(*lead, frames // t, height // h, width // w, -1)
