"""Decodes and measures the images of records, as the input pipeline does it with TensorFlow.

Unlike image files (`mmjax.data.storage.image_files`), images of records have no EXIF orientation
and no transparency: TensorFlow ignores both.
"""

from __future__ import annotations

import struct

import numpy as np
import tensorflow as tf

from mmjax import limits
from mmjax.data.storage import image_decoding
from mmjax.errors import UserError

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG


def size(data: bytes, where: str = "An image") -> tuple[int, int]:
    """Returns (width, height) of a JPEG or PNG from its header.

    Args:
      data: The encoded image.
      where: Location of the image, for messages.

    Raises:
      UserError: It is neither JPEG nor PNG, has no valid header, or is larger than the limit
        IMAGE_PIXELS.
    """
    if not data.startswith((_JPEG, _PNG)):
        raise UserError(f"{where} is neither JPEG nor PNG: its first bytes are {data[:4]!r}.")
    if data.startswith(_PNG):
        if len(data) < 24:
            raise UserError(f"{where} is a PNG that is truncated after {len(data)} bytes.")
        width, height = struct.unpack_from(">II", data, 16)
        limits.check("IMAGE_PIXELS", width * height, f"{where}: {width}×{height} are")
        return width, height
    with image_decoding.reading(where), image_decoding.opened(data, where) as image:
        return image.size


def decode(data: bytes, where: str = "An image") -> np.ndarray:
    """Returns a JPEG or PNG as uint8 [H, W, 3].

    Args:
      data: The encoded image.
      where: Location of the image, for messages.

    Raises:
      UserError: As `size`, or TensorFlow cannot decode the image.
    """
    size(data, where)
    try:
        if data.startswith(_PNG):
            return tf.io.decode_png(data, channels=3).numpy()
        return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    except tf.errors.InvalidArgumentError as error:
        raise UserError(
            f"{where} is damaged: TensorFlow, which reads it in training, cannot decode it "
            f"({_reason(error)}). Replace or remove it."
        ) from error


def gray(data: bytes, where: str = "An image", *, reduced: bool = False) -> np.ndarray:
    """Like `decode`, but returns the luminance as float32 [H, W].

    Args:
      data: The encoded image.
      where: Location of the image, for messages.
      reduced: Whether a JPEG may be decoded at up to an eighth of its size. Damage is found as in
        training, because Pillow and TensorFlow decode all data with libjpeg-turbo.
    """
    if not (reduced and data.startswith(_JPEG)):
        return decode(data, where).astype(np.float32) @ np.float32(_LUMINANCE)
    with image_decoding.reading(where), image_decoding.opened(data, where) as image:
        image.draft("L", (32, 32))
        image.load()
        return np.asarray(image.convert("L"), np.float32)


def _reason(error: tf.errors.OpError) -> str:
    """Returns the message of an error without the name of the operation."""
    return str(error.message).partition("}}")[2].partition("[Op:")[0].strip(" .") or error.message
