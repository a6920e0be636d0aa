"""Encoders without layers, and directories of small images, for tests of benchmarks."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from PIL import Image

from mmjax.benchmark.image_encoder import ImageEncoder

SIZE, CLASSES = 8, ("a", "b", "c")


class ColorTrunk:
    """Stands for `mmjax.tasks.trunk.Trunk`: embeds an image as a projection of its mean color."""

    size = SIZE

    def embedding(self, params, extra, images):
        """Returns [B, T, D] of images uint8 [B, T, H, W, 3]."""
        return (images.mean(axis=(2, 3)) / 255) @ params["kernel"] + extra["offset"]

    def features(self):
        return ("embedding",)

    def tower(self, tree):
        return tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColorEncoder(ImageEncoder):
    """An encoder of mean colors."""

    model: ColorTrunk

    @property
    def trunk(self):
        return self.model


def color_encoder(seed=0, *, width=5, offset=0.0, source="", model=ColorTrunk()):
    """Returns an encoder with random weights."""
    kernel = np.random.default_rng(seed).normal(size=(3, width)).astype(np.float32)
    return ColorEncoder(
        source=source or f"colors:{seed}",
        section={"task": "colors"},
        params={"kernel": kernel},
        extra={"offset": np.float32(offset)},
        model=model,
    )


def write_image(path: pathlib.Path, seed: int) -> np.ndarray:
    """Writes a random image, and returns it: uint8 [SIZE, SIZE, 3].

    Images whose seeds have the same thousands have similar colors.
    """
    color = np.random.default_rng(seed // 1000).integers(0, 150, size=3)
    random = np.random.default_rng(seed)
    pixels = color + random.integers(0, 50, size=3) + random.integers(0, 56, (SIZE, SIZE, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return pixels.astype(np.uint8)


def write_classes(
    root: pathlib.Path, *, name="pets", train=7, test=3, suffix="png"
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes images in directories of classes; returns {split: (images [N, H, W, 3], labels [N])}.

    The numbers are those of images per class. The order is that of the paths.
    """
    result = {}
    for split, count in (("train", train), ("test", test)):
        images = [
            write_image(root / name / split / label / f"{n}.{suffix}", 1000 * c + 10 * n + count)
            for c, label in enumerate(CLASSES)
            for n in range(count)
        ]
        result[split] = np.stack(images), np.repeat(np.arange(len(CLASSES)), count)
    return result
