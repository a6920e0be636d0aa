"""Images of four colored quarters with their segmentation masks, for tests."""

import numpy as np

from mmjax.data.storage import dataset, image_files, schema, tfrecord

COLORS = np.uint8([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10]])
CLASSES = ["red", "green", "blue", "yellow"]


def classes_of(number):
    """A class map of four quarters that meet at another point in each example."""
    height, width = 40 + 3 * (number % 5), 70 - 4 * (number % 7)
    row, column = 10 + number % 20, 15 + number % 30
    below, right = np.arange(height) >= row, np.arange(width) >= column
    return (2 * below[:, None] + right).astype(np.uint8)


def example(number, **changes):
    mask = classes_of(number)
    fields = dict(
        frames=[image_files.encode_jpeg(COLORS[mask], quality=100)],
        masks=[schema.encode_mask(mask)],
        filename=f"image {number}",
    )
    return schema.Example(**fields | changes)


def build(directory, count=12, *, payload=example, **info):
    name = dataset.shard_name("train", 0, 1)
    records = [schema.encode(payload(number)) for number in range(count)]
    tfrecord.write_shard(directory / name, records)
    fields = dict(
        name=directory.name,
        splits={"train": dataset.SplitInfo(num_examples=count, shards=[name])},
        modalities=("video", "mask"),
        mask_classes=CLASSES,
    )
    dataset.DatasetInfo(**fields | info).save(directory)
    return str(directory)
