"""Where examples come from: a dataset folder, the built-in world, TFDS, a folder of pictures.

Each gives any record at any time as a serialized SequenceExample, which is what makes a batch a
function of (seed, step). DMVR factories are streams and have a module of their own,
`mmjax.data.dmvr`.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import tensorflow as tf

from mmjax.data import records, schema, world
from mmjax.data.dataset import DatasetFolder, DatasetInfo, Split, SplitInfo, shard_name
from mmjax.errors import UserError, unknown

log = logging.getLogger(__name__)

_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class Source(Protocol):
    """Records at random.

    Attributes:
      name: for messages.
      info: what the dataset holds.
      num_examples: number of records.
      folder: where the dataset lies, or '' if it is not a dataset folder.
      files, index: shards and int64 [N, 3] (file number, offset, length), or None if there are no
        shards.
    """

    name: str
    info: DatasetInfo
    num_examples: int
    folder: str
    files: list[str] | None
    index: np.ndarray | None

    def fetch(self, record: int) -> bytes:
        """A serialized SequenceExample; UserError if it cannot be read. Thread safe."""

    def where(self, record: int) -> str:
        """File and number of a record, for messages."""


class FolderSource:
    """A split of a dataset folder (see `mmjax.data.dataset`)."""

    def __init__(self, path: str, *, split: str, check_crc: bool = True):
        dataset = DatasetFolder(path)
        self._split: Split = dataset.split(split)
        self._check_crc = check_crc
        self.folder, self.info = dataset.path, dataset.info
        self.name = f"{self.info.name}/{split}"
        self.num_examples = len(self._split)
        self.files, self.index = self._split.files, self._split.index

    def fetch(self, record: int) -> bytes:
        return self._split.read(record, check_crc=self._check_crc)

    def fetch_without(self, key: str, record: int) -> bytes:
        """As `fetch`, with references in place of the values of a feature list."""
        return self._split.read_without(key, record, check_crc=self._check_crc)

    def resolve(self, values: list[bytes]) -> list[bytes]:
        """What references of `fetch_without` refer to; other values as they are."""
        return self._split.resolve(values)

    def where(self, record: int) -> str:
        file = int(self.index[record, 0])
        return f"{self.files[file]}, record {record - int(self._split.first[file])}"


class ImageFolderSource:
    """Pictures in one subfolder per class; under them, or beside, subfolders named like the split.

    `FOLDER/SPLIT/CLASS/*.jpg` if there is a folder FOLDER/SPLIT, else `FOLDER/CLASS/*.jpg`. Classes
    are numbered by name. JPEG and PNG are handed on as they are, others become PNG.
    """

    files = index = None
    folder = ""

    def __init__(self, path: str, *, split: str):
        root = os.path.expanduser(path)
        if not os.path.isdir(root):
            raise UserError(f"There is no folder of pictures at {root}.")
        if os.path.isdir(os.path.join(root, split)):
            root = os.path.join(root, split)
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        self._pictures = [
            (os.path.join(folder, name), number)
            for number, label in enumerate(classes)
            for folder, _, names in sorted(os.walk(os.path.join(root, label)))
            for name in sorted(names)
            if name.lower().endswith(_PICTURES)
        ]
        if not self._pictures:
            raise UserError(
                f"{root} has no pictures in subfolders, one per class; found: "
                f"{', '.join(classes[:8]) or 'no subfolder'}."
            )
        self.num_examples = len(self._pictures)
        self.info = DatasetInfo(
            name=os.path.basename(os.path.normpath(path)),
            splits={split: SplitInfo(num_examples=self.num_examples, shards=[])},
            modalities=("video", "label"),
            num_classes=len(classes),
            class_names=classes,
            num_frames=1,
        )
        self.name = f"{self.info.name}/{split}"

    def fetch(self, record: int) -> bytes:
        path, label = self._pictures[record]
        with open(path, "rb") as file:
            picture = file.read()
        return _image_example(picture, label, self.info.class_names[label], path)

    def where(self, record: int) -> str:
        return self._pictures[record][0]


def _image_example(picture: bytes, label: int | None, label_text: str, filename: str) -> bytes:
    """One picture as a record; may be a PNG, hence not by `schema.encode`."""
    if not picture.startswith((b"\xff\xd8", b"\x89PNG")):
        picture = _as_png(picture, filename)
    proto = tf.train.SequenceExample()
    frames = proto.feature_lists.feature_list[schema.FRAMES[0]]
    frames.feature.add().bytes_list.value.append(picture)
    context = proto.context.feature
    if label is not None:
        context[schema.LABELS[0]].int64_list.value.append(label)
        context[schema.LABEL_TEXTS[0]].bytes_list.value.append(label_text.encode())
    context[schema.FILENAME[0]].bytes_list.value.append(filename.encode())
    return proto.SerializeToString()


def _as_png(picture: bytes, filename: str) -> bytes:
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(picture)) as image:
            out = io.BytesIO()
            image.convert("RGB").save(out, "PNG")
    except (OSError, ValueError) as error:
        raise UserError(f"{filename} is not a picture: {error}") from error
    return out.getvalue()


def tfds_folder(name: str, *, split: str, data_dir: str | None = None) -> str:
    """A TFDS image set as a dataset folder, written once below $MMJAX_CACHE with its encoded
    pictures as they are.

    Args:
      name: of TFDS, with configuration or version if wanted: `cifar10`, `imagenet2012:5.1.0`.
      split: of TFDS; other splits are written when they are asked for, into folders of their own.
      data_dir: where TFDS keeps its data; None is TFDS's own default.

    Raises:
      UserError: no such set or split, data that is neither there nor can be downloaded, or no
        picture in it.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS has many kinds for this
        raise UserError(f"tfds:{name}: TFDS cannot make this dataset: {error}") from error
    key = re.sub(r"[^\w.-]+", "_", f"{builder.info.full_name}-{split}")
    folder = os.path.join(world.cache_folder(), "tfds", key)
    if os.path.exists(os.path.join(folder, "dataset.json")):
        return folder
    features = builder.info.features
    image = next((k for k, f in features.items() if isinstance(f, tfds.features.Image)), None)
    label = next((k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)), None)
    if image is None:
        raise UserError(f"tfds:{name} has no picture; it has {', '.join(features)}.")
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise UserError(
            f"tfds:{name}: the data are not prepared and cannot be downloaded ({error}). Prepare "
            "them with "
            f"`tfds build {name}` where there is a network, and copy them to {builder.data_dir}."
        ) from error
    if split.partition("[")[0] not in builder.info.splits:  # slices too: train[:10%]
        raise unknown(f"split of tfds:{name}", split, builder.info.splits)
    names = features[label].names if label else []
    log.info("writing tfds:%s, split %s, to %s", name, split, folder)
    dataset = builder.as_dataset(split=split, decoders={image: tfds.decode.SkipDecoding()})

    def payloads() -> Iterator[bytes]:
        for number, item in enumerate(dataset.as_numpy_iterator()):
            index = int(item[label]) if label and item[label] >= 0 else None
            text = names[index] if index is not None else ""
            yield _image_example(item[image], index, text, f"{name}/{split}/{number}")

    shard = shard_name("pictures", 0, 1)
    count = records.write_shard(os.path.join(folder, shard), payloads())
    DatasetInfo(
        name=builder.info.name,
        splits={split: SplitInfo(num_examples=count, shards=[shard])},
        modalities=("video", "label") if label else ("video",),
        num_classes=len(names),
        class_names=list(names),
        num_frames=1,
        source={"tfds": builder.info.full_name, "split": split},
    ).save(folder)
    return folder


def open_source(spec: str, *, split: str, check_crc: bool = True) -> Source:
    """The source of a specification.

    Args:
      spec: `world` or `world:NAME`; a dataset folder; `tfds:NAME`; `images:FOLDER`.
      split: which part.
      check_crc: check each record's CRC as it is read.

    Raises:
      UserError: what is wrong with the specification, or with the dataset.
    """
    if not spec:
        raise UserError(
            "config.data.train is empty: this recipe is for a dataset of yours. Give its folder, "
            "--config.data.train=FOLDER; `mmjax build` makes one."
        )
    kind, colon, rest = spec.partition(":")
    if colon and kind == "images":
        return ImageFolderSource(rest, split=split)
    if colon and kind == "dmvr":
        raise UserError(
            f"{spec} is a stream and cannot be part of a mixture: make it the only source."
        )
    return FolderSource(dataset_folder(spec, split=split), split=split, check_crc=check_crc)


def dataset_folder(spec: str, *, split: str) -> str:
    """The dataset folder of a specification; the world and TFDS sets are written if need be."""
    kind, colon, rest = spec.partition(":")
    if kind == "world":
        return world.ensure_world(spec)
    if colon and kind == "tfds":
        return tfds_folder(rest, split=split)
    return spec


def vocabulary(spec: str, *, split: str) -> str:
    """The file of words that a dataset brings; UserError if it brings none."""
    if spec.partition(":")[0] not in ("images", "dmvr"):
        dataset = DatasetFolder(dataset_folder(spec, split=split))
        if dataset.info.vocabulary:
            return os.path.join(dataset.path, dataset.info.vocabulary)
    raise UserError(
        f"data.text.vocab is not set, and {spec} brings no vocabulary. Make one of its captions "
        "with "
        "`mmjax vocab`, or name a file."
    )
