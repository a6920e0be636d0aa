"""What a procedural world is made of, and which combinations its splits show: see
`mmjax.data.world.build`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import zlib

import numpy as np

from mmjax.data.world.render import (
    ATTRIBUTES,
    COLORS,
    LEAST_SAMPLE_RATE,
    MOTIONS,
    SHAPES,
    SIZES,
    TEXTURES,
)
from mmjax.errors import UserError, choose, unknown

HELD_OUT = {"test": 240, "valid": 96}  # combinations; training has the rest


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """How the world looks and sounds.

    Attributes:
      seed: another seed, other scenes; the held-out combinations stay the same.
      num_frames: of a clip.
      frame_size: height and width in pixels.
      fps: frames per second.
      num_samples: of a waveform; 0 = as long as the frames last.
      sample_rate: Hz, at least 8000.
      noise: standard deviation of white noise in the sound, whose tones have about 0.3.
      num_captions: per clip.
      label: the attribute that is the class, or 'all': then each clip has five labels out of all
        values of all attributes.
      touch_size: height and width of the touch image; 0 = none.
      dense: whether to store masks, depth and optical flow.
    """

    seed: int = 0
    num_frames: int = 8
    frame_size: int = 32
    fps: float = 10.0
    num_samples: int = 0
    sample_rate: int = 8000
    noise: float = 0.02
    num_captions: int = 3
    label: str = "shape"
    touch_size: int = 32
    dense: bool = False

    SPLITS = ("train", *HELD_OUT)
    NAME = "world"  # of the dataset
    DESCRIPTION = "Procedural scenes of one moving object, seen, heard, described and touched."
    SILENT = False  # no sound is stored
    STILL = False  # captions do not tell the motion

    def __post_init__(self):
        choose("label of the world", self.label, self.labels)
        least = dict(num_frames=1, frame_size=16, num_captions=0, sample_rate=LEAST_SAMPLE_RATE)
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UserError(f"world: {name}={getattr(self, name)} must be at least {value}.")
        if self.fps <= 0:
            raise UserError(f"world: fps={self.fps} must be positive.")
        if self.touch_size and self.touch_size < 16:
            raise UserError(f"world: touch_size={self.touch_size} must be 0 or at least 16.")

    @property
    def samples(self) -> int:
        """Samples of a waveform."""
        return self.num_samples or round(self.num_frames / self.fps * self.sample_rate)

    @property
    def labels(self) -> dict[str, list[str]]:
        """{label: its class names, by number}."""
        labels = {kind: list(values) for kind, values in ATTRIBUTES.items()}
        return labels | {"all": [value for values in labels.values() for value in values]}

    @property
    def class_names(self) -> list[str]:
        """By class number."""
        return self.labels[self.label]

    def attributes(self, split: str, index: int) -> dict[str, str]:
        """What scene `index` of a split shows, by the names in `ATTRIBUTES`."""
        return attributes_of(self.seed, split, index)

    def names_of(self, attributes: dict[str, str]) -> list[str]:
        """The names of a scene's classes."""
        return list(attributes.values()) if self.label == "all" else [attributes[self.label]]

    def check_split(self, split: str) -> None:
        """Raises UserError if there is no such split."""
        if split not in self.SPLITS:
            raise unknown("split of the world", split, self.SPLITS)


def attributes_of(seed: int, split: str, index: int) -> dict[str, str]:
    """What scene `index` of a split shows, by the names in `ATTRIBUTES`."""
    combinations = _combinations(split)
    turn, place = divmod(index, len(combinations))
    shape, color, size, motion = combinations[_order(seed, split, turn)[place]]
    texture = TEXTURES[
        (name_hash(f"{seed}/{shape}/{color}/{size}/{motion}") + turn) % len(TEXTURES)
    ]
    return dict(shape=shape, color=color, size=size, texture=texture, motion=motion)


@functools.cache
def _combinations(split: str) -> list[tuple[str, str, str, str]]:
    """The (shape, color, size, motion) of a split, the same for every seed."""
    everything = sorted(
        itertools.product(SHAPES, COLORS, SIZES, MOTIONS),
        key=lambda names: name_hash("/".join(names)),
    )
    start = 0
    for name, count in HELD_OUT.items():
        if name == split:
            return everything[start : start + count]
        start += count
    if split != "train":
        raise unknown("split of the world", split, ["train", *HELD_OUT])
    return everything[start:]


@functools.lru_cache(maxsize=64)
def _order(seed: int, split: str, turn: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), turn, 1])
    return rng.permutation(len(_combinations(split)))


def name_hash(text: str) -> int:
    """A number that depends on a name alone, in any process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
