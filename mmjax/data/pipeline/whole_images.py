"""Whole images with their masks, one by one, for evaluation over every pixel.

The batches of the input pipeline have one shape. Whole images have many, so an evaluator asks for
their sizes, arranges images of similar sizes in batches (`mmjax.data.pipeline.image_batches`), and
reads each image into the array of its batch.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from mmjax.data.pipeline import mask_geometry, segmentation
from mmjax.data.pipeline.image_batches import Placement, Size
from mmjax.data.pipeline.mask_geometry import Nearest
from mmjax.data.sources.base import Source
from mmjax.data.storage import mask_files, record_images, schema
from mmjax.errors import UserError


class WholeImages:
    """Reads images and masks of a source.

    Args:
      source: The source.
      num_classes: Number of classes.
      nearest: Which pixel a resized mask shows.
    """

    def __init__(self, source: Source, *, num_classes: int, nearest: Nearest = "center"):
        self._source, self._num_classes, self._nearest = source, num_classes, nearest

    def stored_size(self, record: int) -> Size:
        """Returns the stored height and width of an image; (0, 0) without an image.

        Raises:
          UserError: The record or the header of its image cannot be read.
        """
        example = self.example(record)
        if not example.frames:
            return 0, 0
        frame = example.frames[len(example.frames) // 2]
        width, height = record_images.size(frame, self._source.where(record))
        return height, width

    def example(self, record: int) -> schema.Example:
        """Returns the example of a record."""
        payload = self._source.fetch(record)
        return schema.decode(payload, waveform_format="unchecked", where=self._source.where(record))

    def read(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image, uint8 [H, W, 3], and its class map, uint8 [H, W], as they are stored.

        Of a video, it is the middle frame. A class map without a mask has no class.

        Raises:
          UserError: They cannot be read, differ in size, or the mask has an unknown class.
        """
        where, example = self._source.where(record), self.example(record)
        index = len(example.frames) // 2
        image = record_images.decode(example.frames[index], where)
        if not example.masks:
            return image, np.full(image.shape[:2], mask_files.IGNORE, np.uint8)
        if len(example.masks) != len(example.frames):
            raise UserError(
                f"{where} has {len(example.frames)} images but {len(example.masks)} masks. Run "
                "`mmjax validate` to check the whole dataset."
            )
        try:
            mask = segmentation.decode_mask(
                tf.constant(example.masks[index : index + 1]), image.shape[:2]
            )
            segmentation.check_mask(mask, tf.shape(image)[:2], self._num_classes)
        except tf.errors.InvalidArgumentError as error:
            raise UserError(f"{where}: {error.message}. Run `mmjax validate`.") from error
        return image, mask.numpy()

    def placed(self, record: int, placement: Placement) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image in its array, uint8 [*canvas, 3], and its class map, [*truth_canvas]."""
        image, mask = self.read(record)
        start = tf.constant(placement.start, tf.int32)
        scaled, truth_scaled = (
            tf.constant(size, tf.int32) for size in (placement.scaled, placement.truth_scaled)
        )
        pixels = mask_geometry.cut_image(tf.constant(image), scaled, start, placement.canvas)
        classes = mask_geometry.cut_mask(
            tf.constant(mask), truth_scaled, start, placement.truth_canvas, self._nearest
        )
        return pixels.numpy(), classes.numpy()
