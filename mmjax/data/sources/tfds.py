"""The source `tfds:NAME[,label=LABEL][,data_dir=DIRECTORY]`: image datasets of TFDS.

Each split is converted once to a dataset directory below $MMJAX_CACHE, in the order of the shards
of TFDS and with unchanged image files.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmjax import cache
from mmjax.data.sources.image_list import encoded_example, image_example
from mmjax.data.sources.split_slicing import match_split
from mmjax.data.storage import tfrecord
from mmjax.data.storage.dataset import FILE, DatasetInfo, SplitInfo, shard_name
from mmjax.errors import UserError, check_choice, unknown

log = logging.getLogger(__name__)

_OBJECT_COUNTS = (10, 3, 4, 5, 6, 7, 8, 9)  # class order of LGSSL's code


def _object_count(item: dict[str, Any]) -> int:
    """Returns the class of a CLEVR image: the number of its objects."""
    return _OBJECT_COUNTS.index(_num_objects(item))


def _num_objects(item: dict[str, Any]) -> int:
    return len(next(iter(item["objects"].values())))


# {LABEL: (class names, function from a TFDS item to its class index)}.
LABELS: dict[str, tuple[list[str], Callable[[dict[str, Any]], int]]] = {
    "objects": ([str(count) for count in _OBJECT_COUNTS], _object_count),
    # pyVTAB's: the class index is the number itself.
    "num_objects": ([str(count) for count in range(max(_OBJECT_COUNTS) + 1)], _num_objects),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSpec:
    """The part of a specification after `tfds:`.

    Attributes:
      name: TFDS name, optionally with configuration or version: `cifar10`, `imagenet2012:5.1.0`.
      label: Name in `LABELS` of the label to compute; '' uses the label of the dataset.
      data_dir: Directory in which TFDS stores its data; None for TFDS's default.
    """

    name: str
    label: str = ""
    data_dir: str | None = None

    @classmethod
    def parse(cls, text: str) -> TfdsSpec:
        """Parses `NAME[,label=LABEL][,data_dir=DIRECTORY]`; DIRECTORY may contain commas."""
        text, has_directory, directory = text.partition(",data_dir=")
        name, *settings = text.split(",")
        values = dict(setting.partition("=")[::2] for setting in settings)
        for key in values:
            if key != "label":
                raise unknown(f"setting in tfds:{name}", key, ("label", "data_dir"))
        if label := values.get("label", ""):
            check_choice(f"label in tfds:{name}", label, LABELS)
        data_dir = os.path.expanduser(directory) if has_directory else None
        return cls(name=name, label=label, data_dir=data_dir)


def tfds_splits(text: str) -> list[str]:
    """Returns the splits of a prepared TFDS dataset; [] if it is not prepared.

    Raises:
      UserError: TFDS does not have this dataset.
    """
    return list(_builder(TfdsSpec.parse(text)).info.splits)


def tfds_dir(text: str, *, split: str, any_order: bool = True) -> tuple[str, str]:
    """Returns `(dataset directory, name of the split)` of a TFDS dataset, converting it if needed.

    An image that cannot be decoded is stored unchanged and logged; `config.data.corrupt` applies
    when it is read.

    Args:
      text: The part of a specification after `tfds:`, see `TfdsSpec`.
      split: Name of a complete split, or a synonym.
      any_order: Whether the order of the records may differ from TFDS's. False for slices.

    Raises:
      UserError: An unknown dataset or split, a dataset without images, or data that are not
        prepared and cannot be downloaded.
    """
    spec = TfdsSpec.parse(text)
    builder = _builder(spec)
    known = match_split(split, builder.info.splits) or split
    # Earlier versions interleaved the records of several shards, in a directory without suffix.
    earlier = _cache_path(builder, spec, known)
    ordered = f"{earlier}-in-order"
    if os.path.exists(os.path.join(ordered, FILE)):
        return ordered, known
    if os.path.exists(os.path.join(earlier, FILE)):
        splits = builder.info.splits
        if any_order or known in splits and splits[known].num_shards == 1:
            return earlier, known
    # All processes of a training run start at once: one converts, the others wait.
    with cache.locked(f"{os.path.dirname(ordered)}-{_slug(builder.info.full_name)}.lock"):
        if os.path.exists(os.path.join(ordered, FILE)):
            return ordered, known
        _prepare(builder, spec)
        if (known := match_split(split, builder.info.splits)) is None:
            raise unknown(f"split of tfds:{spec.name}", split, builder.info.splits)
        _convert(builder, spec, known, ordered)
    return ordered, known


def earlier_slice(text: str, split: str) -> str:
    """Returns the directory of a slice that an earlier version of mmjax has converted, or ''."""
    spec = TfdsSpec.parse(text)
    directory = _cache_path(_builder(spec), spec, split)
    return directory if os.path.exists(os.path.join(directory, FILE)) else ""


def _cache_path(builder: Any, spec: TfdsSpec, split: str) -> str:
    label = f"-{spec.label}" if spec.label else ""
    name = _slug(f"{builder.info.full_name}-{split}") + label
    return os.path.join(cache.cache_dir(), "tfds", name)


def _slug(name: str) -> str:
    """Returns `name` with characters that file names may contain."""
    return re.sub(r"[^\w.-]+", "_", name)


def _builder(spec: TfdsSpec) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(spec.name, data_dir=spec.data_dir)
    except Exception as error:  # TFDS raises many types of errors here
        raise UserError(f"tfds:{spec.name}: TFDS cannot open this dataset: {error}") from error


def _prepare(builder: Any, spec: TfdsSpec) -> None:
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise UserError(
            f"tfds:{spec.name}: the data are not prepared, and the download failed ({error}). Run "
            f"`tfds build {spec.name}` on a machine with network access, and copy the result to "
            f"{builder.data_dir}."
        ) from error


def _find_feature(features: Any, feature_type: type, preferred: str) -> str | None:
    """Returns the name of a feature of this type: `preferred`, else the first, else None."""
    names = [name for name, feature in features.items() if isinstance(feature, feature_type)]
    return preferred if preferred in names else next(iter(names), None)


def _convert(builder: Any, spec: TfdsSpec, split: str, directory: str) -> None:
    """Writes a split as a dataset directory."""
    import tensorflow_datasets as tfds

    name, features = spec.name, builder.info.features
    image = _find_feature(features, tfds.features.Image, "image")
    if image is None:
        raise UserError(f"tfds:{name} has no images. Its features: {', '.join(features)}.")
    label = _find_feature(features, tfds.features.ClassLabel, "label")
    class_names = features[label].names if label else []
    class_of = lambda item: int(item[label]) if label and item[label] >= 0 else None  # noqa: E731
    if spec.label:
        class_names, class_of = LABELS[spec.label]
    log.info("Converting tfds:%s, split %s, to %s.", name, split, directory)
    dataset = builder.as_dataset(
        split=split,
        decoders={image: tfds.decode.SkipDecoding()},
        # One shard after the other: TFDS defines slices in this order.
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
    )
    payloads = _payloads(dataset, f"{name}/{split}", image, class_of, class_names)
    shard = shard_name("images", 0, 1)
    count = tfrecord.write_shard(os.path.join(directory, shard), payloads)
    DatasetInfo(
        name=builder.info.name,
        splits={split: SplitInfo(num_examples=count, shards=[shard])},
        modalities=("video", "label") if class_names else ("video",),
        num_classes=len(class_names),
        class_names=list(class_names),
        num_frames=1,
        source={"tfds": builder.info.full_name, "split": split},
    ).save(directory)


def _payloads(
    dataset: Any,
    name: str,
    image: str,
    class_of: Callable[[dict[str, Any]], int | None],
    class_names: Sequence[str],
) -> Iterator[bytes]:
    """Yields the items of a TFDS dataset as serialized records.

    Args:
      dataset: The dataset, with encoded images.
      name: Its name and split, for messages and file names.
      image: Name of the image feature.
      class_of: Returns the class index of an item, or None.
      class_names: Class names by index.
    """
    for index, item in enumerate(dataset.as_numpy_iterator()):
        where = f"{name}/{index}"
        try:
            label = class_of(item)
        except (KeyError, ValueError) as error:
            raise UserError(f"tfds:{where}: its label cannot be computed: {error}.") from error
        text = class_names[label] if label is not None else ""
        try:
            yield image_example(item[image], label, text, where)
        except UserError as error:
            log.warning("%s. It is stored unchanged.", error)
            # Decoding fails again when it is read; the other records keep their indices.
            data = item[image]
            is_encoded = data.startswith((b"\xff\xd8", b"\x89PNG"))
            yield encoded_example(data if is_encoded else b"\xff\xd8" + data, label, text, where)
