"""The image of a touch sensor that nothing touches, from many of its own: `mmjax background`."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmjax.data.storage import directories, image_files
from mmjax.errors import UserError
from mmjax.files import atomic_open

_BLOCK = 1 << 28  # bytes of the counts that are held at a time

# A source is a function that starts an iterator over (name, uint8 [H, W, 3]): a median of large
# images reads them more than once.
Source = Callable[[], Iterator[tuple[str, np.ndarray]]]


def write_background(
    out: str,
    *,
    paths: Sequence[str] = (),
    dataset: str | None = None,
    split: str = "train",
    label: str | None = None,
    caption: str | None = None,
    mean: bool = False,
    progress: bool = True,
) -> tuple[tuple[int, int], int]:
    """Writes the background of touch images as a PNG.

    Args:
      out: The PNG file.
      paths: Image files, or directories of images.
      dataset: A dataset whose touch images to use instead of `paths`.
      split, label, caption: Which records of the dataset to use; see `dataset_source`.
      mean: Whether to compute the mean instead of the median.
      progress: Whether to show a progress bar.

    Returns:
      `((height, width), number of images)`.

    Raises:
      UserError: The arguments do not name images of one size, or `out` is not a .png file.
    """
    if bool(paths) == bool(dataset):
        raise UserError("Give images or directories of images, or --dataset DIR, but not both.")
    if not out.lower().endswith(".png"):
        raise UserError(f"--out must end in .png, which is lossless; got {out}.")
    if paths:
        files = [file for file in find_images(paths) if not _same(file, out)]
        source, number = files_source(files), len(files)
    else:
        source, number = dataset_source(dataset, split=split, label=label, caption=caption)
    image, count = background(source, mean=mean, number=number, progress=progress)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    with atomic_open(out, "wb") as file:
        file.write(buffer.getvalue())
    return image.shape[:2], count


def _same(file: str, out: str) -> bool:
    """Whether an image is the background of an earlier run."""
    return os.path.exists(out) and os.path.samefile(file, out)


def background(
    source: Source,
    *,
    mean: bool = False,
    number: int | None = None,
    progress: bool = True,
    block: int = _BLOCK,
) -> tuple[np.ndarray, int]:
    """(the median of images per pixel and color, uint8 [H, W, 3]; how many there were).

    Images are read one by one, in as many passes as it takes to count the values of a block of
    rows within `block` bytes: one pass for a DIGIT's 240×320 pixels. Of an even number of images
    it is the mean of the two in the middle, halves to the even number.

    Args:
      source: of the images.
      mean: the mean instead.
      number: of images, for the bar.
      progress: show a bar.
      block: bytes.

    Raises:
      UserError: no images, or images of different sizes.
    """
    iterator = source()
    first, image = next(iterator, (None, None))
    if image is None:
        raise UserError("There are no touch images of this kind.")
    iterator.close()
    shape, count = image.shape, 0
    row_bytes = image[0].size * (8 if mean else 256 * 4)
    rows = max(block // row_bytes, 1)
    result = np.empty(shape, np.uint8)
    for top in range(0, shape[0], rows):
        part = slice(top, min(top + rows, shape[0]))
        size = image[part].size
        total = np.zeros(size, np.uint64) if mean else np.zeros((size, 256), np.uint32)
        each, count = np.arange(size), 0
        for name, picture in tqdm(source(), "images", number, disable=not progress):
            if picture.shape != shape:
                sizes = [f"{s[1]}×{s[0]}" for s in (shape, picture.shape)]
                raise UserError(
                    f"Images of one sensor have one size: {first} is {sizes[0]}, {name} is "
                    f"{sizes[1]}."
                )
            values = picture[part].reshape(-1)
            if mean:
                total += values
            else:
                total[each, values] += 1
            count += 1
        found = np.rint(total / count) if mean else _median(total, count)
        result[part] = found.reshape(result[part].shape)
    return result, count


def find_images(paths: Sequence[str]) -> list[str]:
    """The image files among paths and below folders, in order.

    Raises:
      UserError: a path that does not exist, a folder without images.
    """
    files = []
    for path in paths:
        if not os.path.exists(path):
            raise UserError(f"There is no file or folder {path}.")
        if os.path.isfile(path):
            files.append(path)
            continue
        found = [
            os.path.join(directory, name)
            for directory, _, names in directories.walk(path)
            for name in names
            if image_files.is_image(name)
        ]
        if not found:
            raise UserError(f"There are no images in {path}.")
        files += sorted(found)
    return files


def files_source(files: Sequence[str]) -> Source:
    """The images in files."""
    return lambda: ((file, image_files.read_image(file)) for file in files)


def dataset_source(
    path: str, *, split: str, label: str | None = None, caption: str | None = None
) -> tuple[Source, int]:
    """(the touch images of a dataset, how many records it has).

    Args:
      path: the dataset.
      split: which one.
      label: only records of this class, by name or number; None = all.
      caption: only records with this caption; None = all.

    Raises:
      UserError: no such dataset, split or class.
    """
    from mmjax.data.storage import dataset, schema

    directory = dataset.DatasetDir(path)
    records, names = directory.split(split), directory.info.class_names
    if label is not None and names and label not in names and not label.isdecimal():
        raise UserError(f"{path} has no class {label!r}. It has: {', '.join(names)}.")

    def source() -> Iterator[tuple[str, np.ndarray]]:
        for record in range(len(records)):
            example = schema.decode(
                records.read(record), waveform_format="unchecked", where=records.where(record)
            )
            classes = {*map(str, example.labels), *example.label_texts}
            if (label is None or label in classes) and (
                caption is None or caption in example.captions
            ):
                for data in example.touch:
                    image = Image.open(io.BytesIO(data)).convert("RGB")
                    yield f"record {record} ({example.filename})", np.asarray(image)

    return source, len(records)


def _median(counts: np.ndarray, number: int) -> np.ndarray:
    """uint8 [P] from counts uint32 [P, 256] of the values of `number` images."""
    result = np.empty(len(counts), np.uint8)
    for first in range(0, len(counts), 4096):  # sums of all at once would double the memory
        upto = counts[first : first + 4096].cumsum(axis=1)
        low, high = (
            (upto > rank).argmax(axis=1).astype(int) for rank in ((number - 1) // 2, number // 2)
        )
        result[first : first + 4096] = np.rint((low + high) / 2)
    return result
