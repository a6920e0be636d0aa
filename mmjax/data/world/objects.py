"""Still images of 64 objects, of which training never shows 16: the world's test of few-shot
classification and of language-guided pairs.

An object is a color and a shape; size, texture and place vary. The held-out objects are chosen by
a hash of their names such that two are of each color and two of each shape: each color and each
shape is in training, six times.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib

import numpy as np

from mmjax.data.world.config import WorldConfig, name_hash
from mmjax.data.world.render import COLORS, MOTIONS, SHAPES, SIZES, TEXTURES

OBJECTS = tuple(itertools.product(COLORS, SHAPES))  # by class number
_HELD_OUT_OF_EACH = 2  # color and shape
_STYLES = tuple(itertools.product(SIZES, TEXTURES))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectsConfig(WorldConfig):
    """As `WorldConfig`: single images without sound and touch. The label 'object' is one of 64
    classes, numbered alike in all splits."""

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
        turn, place = divmod(index, len(objects))
        color, shape = objects[_order(self.seed, split, turn, len(objects))[place]]
        # Each object goes through all its sizes and textures, in an order of its own.
        again, style = divmod(turn, len(_STYLES))
        order = _order(self.seed, f"{split}/{color}/{shape}", again, len(_STYLES))
        size, texture = _STYLES[order[style]]
        # In a still it is a place and an angle, and captions do not tell.
        motion = MOTIONS[name_hash(f"{self.seed}/{split}/{index}") % len(MOTIONS)]
        return dict(shape=shape, color=color, size=size, texture=texture, motion=motion)

    def names_of(self, attributes: dict[str, str]) -> list[str]:
        if self.label == "object":
            return [_name(attributes["color"], attributes["shape"])]
        return super().names_of(attributes)


@functools.cache
def objects_of(split: str) -> tuple[tuple[str, str], ...]:
    """The (color, shape) that a split shows, by class number."""
    novel: list[tuple[str, str]] = []
    for color, shape in sorted(OBJECTS, key=lambda names: name_hash("/".join(names))):
        used = (sum(c == color for c, _ in novel), sum(s == shape for _, s in novel))
        if max(used) < _HELD_OUT_OF_EACH:
            novel.append((color, shape))
    return tuple(pair for pair in OBJECTS if (pair in novel) == split.startswith("novel"))


@functools.lru_cache(maxsize=1024)
def _order(seed: int, name: str, turn: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), turn, 2]).permutation(count)


def _name(color: str, shape: str) -> str:
    return f"{color} {shape}"
