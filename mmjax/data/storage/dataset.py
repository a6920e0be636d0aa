"""Dataset directories: shards, their indexes, and `dataset.json` with a description of the content.

Directories without `dataset.json`, as DMVR and TFDS write them, can be read too. Their splits are
inferred from the names of the shards, and their modalities from the first record.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import reprlib
import string
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax import files
from mmjax.data.storage import lazy_frames, schema, tfrecord
from mmjax.errors import UserError, check_choice

FILE = "dataset.json"
FORMAT = 1  # version of dataset.json that this version writes, and the latest one that it reads
_SHARD = re.compile(r"^(?P<name>.+)-(?P<shard>\d+)-of-(?P<shards>\d+)(?P<suffix>\.tfrecords?)?$")

log = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class SplitInfo:
    """The entry of a split in `dataset.json`.

    Attributes:
      num_examples: Number of records in all shards.
      shards: File names relative to the dataset directory, in order.
    """

    num_examples: int
    shards: list[str]


@dataclasses.dataclass(kw_only=True)
class DatasetInfo:
    """Description of a dataset. Zero, empty or None means unknown or not present.

    Attributes:
      name: Name of the dataset.
      description: One sentence.
      splits: Splits by name, as in the file names of their shards. 'train1+test2' contains the
        records that are in both splits train1 and test2, so a record is stored once even if it is
        in several splits.
      modalities: The modalities that the examples have, from `mmjax.modalities.STORED`.
      num_classes: Labels are in [0, num_classes).
      class_names: Names by class index.
      multi_label: Whether examples may have several labels.
      mask_classes: Class names of segmentation masks by value; the value 255 means no class.
      num_frames: Frames per example, if all examples have the same number.
      frame_size: (height, width) of the stored frames, if all have the same size.
      fps: Frames per second of the stored frames.
      num_samples: Samples per waveform, if all have the same number.
      sample_rate: Samples per second of the waveforms.
      waveform_format: 'float32', or 'int32' for shards to repair; see `schema.is_int32_waveform`.
      vocabulary: File in the directory with one token per line, or ''.
      statistics: Measurements made when the dataset was built.
      source: What the dataset was built from: command, config, license.
    """

    name: str
    description: str = ""
    splits: dict[str, SplitInfo] = dataclasses.field(default_factory=dict)
    modalities: tuple[str, ...] = ()
    num_classes: int = 0
    class_names: list[str] = dataclasses.field(default_factory=list)
    multi_label: bool = False
    mask_classes: list[str] = dataclasses.field(default_factory=list)
    num_frames: int = 0
    frame_size: tuple[int, int] | None = None
    fps: float = 0.0
    num_samples: int = 0
    sample_rate: float = 0.0
    waveform_format: str = "float32"
    vocabulary: str = ""
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: dict[str, Any] = dataclasses.field(default_factory=dict)

    def stored_splits(self, split: str) -> list[str]:
        """Returns the sorted names in `splits` whose records make up a split; [] if none do."""
        return sorted(name for name in self.splits if split in (name, *split_members(name)))

    def split_sizes(self) -> dict[str, int]:
        """Returns {split: number of examples}.

        Records of 'train1+test2' count in both splits. Numbered splits are sorted, and types of
        splits keep the order in which they first occur, so train2 comes before test1.
        """
        sizes: dict[str, int] = {}
        for name, split in self.splits.items():
            for member in split_members(name):
                sizes[member] = sizes.get(member, 0) + split.num_examples
        prefixes = list(dict.fromkeys(name.rstrip(string.digits) for name in sizes))
        order = sorted(sizes, key=lambda name: (prefixes.index(name.rstrip(string.digits)), name))
        return {name: sizes[name] for name in order}

    def save(self, directory: str | os.PathLike) -> None:
        """Writes `dataset.json` atomically."""
        content = {"format": FORMAT} | dataclasses.asdict(self)
        files.write_json(os.path.join(directory, FILE), content, indent=1)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> DatasetInfo:
        """Reads `dataset.json`.

        Raises:
          UserError: The file is damaged, has an unknown key or a value of the wrong type, or was
            written by a newer version of mmjax.
        """
        path = os.path.join(directory, FILE)
        advice = f"Write it again with `mmjax index {os.fspath(directory)}`."
        content = files.read_object(path, advice)
        version = content.pop("format", None)
        if type(version) is not int or version < 1:
            raise UserError(
                f'{path}: the format version, "format", is {version!r}; expected an integer from '
                f"1 to {FORMAT}. {advice}"
            )
        if version > FORMAT:
            raise UserError(
                f"{path} has format version {version}, but this version of mmjax reads versions up "
                f"to {FORMAT}. Install a newer version of mmjax, or build the dataset again."
            )
        info = _parse(cls, content, path, advice)
        check_choice(f"waveform_format in {path}:", info.waveform_format, ("float32", "int32"))
        return info


def _parse(cls: Any, content: dict[str, Any], where: str, advice: str) -> Any:
    """Returns a JSON object as an instance of a dataclass."""
    hints = typing.get_type_hints(cls)
    for key in content:
        check_choice(f"key in {where}:", key, hints)
    for field in dataclasses.fields(cls):
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in content:
            raise UserError(f"{where}: the key {field.name!r} is missing. {advice}")
    return cls(
        **{
            key: _convert(hints[key], value, f"{where}: {key}", advice)
            for key, value in content.items()
        }
    )


_JSON_NAMES = {
    **{str: "a string", bool: "true or false", int: "an integer", float: "a number"},
    **{list: "an array", tuple: "an array", dict: "an object", SplitInfo: "an object"},
}


def _convert(hint: Any, value: Any, where: str, advice: str) -> Any:
    """Returns a JSON value as the type that a field of a dataclass is annotated with."""
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return None if value is None else _convert(arguments[0], value, where, advice)
    target = typing.get_origin(hint) or hint
    if target is Any:
        return value
    json_type = {tuple: list, SplitInfo: dict, float: (int, float)}.get(target, target)
    valid = isinstance(value, json_type) and (target is bool or not isinstance(value, bool))
    if valid and target is tuple and Ellipsis not in arguments:
        valid = len(value) == len(arguments)
    if not valid:
        raise UserError(
            f"{where} must be {_JSON_NAMES[target]}; got {reprlib.repr(value)}. {advice}"
        )
    if target is SplitInfo:
        return _parse(target, value, where, advice)
    if target is dict:
        hint = arguments[1]
        return {key: _convert(hint, item, f"{where}.{key}", advice) for key, item in value.items()}
    if target in (list, tuple):
        hint = arguments[0]
        items = (_convert(hint, item, f"{where}[{n}]", advice) for n, item in enumerate(value))
        return target(items)
    return value


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of a split.

    Attributes:
      name: Name of the split.
      files: The shards, relative to the working directory if the dataset's path is.
      index: int64 [N, 3]: for each record, the index of its file, and the offset and length of its
        payload.
      first: int64 [len(files)]: Index of each file's first record in the split.
    """

    name: str
    files: list[str]
    index: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def where(self, record: int) -> str:
        """Returns the location of a record for messages: the shard, and the index in the shard."""
        file = int(self.index[record, 0])
        return f"{self.files[file]}, record {record - int(self.first[file])}"

    def read(self, record: int, *, check_crc: bool = True) -> bytes:
        """Returns the payload of a record; raises as `tfrecord.read_record`. Thread-safe."""
        with self._borrowed(record, check_crc) as payload:
            return bytes(payload)

    def read_without(self, key: str, record: int, *, check_crc: bool = True) -> bytes:
        """Returns a payload with the values of the feature list `key` replaced by references."""
        file, offset, _ = (int(value) for value in self.index[record])
        with self._borrowed(record, check_crc) as payload:
            return lazy_frames.shorten(payload, key, file=file, offset=offset)

    def resolve(self, values: Sequence[bytes]) -> list[bytes]:
        """Returns values with references of `read_without` replaced by their bytes. Thread-safe."""
        result, descriptors = [], {}
        try:
            for value in values:
                if reference := lazy_frames.parse(value):
                    file, offset, length = reference
                    if file not in descriptors:
                        descriptors[file] = os.open(self.files[file], os.O_RDONLY)
                    value = os.pread(descriptors[file], length, offset)
                result.append(value)
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)
        return result

    def _borrowed(self, record: int, check_crc: bool):
        file, offset, length = (int(value) for value in self.index[record])
        return tfrecord.borrowed_record(
            self.files[file],
            offset,
            length,
            check_crc=check_crc,
            record=int(record - self.first[file]),
        )


class DatasetDir:
    """A dataset on disk.

    Args:
      path: The dataset directory; '~' is expanded.

    Attributes:
      path: The dataset directory.
      info: Description of the content.

    Raises:
      UserError: The directory does not exist or has no shards, or `dataset.json` is invalid.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.path.expanduser(os.fspath(path))
        if not os.path.isdir(self.path):
            raise UserError(
                f"Dataset directory {self.path} does not exist or is not a directory. Build a "
                "dataset with `mmjax build`, or use the built-in `world`."
            )
        self._splits: dict[str, Split] = {}
        json_path = os.path.join(self.path, FILE)
        self._has_json = os.path.exists(json_path)
        self.info = DatasetInfo.load(self.path) if self._has_json else self._infer()
        if not self.info.splits:
            raise UserError(
                f"{json_path} lists no splits. Write it again with `mmjax index {self.path}`, "
                "which lists the shards in the directory."
            )

    def split(self, name: str) -> Split:
        """Returns the records of a split.

        Args:
          name: A split: the shards of that name and, in alphabetical order, of all names that
            contain it between '+'. DMVR's `name@N` additionally requires exactly N shards.

        Raises:
          UserError: The split does not exist or is empty, a shard is missing, the number of shards
            is not N, or `dataset.json` gives another number of examples. Errors of indexes are
            those of `tfrecord.read_index`.
        """
        if name not in self._splits:
            base, _, num_shards = name.partition("@")
            if not self.info.stored_splits(base) or (num_shards and not num_shards.isdigit()):
                splits = ", ".join(
                    f"{split} ({len(self._files(split))} shards)"
                    for split in self.info.split_sizes()
                )
                raise UserError(f"{self.path} has no split {name!r}. Its splits: {splits}.")
            files = self._files(base)
            if num_shards and len(files) != int(num_shards):
                raise UserError(
                    f"{self.path}: the split {name!r} requires {num_shards} shards, but {base} has "
                    f"{len(files)}."
                )
            self._splits[name] = self._open(base, files)
        return self._splits[name]

    def _open(self, split: str, files: list[str]) -> Split:
        missing = [file for file in files if not os.path.isfile(file)]
        if missing:
            raise UserError(
                f"{self.path}: {len(missing)} of {len(files)} shards of {split!r} are missing. The "
                f"first is {os.path.basename(missing[0])}. Copy or build the dataset again."
            )
        indexes = [tfrecord.read_index(file) for file in files]
        counts = np.array([len(index) for index in indexes], np.int64)
        locations = np.concatenate(indexes)
        if not len(locations):
            raise UserError(
                f"{self.path}: the split {split!r} is empty: its {len(files)} shards contain no "
                "records. Build the dataset again."
            )
        expected = sum(
            self.info.splits[name].num_examples for name in self.info.stored_splits(split)
        )
        if self._has_json and len(locations) != expected:
            raise UserError(
                f"{self.path}: {FILE} lists {expected} examples in {split!r}, but the shards "
                f"contain {len(locations)}. If the shards are right, run `mmjax index {self.path}`."
            )
        file_numbers = np.repeat(np.arange(len(files), dtype=np.int64), counts)
        return Split(
            name=split,
            files=files,
            index=np.concatenate([file_numbers[:, None], locations], axis=1),
            first=np.cumsum(counts) - counts,
        )

    def _files(self, split: str) -> list[str]:
        names = self.info.stored_splits(split)
        return [os.path.join(self.path, s) for name in names for s in self.info.splits[name].shards]

    def _infer(self) -> DatasetInfo:
        """Returns a description derived from the shards and the first record."""
        self.info = info = DatasetInfo(name=os.path.basename(os.path.normpath(self.path)))
        for split, shards in find_shards(self.path).items():
            counts = [len(tfrecord.read_index(os.path.join(self.path, name))) for name in shards]
            info.splits[split] = SplitInfo(num_examples=sum(counts), shards=shards)
        first = next((name for name, split in info.splits.items() if split.num_examples), None)
        if first is None:
            splits = ", ".join(
                f"{name!r} ({len(split.shards)} shards)" for name, split in info.splits.items()
            )
            raise UserError(
                f"The dataset at {self.path} is empty: the shards of {splits} contain no records. "
                "Copy or build the dataset again."
            )
        records = self.split(first)
        example = schema.decode(
            records.read(0), waveform_format="unchecked", where=records.where(0)
        )
        if example.waveform is not None and schema.is_int32_waveform(example.waveform):
            log.warning(
                "%s: %s They are repaired while reading as far as possible. In the first record: "
                "%s",
                self.path,
                schema.INT32_DEFECT,
                schema.describe_int32_loss(example.waveform) or "all samples can be repaired.",
            )
            info.waveform_format = "int32"
        info.modalities = example.modalities
        info.fps, info.sample_rate = example.frame_rate, example.sample_rate
        return info


def find_shards(directory: str | os.PathLike) -> dict[str, list[str]]:
    """Returns {split: shard names relative to the directory, in order}, based only on names.

    * `train-00000-of-00010`, with or without `.tfrecord`, belongs to `train`.
    * `train/clips-00000-of-00010` belongs to `train` if that is the subdirectory's only set of
      shards, and otherwise to `train/clips`.
    * TFDS's `name-train.tfrecord-00000-of-00010` belongs to `name-train`.

    Raises:
      UserError: There are no shards, or a split lacks shards or has shards of several builds.
    """
    directory = os.fspath(directory)
    # {(subdirectory, name): {number of shards: [(shard index, path)]}}
    sets: dict[tuple[str, str], dict[int, list[tuple[int, str]]]] = {}
    subdirectories = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    for sub in ["", *sorted(subdirectories)]:
        for file in sorted(os.listdir(os.path.join(directory, sub))):
            if match := _SHARD.match(file):
                name = re.sub(r"\.tfrecords?$", "", match["name"])
                by_count = sets.setdefault((sub, name), {})
                by_count.setdefault(int(match["shards"]), []).append(
                    (int(match["shard"]), os.path.join(sub, file))
                )
    if not sets:
        names = sorted(os.listdir(directory))[:8]
        raise UserError(
            f"The dataset at {directory} is empty: no file has a name like "
            f"train-00000-of-00010.tfrecord. Files: {', '.join(names) or 'none'}. Use images:DIR "
            "for directories of labeled images, csv:FILE for tables, and npz:FILE for arrays."
        )
    result = {}
    for (sub, name), by_count in sets.items():
        is_only_set = sum(other == sub for other, _ in sets) == 1
        split = (sub if is_only_set else f"{sub}/{name}") if sub else name
        result[split] = _complete_set(by_count, f"{directory}: the shards of {split!r}")
    return result


def _complete_set(by_count: dict[int, list[tuple[int, str]]], what: str) -> list[str]:
    """Returns the files of a set of shards in order.

    Args:
      by_count: {number of shards according to the file names: [(shard index, path)]}.
      what: Name of the set for error messages.
    """
    if len(by_count) > 1:
        builds = " and ".join(f"{len(shards)} of {n}" for n, shards in sorted(by_count.items()))
        raise UserError(f"{what} come from several builds ({builds}). Remove the old ones.")
    ((count, shards),) = by_count.items()
    missing = sorted(set(range(count)) - {index for index, _ in shards})
    if missing:
        some = ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else "")
        raise UserError(
            f"{what} are incomplete: {len(missing)} of {count} are missing (index {some}). Copy or "
            "build the dataset again."
        )
    return [file for _, file in sorted(shards)]


def split_members(name: str) -> list[str]:
    """Returns the splits that shards of this name belong to: 'a+b' belongs to 'a' and 'b'."""
    directory, slash, names = name.rpartition("/")
    return [f"{directory}{slash}{member}" for member in names.split("+")]


def shard_name(split: str, shard: int, num_shards: int) -> str:
    """Returns the file name under which this library writes a shard."""
    return f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"


def describe(info: DatasetInfo) -> str:
    """Returns a one-line summary for logs."""
    sizes = info.split_sizes()
    splits = ", ".join(f"{name} {count}" for name, count in sizes.items())
    total = sum(split.num_examples for split in info.splits.values())
    if total < sum(sizes.values()):
        splits += f" ({total} in total)"
    return f"{info.name}: {splits} examples of {', '.join(info.modalities) or 'unknown modalities'}"
