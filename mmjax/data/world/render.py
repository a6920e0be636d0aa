"""Renders the scenes of the procedural world: frames, dense annotations, audio and touch images.

Every function depends only on the attributes and on a random generator, for everything else.
"""

from __future__ import annotations

import numpy as np

from mmjax.data.world.attributes import COLORS, SHAPES, SIZES
from mmjax.data.world.config import WorldConfig
from mmjax.errors import unknown

_PITCH = {"small": 400.0, "medium": 260.0, "large": 170.0}  # Hz
HARMONICS = {  # amplitudes of harmonics 1 to 4
    "circle": (1, 0, 0, 0),
    "square": (1, 0, 1, 0),
    "triangle": (1, 1, 0, 0),
    "star": (1, 0, 0, 1),
    "cross": (1, 1, 1, 0),
    "ring": (1, 0, 1, 1),
    "heart": (1, 1, 0, 1),
    "moon": (1, 1, 1, 1),
}
_OVERTONE, _OVERTONE_STEP = 2050.0, 200.0  # Hz: overtone of the first color, and between colors
_CYCLE = 1.25  # Hz: swaying, circling, pulsing; a bouncing object hits the ground twice as often


# Video ------------------------------------------------------------------------------------------


class Trajectory:
    """The motion of an object.

    Args:
      rng: Source of randomness for position, radius, angle and direction.
      attributes: The attributes of the scene.
      phase: Phase of the motion's cycle at time 0, in cycles.
    """

    def __init__(self, rng: np.random.Generator, attributes: dict[str, str], phase: float):
        self.motion, self.phase = attributes["motion"], phase
        self.radius = SIZES[attributes["size"]] / 2 * rng.uniform(0.95, 1.05)
        self.center = rng.uniform(-0.03, 0.03, 2)
        self.angle = rng.uniform(-0.12, 0.12)
        self.turn = rng.choice([-1.0, 1.0])
        self.reach = 0.16 - 0.13 * self.radius  # large objects move less, to stay in the frame

    def at(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns (x, y, radius, angle) at each time.

        x is to the right and y up from the center; they and the radius are in frame widths.
        """
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


def render_frames(
    rng: np.random.Generator, cfg: WorldConfig, attributes: dict[str, str], trajectory: Trajectory
) -> tuple[np.ndarray, tuple]:
    """Returns frames, uint8 [T, H, W, 3], and the geometry that `render_dense` takes."""
    size = cfg.frame_size
    axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    times = np.arange(cfg.num_frames) / cfg.fps
    x, y, radius, angle = (
        value[:, None, None].astype(np.float32) for value in trajectory.at(times)
    )
    dx, dy = axis[None, None, :] - x, -axis[None, :, None] - y  # [T, H, W]
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    inside = distance(attributes["shape"], u, v)
    cover = np.clip(inside * (radius * size) + 0.5, 0, 1)  # antialiased over one pixel

    color = np.array(COLORS[attributes["color"]], np.float32) + rng.normal(0, 6, 3)
    # Shading that rotates with the object: otherwise the spinning of a plain circle is invisible.
    light = 0.85 + 0.15 * np.clip(u, -1, 1)
    light *= np.where(pattern(attributes["texture"], u, v) > 0, 1.0, 0.5)
    background = backdrop(rng, axis)[None]  # [1, H, W, 3]
    object_color = light[..., None] * color.astype(np.float32)
    image = background + cover[..., None] * (object_color - background)
    frames = np.clip(image + 0.5, 0, 255).astype(np.uint8)
    return frames, (times, dx, dy, cover, inside)


def distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns the approximate distance to the outline, positive inside the shape.

    Shapes fit into the unit circle; v is up.
    """
    if shape == "circle":
        return 0.95 - np.hypot(u, v)
    if shape == "square":
        return 0.8 - np.maximum(np.abs(u), np.abs(v))
    if shape == "triangle":
        side = np.abs(u) * (3**0.5 / 2)
        return np.minimum(0.5 - (side + 0.5 * (v + 0.1)), v + 0.1 + 0.5)
    if shape == "star":
        sector = 2 * np.pi / 5
        angle = np.abs((np.arctan2(u, v) + sector / 2) % sector - sector / 2)
        tip, notch = np.array([1.05, 0.0]), 0.45 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
        normal = np.array([notch[1] - tip[1], tip[0] - notch[0]])
        normal = normal / np.hypot(*normal)
        distance = np.hypot(u, v)
        return normal @ tip - distance * (normal[0] * np.cos(angle) + normal[1] * np.sin(angle))
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


def pattern(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns values of about -1 to 1; the sign distinguishes light and dark."""
    frequency = np.float32(2 * np.pi / 0.62)
    if texture == "striped":
        return np.sin(frequency * v)
    if texture == "checkered":
        return np.sin(0.72 * frequency * u) * np.sin(0.72 * frequency * v)
    if texture == "dotted":
        return 0.35 - np.cos(frequency * u) * np.cos(frequency * v)
    return np.ones_like(u)


def backdrop(rng: np.random.Generator, axis: np.ndarray) -> np.ndarray:
    """Returns a dark image, float32 [H, W, 3]."""
    tint = rng.uniform(8, 40) * rng.uniform(0.7, 1.3, 3)
    direction, style = rng.uniform(0, 2 * np.pi), rng.integers(4)
    plane = np.cos(direction) * axis[None, :] + np.sin(direction) * axis[:, None]
    if style == 0:
        gray = np.ones_like(plane)
    elif style == 1:
        gray = 1 + 1.2 * plane
    elif style == 2:
        gray = 1 + 0.3 * np.sin(plane * rng.uniform(15, 40))
    else:
        gray = 1 + 0.25 * rng.standard_normal(plane.shape)
    return (gray[..., None] * tint).astype(np.float32)


def render_dense(
    cfg: WorldConfig, attributes: dict[str, str], trajectory: Trajectory, geometry: tuple
) -> dict[str, np.ndarray]:
    """Returns mask, depth and flow, computed from the geometry.

    Args:
      cfg: Config of the world.
      attributes: The attributes of the scene.
      trajectory: The motion of the object.
      geometry: Second result of `render_frames`.
    """
    times, dx, dy, cover, inside = geometry
    solid = cover > 0.5
    mask = solid * np.uint8(1 + SHAPES.index(attributes["shape"]))
    # A wall at two meters, and in front of it a relief that rises towards its center.
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


# Audio ------------------------------------------------------------------------------------------


def render_audio(
    rng: np.random.Generator, cfg: WorldConfig, attributes: dict[str, str], phase: float
) -> np.ndarray:
    """Returns the waveform, float32 [S] in [-1, 1]; `phase` is that of the trajectory."""
    seconds = np.arange(cfg.waveform_length, dtype=np.float64) / cfg.sample_rate
    pitch = _PITCH[attributes["size"]] * rng.uniform(0.98, 1.02)
    amplitudes = np.array(HARMONICS[attributes["shape"]]) * rng.uniform(0.8, 1.2, 4)
    tones = np.zeros_like(seconds)
    for harmonic in np.flatnonzero(amplitudes):
        start = rng.uniform(0, 2 * np.pi)
        tones += amplitudes[harmonic] * np.sin(2 * np.pi * pitch * (harmonic + 1) * seconds + start)
    tones *= 0.3 / np.sqrt((amplitudes**2).sum() / 2)
    step = list(COLORS).index(attributes["color"])
    overtone = _OVERTONE + _OVERTONE_STEP * step + rng.uniform(-20, 20)
    steady = 0.2 * np.sin(2 * np.pi * overtone * seconds + rng.uniform(0, 2 * np.pi))
    wave = tones * _envelope(attributes["motion"], seconds, phase) + steady
    wave = rng.uniform(0.7, 1.1) * wave + cfg.noise * rng.standard_normal(cfg.waveform_length)
    return np.clip(wave, -1, 1).astype(np.float32)


def _envelope(motion: str, seconds: np.ndarray, phase: float) -> np.ndarray:
    """Returns the amplitude over time; `phase` is that of the trajectory."""
    cycle = 2 * np.pi * (_CYCLE * seconds + phase)
    if motion == "swaying":  # wind: loud when fast
        return np.cos(cycle) ** 2
    if motion == "bouncing":  # an impact at each contact with the ground
        since = (2 * (_CYCLE * seconds + phase)) % 1 / (2 * _CYCLE)
        return 1.3 * np.exp(-since / 0.06)
    if motion == "circling":  # rattling, five times per round
        return np.where(np.sin(5 * cycle) > 0, 1.0, 0.1)
    if motion == "spinning":  # buzzing, twelve times per turn
        return 0.55 + 0.45 * np.sin(12 * cycle)
    if motion == "pulsing":  # loud when large
        return (0.5 + 0.5 * np.sin(cycle)) ** 1.5
    return np.ones_like(seconds)


# Touch ------------------------------------------------------------------------------------------


def render_touch(rng: np.random.Generator, size: int, attributes: dict[str, str]) -> np.ndarray:
    """Returns a touch image, uint8 [size, size, 3].

    The object is pressed into a gel that red, green and blue lamps light from three sides.
    """
    axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    x, y, angle = *rng.uniform(-0.06, 0.06, 2), rng.uniform(-0.3, 0.3)
    radius = SIZES[attributes["size"]] / 2 * rng.uniform(0.95, 1.05)
    dx, dy = axis[None, :] - x, -axis[:, None] - y
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    # The gel bends over the edge, so the relief starts outside the outline and rises smoothly.
    edge = np.clip((distance(attributes["shape"], u, v) * radius + 0.04) / 0.08, 0, 1)
    relief = edge * edge * (3 - 2 * edge)
    relief *= 1 + 0.25 * np.clip(2 * pattern(attributes["texture"], u, v), -1, 1)
    press = rng.uniform(0.8, 1.2) * 0.05
    slope_y, slope_x = np.gradient(press * relief * size)
    sides = np.deg2rad([90, 210, 330])  # of the red, green and blue lamps
    facing = -(slope_x[..., None] * np.cos(sides) - slope_y[..., None] * np.sin(sides))
    facing /= np.sqrt(1 + slope_x**2 + slope_y**2)[..., None]
    glow = 1 - 0.5 * (axis[None, :] ** 2 + axis[:, None] ** 2)  # lamps are weaker in the corners
    image = 105 * glow[..., None] + 150 * facing + 12 * relief[..., None]
    image = image + rng.normal(0, 2, (size, size, 3))
    return np.clip(image, 0, 255).astype(np.uint8)
