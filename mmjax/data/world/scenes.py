"""Single images of several objects with segmentation masks, for semantic segmentation.

A mask has the shape of the object of each pixel as its class. Objects overlap, and their colors,
textures, sizes and positions say nothing about their shape. Images have different sizes and aspect
ratios. As in PASCAL VOC, the outlines of objects are pixels without a class.
"""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np

from mmjax.data.storage.mask_files import IGNORE
from mmjax.data.world.attributes import SHAPES
from mmjax.data.world.config import WorldConfig
from mmjax.data.world.drawing import draw, random_thing
from mmjax.data.world.scene import Scene
from mmjax.errors import UserError

_SHORTER = (0.65, 1.0)  # of the longer side
_PORTRAIT = 0.4  # share of upright images
_RADIUS = (0.16, 0.32)  # of objects, relative to the shorter side


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesConfig(WorldConfig):
    """A world of single images of several objects, without labels, captions, audio and touch.

    Attributes:
      frame_size: Longer side of an image in pixels.
      max_objects: Largest number of objects in an image; the smallest is 1.
      outline: Whether the outlines of objects are pixels without a class.
    """

    num_frames: int = 1
    frame_size: int = 64
    num_captions: int = 0
    touch_size: int = 0
    dense: bool = True
    max_objects: int = 4
    outline: bool = True

    SPLITS = ("train", "test")
    NAME = "scenes"
    DESCRIPTION = "Procedural images of several objects, with segmentation masks."
    SILENT = STILL = ONLY_MASKS = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_objects < 1:
            raise UserError(f"world: max_objects={self.max_objects} must be at least 1.")
        if (self.num_frames, self.num_captions, self.touch_size) != (1, 0, 0) or not self.dense:
            raise UserError(
                "world:scenes has one frame, no captions and no touch images, and always masks. "
                "Remove num_frames, num_captions, touch_size and dense."
            )

    @property
    def class_names(self) -> list[str]:
        return []


def make_scene(cfg: ScenesConfig, split: str, index: int) -> Scene:
    """Returns the scene of an index; see `mmjax.data.world.scene.make_scene`.

    Raises:
      UserError: The world has no such split.
    """
    cfg.check_split(split)
    rng = np.random.default_rng([cfg.seed, zlib.crc32(f"scenes/{split}".encode()), index])
    shorter = round(cfg.frame_size * rng.uniform(*_SHORTER))
    height, width = shorter, cfg.frame_size
    if rng.random() < _PORTRAIT:
        height, width = width, height
    unit = shorter / height  # lengths of `draw` are in image heights
    things = []
    for _ in range(rng.integers(1, cfg.max_objects + 1)):
        radius = unit * rng.uniform(*_RADIUS)
        reach = [max(side / height / 2 - 0.7 * radius, 0.0) for side in (width, height)]
        x, y = (rng.uniform(-r, r) for r in reach)
        things.append(random_thing(rng, x=x, y=y, radius=radius, angle=rng.uniform(-0.4, 0.4)))
    image, index_map = draw(rng, height, things, width=width)
    classes = np.array([1 + SHAPES.index(thing.shape) for thing in things] + [0], np.uint8)
    mask = classes[index_map]
    if cfg.outline:
        edge = np.zeros(mask.shape, bool)
        edge[:-1] |= index_map[1:] != index_map[:-1]
        edge[:, :-1] |= index_map[:, 1:] != index_map[:, :-1]
        mask[edge] = IGNORE
    return Scene(
        attributes={},
        frames=image[None],
        waveform=np.zeros(0, np.float32),
        captions=[],
        labels=[],
        touch=None,
        mask=mask[None],
    )
