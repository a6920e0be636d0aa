"""Image files: read upright, reduced, cut to the part that matters, or stored as they are."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mmjax.errors import UserError

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"))


def is_image(path: str | os.PathLike) -> bool:
    """Whether a file is a single image, by its name."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def read_image(path: str | os.PathLike, *, size: int | None = None) -> np.ndarray:
    """An image as uint8 [H, W, 3], upright (EXIF), transparent parts on white.

    Args:
      path: any file Pillow reads.
      size: the shorter side in pixels; smaller images are not enlarged.

    Raises:
      UserError: a file that is missing, damaged or no image.
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
    """A part of an image with some of what is around it: (uint8 [H, W, 3], where the part is).

    Args:
      path: any file Pillow reads.
      crop: (top, left, height, width) in pixels of the upright image. What lies beyond its edges
        is black.
      margin: what to keep around the crop, as a fraction of its sides, where the image has it.
      size: a crop whose shorter side is longer is reduced to it, its margin with it.

    Returns:
      The image, and the crop as (top, left, height, width) in its pixels.

    Raises:
      UserError: as `read_image`, or a crop that is empty or entirely outside.
    """
    top, left, height, width = (int(value) for value in crop)
    with _reading(path):
        image = _upright(path)
    wide, high = image.size
    if min(height, width) < 1 or not (-height < top < high and -width < left < wide):
        raise UserError(
            f"{os.fspath(path)} is {wide}×{high}; the crop of {width}×{height} pixels at top "
            f"{top}, left {left} has nothing of it."
        )
    scale = min((size or math.inf) / min(height, width), 1)
    above, new_height, below = _extent(top, height, high, margin=margin, scale=scale)
    before, new_width, after = _extent(left, width, wide, margin=margin, scale=scale)
    stored = (before + new_width + after, above + new_height + below)
    # The edges of what is stored, in pixels of the image; whole numbers where nothing is reduced.
    y, x = height / new_height, width / new_width
    start = (left - before * x, top - above * y)
    end = (left + (new_width + after) * x, top + (new_height + below) * y)
    corner = tuple(map(math.floor, start))
    part = image.crop((*corner, *map(math.ceil, end)))
    if scale < 1:
        box = [edge - corner[k % 2] for k, edge in enumerate((*start, *end))]
        part = part.resize(stored, Image.Resampling.BICUBIC, box=box)
    return np.asarray(part), (above, before, new_height, new_width)


def read_encoded(path: str | os.PathLike) -> bytes:
    """An image as JPEG or PNG: the bytes of the file if it is one of these, else as PNG.

    An image that EXIF says is to be turned is turned: those who decode records do not read EXIF.

    Raises:
      UserError: as `read_image`.
    """
    with _reading(path):
        with open(path, "rb") as file:
            data = file.read()
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            if image.format in ("JPEG", "PNG") and not turned:
                image.load()  # all of it: a damaged file is found now, not in training
                return data
        buffer = io.BytesIO()
        _upright(path).save(buffer, "PNG")
        return buffer.getvalue()


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) of the upright image in a file, of which the header alone is read.

    Raises:
      UserError: as `read_image`.
    """
    with _reading(path), Image.open(path) as image:
        width, height = image.size
        sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (height, width) if sideways else (width, height)


def encode_jpeg(image: np.ndarray, *, quality: int = 95) -> bytes:
    """uint8 [H, W, 3] as JPEG, its chroma at full resolution as in `schema.encode_jpeg`."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def fit(width: float, height: float, size: int | None) -> tuple[int, int]:
    """(width, height) with the shorter side at most `size`."""
    scale = min(size / min(width, height), 1) if size else 1
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _extent(
    first: int, length: int, full: int, *, margin: float, scale: float
) -> tuple[int, int, int]:
    """(before, inside, after): pixels to be stored of one side of a crop, after reduction."""
    extra = round(margin * length)
    before = min(extra, max(first, 0))
    after = min(extra, max(full - first - length, 0))
    inside = max(round(length * scale), 1)
    # Rounded down, so that the margin lies within the image.
    return before * inside // length, inside, after * inside // length


def _upright(path: str | os.PathLike) -> Image.Image:
    """The image in RGB, turned as EXIF says, transparent parts on white."""
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


@contextlib.contextmanager
def _reading(path: str | os.PathLike) -> Iterator[None]:
    """Makes a UserError of what goes wrong with a file."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"There is no file {os.fspath(path)}.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{os.fspath(path)} cannot be read as an image: {error}") from error
