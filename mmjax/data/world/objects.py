"""Single images of 64 objects, 16 of which are never in training.

They test few-shot classification and language-guided pairs. An object is a color and a shape; its
size, texture and position vary. The held-out objects are chosen by a hash of their names so that
each color and each shape occurs in two of them, and in six training objects.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib

import numpy as np

from mmjax.data.world.attributes import COLORS, MOTIONS, SHAPES, SIZES, TEXTURES
from mmjax.data.world.config import WorldConfig, name_hash

OBJECTS = tuple(itertools.product(COLORS, SHAPES))  # by class index
_HELD_OUT_PER_VALUE = 2  # held-out objects per color and per shape
_STYLES = tuple(itertools.product(SIZES, TEXTURES))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectsConfig(WorldConfig):
    """A world of single images without audio and touch; see `WorldConfig` for the attributes.

    The label 'object' has 64 classes with the same indices in all splits.
    """

    num_frames: int = 1
    touch_size: int = 0
    label: str = "object"

    SPLITS = ("train", "novel_train", "novel_test")
    NAME = "objects"
    DESCRIPTION = "Procedural images of one object, described."
    SILENT = STILL = True

    @property
    def labels(self) -> dict[str, list[str]]:
        return super().labels | {"object": [_name(*names) for names in OBJECTS]}

    def attributes(self, split: str, index: int) -> dict[str, str]:
        self.check_split(split)
        objects = objects_of(split)
        epoch, position = divmod(index, len(objects))
        color, shape = objects[_order(self.seed, split, epoch, len(objects))[position]]
        # Each object takes on all sizes and textures in turn, in a different order for each object.
        style_epoch, style_position = divmod(epoch, len(_STYLES))
        order = _order(self.seed, f"{split}/{color}/{shape}", style_epoch, len(_STYLES))
        size, texture = _STYLES[order[style_position]]
        # In a single image, motion is a position and an angle, and captions do not mention it.
        motion = MOTIONS[name_hash(f"{self.seed}/{split}/{index}") % len(MOTIONS)]
        return dict(shape=shape, color=color, size=size, texture=texture, motion=motion)

    def names_of(self, attributes: dict[str, str]) -> list[str]:
        if self.label == "object":
            return [_name(attributes["color"], attributes["shape"])]
        return super().names_of(attributes)


@functools.cache
def objects_of(split: str) -> tuple[tuple[str, str], ...]:
    """Returns the (color, shape) pairs of a split in the order of their class indices."""
    novel: list[tuple[str, str]] = []
    for color, shape in sorted(OBJECTS, key=lambda names: name_hash("/".join(names))):
        counts = (sum(c == color for c, _ in novel), sum(s == shape for _, s in novel))
        if max(counts) < _HELD_OUT_PER_VALUE:
            novel.append((color, shape))
    return tuple(pair for pair in OBJECTS if (pair in novel) == split.startswith("novel"))


@functools.lru_cache(maxsize=1024)
def _order(seed: int, name: str, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), epoch, 2]).permutation(count)


def _name(color: str, shape: str) -> str:
    return f"{color} {shape}"
