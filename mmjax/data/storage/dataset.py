"""A dataset is a folder: shards, their indexes, and `dataset.json` that says what is in them.

Folders without `dataset.json`, as DMVR and TFDS write them, work too: splits come from the names of
the shards, and what the records hold from the first one.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data.storage import lazy_frames, schema, tfrecord
from mmjax.errors import UserError, unknown

FILE = "dataset.json"
_SHARD = re.compile(r"^(?P<name>.+)-(?P<shard>\d+)-of-(?P<shards>\d+)(?P<suffix>\.tfrecords?)?$")
_FORMAT = 1

log = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class SplitInfo:
    """What `dataset.json` says of a split; `shards` are file names relative to the folder."""

    num_examples: int
    shards: list[str]


@dataclasses.dataclass(kw_only=True)
class DatasetInfo:
    """What a dataset holds. Zero, empty or None means not known, or not present.

    Attributes:
      name: how people call it.
      description: a sentence.
      splits: by name as in the names of the shards: 'train1+test2' holds the records that are both
        in the split train1 and in the split test2, so that a record lies on disk once however
        many splits it is in.
      modalities: which of `schema.MODALITIES` the examples have.
      num_classes: labels are in [0, num_classes).
      class_names: by class number.
      multi_label: examples may have several labels.
      num_frames: frames of an example, if all have the same number.
      frame_size: (height, width) of the stored frames, if all have the same.
      fps: frames per second of the stored frames.
      num_samples: samples of a waveform, if all have the same number.
      sample_rate: samples per second of the waveforms.
      waveform_format: 'float32', or 'int32' for shards to be repaired (`schema.is_int32_waveform`).
      vocabulary: a file of words in the folder, one per line, or ''.
      statistics: anything measured when the dataset was built.
      source: what it was built from: command, configuration, licence.
    """

    name: str
    description: str = ""
    splits: dict[str, SplitInfo] = dataclasses.field(default_factory=dict)
    modalities: tuple[str, ...] = ()
    num_classes: int = 0
    class_names: list[str] = dataclasses.field(default_factory=list)
    multi_label: bool = False
    num_frames: int = 0
    frame_size: tuple[int, int] | None = None
    fps: float = 0.0
    num_samples: int = 0
    sample_rate: float = 0.0
    waveform_format: str = "float32"
    vocabulary: str = ""
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: dict[str, Any] = dataclasses.field(default_factory=dict)

    def stored(self, split: str) -> list[str]:
        """The names in `splits` whose records make up a split, by alphabet; [] if there is none."""
        return sorted(name for name in self.splits if split in (name, *split_members(name)))

    def split_sizes(self) -> dict[str, int]:
        """{split: number of examples}; 'train1+test2' counts in both; train2 comes before test1."""
        sizes: dict[str, int] = {}
        for name, split in self.splits.items():
            for member in split_members(name):
                sizes[member] = sizes.get(member, 0) + split.num_examples
        kinds = list(dict.fromkeys(name.rstrip(string.digits) for name in sizes))
        order = sorted(sizes, key=lambda name: (kinds.index(name.rstrip(string.digits)), name))
        return {name: sizes[name] for name in order}

    def save(self, directory: str | os.PathLike) -> None:
        """Writes `dataset.json`, atomically."""
        path = os.path.join(directory, FILE)
        temporary = f"{path}.tmp-{os.getpid()}"
        with open(temporary, "w") as file:
            json.dump({"format": _FORMAT} | dataclasses.asdict(self), file, indent=1)
            file.write("\n")
        os.replace(temporary, path)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> DatasetInfo:
        """Reads `dataset.json`; UserError if it is not what `save` writes."""
        path = os.path.join(directory, FILE)
        try:
            with open(path) as file:
                fields = json.load(file)
            if fields.pop("format") != _FORMAT:
                raise UserError(f"{path} was written by another version of mmjax.")
            known = {field.name for field in dataclasses.fields(cls)}
            for key in fields.keys() - known:
                raise unknown(f"key in {path}", key, known)
            fields["splits"] = {k: SplitInfo(**v) for k, v in fields.get("splits", {}).items()}
            fields["modalities"] = tuple(fields.get("modalities", ()))
            if fields.get("frame_size"):
                fields["frame_size"] = tuple(fields["frame_size"])
            info = cls(**fields)
        except UserError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}: {error}). Write it again "
                f"with `mmjax index {os.fspath(directory)}`, or remove it: the dataset is then "
                "read by its shards' names."
            ) from error
        if info.waveform_format not in ("float32", "int32"):
            raise unknown(f"waveform_format in {path}", info.waveform_format, ("float32", "int32"))
        return info


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of a split.

    Attributes:
      name: of the split.
      files: the shards, absolute or relative as the folder was given.
      index: int64 [N, 3]: file number, offset and length of each payload.
      first: int64 [len(files)]: the number in the split of each file's first record.
    """

    name: str
    files: list[str]
    index: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def read(self, record: int, *, check_crc: bool = True) -> bytes:
        """The payload of a record; errors as in `records.read_record`. Thread safe."""
        with self._borrowed(record, check_crc) as payload:
            return bytes(payload)

    def read_without(self, key: str, record: int, *, check_crc: bool = True) -> bytes:
        """As `read`, with references in place of the values of the feature list `key`."""
        file, offset, _ = (int(value) for value in self.index[record])
        with self._borrowed(record, check_crc) as payload:
            return lazy_frames.shorten(payload, key, file=file, offset=offset)

    def resolve(self, values: Sequence[bytes]) -> list[bytes]:
        """What references of `read_without` refer to; other values as they are. Thread safe."""
        found, opened = [], {}
        try:
            for value in values:
                if reference := lazy_frames.parse(value):
                    file, offset, length = reference
                    if file not in opened:
                        opened[file] = os.open(self.files[file], os.O_RDONLY)
                    value = os.pread(opened[file], length, offset)
                found.append(value)
        finally:
            for descriptor in opened.values():
                os.close(descriptor)
        return found

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
      path: the folder.

    Attributes:
      path: as given.
      info: what the dataset holds.

    Raises:
      UserError: a folder that does not exist or has no shards, or a bad `dataset.json`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.path.expanduser(os.fspath(path))
        if not os.path.isdir(self.path):
            raise UserError(
                f"There is no dataset at {self.path}: not a folder. Build one with `mmjax "
                "build`, or use the built-in `world`."
            )
        self._splits: dict[str, Split] = {}
        if os.path.exists(os.path.join(self.path, FILE)):
            self._shards = None
            self.info = DatasetInfo.load(self.path)
            if not self.info.splits:
                raise UserError(f"{os.path.join(self.path, FILE)} lists no splits.")
        else:
            self._shards = find_shards(self.path)
            self.info = self._infer()

    def split(self, name: str) -> Split:
        """The records of a split.

        Args:
          name: a split: the shards of that name and, in alphabetical order, of all names that
            mention it between '+'. Also DMVR's `name@N`, which demands N shards.

        Raises:
          UserError: no such split (the message lists what there is), a missing or surplus
            shard, an empty split, or another number of examples than `dataset.json` says. Errors of
            indexes: `records.read_index`.
        """
        if name not in self._splits:
            self._splits[name] = self._load(name)
        return self._splits[name]

    def _load(self, name: str) -> Split:
        base, _, wanted = name.partition("@")
        stored = self.info.stored(base)
        if not stored or (wanted and not wanted.isdigit()):
            names = self.info.split_sizes()
            there_is = ", ".join(f"{s} ({len(self._files(s))} shards)" for s in names)
            raise UserError(
                f"{self.path} has no shards for the split {name!r}. It has: {there_is}."
            )
        files = self._files(base)
        if wanted and len(files) != int(wanted):
            raise UserError(
                f"{self.path}: {name!r} asks for {wanted} shards; there are {len(files)}."
            )
        missing = [file for file in files if not os.path.exists(file)]
        if missing:
            raise UserError(
                f"{self.path}: {len(missing)} of {len(files)} shards of {base!r} are missing, "
                f"first {os.path.basename(missing[0])}. Copy the dataset again, or build it again."
            )
        indexes = [tfrecord.read_index(file) for file in files]
        counts = np.array([len(index) for index in indexes], np.int64)
        rows = np.concatenate(indexes)
        if not len(rows):
            raise UserError(
                f"{self.path}: the split {base!r} is empty: its {len(files)} shards hold no record."
            )
        promised = sum(self.info.splits[name].num_examples for name in stored)
        if self._shards is None and len(rows) != promised:
            raise UserError(
                f"{self.path}: {FILE} promises {promised} examples in {base!r}, the shards hold "
                f"{len(rows)}. If the shards are right, run `mmjax index {self.path}`."
            )
        numbers = np.repeat(np.arange(len(files), dtype=np.int64), counts)
        return Split(
            name=base,
            files=files,
            index=np.concatenate([numbers[:, None], rows], axis=1),
            first=np.cumsum(counts) - counts,
        )

    def _files(self, split: str) -> list[str]:
        names = self.info.stored(split)
        return [os.path.join(self.path, s) for name in names for s in self.info.splits[name].shards]

    def _infer(self) -> DatasetInfo:
        """Info from the shards alone; the first record there is speaks for all."""
        info = DatasetInfo(name=os.path.basename(os.path.normpath(self.path)))
        info.splits = {
            split: SplitInfo(num_examples=0, shards=shards)
            for split, shards in self._shards.items()
        }
        for split in info.splits:
            info.splits[split].num_examples = sum(
                len(tfrecord.read_index(os.path.join(self.path, shard)))
                for shard in self._shards[split]
            )
        full = next((s for s, split in info.splits.items() if split.num_examples), None)
        if full is None:
            raise UserError(f"The dataset at {self.path} is empty: its shards hold no record.")
        self.info = info
        payload = self.split(full).read(0)
        first = schema.decode(payload, waveform_format="unchecked")
        if first.waveform is not None and schema.is_int32_waveform(first.waveform):
            log.warning("%s: %s Repairing it on reading.", self.path, schema.INT32_DEFECT)
            info.waveform_format = "int32"
        info.modalities = first.modalities
        info.fps, info.sample_rate = first.frame_rate, first.sample_rate
        return info


def find_shards(directory: str | os.PathLike) -> dict[str, list[str]]:
    """{split: shard names relative to the folder, in order}, from names alone.

    `train-00000-of-00010`, with or without `.tfrecord`, belongs to `train`; any name in a
    subfolder, such as `train/clips-00000-of-00010`, to the subfolder's split if that holds one set
    of shards, else to `train/clips`; TFDS's `name-train.tfrecord-00000-of-00010` to `name-train`.

    Raises:
      UserError: no shards at all, or a split that lacks some or mixes two numbers of shards.
    """
    directory = os.fspath(directory)
    found: dict[tuple[str, str], dict[int, list[tuple[int, str]]]] = {}
    subfolders = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    for sub in ["", *sorted(subfolders)]:
        for file in sorted(os.listdir(os.path.join(directory, sub))):
            if match := _SHARD.match(file):
                name = re.sub(r"\.tfrecords?$", "", match["name"])
                sets = found.setdefault((sub, name), {})
                sets.setdefault(int(match["shards"]), []).append(
                    (int(match["shard"]), os.path.join(sub, file))
                )
    if not found:
        names = sorted(os.listdir(directory))[:8]
        raise UserError(
            f"The dataset at {directory} is empty: no file is named like "
            f"train-00000-of-00010.tfrecord. It holds: {', '.join(names) or 'nothing'}. Folders of "
            "labeled images are named images:FOLDER, tables csv:FILE, arrays npz:FILE."
        )
    result = {}
    for (sub, name), sets in found.items():
        alone = sum(other == sub for other, _ in found) == 1
        split = (sub if alone else f"{sub}/{name}") if sub else name
        if len(sets) > 1:
            counts = " and ".join(f"{len(shards)} of {n}" for n, shards in sorted(sets.items()))
            raise UserError(
                f"{directory}: the shards of {split!r} come from several builds ({counts}). "
                "Remove the old ones."
            )
        ((count, shards),) = sets.items()
        missing = sorted(set(range(count)) - {number for number, _ in shards})
        if missing:
            some = ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else "")
            raise UserError(
                f"{directory}: of the {count} shards of {split!r} these are missing: {some}."
            )
        result[split] = [file for _, file in sorted(shards)]
    return result


def split_members(name: str) -> list[str]:
    """The splits that shards of this name belong to: 'train1+test2' to train1 and test2."""
    directory, slash, names = name.rpartition("/")
    return [f"{directory}{slash}{member}" for member in names.split("+")]


def shard_name(split: str, shard: int, num_shards: int) -> str:
    """The file name of a shard as this library writes it."""
    return f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"


def describe(info: DatasetInfo) -> str:
    """One line for logs."""
    sizes = info.split_sizes()
    splits = ", ".join(f"{name} {count}" for name, count in sizes.items())
    total = sum(split.num_examples for split in info.splits.values())
    if total < sum(sizes.values()):
        splits += f" ({total} in all)"
    return f"{info.name}: {splits} examples of {', '.join(info.modalities) or 'nothing known'}"
