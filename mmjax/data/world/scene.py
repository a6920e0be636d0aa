"""One scene of the procedural world, as a pure function of (config, split, index)."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np

from mmjax.data.world import render
from mmjax.data.world.captions import caption
from mmjax.data.world.config import WorldConfig


@dataclasses.dataclass(frozen=True)
class Scene:
    """One clip of the world.

    Attributes:
      attributes: The values of the five attributes, {'shape': 'star', …}.
      frames: uint8 [T, H, W, 3].
      waveform: float32 [S]; S = 0 in a world without audio.
      captions: Sentences. Those of `train` may omit one attribute.
      labels: Class indices.
      touch: uint8 [h, w, 3], or None.
      mask: uint8 [T, H, W], 0 for the background and 1 + index of the shape, or None.
      depth: float32 [T, H, W] in meters, or None.
      flow: float32 [T, H, W, 2], motion to the next frame in pixels (x right, y down), or None.
    """

    attributes: dict[str, str]
    frames: np.ndarray
    waveform: np.ndarray
    captions: list[str]
    labels: list[int]
    touch: np.ndarray | None
    mask: np.ndarray | None = None
    depth: np.ndarray | None = None
    flow: np.ndarray | None = None


def make_scene(cfg: WorldConfig, split: str, index: int, *, dense: bool | None = None) -> Scene:
    """Returns the scene of an index.

    Args:
      cfg: Config of the world.
      split: One of the splits of the world, for example 'train', 'valid' or 'test'.
      index: Index of the scene, any integer >= 0.
      dense: Whether to render mask, depth and flow; None for `cfg.dense`.

    Raises:
      UserError: The world has no such split.
    """
    attributes = cfg.attributes(split, index)
    rng = np.random.default_rng([cfg.seed, zlib.crc32(split.encode()), index])
    # Clips start near the same point of a cycle: less variety to learn than with any phase.
    phase = rng.uniform(-0.12, 0.12)
    trajectory = render.Trajectory(rng, attributes, phase)
    frames, geometry = render.render_frames(rng, cfg, attributes, trajectory)
    waveform = np.zeros(0, np.float32)
    if not cfg.SILENT:
        waveform = render.render_audio(rng, cfg, attributes, phase)
    touch = render.render_touch(rng, cfg.touch_size, attributes) if cfg.touch_size else None
    captions = [
        caption(rng, attributes, complete=split != "train", still=cfg.STILL)
        for _ in range(cfg.num_captions)
    ]
    annotations = {}
    if cfg.dense if dense is None else dense:
        annotations = render.render_dense(cfg, attributes, trajectory, geometry)
    class_names = cfg.class_names
    return Scene(
        attributes=attributes,
        frames=frames,
        waveform=waveform,
        captions=captions,
        labels=[class_names.index(name) for name in cfg.names_of(attributes)],
        touch=touch,
        **annotations,
    )
