"""Makes the images and the target of an example arrays of one size, with Pillow.

Images are resized with Pillow's bilinear filter, which antialiases when it shrinks, in 8 bits, as
in pyVTAB. A plain interpolation between four pixels gives visibly different images.

All functions are pure: random choices come from an array of uniform numbers. Sizes are (height,
width) in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmjax.data.end_tasks import targets
from mmjax.data.end_tasks.targets import TargetFormat
from mmjax.data.storage import image_decoding
from mmjax.end_tasks.declaration import Framing
from mmjax.errors import UserError

NUM_DRAWS = 32  # uniform numbers that an example takes at most
_SCALES = (0.5, 2.0)  # of scaled crops
_HOLE = (64 / 224, 160 / 224)  # of inpainting, as fractions of the side

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """The decoded images and target of an example.

    Attributes:
      images: One RGB image per frame.
      channels: One image per channel of the target; () without target.
    """

    images: Sequence[Image.Image]
    channels: Sequence[Image.Image] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Framer:
    """Makes examples of one end task.

    Args:
      framing: How images become arrays of one size.
      size: The size.
      format: Format of the target; None for end tasks with a label.
      paper: Whether to do what pyVTAB does.
    """

    framing: Framing
    size: Size
    format: TargetFormat | None = None
    paper: bool = False

    def decode(self, images: Sequence[bytes], target: bytes | None) -> Example:
        """Returns the decoded files of an example.

        Raises:
          UserError: A file is not an image, or the images and the target have different sizes.
        """
        frames = [self._decode_image(data, f"Image {n}") for n, data in enumerate(images)]
        if len({frame.size for frame in frames}) > 1 and self.framing.type != "resize":
            listed = ", ".join(f"{frame.width}×{frame.height}" for frame in frames)
            raise UserError(f"its images have different sizes: {listed}. Replace them")
        channels: Sequence[Image.Image] = ()
        if self.format and self.format.from_image:
            channels = frames[0].split()
        elif self.format:
            if not target:
                raise UserError("it has no target. Use a source that has one for each image")
            channels = self.format.read(target, "the target")
            if channels[0].size != frames[0].size and not self.paper:
                raise UserError(
                    f"its image has {frames[0].width}×{frames[0].height} pixels, but its target "
                    f"{channels[0].width}×{channels[0].height}. Both must have the same size"
                )
        return Example(images=frames, channels=channels)

    def frame(self, example: Example, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the images, uint8 [T, H, W, 3], and the target, [H, W, K] or None.

        Args:
          example: The decoded files.
          draws: float [NUM_DRAWS], uniform in [0, 1).

        Raises:
          UserError: A target contains values out of range.
        """
        framed = {
            "resize": self._resize,
            "crop": self._crop,
            "scaled_crop": self._scaled_crop,
            "whole": self._whole,
        }[self.framing.type](example, draws)
        if self.format and self.format.from_image:
            self._cut_hole(framed[0])
        return framed

    def _decode_image(self, data: bytes, where: str) -> Image.Image:
        with image_decoding.reading(where), image_decoding.opened(data, where) as image:
            if self.paper or self.format:  # the pixels of a target belong to the stored ones
                return image.convert("RGB")
            return image_decoding.to_rgb(image)

    # Framing types --------------------------------------------------------------------------------

    def _resize(self, example: Example, draws: np.ndarray):
        del draws
        images = np.stack(
            [_resized(i, self.size, Image.Resampling.BILINEAR) for i in example.images]
        )
        return images, self._target(example, self.size)

    def _whole(self, example: Example, draws: np.ndarray):
        """Returns the stored images; resized if they have another size.

        With `paper`, images that are a row or a column too small are padded instead: the network
        of pyVTAB rounds odd sizes up in the same way.
        """
        height, width = self.size
        missing = [(height - i.height, width - i.width) for i in example.images]
        if self.paper and all(0 <= y <= 1 and 0 <= x <= 1 for y, x in missing):
            mean = np.round(np.multiply(targets.MEAN, 255)).astype(np.uint8)
            images = np.tile(mean, (len(example.images), height, width, 1))
            for padded, image in zip(images, example.images, strict=True):
                padded[: image.height, : image.width] = np.asarray(image)
            return images, self._target(example, self.size)
        return self._resize(example, draws)

    def _crop(self, example: Example, draws: np.ndarray):
        images = np.stack([np.asarray(image) for image in example.images])
        target = self._target(example, images.shape[1:3])
        limits = [
            max(full - part, 0) for full, part in zip(images.shape[1:3], self.size, strict=True)
        ]
        for attempt in range(self.framing.max_draws):
            top, left = (
                int(u * (n + 1)) for u, n in zip(draws[2 * attempt :], limits, strict=False)
            )
            part = self._window(target, top, left) if target is not None else None
            if part is None or len(np.unique(part)) > 1:
                break
        return np.stack([_window(image, top, left, self.size, 0) for image in images]), part

    def _scaled_crop(self, example: Example, draws: np.ndarray):
        """Returns a window of the image after random scaling and mirroring.

        Only the window is computed: Pillow gives the same pixels as for the whole image.
        """
        low, high = _SCALES
        scale = low + draws[0] * (high - low)
        width, height = example.images[0].size
        scaled = (max(int(height * scale), 1), max(int(width * scale), 1))
        # pyVTAB draws the window from the size before scaling.
        source = (height, width) if self.paper else scaled
        top, left = (
            int(u * (max(full - part, 0) + 1))
            for u, full, part in zip(draws[2:4], source, self.size, strict=True)
        )
        mirror = draws[1] < 0.5
        rows = (top, min(top + self.size[0], scaled[0]))
        columns = (left, min(left + self.size[1], scaled[1]))
        visible = (rows[1] - rows[0], columns[1] - columns[0])
        images = np.zeros((len(example.images), *self.size, 3), np.uint8)
        target = None
        if min(visible) > 0:
            x = (scaled[1] - columns[1], scaled[1] - columns[0]) if mirror else columns
            box = (
                x[0] * width / scaled[1],
                rows[0] * height / scaled[0],
                min(x[1] * width / scaled[1], width),
                min(rows[1] * height / scaled[0], height),
            )
            order = slice(None, None, -1 if mirror else 1)
            for canvas, image in zip(images, example.images, strict=True):
                part = _resized(image, visible, Image.Resampling.BICUBIC, box=box)
                canvas[: visible[0], : visible[1]] = part[:, order]
            if example.channels:
                stored = targets.stacked(example.channels)
                y = _nearest(height, scaled[0])[slice(*rows)]
                x = _nearest(width, scaled[1])[slice(*x)]
                target = self._converted(stored[y][:, x][:, order])
        elif example.channels:  # only the paper's windows can be outside of the image
            target = self._converted(targets.stacked(example.channels)[:0, :0])
        return images, None if target is None else self._window(target, 0, 0)

    # Targets --------------------------------------------------------------------------------------

    def _target(self, example: Example, size: Size) -> np.ndarray | None:
        """Returns the target in another size, or None without one."""
        if not example.channels:
            return None
        paper_filter = self.format.paper_filter if self.paper else None
        channels = []
        for channel in example.channels:
            method = Image.Resampling.NEAREST
            if self.format.from_image:
                method = Image.Resampling.BILINEAR
            elif paper_filter is not None and channel.mode not in ("1", "P"):
                method = paper_filter
            if (channel.height, channel.width) != tuple(size):
                channel = channel.resize(size[::-1], method)
            channels.append(channel)
        target = self._converted(targets.stacked(channels))
        if self.format.is_flow:
            stored = example.channels[0]
            target = target * np.float32([size[1] / stored.width, size[0] / stored.height])
        return target

    def _converted(self, stored: np.ndarray) -> np.ndarray:
        try:
            return self.format.convert(stored, self.paper)
        except ValueError as error:
            raise UserError(f"its target is invalid: {error}. Correct or replace it") from error

    def _window(self, target: np.ndarray, top: int, left: int) -> np.ndarray:
        return _window(target, top, left, self.size, self._ignored(target))

    def _ignored(self, target: np.ndarray) -> float:
        """Returns the value of pixels outside of the image."""
        if target.dtype != np.int32:
            return np.float32(np.nan)
        return 0 if self.paper else -1

    def _cut_hole(self, images: np.ndarray) -> None:
        """Fills a square in the center with the mean color, which is 0 after normalization."""
        rows, columns = (slice(*(round(f * side) for f in _HOLE)) for side in self.size)
        images[:, rows, columns] = np.round(np.multiply(targets.MEAN, 255))


def _resized(
    image: Image.Image, size: Size, method: Image.Resampling, *, box: tuple | None = None
) -> np.ndarray:
    if box is None and (image.height, image.width) == tuple(size):
        return np.asarray(image)
    return np.asarray(image.resize(size[::-1], method, box=box))


def _nearest(full: int, size: int) -> np.ndarray:
    """Returns the index of the pixel that each of `size` pixels takes when `full` are resized.

    Pillow computes it, because it decides in its own way between two pixels of equal distance.
    """
    positions = Image.fromarray(np.arange(full, dtype=np.int32)[None])
    return np.asarray(positions.resize((size, 1), Image.Resampling.NEAREST))[0]


def _window(array: np.ndarray, top: int, left: int, size: Size, fill: float) -> np.ndarray:
    """Returns a window of [H, W, C], padded on the right and at the bottom."""
    part = array[top : top + size[0], left : left + size[1]]
    padding = [(0, full - have) for full, have in zip(size, part.shape, strict=False)]
    return np.pad(part, [*padding, (0, 0)], constant_values=fill) if np.any(padding) else part
