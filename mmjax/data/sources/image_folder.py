"""Sets of labeled images as people have them: folders and tables of files.

Each gives its images as records when they are asked for; nothing is copied.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import tensorflow as tf

from mmjax.data.sources.split_slicing import SPLIT_WORDS, same_split
from mmjax.data.storage import schema
from mmjax.data.storage.dataset import DatasetInfo, SplitInfo
from mmjax.errors import UserError

_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_AIRCRAFT = ("", "data", os.path.join("fgvc-aircraft-2013b", "data"))
_COLUMNS = ("path", "label", "split")
_MOST_CLASSES = 1_000_000


class ImageList:
    """Image files with a class each. JPEG and PNG are handed on as they are, others become PNG.

    Args:
      info: what the dataset holds.
      split: which part this is.
      images: (file, class number) of each record.
      lines: where each record is named, for messages, if not by its file alone.
    """

    files = index = None
    directory = ""

    def __init__(
        self,
        info: DatasetInfo,
        split: str,
        images: Sequence[tuple[str, int]],
        *,
        lines: Sequence[str] | None = None,
    ):
        self.info, self._images, self._lines = info, images, lines
        self.num_examples = len(images)
        self.name = f"{info.name}/{split}"

    def fetch(self, record: int) -> bytes:
        path, label = self._images[record]
        try:
            with open(path, "rb") as file:
                picture = file.read()
        except OSError as error:
            raise UserError(f"{self.where(record)} cannot be read: {error}.") from error
        return image_example(
            picture, label, self.info.class_names[label], path, where=self.where(record)
        )

    def where(self, record: int) -> str:
        path = self._images[record][0]
        return f"{self._lines[record]}: {path}" if self._lines else path

    def labels(self) -> np.ndarray:
        return np.array([label for _, label in self._images], np.int64)


# Folders ----------------------------------------------------------------------------------------


def open_directory(path: str, *, split: str) -> ImageList:
    """Images in one subfolder per class; under them, or beside, subfolders named like the split.

    `DIRECTORY/SPLIT/CLASS/*.jpg` if there is a folder FOLDER/SPLIT, else `DIRECTORY/CLASS/*.jpg`. Classes
    are numbered by name, over all splits. The layout of FGVC-Aircraft is understood too.

    Raises:
      UserError: no such folder or split, or no images in it.
    """
    root = _existing(path)
    if lists := _aircraft_lists(root):
        return _open_aircraft(lists, root, split=split)
    splits = _split_directories(root)
    if split not in splits and os.path.isdir(os.path.join(root, split)):  # any name will do
        splits = [*splits, split]
    name = same_split(split, splits)
    if splits and name is None:
        raise UserError(f"{root} has no split {split!r}. It has: {', '.join(splits)}.")
    parents = [os.path.join(root, one) for one in splits] or [root]
    classes = sorted({entry for parent in parents for entry in _subfolders(parent)})
    root = os.path.join(root, name or "")
    images = [
        (os.path.join(directory, file), number)
        for number, label in enumerate(classes)
        for directory, _, files in sorted(os.walk(os.path.join(root, label)))
        for file in sorted(files)
        if file.lower().endswith(_PICTURES)
    ]
    if not images:
        raise UserError(
            f"{root} has no images in subfolders, one per class; found: "
            f"{', '.join(classes[:8]) or 'no subfolder'}."
        )
    return ImageList(image_info(path, {split: len(images)}, classes), split, images)


def directory_splits(path: str) -> list[str]:
    """The splits of a folder of images; [] if it has none: then any name is all of it."""
    root = _existing(path)
    if lists := _aircraft_lists(root):
        return sorted(_variants(lists))
    return _split_directories(root)


def is_aircraft(path: str) -> bool:
    """Whether a folder is laid out as FGVC-Aircraft: no folders of classes but lists of files."""
    return bool(_aircraft_lists(os.path.expanduser(path)))


def has_images(path: str) -> bool:
    """Whether `open_directory` would find classes there."""
    root = os.path.expanduser(path)
    if not os.path.isdir(root):
        return False
    if _aircraft_lists(root) or _split_directories(root):
        return True
    return any(
        entry.name.lower().endswith(_PICTURES)
        for name in _subfolders(root)
        for entry in os.scandir(os.path.join(root, name))
    )


def _existing(path: str) -> str:
    root = os.path.expanduser(path)
    if not os.path.isdir(root):
        raise UserError(f"There is no folder of images at {root}.")
    return root


def _subfolders(root: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir())


def _split_directories(root: str) -> list[str]:
    """Subfolders named like splits that hold folders of classes."""
    return [n for n in _subfolders(root) if n in SPLIT_WORDS and _subfolders(f"{root}/{n}")]


def _aircraft_lists(root: str) -> str:
    """The folder with FGVC-Aircraft's lists, or ''."""
    directories = [os.path.join(root, sub) for sub in _AIRCRAFT]
    return next((f for f in directories if os.path.isdir(f) and _variants(f)), "")


def _variants(directory: str) -> dict[str, str]:
    """{split: file that lists its images and their variants}."""
    matches = [(re.fullmatch(r"images_variant_(\w+)\.txt", n), n) for n in os.listdir(directory)]
    return {match[1]: os.path.join(directory, name) for match, name in matches if match}


def _open_aircraft(directory: str, root: str, *, split: str) -> ImageList:
    """`images_variant_SPLIT.txt` with lines 'image variant', and `images/PICTURE.jpg`."""
    lists = _variants(directory)
    name = same_split(split, lists)
    if name is None:
        raise UserError(f"{directory} has no split {split!r}. It has: {', '.join(sorted(lists))}.")
    rows = {}
    for which, path in lists.items():
        with open(path, encoding="utf-8") as file:
            lines = [line.split(maxsplit=1) for line in file if line.strip()]
        if short := next((number for number, line in enumerate(lines) if len(line) < 2), None):
            raise UserError(f"{path}, line {short + 1}, is not an image and its variant.")
        rows[which] = [(picture, variant.strip()) for picture, variant in lines]
    names = sorted({variant for some in rows.values() for _, variant in some})
    if os.path.exists(listed := os.path.join(directory, "variants.txt")):
        with open(listed, encoding="utf-8") as file:
            names = [line.strip() for line in file if line.strip()]
    number = {name: at for at, name in enumerate(names)}
    if missing := {variant for some in rows.values() for _, variant in some} - set(number):
        raise UserError(f"{listed} lacks the variant {min(missing)!r}, which images have.")
    images = [
        (os.path.join(directory, "images", f"{picture}.jpg"), number[variant])
        for picture, variant in rows[name]
    ]
    counts = {which: len(some) for which, some in rows.items()}
    return ImageList(image_info(root, counts, names), split, images)


# Tables -----------------------------------------------------------------------------------------


def open_csv(path: str, *, split: str) -> ImageList:
    """A table of images: columns `path` (relative to the table), `label`, and `split` or none.

    Labels that are all whole numbers are class numbers, others are names, numbered by alphabet.
    Rows without a split are of 'train'.

    Raises:
      UserError: a missing file or column, or a row without path or label, by its number.
    """
    path, rows = _read_table(path)
    splits: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        splits.setdefault(row["split"] or "train", []).append(row)
    name = same_split(split, splits)
    if name is None:
        raise UserError(f"{path} has no split {split!r}. It has: {', '.join(splits)}.")
    labels = {row["label"] for row in rows}
    if all(label.isdecimal() for label in labels):
        number = {label: int(label) for label in labels}
        names = numbered(max(number.values()) + 1, path)
    else:
        names = sorted(labels)
        number = {label: at for at, label in enumerate(names)}
    directory = os.path.dirname(path)
    rows = splits[name]
    images = [(os.path.join(directory, row["path"]), number[row["label"]]) for row in rows]
    lines = [f"{path}, line {row['line']}" for row in rows]
    counts = {which: len(some) for which, some in splits.items()}
    return ImageList(image_info(path, counts, names), split, images, lines=lines)


def csv_splits(path: str) -> list[str]:
    """The splits of a table of images."""
    return list(dict.fromkeys(row["split"] or "train" for row in _read_table(path)[1]))


def _read_table(path: str) -> tuple[str, list[dict[str, str]]]:
    path = os.path.expanduser(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            columns = table.fieldnames or []
            if absent := [name for name in _COLUMNS[:2] if name not in columns]:
                raise UserError(
                    f"{path} lacks the column {absent[0]}; it has: {', '.join(columns) or 'none'}."
                )
            rows = []
            for row in table:
                values = {key: (row.get(key) or "").strip() for key in _COLUMNS}
                if empty := [key for key in _COLUMNS[:2] if not values[key]]:
                    raise UserError(f"{path}, line {table.line_num}, has no {empty[0]}.")
                rows.append(values | {"line": str(table.line_num)})
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a table: {error}.") from error
    if not rows:
        raise UserError(f"{path} has no rows.")
    return path, rows


# Records ----------------------------------------------------------------------------------------


def image_example(
    picture: bytes, label: int | None, label_text: str, filename: str, *, where: str = ""
) -> bytes:
    """One image as a record; may be a PNG, hence not by `schema.encode`.

    Args:
      image: JPEG, PNG or what Pillow can make a PNG of.
      label, label_text: the class, or None.
      filename: to be remembered.
      where: for messages, instead of the file name.

    Raises:
      UserError: neither JPEG nor PNG, nor anything that could be made a PNG.
    """
    if not picture.startswith((b"\xff\xd8", b"\x89PNG")):
        picture = _as_png(picture, where or filename)
    proto = tf.train.SequenceExample()
    frames = proto.feature_lists.feature_list[schema.FRAMES[0]]
    frames.feature.add().bytes_list.value.append(picture)
    context = proto.context.feature
    if label is not None:
        context[schema.LABELS[0]].int64_list.value.append(label)
        context[schema.LABEL_TEXTS[0]].bytes_list.value.append(label_text.encode())
    context[schema.FILENAME[0]].bytes_list.value.append(filename.encode())
    return proto.SerializeToString()


def _as_png(picture: bytes, where: str) -> bytes:
    try:
        with PIL.Image.open(io.BytesIO(picture)) as image:
            out = io.BytesIO()
            image.convert("RGB").save(out, "PNG")
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        raise UserError(f"{where} is not an image: {error}") from error
    return out.getvalue()


def numbered(count: int, where: str) -> list[str]:
    """The names of classes that have none: their numbers.

    Raises:
      UserError: there are too many, as numbers may be of something else.
    """
    if count > _MOST_CLASSES:
        raise UserError(
            f"{where}: a label is {count - 1}, but classes are numbers from 0, at most "
            f"{_MOST_CLASSES} of them. Number them so, or give them names."
        )
    return [str(number) for number in range(count)]


def image_info(path: str, counts: Mapping[str, int], class_names: Sequence[str]) -> DatasetInfo:
    """What a set of labeled images holds; it is called as its file or folder."""
    return DatasetInfo(
        name=os.path.splitext(os.path.basename(os.path.normpath(os.path.expanduser(path))))[0],
        splits={name: SplitInfo(num_examples=count, shards=[]) for name, count in counts.items()},
        modalities=("video", "label"),
        num_classes=len(class_names),
        class_names=list(class_names),
        num_frames=1,
    )
