"""Builds a dataset from media files: the library function behind `mmjax build`.

`plan` makes a plan from a table, any number of processes build the shards of the plan (`shards`,
`runners`), and `finalize` completes the dataset.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Literal

from mmjax import files
from mmjax.cpus import available_cpus
from mmjax.data.build import finalize as finalizing
from mmjax.data.build import image_directory, manifest, masks, runners
from mmjax.data.build import plan as plans
from mmjax.data.build.options import BuildOptions
from mmjax.data.build.plan import BuildPlan
from mmjax.data.build.report import report
from mmjax.data.build.shards import ShardBuilder, unfinished
from mmjax.data.build.splits import parse_part
from mmjax.data.storage import coco_masks
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The clips to build a dataset from: a table or a directory of images.

    Attributes:
      csv: A table (.csv, .tsv, .jsonl, .parquet), or None.
      images: A directory with images in class directories, or None.
      masks: Segmentation masks of these images: a directory or a JSON file, see `masks.add_masks`.
        Subdirectories of the images are not classes then. None for no masks.
      media_root: Directory that paths are relative to (default: that of the table or images).
      separator: Separator of several captions or labels in one cell of the table.
      split: Split of rows that do not specify one.
      ignore_columns: Names or patterns of columns of the table to ignore.
    """

    csv: str | None = None
    images: str | None = None
    masks: str | None = None
    media_root: str | None = None
    separator: str = "|"
    split: str = "train"
    ignore_columns: Sequence[str] = ()

    def read(self) -> tuple[list[manifest.Clip], str]:
        """Returns `(clips, media root)`.

        Raises:
          UserError: Neither a table nor a directory is set, or it cannot be read.
        """
        if self.masks and not self.images:
            raise UserError(
                f"--masks {self.masks} needs --images. In a table, use the column 'mask'."
            )
        if self.csv:
            clips = manifest.read_table(
                self.csv,
                separator=self.separator,
                split=self.split,
                ignore_columns=self.ignore_columns,
            )
            return clips, self.media_root or os.path.dirname(os.path.abspath(self.csv))
        if self.images:
            clips = image_directory.read_image_directory(
                self.images, split=self.split, has_classes=not self.masks
            )
            if self.masks:
                clips = masks.add_masks(clips, self.masks)
            return clips, self.media_root or self.images
        raise UserError("Nothing to build. Pass --csv FILE, --images DIR or --finalize.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a build.

    Attributes:
      message: A description for the user.
      bad_fraction: Fraction of clips that could not be built; 0 for a part of a dataset.
    """

    message: str
    bad_fraction: float = 0.0


def build_dataset(
    out: str,
    source: Source,
    options: BuildOptions,
    *,
    classes: str | None = None,
    mask_classes: str | None = None,
    workers: int | None = None,
    on_error: Literal["skip", "fail"] = "skip",
    retry_bad: bool = False,
    overwrite: bool = False,
    part: str | None = None,
    runner: Literal["local", "beam"] = "local",
    beam_arguments: Sequence[str] = (),
    progress: bool = True,
) -> Result:
    """Builds a dataset, or the shards of it that are not finished.

    Args:
      out: The dataset.
      source: The clips.
      options: How clips are cut and stored.
      classes: A file with class names, one per line, in order.
      mask_classes: A file with the class names of masks, one per line, in order.
      workers: Number of processes (default: one per core).
      on_error: Whether to skip clips that cannot be built, or to fail.
      retry_bad: Whether to build shards again that have clips that could not be built.
      overwrite: Whether to replace a different dataset in `out`.
      part: 'I/N' to build only the I-th of N parts; run `finalize` after all parts.
      runner: Where shards are built: in processes of this machine, or by Apache Beam.
      beam_arguments: Pipeline arguments for Apache Beam.
      progress: Whether to show progress bars.

    Raises:
      UserError: The source, the options or, with on_error='fail', a media file is wrong.
    """
    clips, media_root = source.read()
    if mask_classes:
        names = _read_classes(mask_classes, "--mask-classes")
        options = dataclasses.replace(options, mask_classes=tuple(names))
    options = _with_mask_classes(options, source)
    index, count = parse_part(part, option="--shard")
    workers = workers or available_cpus()
    plan = plans.prepare(
        out,
        clips,
        options,
        media_root=media_root,
        class_names=_read_classes(classes, "--classes") if classes else None,
        table=source.csv or "",
        overwrite=overwrite,
        workers=4 * workers,
        progress=progress,
    )
    own = {shard.name for shard in plan.shards()[index::count]}
    shards = [s for s in unfinished(out, plan, retry_bad=retry_bad) if s.name in own]
    builder = ShardBuilder(
        out=os.path.abspath(out),
        media_root=os.path.abspath(media_root),
        options=plan.options,
        classes=plan.classes,
        key=plan.key,
        table=plan.table,
        on_error=on_error,
    )
    if runner == "beam":
        runners.run_beam(builder, shards, arguments=list(beam_arguments))
    else:
        runners.run_local(builder, shards, workers=workers, progress=progress)
    kept = len(own) - len(shards)
    lines = [f"Kept {kept} of {len(own)} shards, which were already built."] if kept else []
    if count > 1:
        lines.append(
            f"Built part {index} of {count}: {len(own)} shards. After all parts are built, run: "
            f"mmjax build --finalize --out {out}"
        )
        return Result(message="\n".join(lines))
    result = _finalize(out, plan)
    return dataclasses.replace(result, message="\n".join([*lines, result.message]))


def finalize(out: str) -> Result:
    """Completes a dataset after all its parts have been built.

    Raises:
      UserError: Shards are missing, or `out` is not a dataset that `mmjax build` has started.
    """
    return _finalize(out, plans.load_plan(out))


def _finalize(out: str, plan: BuildPlan) -> Result:
    bad = finalizing.finalize(out, plan)
    return Result(message=report(out, plan, bad), bad_fraction=len(bad) / len(plan.clips))


def _with_mask_classes(options: BuildOptions, source: Source) -> BuildOptions:
    """Returns the options with the mask classes of a JSON file, after checking those of masks.

    Raises:
      UserError: The options of the masks contradict each other or the JSON file.
    """
    if masks.is_json(source.masks):
        if options.mask_values or options.mask_ignore is not None:
            raise UserError(
                f"--masks {source.masks} names the class of each instance, so --mask-values and "
                "--mask-ignore have no meaning. Remove them."
            )
        file = coco_masks.load(source.masks)
        if options.mask_classes:
            file.check_classes(options.mask_classes, source="--mask-classes")
        else:
            options = dataclasses.replace(options, mask_classes=file.class_names)
    masks.mask_format(options)
    return options


def _read_classes(path: str, option: str) -> list[str]:
    if not os.path.isfile(path):
        raise UserError(f"{option} {path}: no such file.")
    return files.read_lines(path)
