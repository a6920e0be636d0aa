"""The attributes of the procedural world's objects, and their values.

This module contains no rendering: see `mmjax.data.world.render`, and `mmjax.data.world.captions`
for the wordings of each value. The order of values determines class indices and must not change.
"""

from __future__ import annotations

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")
COLORS = {  # RGB
    "red": (225, 25, 25),
    "orange": (250, 130, 10),
    "yellow": (245, 230, 40),
    "green": (30, 170, 50),
    "cyan": (40, 215, 215),
    "blue": (35, 60, 235),
    "purple": (165, 40, 205),
    "white": (240, 240, 240),
}
SIZES = {"small": 0.44, "medium": 0.60, "large": 0.80}  # diameter as a fraction of the frame
TEXTURES = ("plain", "striped", "checkered", "dotted")
MOTIONS = ("resting", "swaying", "bouncing", "circling", "spinning", "pulsing")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "color": tuple(COLORS),
    "size": tuple(SIZES),
    "texture": TEXTURES,
    "motion": MOTIONS,
}
