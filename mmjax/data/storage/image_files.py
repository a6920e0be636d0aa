"""Reads image files: upright, downscaled, cropped, or as encoded bytes for a record.

The suffixes of image files and the JPEG encoder of the whole project are defined here. For videos
stored as numbered images see `mmjax.data.storage.media.read_frame_directory`.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mmjax.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
_ANIMATED = (".gif",)  # FFmpeg reads these as videos


def is_image(path: str | os.PathLike, *, gif: bool = False) -> bool:
    """Returns whether a file is a single image, judging by its suffix.

    Args:
      path: File name.
      gif: Whether GIF files count as images. By default they are videos.
    """
    suffix = os.path.splitext(path)[1].lower()
    return suffix in IMAGE_SUFFIXES and (gif or suffix not in _ANIMATED)


def read_image(path: str | os.PathLike, *, size: int | None = None) -> np.ndarray:
    """Returns an image as uint8 [H, W, 3], oriented by EXIF, with transparent parts on white.

    Args:
      path: Any file that Pillow reads.
      size: Maximum length of the shorter side in pixels; smaller images are not enlarged.

    Raises:
      UserError: The file is missing, damaged or not an image.
    """
    with _reading(path):
        image = _upright(path)
        width, height = fit(*image.size, size)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image)


def read_crop(
    path: str | os.PathLike,
    crop: Sequence[int],
    *,
    margin: float = 0.0,
    size: int | None = None,
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Returns a crop of an image with a margin, and the position of the crop in the result.

    Args:
      path: Any file that Pillow reads.
      crop: (top, left, height, width) in pixels of the upright image. Pixels beyond the edges of
        the image are black.
      margin: Width of the margin as a fraction of the crop's sides. It is narrower at the edges of
        the image.
      size: Maximum length of the crop's shorter side in pixels. A larger crop is downscaled,
        together with its margin.

    Returns:
      The pixels, uint8 [H, W, 3], and the crop in them as (top, left, height, width).

    Raises:
      UserError: As `read_image`, or the crop is empty or entirely outside the image.
    """
    top, left, height, width = (int(value) for value in crop)
    with _reading(path):
        image = _upright(path)
    full_width, full_height = image.size
    if min(height, width) < 1 or not (-height < top < full_height and -width < left < full_width):
        raise UserError(
            f"{os.fspath(path)} has {full_width}×{full_height} pixels; the crop of "
            f"{width}×{height} pixels at top {top}, left {left} does not overlap it. Crops are "
            "(top, left, height, width) in pixels."
        )
    scale = min((size or math.inf) / min(height, width), 1)
    above, new_height, below = _extent(top, height, full_height, margin=margin, scale=scale)
    before, new_width, after = _extent(left, width, full_width, margin=margin, scale=scale)
    new_size = (before + new_width + after, above + new_height + below)
    # Edges of the result in pixels of the image; integers unless it is downscaled.
    y, x = height / new_height, width / new_width
    start = (left - before * x, top - above * y)
    end = (left + (new_width + after) * x, top + (new_height + below) * y)
    corner = tuple(map(math.floor, start))
    part = image.crop((*corner, *map(math.ceil, end)))
    if scale < 1:
        box = [edge - corner[k % 2] for k, edge in enumerate((*start, *end))]
        part = part.resize(new_size, Image.Resampling.BICUBIC, box=box)
    return np.asarray(part), (above, before, new_height, new_width)


def read_encoded(path: str | os.PathLike) -> bytes:
    """Returns an image as JPEG or PNG bytes.

    JPEG and PNG files are returned unchanged and other formats as PNG. Images with an EXIF
    orientation are rotated and returned as PNG, because readers of records ignore EXIF.

    Raises:
      UserError: As `read_image`.
    """
    with _reading(path):
        with open(path, "rb") as file:
            data = file.read()
        with Image.open(io.BytesIO(data)) as image:
            rotated = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            if image.format in ("JPEG", "PNG") and not rotated:
                image.load()  # decodes everything: reports a damaged file now, not in training
                return data
        buffer = io.BytesIO()
        _upright(path).save(buffer, "PNG")
        return buffer.getvalue()


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Returns (width, height) of the upright image in a file. Only its header is read.

    Raises:
      UserError: As `read_image`.
    """
    with _reading(path), Image.open(path) as image:
        width, height = image.size
        sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (height, width) if sideways else (width, height)


def encode_jpeg(image: np.ndarray, *, quality: int = 95) -> bytes:
    """Returns uint8 [H, W, 3] as JPEG.

    Chroma is kept at full resolution: on small frames its subsampling smears the colors.

    Args:
      image: The pixels.
      quality: Quality from 1 to 100.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def fit(width: float, height: float, size: int | None) -> tuple[int, int]:
    """Returns (width, height) scaled down so that the shorter side is at most `size`."""
    scale = min(size / min(width, height), 1) if size else 1
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _extent(
    first: int, length: int, full: int, *, margin: float, scale: float
) -> tuple[int, int, int]:
    """Returns the pixels before, inside and after a crop along one axis, after downscaling."""
    extra = round(margin * length)
    before = min(extra, max(first, 0))
    after = min(extra, max(full - first - length, 0))
    inside = max(round(length * scale), 1)
    # Rounded down, so that the margin does not extend beyond the image.
    return before * inside // length, inside, after * inside // length


def _upright(path: str | os.PathLike) -> Image.Image:
    """Returns the image in RGB, oriented by EXIF, with transparent parts on white."""
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


@contextlib.contextmanager
def _reading(path: str | os.PathLike) -> Iterator[None]:
    """Turns exceptions about a file into a UserError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"Image file {os.fspath(path)} does not exist.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"Cannot read {os.fspath(path)} as an image: {error}. Replace the file or remove it."
        ) from error
