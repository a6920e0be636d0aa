"""The plan of a build, which assigns clips to shards; kept in the dataset until it is complete.

Clips are in the order of the table, in shards of a fixed number of clips. Each split, or
combination of splits such as train1+test2, has its own shards. So the bytes of a shard depend only
on the table, the options and the files, not on the machine or the process that builds it.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import glob
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from mmjax import files
from mmjax.data.build import cutting, manifest
from mmjax.data.build.examples import measure_duration
from mmjax.data.build.image_directory import unpack_hint
from mmjax.data.build.manifest import Clip
from mmjax.data.build.options import BuildOptions
from mmjax.data.storage import dataset, directories
from mmjax.errors import UserError

WORK_DIR = ".build"  # directory of a dataset with its plan and the reports of its shards
BAD_ROWS = "bad_rows.csv"
VOCABULARY = "vocab.txt"
_MASK_OPTIONS = ("mask_classes", "mask_values", "mask_ignore")
_NUM_CHECKED = 50  # at least one of this many first clips of the table must have a file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A shard to build.

    Attributes:
      name: File name.
      split: Name of its split, or several joined by '+'.
      clips: The clips in order.
    """

    name: str
    split: str
    clips: list[Clip]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything that a build needs to know.

    Attributes:
      options: Options of the build.
      clips: All clips, cut and assigned to splits.
      classes: Class indices by name; empty if labels are indices themselves.
      key: Hash of the table and the options; see `plan_key`.
      table: The table, for messages; '' for a directory of images.
    """

    options: BuildOptions
    clips: list[Clip]
    classes: dict[str, int]
    key: str
    table: str = ""

    def shards(self) -> list[Shard]:
        """Returns all shards; splits are in the order in which the table mentions them."""
        by_split: dict[str, list[Clip]] = {}
        for clip in self.clips:
            by_split.setdefault(clip.split, []).append(clip)
        shards = []
        for split, clips in by_split.items():
            size = self.options.clips_per_shard
            count = -(-len(clips) // size)
            for k in range(count):
                name = dataset.shard_name(split, k, count)
                shards.append(Shard(name=name, split=split, clips=clips[k * size : (k + 1) * size]))
        return shards


def make_plan(
    clips: Sequence[Clip],
    options: BuildOptions,
    *,
    media_root: str,
    class_names: Sequence[str] | None = None,
    table: str = "",
    workers: int = 8,
    progress: bool = True,
) -> BuildPlan:
    """Returns the plan for the clips of a table: cuts them, assigns splits and class indices.

    Args:
      clips: The clips of the table.
      options: Options of the build.
      media_root: Directory that paths are relative to.
      class_names: See `manifest.number_labels`.
      table: The table, for messages; '' for a directory of images.
      workers: Number of threads that read the durations of files, if they are needed.
      progress: Whether to show a progress bar.

    Raises:
      UserError: None of the first files exists, an option would mix the splits of the table, a
        label is not one of the classes, or a whole file cannot be split by time.
    """
    _check_files_exist(clips, media_root, table)
    _check_split_options(clips, options, table)
    key = plan_key(clips, options, class_names)
    if options.by_file:
        clips = cutting.split_by_file(clips, options.by_file)
    if options.clip_seconds or options.by_time:
        paths = list(dict.fromkeys(path for clip in clips for path in (clip.path, clip.audio)))
        paths = [path for path in paths if path]
        measure = functools.partial(measure_duration, media_root=media_root, options=options)
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            bar = tqdm(pool.map(measure, paths), "durations", len(paths), disable=not progress)
            durations = {path: d for path, d in zip(paths, bar, strict=True) if d is not None}
        clips = cutting.cut(
            clips,
            durations=durations,
            clip_seconds=options.clip_seconds,
            by_time=options.by_time,
            table=table,
        )
    clips, classes = manifest.number_labels(clips, class_names, table=table)
    return BuildPlan(options=options, clips=clips, classes=classes, key=key, table=table)


def _check_files_exist(clips: Sequence[Clip], media_root: str, table: str) -> None:
    paths = [os.path.join(media_root, clip.file) for clip in clips[:_NUM_CHECKED]]
    if not any(os.path.exists(directories.existing_path(path)) for path in paths):
        directory = os.path.dirname(paths[0])
        existing = directories.list_files(directory) if os.path.isdir(directory) else []
        raise UserError(
            f"None of the first {len(paths)} media files exists. {clips[0].location(table)} refers "
            f"to {paths[0]}. Paths are relative to the directory of the table, or to --media-root."
            f"{unpack_hint(existing)}"
        )


def _check_split_options(clips: Sequence[Clip], options: BuildOptions, table: str) -> None:
    names = sorted({clip.split for clip in clips})
    if (options.by_file or options.by_time) and len(names) > 1:
        raise UserError(
            f"{table or 'The directory of images'} already has the splits {', '.join(names)}, "
            "which --split-by-file or --split-by-time would mix. Remove the option, or the splits."
        )


def plan_key(
    clips: Sequence[Clip], options: BuildOptions, class_names: Sequence[str] | None = None
) -> str:
    """Returns a hash of the table and of all options that determine the bytes of a dataset."""
    rows = [_values(clip) for clip in clips]
    contents = [_option_values(options), list(class_names or ()), rows]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16]


def prepare(
    out: str,
    clips: Sequence[Clip],
    options: BuildOptions,
    *,
    media_root: str,
    class_names: Sequence[str] | None = None,
    table: str = "",
    overwrite: bool = False,
    workers: int = 8,
    progress: bool = True,
) -> BuildPlan:
    """Returns the plan in a dataset directory, or makes and writes a new one.

    Args:
      out: The dataset.
      clips: See `make_plan`, also for the other arguments that are not listed here.
      options: See `make_plan`.
      media_root: See `make_plan`.
      class_names: See `make_plan`.
      table: See `make_plan`.
      overwrite: Whether to remove a different dataset in `out`.
      workers: See `make_plan`.
      progress: See `make_plan`.

    Raises:
      UserError: The directory contains a different dataset, or for the reasons of `make_plan`.
    """
    if os.path.isfile(out):
        raise UserError(f"--out {out} must be a directory; this is a file.")
    path = _plan_path(out)
    try:
        existing = read_json(path)
    except UserError as error:
        if not overwrite:
            raise UserError(f"{error} Build the dataset again with --overwrite.") from error
        existing = {}
    same = isinstance(existing, dict) and existing.get("key")
    if same and same == plan_key(clips, options, class_names):
        return load_plan(out)
    pattern = os.path.join(glob.escape(out), "*-of-*")
    obsolete = [*glob.glob(pattern), *([path] if existing is not None else [])]
    if obsolete and not overwrite:
        raise UserError(
            f"--out {out} contains a dataset that was built from a different table or with "
            "different options. Choose another directory, or replace it with --overwrite."
        )
    plan = make_plan(
        clips,
        options,
        media_root=media_root,
        class_names=class_names,
        table=table,
        workers=workers,
        progress=progress,
    )
    for name in (dataset.FILE, VOCABULARY, BAD_ROWS):
        obsolete += glob.glob(os.path.join(glob.escape(out), name))
    for file in obsolete:
        os.remove(file)
    contents = {
        "key": plan.key,
        "table": plan.table,
        "options": dataclasses.asdict(plan.options),
        "classes": plan.classes,
        "clips": [_values(clip) for clip in plan.clips],
    }
    files.write_json(path, contents, indent=None)
    return plan


def load_plan(out: str) -> BuildPlan:
    """Returns the plan in a dataset directory.

    Raises:
      UserError: The directory has no plan, or one of another version of mmjax.
    """
    contents = read_json(_plan_path(out))
    if contents is None:
        raise UserError(
            f"--out {out} contains no plan of `mmjax build`. Build the dataset without --finalize "
            "first, or pass the directory of the build."
        )
    names = [field.name for field in dataclasses.fields(Clip)]
    try:
        clips = []
        for values in contents["clips"]:
            missing = [""] * (len(names) - len(values))  # see `_values`
            clip = dict(zip(names, [*values, *missing], strict=True))
            clip |= {name: tuple(clip[name]) for name in ("captions", "labels", "touch")}
            clip["crop"] = tuple(clip["crop"]) if clip["crop"] else None
            clips.append(Clip(**clip))
        options = contents["options"]
        options |= {name: tuple(map(tuple, options[name])) for name in ("by_time", "by_file")}
        options |= {
            name: tuple(options[name]) for name in _MASK_OPTIONS if options.get(name) is not None
        }
        return BuildPlan(
            options=BuildOptions(**options),
            clips=clips,
            classes=contents["classes"],
            key=contents["key"],
            table=contents["table"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{_plan_path(out)} is from another version of mmjax ({error!r}). Build the dataset "
            "again with --overwrite."
        ) from error


def _values(clip: Clip) -> tuple[Any, ...]:
    """Returns the fields of a clip, as before clips had audio files and masks if it has none."""
    values = dataclasses.astuple(clip)
    return values[: len(values) if clip.mask else -1 if clip.audio else -2]


def _option_values(options: BuildOptions) -> dict[str, Any]:
    """Returns the options, as before there were those of masks if they have their defaults."""
    values = dataclasses.asdict(options)
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    return {
        name: value
        for name, value in values.items()
        if name not in _MASK_OPTIONS or value != defaults[name]
    }


def _plan_path(out: str) -> str:
    return os.path.join(out, WORK_DIR, "plan.json")


def read_json(path: str) -> Any:
    """Returns the content of a JSON file, or None if it does not exist."""
    return files.read_json(path) if os.path.exists(path) else None
