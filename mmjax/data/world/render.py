"""How the scenes of `mmjax.data.world.build` look, sound and feel.

Functions of the attributes and of a generator, which decides everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmjax.errors import unknown

if TYPE_CHECKING:
    from mmjax.data.world.config import WorldConfig

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")
COLORS = {
    "red": (225, 25, 25),
    "orange": (250, 130, 10),
    "yellow": (245, 230, 40),
    "green": (30, 170, 50),
    "cyan": (40, 215, 215),
    "blue": (35, 60, 235),
    "purple": (165, 40, 205),
    "white": (240, 240, 240),
}
SIZES = {"small": 0.44, "medium": 0.60, "large": 0.80}  # diameter, as a part of the frame
TEXTURES = ("plain", "striped", "checkered", "dotted")
MOTIONS = ("resting", "swaying", "bouncing", "circling", "spinning", "pulsing")
ATTRIBUTES = {
    "shape": SHAPES,
    "color": tuple(COLORS),
    "size": tuple(SIZES),
    "texture": TEXTURES,
    "motion": MOTIONS,
}
_PITCH = {"small": 400.0, "medium": 260.0, "large": 170.0}  # Hz
HARMONICS = {  # loudness of the harmonics 1 to 4
    "circle": (1, 0, 0, 0),
    "square": (1, 0, 1, 0),
    "triangle": (1, 1, 0, 0),
    "star": (1, 0, 0, 1),
    "cross": (1, 1, 1, 0),
    "ring": (1, 0, 1, 1),
    "heart": (1, 1, 0, 1),
    "moon": (1, 1, 1, 1),
}
_OVERTONE, _OVERTONE_STEP = 2050.0, 200.0  # Hz: the first color's, and between colors
_CYCLE = 1.25  # Hz: swaying, circling, pulsing; bouncing touches the ground twice as often
LEAST_SAMPLE_RATE = 8000  # twice the highest overtone, and some
# Sight ------------------------------------------------------------------------------------------


class Trajectory:
    """Where the object is: center (x right, y up) and radius in frame widths, and its angle."""

    def __init__(self, rng: np.random.Generator, attributes: dict[str, str], phase: float):
        self.motion, self.phase = attributes["motion"], phase
        self.radius = SIZES[attributes["size"]] / 2 * rng.uniform(0.95, 1.05)
        self.center = rng.uniform(-0.03, 0.03, 2)
        self.angle = rng.uniform(-0.12, 0.12)
        self.turn = rng.choice([-1.0, 1.0])
        self.reach = 0.16 - 0.13 * self.radius  # large objects move less, so as to stay in sight

    def at(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        cycle = 2 * np.pi * (_CYCLE * seconds + self.phase)
        x, y = (np.full_like(seconds, value) for value in self.center)
        radius, angle = np.full_like(seconds, self.radius), np.full_like(seconds, self.angle)
        if self.motion == "swaying":
            x = x + self.reach * np.sin(cycle)
        elif self.motion == "bouncing":
            y = y + 1.3 * self.reach * (2 * np.abs(np.sin(cycle)) - 1)
        elif self.motion == "circling":
            x, y = x + self.reach * np.cos(cycle), y + self.turn * self.reach * np.sin(cycle)
        elif self.motion == "spinning":
            angle = angle + self.turn * cycle
        elif self.motion == "pulsing":
            radius = radius * (1 + 0.25 * np.sin(cycle))
        return x, y, radius, angle


def look(
    rng: np.random.Generator, cfg: WorldConfig, attributes: dict[str, str], trajectory: Trajectory
) -> tuple[np.ndarray, tuple]:
    """Frames, and the geometry from which `dense` makes the rest."""
    size = cfg.frame_size
    axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    times = np.arange(cfg.num_frames) / cfg.fps
    x, y, radius, angle = (
        value[:, None, None].astype(np.float32) for value in trajectory.at(times)
    )
    dx, dy = axis[None, None, :] - x, -axis[None, :, None] - y  # [T, H, W]
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    inside = _distance(attributes["shape"], u, v)
    cover = np.clip(inside * (radius * size) + 0.5, 0, 1)  # antialiased over a pixel

    color = np.array(COLORS[attributes["color"]], np.float32) + rng.normal(0, 6, 3)
    # Light from the object's own side: without it nobody sees a plain circle spin.
    light = 0.85 + 0.15 * np.clip(u, -1, 1)
    light *= np.where(_pattern(attributes["texture"], u, v) > 0, 1.0, 0.5)
    backdrop = _backdrop(rng, axis)[None]  # [1, H, W, 3]
    image = backdrop + cover[..., None] * (light[..., None] * color.astype(np.float32) - backdrop)
    frames = np.clip(image + 0.5, 0, 255).astype(np.uint8)
    return frames, (times, dx, dy, cover, inside)


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """About the distance to the outline, positive inside. It fits the unit circle; v is up."""
    if shape == "circle":
        return 0.95 - np.hypot(u, v)
    if shape == "square":
        return 0.8 - np.maximum(np.abs(u), np.abs(v))
    if shape == "triangle":
        side = np.abs(u) * (3**0.5 / 2)
        return np.minimum(0.5 - (side + 0.5 * (v + 0.1)), v + 0.1 + 0.5)
    if shape == "star":
        spread = 2 * np.pi / 5
        angle = np.abs((np.arctan2(u, v) + spread / 2) % spread - spread / 2)
        tip, notch = np.array([1.05, 0.0]), 0.45 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
        normal = np.array([notch[1] - tip[1], tip[0] - notch[0]])
        normal = normal / np.hypot(*normal)
        reach = np.hypot(u, v)
        return normal @ tip - reach * (normal[0] * np.cos(angle) + normal[1] * np.sin(angle))
    if shape == "cross":
        a, b = np.abs(u), np.abs(v)
        return np.minimum(0.95 - np.maximum(a, b), 0.3 - np.minimum(a, b))
    if shape == "ring":
        return 0.24 - np.abs(np.hypot(u, v) - 0.72)
    if shape == "heart":
        return 0.78 - np.hypot(u * 0.9, v + 0.1 - 0.62 * np.sqrt(np.abs(u) + 1e-3))
    if shape == "moon":
        return np.minimum(0.98 - np.hypot(u, v), np.hypot(u - 0.5, v) - 0.72)
    raise unknown("shape", shape, SHAPES)


def _pattern(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """About -1 to 1; the sign is the texture's light and dark."""
    turns = np.float32(2 * np.pi / 0.62)
    if texture == "striped":
        return np.sin(turns * v)
    if texture == "checkered":
        return np.sin(0.72 * turns * u) * np.sin(0.72 * turns * v)
    if texture == "dotted":
        return 0.35 - np.cos(turns * u) * np.cos(turns * v)
    return np.ones_like(u)


def _backdrop(rng: np.random.Generator, axis: np.ndarray) -> np.ndarray:
    """A dark image, float32 [H, W, 3]."""
    tint = rng.uniform(8, 40) * rng.uniform(0.7, 1.3, 3)
    across, kind = rng.uniform(0, 2 * np.pi), rng.integers(4)
    plane = np.cos(across) * axis[None, :] + np.sin(across) * axis[:, None]
    if kind == 0:
        gray = np.ones_like(plane)
    elif kind == 1:
        gray = 1 + 1.2 * plane
    elif kind == 2:
        gray = 1 + 0.3 * np.sin(plane * rng.uniform(15, 40))
    else:
        gray = 1 + 0.25 * rng.standard_normal(plane.shape)
    return (gray[..., None] * tint).astype(np.float32)


def dense(
    cfg: WorldConfig, attributes: dict[str, str], trajectory: Trajectory, geometry: tuple
) -> dict[str, np.ndarray]:
    """Mask, depth and flow, from the geometry itself."""
    times, dx, dy, cover, inside = geometry
    solid = cover > 0.5
    mask = solid * np.uint8(1 + SHAPES.index(attributes["shape"]))
    # A wall two metres away, and before it a relief that rises towards its middle.
    depth = np.where(solid, 1.2 - 0.3 * np.clip(inside, 0, 1), 2.0).astype(np.float32)
    now, then = trajectory.at(times), trajectory.at(times + 1 / cfg.fps)
    (x, y, radius, angle), (x2, y2, radius2, angle2) = (
        [value[:, None, None] for value in state] for state in (now, then)
    )
    cos, sin = (f(angle2 - angle) * radius2 / radius for f in (np.cos, np.sin))
    right = x2 + cos * dx - sin * dy - (x + dx)
    up = y2 + sin * dx + cos * dy - (y + dy)
    flow = np.stack([right, -up], -1) * solid[..., None] * cfg.frame_size
    return dict(mask=mask.astype(np.uint8), depth=depth, flow=flow.astype(np.float32))


# Sound ------------------------------------------------------------------------------------------


def sound(
    rng: np.random.Generator, cfg: WorldConfig, attributes: dict[str, str], phase: float
) -> np.ndarray:
    """float32 [S] in (-1, 1)."""
    seconds = np.arange(cfg.samples, dtype=np.float64) / cfg.sample_rate
    pitch = _PITCH[attributes["size"]] * rng.uniform(0.98, 1.02)
    loudness = np.array(HARMONICS[attributes["shape"]]) * rng.uniform(0.8, 1.2, 4)
    tones = np.zeros_like(seconds)
    for harmonic in np.flatnonzero(loudness):
        start = rng.uniform(0, 2 * np.pi)
        tones += loudness[harmonic] * np.sin(2 * np.pi * pitch * (harmonic + 1) * seconds + start)
    tones *= 0.3 / np.sqrt((loudness**2).sum() / 2)
    step = list(COLORS).index(attributes["color"])
    overtone = _OVERTONE + _OVERTONE_STEP * step + rng.uniform(-20, 20)
    steady = 0.2 * np.sin(2 * np.pi * overtone * seconds + rng.uniform(0, 2 * np.pi))
    wave = tones * _envelope(attributes["motion"], seconds, phase) + steady
    wave = rng.uniform(0.7, 1.1) * wave + cfg.noise * rng.standard_normal(cfg.samples)
    return np.clip(wave, -1, 1).astype(np.float32)


def _envelope(motion: str, seconds: np.ndarray, phase: float) -> np.ndarray:
    """Loudness over time; `phase` is the trajectory's."""
    cycle = 2 * np.pi * (_CYCLE * seconds + phase)
    if motion == "swaying":  # wind: loud where fast
        return np.cos(cycle) ** 2
    if motion == "bouncing":  # struck at each contact
        since = (2 * (_CYCLE * seconds + phase)) % 1 / (2 * _CYCLE)
        return 1.3 * np.exp(-since / 0.06)
    if motion == "circling":  # rattling, five times a round
        return np.where(np.sin(5 * cycle) > 0, 1.0, 0.1)
    if motion == "spinning":  # buzzing, twelve times a turn
        return 0.55 + 0.45 * np.sin(12 * cycle)
    if motion == "pulsing":  # loud where large
        return (0.5 + 0.5 * np.sin(cycle)) ** 1.5
    return np.ones_like(seconds)


# Touch ------------------------------------------------------------------------------------------


def touch(rng: np.random.Generator, size: int, attributes: dict[str, str]) -> np.ndarray:
    """uint8 [size, size, 3]: pressed into a gel lit red, green and blue from three sides."""
    axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    x, y, angle = *rng.uniform(-0.06, 0.06, 2), rng.uniform(-0.3, 0.3)
    radius = SIZES[attributes["size"]] / 2 * rng.uniform(0.95, 1.05)
    dx, dy = axis[None, :] - x, -axis[:, None] - y
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    # The gel bends over the edge: the relief begins outside of the outline and takes its time.
    edge = np.clip((_distance(attributes["shape"], u, v) * radius + 0.04) / 0.08, 0, 1)
    relief = edge * edge * (3 - 2 * edge)
    relief *= 1 + 0.25 * np.clip(2 * _pattern(attributes["texture"], u, v), -1, 1)
    press = rng.uniform(0.8, 1.2) * 0.05
    slope_y, slope_x = np.gradient(press * relief * size)
    sides = np.deg2rad([90, 210, 330])  # of the red, green and blue lamps
    facing = -(slope_x[..., None] * np.cos(sides) - slope_y[..., None] * np.sin(sides))
    facing /= np.sqrt(1 + slope_x**2 + slope_y**2)[..., None]
    glow = 1 - 0.5 * (axis[None, :] ** 2 + axis[:, None] ** 2)  # lamps are weaker in the corners
    image = 105 * glow[..., None] + 150 * facing + 12 * relief[..., None]
    image = image + rng.normal(0, 2, (size, size, 3))
    return np.clip(image, 0, 255).astype(np.uint8)
