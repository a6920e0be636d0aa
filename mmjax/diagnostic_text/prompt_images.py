"""Overlays of a mask on its scene: the images that a vision-language model compares."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from mmjax.diagnostic_text.pairs import Pair


def overlay(scene: np.ndarray, mask: np.ndarray, alpha: float = 0.6) -> np.ndarray:
    """Returns a scene blended with a white mask on black, truncated to uint8.

    The scene is darkened outside the mask. Rounding equals that of `torch.lerp` in float32, with
    which published models were trained: 0, 10, 100, 255 become 153, 157, 193, 255 inside the mask
    and 0, 3, 39, 101 outside (alpha 0.6).

    Args:
      scene: Image, uint8 [H, W, 3].
      mask: Mask, bool [H, W].
      alpha: Opacity of the mask, from 0 to 1.
    """
    weight = np.float32(alpha)
    start = scene.astype(np.float32)
    end = np.where(mask, np.float32(255), np.float32(0))[..., None]
    if weight < 0.5:
        blended = start + weight * (end - start)
    else:
        blended = end - (end - start) * (np.float32(1) - weight)
    return np.clip(blended, 0, 255).astype(np.uint8)


def comparison_images(pair: Pair, alpha: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two images of a prompt, uint8 [S, S, 3]: true mask, then predicted mask."""
    return overlay(pair.scene, pair.truth, alpha), overlay(pair.scene, pair.prediction, alpha)


def difference_image(pair: Pair, alpha: float = 0.55) -> np.ndarray:
    """Returns the scene with the pixels in which both masks differ in white, uint8 [S, S, 3].

    Void pixels have no true class here, also if the pair describes the background.
    """
    truth = pair.truth if pair.void is None else pair.truth & ~pair.void
    return overlay(pair.scene, truth != pair.prediction, alpha)


def encode_png(image: np.ndarray) -> bytes:
    """Returns a uint8 image [H, W, 3] as PNG; equal images give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
