"""Computes the background of a touch sensor, its image without contact: `mmjax background`."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmjax.data.storage import directories, image_files
from mmjax.errors import UserError
from mmjax.files import atomic_open

_BLOCK = 1 << 28  # bytes of histograms in memory at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Touch images that can be read more than once.

    Attributes:
      images: Starts an iterator over `(name, uint8 [H, W, 3])`.
      count: Number of images for the progress bar, or None if it is unknown.
      description: Where the images come from, for messages.
    """

    images: Callable[[], Iterator[tuple[str, np.ndarray]]]
    count: int | None = None
    description: str = "the source"


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
      dataset: A dataset; its touch images are used instead of `paths`.
      split: Split of the dataset.
      label: Use only records of this class, by name or index; None for all.
      caption: Use only records with this caption; None for all.
      mean: Whether to compute the mean instead of the median.
      progress: Whether to show a progress bar.

    Returns:
      `((height, width), number of images)`.

    Raises:
      UserError: The arguments do not name images of one size, or `out` is not a .png file.
    """
    if paths and dataset:
        raise UserError(
            f"PATH ({', '.join(paths)}) and --dataset {dataset} exclude each other. Remove one."
        )
    if not paths and not dataset:
        raise UserError("No images. Pass PATH (image files or directories), or --dataset DIR.")
    if not out.lower().endswith(".png"):
        raise UserError(f"--out must end in .png, a lossless format; got {out}.")
    if paths:
        source = files_source([file for file in find_images(paths) if not _is_same(file, out)])
    else:
        source = dataset_source(dataset, split=split, label=label, caption=caption)
    image, count = compute_background(source, mean=mean, progress=progress)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    with atomic_open(out, "wb") as file:
        file.write(buffer.getvalue())
    return image.shape[:2], count


def _is_same(file: str, out: str) -> bool:
    """Returns whether an image is the output of an earlier run."""
    return os.path.exists(out) and os.path.samefile(file, out)


def compute_background(
    source: ImageSource, *, mean: bool = False, progress: bool = True, block: int = _BLOCK
) -> tuple[np.ndarray, int]:
    """Returns the median of images per pixel and channel, and the number of images.

    Images are read one at a time. The median needs a histogram per pixel and channel. To limit
    memory, it is computed in blocks of pixel rows, and all images are read once per block. The
    240×320 pixels of a DIGIT sensor fit in one block. For an even number of images, the result is
    the mean of the two middle values, rounded half to even.

    Args:
      source: The images.
      mean: Whether to compute the mean instead of the median.
      progress: Whether to show a progress bar.
      block: Maximum size of the histograms in memory, in bytes.

    Returns:
      `(uint8 [H, W, 3], number of images)`.

    Raises:
      UserError: There are no images, or their sizes differ.
    """
    iterator = source.images()
    first_name, first = next(iterator, (None, None))
    if first is None:
        raise UserError(f"There are no touch images in {source.description}.")
    iterator.close()
    bytes_per_row = first[0].size * (8 if mean else 256 * 4)
    num_rows = max(block // bytes_per_row, 1)
    result, count = np.empty(first.shape, np.uint8), 0
    for top in range(0, len(first), num_rows):
        part = slice(top, min(top + num_rows, len(first)))
        size = first[part].size
        total = np.zeros(size, np.uint64) if mean else np.zeros((size, 256), np.uint32)
        positions, count = np.arange(size), 0
        for name, image in tqdm(source.images(), "images", source.count, disable=not progress):
            if image.shape != first.shape:
                raise UserError(
                    f"All images must have the same size, that of one sensor: {first_name} is "
                    f"{_size(first)}, but {name} is {_size(image)}."
                )
            values = image[part].reshape(-1)
            if mean:
                total += values
            else:
                total[positions, values] += 1
            count += 1
        values = np.rint(total / count) if mean else _median(total, count)
        result[part] = values.reshape(result[part].shape)
    return result, count


def find_images(paths: Sequence[str]) -> list[str]:
    """Returns image files: the paths that are files, and the images below those that are not.

    Raises:
      UserError: A path does not exist, or a directory contains no images.
    """
    files = []
    for path in paths:
        if not os.path.exists(path):
            raise UserError(f"PATH {path}: no such file or directory.")
        if os.path.isfile(path):
            files.append(path)
            continue
        images = [
            os.path.join(directory, name)
            for directory, _, names in directories.walk(path)
            for name in names
            if image_files.is_image(os.path.join(directory, name))
        ]
        if not images:
            raise UserError(f"PATH {path}: no image files in this directory.")
        files += sorted(images)
    return files


def files_source(files: Sequence[str]) -> ImageSource:
    """Returns the images in files."""
    return ImageSource(
        images=lambda: ((file, image_files.read_image(file)) for file in files),
        count=len(files),
        description=f"{len(files)} image files",
    )


def dataset_source(
    path: str, *, split: str, label: str | None = None, caption: str | None = None
) -> ImageSource:
    """Returns the touch images of a dataset.

    Args:
      path: The dataset.
      split: Split of the dataset.
      label: Use only records of this class, by name or index; None for all.
      caption: Use only records with this caption; None for all.

    Raises:
      UserError: The dataset, split or class does not exist.
    """
    from mmjax.data.storage import dataset, record_images, schema

    directory = dataset.DatasetDir(path)
    records, names = directory.split(split), directory.info.class_names
    if label is not None and names and label not in names and not label.isdecimal():
        raise UserError(f"--label {label!r}: no such class in {path}. Classes: {', '.join(names)}.")

    def images() -> Iterator[tuple[str, np.ndarray]]:
        for index in range(len(records)):
            example = schema.decode(
                records.read(index), waveform_format="unchecked", where=records.where(index)
            )
            classes = {*map(str, example.labels), *example.label_texts}
            if label is not None and label not in classes:
                continue
            if caption is not None and caption not in example.captions:
                continue
            for data in example.touch:
                name = f"record {index} ({example.filename})"
                yield name, record_images.decode(data, f"{path}: the touch image of {name}")

    conditions = {"--label": label, "--caption": caption}
    conditions = [f"{flag} {value!r}" for flag, value in conditions.items() if value is not None]
    return ImageSource(
        images=images,
        count=len(records),
        description=f"the split {split!r} of {path}"
        + (f" with {' and '.join(conditions)}" if conditions else ""),
    )


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}×{image.shape[0]}"


def _median(histograms: np.ndarray, count: int) -> np.ndarray:
    """Returns the medians uint8 [P] of the histograms uint32 [P, 256] of `count` values."""
    result = np.empty(len(histograms), np.uint8)
    for first in range(0, len(histograms), 4096):  # all sums at once would double the memory
        cumulative = histograms[first : first + 4096].cumsum(axis=1)
        low, high = (
            (cumulative > rank).argmax(axis=1).astype(int)
            for rank in ((count - 1) // 2, count // 2)
        )
        result[first : first + 4096] = np.rint((low + high) / 2)
    return result
