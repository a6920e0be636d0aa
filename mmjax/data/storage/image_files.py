"""Reads image files: upright, downscaled, cropped, or as encoded bytes for a record.

Every image file is read here, for `mmjax build`, the data sources, touch and `mmjax.load`. What
counts as an image, and the JPEG encoder of the whole project, are defined here too; pixels are
decoded by `mmjax.data.storage.image_decoding`. For videos stored as numbered images see
`mmjax.data.storage.media.read_frame_directory`.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmjax.data.storage.image_decoding import PNG_START, opened, orientation, reading, to_rgb
from mmjax.errors import UserError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2"),
)
# FFmpeg reads these as videos, although some of them start like a single image.
_VIDEO_SUFFIXES = (".gif", ".apng", ".mjpg", ".mjpeg")
# Files that are often next to images, which need not be opened to know that they are not images.
_ANNOTATION_SUFFIXES = (
    *(".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".md", ".parquet", ".npy", ".npz", ".mat"),
    *(".pkl", ".html", ".yaml", ".yml", ".tfrecord", ".idx", ".log", ".py"),
)


def is_image(path: str | os.PathLike, *, gif: bool = False) -> bool:
    """Returns whether a file is a single image, judging by its suffix.

    A file with a suffix that is neither of an image nor of an annotation is an image if it starts
    like one, for example `photo` or `photo.jpeg_large`.

    Args:
      path: The file. A name without its directory is judged only by its suffix.
      gif: Whether GIF files count as images. By default they are videos.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return suffix not in _VIDEO_SUFFIXES or gif
    return suffix not in (*_ANNOTATION_SUFFIXES, *_VIDEO_SUFFIXES) and _content(path) == "image"


def has_image(path: str | os.PathLike) -> bool:
    """Returns whether a file is a single image, judging by its content.

    The suffix decides if the content starts like no known format, and for GIF and Motion JPEG,
    which are videos.

    Args:
      path: The file.
    """
    if os.path.splitext(path)[1].lower() in _VIDEO_SUFFIXES:
        return False
    content = _content(path)
    return content == "image" if content else is_image(path)


def _content(path: str | os.PathLike) -> str:
    """Returns 'image', 'media' or '' (unknown), judging by the first bytes of a file."""
    try:
        with open(path, "rb") as file:
            start = file.read(32)
    except OSError:
        return ""
    kind = start[8:12]
    if start[4:8] == b"ftyp":
        return "image" if kind in (b"avif", b"avis") else "media"
    if start[:4] == b"RIFF":
        return "image" if kind == b"WEBP" else "media"
    if start.startswith((b"\x1a\x45\xdf\xa3", b"OggS", b"FLV", b"fLaC", b"ID3", b"GIF8")):
        return "media"
    is_pnm = start[:1] == b"P" and start[1:2] in b"123456" and start[2:3].isspace()
    is_bmp = start[:2] == b"BM" and start[6:10] == bytes(4)
    is_image = start.startswith(
        (b"\xff\xd8\xff", PNG_START, b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
    )
    return "image" if is_image or is_pnm or is_bmp else ""


def read_image(path: str | os.PathLike, *, size: int | None = None) -> np.ndarray:
    """Returns an image as uint8 [H, W, 3], oriented by EXIF, with transparent parts on white.

    Args:
      path: Any file that Pillow reads.
      size: Maximum length of the shorter side in pixels; smaller images are not enlarged.

    Raises:
      UserError: The file is missing, damaged, not an image, or larger than the limit IMAGE_PIXELS.
    """
    where = os.fspath(path)
    with reading(where):
        with opened(path, where) as image:
            image = to_rgb(image)
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
    where = os.fspath(path)
    with reading(where), opened(path, where) as image:
        image = to_rgb(image)
    full_width, full_height = image.size
    if min(height, width) < 1 or not (-height < top < full_height and -width < left < full_width):
        raise UserError(
            f"{where} has {full_width}×{full_height} pixels; the crop of "
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
    """Returns an image as JPEG or PNG bytes for a record; see `encoded`.

    Raises:
      UserError: As `read_image`, or TensorFlow cannot decode the file.
    """
    from mmjax.data.storage import record_images  # imports TensorFlow

    where = os.fspath(path)
    with reading(where), open(path, "rb") as file:
        data = file.read()
    with reading(where), opened(data, where) as image:
        image.load()  # reports a damaged file now, not in training
    data = encoded(data, where)
    record_images.decode(data, where)
    return data


def encoded(data: bytes, where: str) -> bytes:
    """Returns the content of an image file as JPEG or PNG for a record.

    JPEG and PNG files are returned unchanged if readers of records see the pixels that
    `read_image` returns. These ignore the EXIF orientation, transparency and color spaces of print.
    Other images are returned as PNG.

    Args:
      data: Content of a file that Pillow reads. Unchanged data are not decoded.
      where: Location of the image, for messages.

    Raises:
      UserError: The image cannot be read, or is larger than the limit IMAGE_PIXELS.
    """
    with reading(where), opened(data, where) as image:
        if data.startswith((b"\xff\xd8", PNG_START)) and _is_plain(image):
            return data
        buffer = io.BytesIO()
        to_rgb(image).save(buffer, "PNG")
        return buffer.getvalue()


def _is_plain(image: Image.Image) -> bool:
    """Returns whether a JPEG or PNG has the same pixels for Pillow and TensorFlow."""
    if image.mode == "CMYK" or orientation(image) != 1:
        return False
    if not image.has_transparency_data:
        return True
    return image.mode in ("P", "LA", "RGBA") and image.convert("RGBA").getextrema()[3][0] == 255


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Returns (width, height) of the upright image in a file. Its pixels are not decoded.

    Raises:
      UserError: As `read_image`.
    """
    where = os.fspath(path)
    with reading(where), opened(path, where) as image:
        width, height = image.size
        # Pillow rotates TIFF files itself.
        sideways = orientation(image) >= 5 and image.format != "TIFF"
        return (height, width) if sideways else (width, height)


def is_rotated(path: str | os.PathLike) -> bool:
    """Returns whether the EXIF data of an image file exchange its width and height.

    Raises:
      UserError: As `read_image`.
    """
    where = os.fspath(path)
    with reading(where), opened(path, where) as image:
        return orientation(image) >= 5


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
