"""Completes a dataset whose shards are built: `dataset.json`, `vocab.txt`, `bad_rows.csv`."""

from __future__ import annotations

import collections
import csv
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax import files, plain_text
from mmjax.data.build.plan import BAD_ROWS, VOCABULARY, BuildPlan
from mmjax.data.build.shards import read_report, unfinished
from mmjax.data.storage import dataset, mask_files, schema
from mmjax.errors import UserError

_BAD_COLUMNS = ("line", "path", "start", "end", "error")


def finalize(out: str, plan: BuildPlan) -> list[dict[str, Any]]:
    """Writes the files that describe a dataset.

    Args:
      out: The dataset.
      plan: Its plan.

    Returns:
      The rows of `bad_rows.csv`: the clips that could not be built.

    Raises:
      UserError: Shards are missing, or no clip could be built.
    """
    missing = unfinished(out, plan)
    if missing:
        raise UserError(
            f"{out}: {len(missing)} of {len(plan.shards())} shards are not finished; the first is "
            f"{missing[0].name}. Run the same `mmjax build` command again to build them."
        )
    reports = {shard.name: read_report(out, shard) for shard in plan.shards()}
    splits, statistics, shapes = _combine(reports)
    bad = [row for report in reports.values() for row in report["bad"]]
    _write_bad_rows(os.path.join(out, BAD_ROWS), bad)
    if not statistics["examples"]:
        raise UserError(
            f"{out}: none of the {len(bad)} clips could be built. The first problem is: "
            f"{bad[0]['error']}"
        )
    has_vocabulary = _write_vocabulary(os.path.join(out, VOCABULARY), plan, bad)
    # A shape is recorded if all examples have the same one.
    common = {key: values.pop() for key, values in shapes.items() if len(values) == 1}
    mask_classes = _mask_classes(statistics, plan, out)
    labels = [int(label) for clip in plan.clips for label in clip.labels if not plan.classes]
    dataset.DatasetInfo(
        name=os.path.basename(os.path.abspath(out)),
        splits={name: split for name, split in splits.items() if split.num_examples},
        modalities=tuple(name for name in schema.MODALITIES if statistics[f"with_{name}"]),
        num_classes=len(plan.classes) or max(labels, default=-1) + 1,
        class_names=list(plan.classes),
        multi_label=any(len(clip.labels) > 1 for clip in plan.clips),
        mask_classes=mask_classes,
        num_frames=common.get("num_frames", 0),
        frame_size=common.get("frame_size"),
        fps=plan.options.fps if statistics["with_video"] else 0.0,
        num_samples=common.get("num_samples", 0),
        sample_rate=plan.options.sample_rate if statistics["with_audio"] else 0.0,
        vocabulary=VOCABULARY if has_vocabulary else "",
        statistics=_summarize(statistics, len(mask_classes)),
        source={
            "tool": "mmjax build",
            "key": plan.key,
            "options": dataclasses.asdict(plan.options),
        },
    ).save(out)
    files.remove_orphans(out)
    return bad


def _combine(
    reports: Mapping[str, dict[str, Any]],
) -> tuple[dict[str, dataset.SplitInfo], collections.Counter, dict[str, set]]:
    """Returns the splits, the sums of statistics and the sets of shapes of the shards' reports."""
    splits: dict[str, dataset.SplitInfo] = {}
    statistics: collections.Counter = collections.Counter()
    shapes: dict[str, set] = collections.defaultdict(set)
    for name, report in reports.items():
        info = splits.setdefault(report["split"], dataset.SplitInfo(num_examples=0, shards=[]))
        info.num_examples += report["clips"] - len(report["bad"])
        info.shards.append(name)
        statistics.update(report["statistics"])
        for key, values in report["shapes"].items():
            shapes[key].update(tuple(v) if isinstance(v, list) else v for v in values)
    return splits, statistics, shapes


def _mask_classes(statistics: Mapping[str, float], plan: BuildPlan, out: str) -> list[str]:
    """Returns the class names of masks: those of the options, or numbers up to the largest value.

    Raises:
      UserError: All pixels of all masks are of class 0 or without a class.
    """
    if not statistics["with_mask"]:
        return []
    values = [value for value in range(mask_files.IGNORE) if statistics[f"mask/{value}"]]
    if max(values, default=0) == 0 and statistics[f"mask/{mask_files.IGNORE}"]:
        raise UserError(
            f"{out}: no pixel of the {statistics['with_mask']} masks has a class other than 0. If "
            "255 is a class of the mask files, it needs --mask-values; without, it means pixels "
            "without a class. For masks with 0 and 255, pass --mask-values 0,255 and --overwrite."
        )
    return list(plan.options.mask_classes) or [
        str(value) for value in range(len(plan.options.mask_values) or max(values) + 1)
    ]


def _summarize(statistics: Mapping[str, float], num_mask_classes: int) -> dict[str, Any]:
    """Returns the statistics of `dataset.json` from sums over all examples."""
    summary = {
        "examples": statistics["examples"],
        "seconds": round(statistics["seconds"], 3),
        "captions": statistics["captions"],
        "examples_with": {
            name: statistics[f"with_{name}"]
            for name in schema.MODALITIES
            if statistics[f"with_{name}"]
        },
        "shortened": statistics["shortened"],
    }
    if statistics["with_mask"]:
        summary["mask_pixels"] = [statistics[f"mask/{value}"] for value in range(num_mask_classes)]
        summary["ignored_mask_pixels"] = statistics[f"mask/{mask_files.IGNORE}"]
    if statistics["with_video"]:
        summary["mean_frames"] = round(statistics["frames"] / statistics["with_video"], 3)
    if statistics["touch_backgrounds"]:
        summary["touch_backgrounds"] = statistics["touch_backgrounds"]
    if statistics["with_audio"]:
        mean = statistics["audio_rms"] / statistics["with_audio"]
        summary["mean_audio_rms"] = round(mean, 6)
    return summary


def _write_vocabulary(path: str, plan: BuildPlan, bad: Sequence[dict[str, Any]]) -> bool:
    """Writes the words of the training captions, or of all captions without a split train.

    Returns whether any captions exist.
    """
    from mmjax.data.text import word_vocab

    unusable = {(row["line"], row["start"]) for row in bad}
    clips = [clip for clip in plan.clips if (clip.line, clip.start) not in unusable]
    train = [clip for clip in clips if "train" in dataset.split_members(clip.split)] or clips
    captions = [caption for clip in train for caption in clip.captions]
    if captions:
        words = word_vocab.build_word_vocab(captions, size=plan.options.vocab_size)
        word_vocab.write_word_vocab(path, words)
    return bool(captions)


def _write_bad_rows(path: str, bad: Sequence[dict[str, Any]]) -> None:
    if not bad:
        files.remove(path)
        return
    with files.atomic_open(path) as file:
        writer = csv.DictWriter(file, _BAD_COLUMNS)
        writer.writeheader()
        for row in bad:
            writer.writerow({k: x and plain_text.csv_cell(str(x)) for k, x in row.items()})
