"""Single images as records."""

import io

import PIL.Image
import tensorflow as tf

from mmjax.data.sources import image_list
from mmjax.data.storage import schema


def test_images_of_other_formats_are_converted_to_png():
    out = io.BytesIO()
    PIL.Image.new("RGB", (5, 4), (1, 2, 3)).save(out, "BMP")
    record = image_list.image_example(out.getvalue(), None, "", "x.bmp")
    (frame,) = schema.decode(record).frames
    image = tf.io.decode_png(frame).numpy()
    assert (image == [1, 2, 3]).all() and image.shape == (4, 5, 3)
