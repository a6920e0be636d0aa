"""Decodes images of every format that Pillow reads to 8-bit RGB, by one rule for the whole project.

Images are upright by their EXIF orientation, transparent parts are white, and a higher bit depth is
scaled to 8 bits. Metadata is ignored, however large or damaged it is. The size of an image is
compared with the limit IMAGE_PIXELS before its pixels are decoded.

`mmjax.data.storage.image_files` reads files with it. Images of records are decoded as TensorFlow
does it, see `mmjax.data.storage.record_images`.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from mmjax import limits
from mmjax.errors import UserError

# `opened` compares sizes with limits.py; Pillow's own limit would contradict one that users set.
Image.MAX_IMAGE_PIXELS = None

PNG_START = b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG that change its pixels, in addition to those that every reader must know.
_PNG_PIXELS = (b"tRNS", b"eXIf")
# Keywords of text that can contain an EXIF orientation.
_PNG_ORIENTATION = (b"XML:com.adobe.xmp", b"Raw profile type exif", b"Raw profile type APP1")
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns exceptions about an image into a UserError that names it.

    Args:
      where: The file, or another location of the image.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"Image file {where} does not exist.") from error
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        reason = str(error) or repr(error)
        if isinstance(error, UnidentifiedImageError):  # its text is the address of a buffer
            reason = "Pillow does not know its format"
        raise UserError(
            f"Cannot read {where} as an image: {reason}. Replace the file or remove it."
        ) from error


@contextlib.contextmanager
def opened(file: str | os.PathLike | bytes, where: str) -> Iterator[Image.Image]:
    """Opens an image and checks its size. Its pixels are not decoded.

    Args:
      file: A path, or the content of a file.
      where: Location of the image for messages.

    Raises:
      UserError: The image is larger than the limit IMAGE_PIXELS.
    """
    with contextlib.ExitStack() as stack:
        stream = (
            io.BytesIO(file) if isinstance(file, bytes) else stack.enter_context(open(file, "rb"))
        )
        start = stream.read(len(PNG_START))
        stream.seek(0)
        if start == PNG_START:
            stream = io.BytesIO(_without_metadata(stream.read()))
        image = stack.enter_context(Image.open(stream))
        width, height = image.size
        limits.check("IMAGE_PIXELS", width * height, f"{where}: {width}×{height} are")
        yield image


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image in RGB, upright, with transparent parts on white.

    Raises:
      ValueError: The pixels are integers or floats of 32 bits with no defined range, or NaN.
    """
    image.load()  # Pillow rotates TIFF files itself, and removes their orientation
    turn = orientation(image)
    image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return image.transpose(_TRANSPOSE[turn]) if turn in _TRANSPOSE else image


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 if it is missing or damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - damaged metadata can raise anything; the pixels are valid
        return 1
    return value if value in _TRANSPOSE else 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Returns an image with 8 bits per channel. Pillow's conversion would clip instead of scale."""
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)
        bits = 12 if any("I;12" in str(tile) for tile in getattr(image, "tile", ())) else 16
        gray = Image.fromarray((wide >> (bits - 8)).astype(np.uint8))
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            gray.putalpha(Image.fromarray(np.where(wide == transparent, 0, 255).astype(np.uint8)))
        return gray
    if image.mode == "I":
        if image.format != "PPM":  # Pillow scales these to 16 bits
            raise ValueError(
                "its pixels are signed or 32-bit integers, and their full scale is not defined; "
                "save it with 8 or 16 bits per channel"
            )
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise ValueError("its floating-point pixels contain NaN or infinite values")
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"its floating-point pixels are between {low:g} and {high:g}, but must be in "
                "[0, 1]; scale them, or save it with 8 or 16 bits per channel"
            )
        return Image.fromarray(np.round(values * 255).astype(np.uint8))
    return image


def _without_metadata(data: bytes) -> bytes:
    """Returns a PNG with only the chunks that change its pixels, whose checksums are verified.

    Pillow refuses large text and color profiles, and verifies no checksum of the pixels.

    Raises:
      ValueError: The file is damaged or truncated.
    """
    view, parts, position, name = memoryview(data), [PNG_START], len(PNG_START), b""
    while name != b"IEND":
        if position + 12 > len(data):
            raise ValueError(f"the PNG is truncated after {len(data)} bytes")
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise ValueError(f"the PNG is truncated after {len(data)} bytes")
        critical = not name[0] & 0x20  # a capital letter
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if critical and zlib.crc32(view[position + 4 : end - 4]) != checksum:
            raise ValueError(
                f"the checksum of the PNG's {name.decode('latin-1')} chunk at byte {position} is "
                "wrong; the file is damaged"
            )
        if critical or name in _PNG_PIXELS or _has_orientation(name, view[position + 8 : end - 4]):
            parts.append(view[position:end])
        position = end
    return b"".join(parts)


def _has_orientation(name: bytes, chunk: memoryview) -> bool:
    """Returns whether a chunk is text that can contain an orientation and that Pillow accepts."""
    keyword = bytes(chunk[:80]).partition(b"\0")[0]
    if name not in (b"tEXt", b"zTXt", b"iTXt") or keyword not in _PNG_ORIENTATION:
        return False
    if len(chunk) > PngImagePlugin.MAX_TEXT_CHUNK:
        return False
    body = bytes(chunk[len(keyword) + 1 :])
    if name == b"iTXt" and body[:1] == b"\1":  # compressed
        body = body[2:].split(b"\0", 2)[-1]
    elif name == b"zTXt":
        body = body[1:]
    else:
        return True
    try:
        inflate = zlib.decompressobj()
        inflate.decompress(body, PngImagePlugin.MAX_TEXT_CHUNK)
    except zlib.error:
        return False
    return not inflate.unconsumed_tail
