"""Draws images of several objects, with the object of each pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmjax.data.world.attributes import COLORS, SHAPES, TEXTURES
from mmjax.data.world.render import backdrop, distance, pattern

FULL = "full"  # the shape of an object that covers the image
_MAX_RADIUS = 1.3  # of any shape, in radii


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thing:
    """An object of an image. Lengths are in image heights, from the center, x right and y down.

    Attributes:
      shape: A name in `SHAPES`, or `FULL`.
      color: RGB in [0, 255].
      texture: A name in `TEXTURES`.
      x, y: Position of the center.
      radius: Radius.
      angle: Rotation in radians.
    """

    shape: str = "circle"
    color: tuple[float, ...] = COLORS["white"]
    texture: str = "plain"
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.3
    angle: float = 0.0


def random_thing(rng: np.random.Generator, **fixed) -> Thing:
    """Returns an object with random attributes, except for the given ones."""
    values = dict(
        shape=str(rng.choice(SHAPES)),
        color=tuple(rng.choice(list(COLORS.values())) + rng.normal(0, 8, 3)),
        texture=str(rng.choice(TEXTURES)),
        x=rng.uniform(-0.12, 0.12),
        y=rng.uniform(-0.12, 0.12),
        radius=rng.uniform(0.22, 0.38),
        angle=rng.uniform(-0.2, 0.2),
    )
    return Thing(**(values | fixed))


def scattered(
    rng: np.random.Generator, count: int, *, width: float = 1.0, radius: tuple[float, float]
) -> list[tuple[float, float, float]]:
    """Returns (x, y, radius) of objects that do not overlap, inside of an image.

    Args:
      rng: Source of randomness.
      count: Number of objects.
      width: Width of the image in heights.
      radius: Range of radii.
    """
    placed: list[tuple[float, float, float]] = []
    for _ in range(1000):
        r = rng.uniform(*radius)
        x, y = rng.uniform(-width / 2 + r, width / 2 - r), rng.uniform(r - 0.5, 0.5 - r)
        if all(np.hypot(x - a, y - b) > 1.1 * (r + c) for a, b, c in placed):
            placed.append((x, y, r))
            if len(placed) == count:
                break
    return placed


def draw(
    rng: np.random.Generator,
    height: int,
    things: Sequence[Thing],
    *,
    width: int | None = None,
    background: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws an image.

    Args:
      rng: Source of randomness for the background.
      height: Height in pixels.
      things: Objects, from back to front.
      width: Width in pixels; None for that of a square.
      background: [H, W, 3] in [0, 255]; None for a random dark one.

    Returns:
      The image, uint8 [H, W, 3], and the index of the object of each pixel, int32 [H, W], -1 for
      the background.
    """
    width = width or height
    if background is None:
        size = max(height, width)
        axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
        background = backdrop(rng, axis)[:height, :width]
    image = np.array(background, np.float32)
    index = np.full((height, width), -1, np.int32)
    rows = ((np.arange(height) + 0.5) / height - 0.5).astype(np.float32)
    columns = ((np.arange(width) + 0.5 - width / 2) / height).astype(np.float32)
    for number, thing in enumerate(things):
        reach = _MAX_RADIUS * thing.radius if thing.shape != FULL else np.inf
        top, bottom = np.searchsorted(rows, [thing.y - reach, thing.y + reach])
        left, right = np.searchsorted(columns, [thing.x - reach, thing.x + reach])
        part = np.s_[top:bottom, left:right]
        cover, color = _painted(thing, columns[None, left:right], rows[top:bottom, None], height)
        image[part] += cover[..., None] * (color - image[part])
        index[part][cover > 0.5] = number
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), index


def _painted(
    thing: Thing, x: np.ndarray, y: np.ndarray, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cover [h, w] in [0, 1] and the color [h, w, 3] of an object at some pixels."""
    dx, dy = x - thing.x, thing.y - y
    cos, sin = np.cos(thing.angle) / thing.radius, np.sin(thing.angle) / thing.radius
    u, v = (cos * dx + sin * dy).astype(np.float32), (cos * dy - sin * dx).astype(np.float32)
    cover = np.ones_like(u)
    if thing.shape != FULL:
        cover = np.clip(distance(thing.shape, u, v) * (thing.radius * height) + 0.5, 0, 1)
    light = 0.85 + 0.15 * np.clip(u, -1, 1)
    light = light * np.where(pattern(thing.texture, u, v) > 0, 1.0, 0.5)
    return cover, light[..., None] * np.array(thing.color, np.float32)
