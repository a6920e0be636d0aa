"""Image sets of TensorFlow Datasets, as dataset folders below $MMJAX_CACHE."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from mmjax import cache
from mmjax.data.sources.image_folder import image_example
from mmjax.data.sources.split_slicing import same_split
from mmjax.data.storage import tfrecord
from mmjax.data.storage.dataset import FILE, DatasetInfo, SplitInfo, shard_name
from mmjax.errors import UserError, choose, unknown

log = logging.getLogger(__name__)

_COUNTS = (10, 3, 4, 5, 6, 7, 8, 9)  # the order in which LGSSL's code met them


def _objects(item: dict[str, Any]) -> int:
    """CLEVR: the class of the number of objects in an image."""
    return _COUNTS.index(len(next(iter(item["objects"].values()))))


# {name: (classes, an item of the set → its class)}, for `tfds:NAME,label=…`.
LABELS: dict[str, tuple[list[str], Callable[[dict[str, Any]], int]]] = {
    "objects": ([str(count) for count in _COUNTS], _objects),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSpec:
    """What comes after `tfds:`.

    Attributes:
      name: of TFDS, with configuration or version if wanted: `cifar10`, `imagenet2012:5.1.0`.
      label: one of `LABELS`; '' is the set's own.
      data_dir: where TFDS keeps its data; None is TFDS's own default.
    """

    name: str
    label: str = ""
    data_dir: str | None = None

    @classmethod
    def parse(cls, text: str) -> TfdsSpec:
        """`NAME[,label=LABEL][,data_dir=DIRECTORY]`; the folder may contain commas."""
        text, at, directory = text.partition(",data_dir=")
        name, *settings = text.split(",")
        values = dict(setting.partition("=")[::2] for setting in settings)
        if wrong := set(values) - {"label"}:
            raise unknown(f"setting in tfds:{name}", min(wrong), ("label", "data_dir"))
        if label := values.get("label", ""):
            choose(f"label in tfds:{name}", label, LABELS)
        return cls(name=name, label=label, data_dir=os.path.expanduser(directory) if at else None)


def tfds_splits(text: str) -> list[str]:
    """The splits of a set that is prepared; [] if it is not.

    Raises:
      UserError: no such set.
    """
    return list(_builder(TfdsSpec.parse(text)).info.splits)


def tfds_dir(text: str, *, split: str, whole: bool = True) -> tuple[str, str]:
    """(dataset folder, the name of the split in it) of a TFDS image set.

    It is written once, in the order of TFDS's own shards and with its encoded images as they are,
    each split into a folder of its own when it is asked for. An image that is none is kept as it
    is, and logged: `data.corrupt` says what happens to it.

    Args:
      text: what comes after `tfds:`, see `TfdsSpec`.
      split: a whole split.
      whole: False if only slices of it are wanted: then the order counts.

    Raises:
      UserError: no such set or split, data that are neither there nor can be downloaded, or no
        image in them.
    """
    spec = TfdsSpec.parse(text)
    builder = _builder(spec)
    known = same_split(split, builder.info.splits) or split
    # Earlier versions wrote the records of several shards in turns, to a folder without suffix.
    earlier = _cached(builder, spec, known)
    ordered = f"{earlier}-in-order"
    if os.path.exists(os.path.join(ordered, FILE)):
        return ordered, known
    if os.path.exists(os.path.join(earlier, FILE)):
        if whole or known in builder.info.splits and builder.info.splits[known].num_shards == 1:
            return earlier, known
    # Of the processes of a training all ask at once, and each would write all of it.
    with cache.locked(f"{os.path.dirname(ordered)}-{_slug(builder.info.full_name)}.lock"):
        if os.path.exists(os.path.join(ordered, FILE)):
            return ordered, known
        _prepare(builder, spec)
        if (known := same_split(split, builder.info.splits)) is None:
            raise unknown(f"split of tfds:{spec.name}", split, builder.info.splits)
        _write(builder, spec, known, ordered)
    return ordered, known


def earlier_slice(text: str, split: str) -> str:
    """The folder of a slice that an earlier version of mmjax has written, or ''."""
    spec = TfdsSpec.parse(text)
    directory = _cached(_builder(spec), spec, split)
    return directory if os.path.exists(os.path.join(directory, FILE)) else ""


def _cached(builder, spec: TfdsSpec, split: str) -> str:
    label = f"-{spec.label}" if spec.label else ""
    name = _slug(f"{builder.info.full_name}-{split}") + label
    return os.path.join(cache.cache_dir(), "tfds", name)


def _slug(name: str) -> str:
    """A name that a file can have."""
    return re.sub(r"[^\w.-]+", "_", name)


def _builder(spec: TfdsSpec):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(spec.name, data_dir=spec.data_dir)
    except Exception as error:  # TFDS has many kinds for this
        raise UserError(f"tfds:{spec.name}: TFDS cannot make this dataset: {error}") from error


def _prepare(builder, spec: TfdsSpec) -> None:
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise UserError(
            f"tfds:{spec.name}: the data are not prepared and cannot be downloaded ({error}). "
            f"Prepare them with `tfds build {spec.name}` where there is a network, and copy them "
            f"to {builder.data_dir}."
        ) from error


def _feature(features, kind: type, usual: str) -> str | None:
    """The feature of a kind: the one with the usual name, else the first."""
    names = [name for name, feature in features.items() if isinstance(feature, kind)]
    return usual if usual in names else next(iter(names), None)


def _write(builder, spec: TfdsSpec, split: str, directory: str) -> None:
    import tensorflow_datasets as tfds

    name, features = spec.name, builder.info.features
    image = _feature(features, tfds.features.Image, "image")
    if image is None:
        raise UserError(f"tfds:{name} has no image; it has {', '.join(features)}.")
    label = _feature(features, tfds.features.ClassLabel, "label")
    names = features[label].names if label else []
    if spec.label:
        names, label_of = LABELS[spec.label]
    log.info("writing tfds:%s, split %s, to %s", name, split, directory)
    dataset = builder.as_dataset(
        split=split,
        decoders={image: tfds.decode.SkipDecoding()},
        # One shard after the other: what TFDS's slices mean.
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
    )

    def class_of(item: dict[str, Any], number: int) -> int | None:
        if spec.label:
            try:
                return label_of(item)
            except (KeyError, ValueError) as error:
                raise UserError(
                    f"tfds:{name}/{split}/{number} has no label {spec.label!r}: {error}."
                ) from error
        return int(item[label]) if label and item[label] >= 0 else None

    def payloads() -> Iterator[bytes]:
        for number, item in enumerate(dataset.as_numpy_iterator()):
            index, where = class_of(item, number), f"{name}/{split}/{number}"
            text = names[index] if index is not None else ""
            try:
                yield image_example(item[image], index, text, where)
            except UserError as error:
                log.warning("kept as it is: %s", error)
                # Those who read it see that it cannot be decoded; the others keep their numbers.
                yield image_example(b"\xff\xd8" + item[image], index, text, where)

    shard = shard_name("images", 0, 1)
    count = tfrecord.write_shard(os.path.join(directory, shard), payloads())
    DatasetInfo(
        name=builder.info.name,
        splits={split: SplitInfo(num_examples=count, shards=[shard])},
        modalities=("video", "label") if names else ("video",),
        num_classes=len(names),
        class_names=list(names),
        num_frames=1,
        source={"tfds": builder.info.full_name, "split": split},
    ).save(directory)
