"""Image files and decoded records, for the tests of image sources."""

import io

import numpy as np
import PIL.Image

from mmjax.data.storage import schema


def write_image(path, gray=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (6, 4), (gray,) * 3).save(path)


def read(source):
    """Returns [(mean pixel value, class index, class name)] of all records."""
    result = []
    for record in range(source.num_examples):
        example = schema.decode(source.fetch(record))
        pixels = np.asarray(PIL.Image.open(io.BytesIO(example.frames[0])))
        assert pixels.ndim == 3
        result.append((round(pixels.mean()), *example.labels, *example.label_texts))
    assert [label for _, label, _ in result] == source.labels().tolist()
    return result
