"""Configuration of the procedural world, and the attributes of each of its scenes.

See `mmjax.data.world.build` for an overview of the world.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import zlib

import numpy as np

from mmjax.data.world.attributes import ATTRIBUTES, COLORS, MOTIONS, SHAPES, SIZES, TEXTURES
from mmjax.errors import UserError, check_choice

HELD_OUT = {"test": 240, "valid": 96}  # combinations per split; training has the others
MIN_SAMPLE_RATE = 8000  # Hz: more than twice the highest tone of `render.render_audio`


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Appearance and content of the world.

    Attributes:
      seed: Seed of the scenes. The held-out combinations are the same for all seeds.
      num_frames: Frames per clip.
      frame_size: Height and width of a frame in pixels.
      fps: Frames per second.
      num_samples: Samples per waveform; 0 for the duration of the frames.
      sample_rate: Samples per second, at least 8000.
      noise: Standard deviation of white noise in the audio; that of the tones is about 0.3.
      num_captions: Captions per clip.
      label: The attribute that is the class, or 'all' for five labels per clip, from the values of
        all attributes.
      touch_size: Height and width of the touch image in pixels; 0 for no touch image.
      dense: Whether to store masks, depth and optical flow.
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
    SILENT = False  # whether no audio is stored
    STILL = False  # whether captions omit the motion
    ONLY_MASKS = False  # whether `dense` stores masks without depth and flow

    def __post_init__(self):
        check_choice("label of the world:", self.label, self.labels)
        minimum = dict(num_frames=1, frame_size=16, num_captions=0, sample_rate=MIN_SAMPLE_RATE)
        for name, least in minimum.items():
            if (value := getattr(self, name)) < least:
                raise UserError(f"world: {name}={value} must be at least {least}.")
        if self.fps <= 0:
            raise UserError(f"world: fps={self.fps} must be positive.")
        if self.touch_size and self.touch_size < 16:
            raise UserError(f"world: touch_size={self.touch_size} must be 0 or at least 16.")

    @property
    def waveform_length(self) -> int:
        """Samples per waveform."""
        return self.num_samples or round(self.num_frames / self.fps * self.sample_rate)

    @property
    def labels(self) -> dict[str, list[str]]:
        """{valid value of `label`: class names in the order of their indices}."""
        labels = {name: list(values) for name, values in ATTRIBUTES.items()}
        return labels | {"all": [value for values in labels.values() for value in values]}

    @property
    def class_names(self) -> list[str]:
        """Class names in the order of their indices."""
        return self.labels[self.label]

    @property
    def mask_classes(self) -> list[str]:
        """Class names of masks by value; [] without masks."""
        return ["background", *SHAPES] if self.dense else []

    def attributes(self, split: str, index: int) -> dict[str, str]:
        """Returns the attributes of a scene, {'shape': 'star', …}."""
        return attributes_of(self.seed, split, index)

    def names_of(self, attributes: dict[str, str]) -> list[str]:
        """Returns the names of the classes of a scene with these attributes."""
        return list(attributes.values()) if self.label == "all" else [attributes[self.label]]

    def check_split(self, split: str) -> None:
        """Raises UserError if the world has no such split."""
        check_choice("split of the world:", split, self.SPLITS)


def attributes_of(seed: int, split: str, index: int) -> dict[str, str]:
    """Returns the attributes of scene `index` of a split, {'shape': 'star', …}."""
    combinations = _combinations(split)
    epoch, position = divmod(index, len(combinations))
    shape, color, size, motion = combinations[_order(seed, split, epoch)[position]]
    texture = TEXTURES[
        (name_hash(f"{seed}/{shape}/{color}/{size}/{motion}") + epoch) % len(TEXTURES)
    ]
    return dict(shape=shape, color=color, size=size, texture=texture, motion=motion)


@functools.cache
def _combinations(split: str) -> list[tuple[str, str, str, str]]:
    """Returns the (shape, color, size, motion) of a split, the same for every seed."""
    check_choice("split of the world:", split, ["train", *HELD_OUT])
    combinations = sorted(
        itertools.product(SHAPES, COLORS, SIZES, MOTIONS),
        key=lambda names: name_hash("/".join(names)),
    )
    start = 0
    for name, count in HELD_OUT.items():
        if name == split:
            return combinations[start : start + count]
        start += count
    return combinations[start:]


@functools.lru_cache(maxsize=64)
def _order(seed: int, split: str, epoch: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), epoch, 1])
    return rng.permutation(len(_combinations(split)))


def name_hash(text: str) -> int:
    """Returns a 64-bit hash of a name that is the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
