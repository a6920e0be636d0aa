"""Builds a dataset from media files: `mmjax build`.

The clips of the table go, in its order, into shards of a fixed number of clips, those of each split
(or combination of splits, such as train1+test2) into shards of their own. A shard is built by
one process from first to last, so its bytes depend on the table, the options and the files alone;
who builds it does not matter: local processes, the jobs of an array, or the workers of a Beam
runner.
Each finished shard has a report; `finalize` adds the reports up into `dataset.json`.
"""

from __future__ import annotations

import collections
import concurrent.futures
import csv
import dataclasses
import functools
import glob
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmjax.data.build import manifest
from mmjax.data.build.examples import Options, Reader, duration, make_example
from mmjax.data.build.manifest import Clip
from mmjax.data.storage import dataset, schema, tfrecord
from mmjax.errors import UserError
from mmjax.modalities import STORED

WORK = ".build"  # folder in the dataset for the plan and the reports of the shards


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is to be built; `key` is a hash of what it follows from, see `key_of`."""

    options: Options
    clips: list[Clip]
    classes: dict[str, int]
    key: str

    def shards(self) -> list[Shard]:
        """The shards, split by split in the order in which the table mentions them."""
        splits: dict[str, list[Clip]] = {}
        for clip in self.clips:
            splits.setdefault(clip.split, []).append(clip)
        shards = []
        for split, clips in splits.items():
            size = self.options.clips_per_shard
            count = -(-len(clips) // size)
            for k in range(count):
                name = dataset.shard_name(split, k, count)
                shards.append(Shard(name=name, split=split, clips=clips[k * size : (k + 1) * size]))
        return shards


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A part of the plan."""

    name: str
    split: str
    clips: list[Clip]


def make_plan(
    clips: Sequence[Clip],
    options: Options,
    *,
    media_root: str,
    class_names: Sequence[str] | None = None,
    workers: int = 8,
    progress: bool = True,
) -> Plan:
    """Cuts and splits the rows, assigns class numbers.

    Args:
      clips: the rows of the table.
      options: see `Options`.
      media_root: what the paths are relative to.
      class_names: see `manifest.class_numbers`.
      workers: threads that read durations, where they are needed.
      progress: show a bar.

    Raises:
      UserError: none of the first files exists, splits that are given would be mixed, a label is
        none of the classes, and what `manifest` finds.
    """
    first = [clip.file for clip in clips[:50]]
    if not any(os.path.exists(os.path.join(media_root, path)) for path in first):
        raise UserError(
            f"None of the first {len(first)} files of the table exists; line {clips[0].row} means "
            f"{os.path.join(media_root, first[0])}. Paths are relative to the table, or to "
            "--media-root."
        )
    splits = sorted({clip.split for clip in clips})
    if (options.by_file or options.by_time) and len(splits) > 1:
        raise UserError(
            f"The splits are given already ({', '.join(splits)}); --split-by-file and "
            "--split-by-time would mix them. Leave that option out, or build from what names none."
        )
    key = key_of(clips, options, class_names)
    if options.by_file:
        clips = manifest.split_by_file(clips, options.by_file)
    if options.clip_seconds or options.by_time:
        paths = list(dict.fromkeys(clip.path for clip in clips if clip.path))
        measure = functools.partial(duration, media_root=media_root, options=options)
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            bar = tqdm(pool.map(measure, paths), "durations", len(paths), disable=not progress)
            durations = {path: d for path, d in zip(paths, bar, strict=True) if d is not None}
        clips = manifest.cut(
            clips, durations=durations, clip_seconds=options.clip_seconds, by_time=options.by_time
        )
    classes = manifest.class_numbers(clips, class_names)
    return Plan(options=options, clips=list(clips), classes=classes, key=key)


def key_of(
    clips: Sequence[Clip], options: Options, class_names: Sequence[str] | None = None
) -> str:
    """A hash of the table and all options that decide the bytes of a dataset."""
    rows = [dataclasses.astuple(clip) for clip in clips]
    contents = [dataclasses.asdict(options), list(class_names or ()), rows]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardBuilder:
    """Builds shards; picklable, so that any runner can carry it to its workers.

    Attributes:
      out: the dataset.
      media_root: what the paths are relative to.
      options, classes, key: of the plan.
      on_error: 'skip' puts a row that cannot be built into the report, 'fail' stops.
    """

    out: str
    media_root: str
    options: Options
    classes: dict[str, int]
    key: str
    on_error: str = "skip"

    def __call__(self, shard: Shard, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Writes the shard, its index and its report; returns the report. Calls `tick` per clip."""
        stats, bad = collections.Counter(), []
        shapes: dict[str, set] = collections.defaultdict(set)
        reader = Reader(self.options, self.media_root)
        try:
            with tfrecord.ShardWriter(os.path.join(self.out, shard.name)) as writer:
                for clip in shard.clips:
                    try:
                        example = make_example(clip, reader, self.classes)
                        payload = schema.encode(example)
                    except Exception as error:  # a bad file may raise anything
                        problem = str(error) if isinstance(error, UserError) else repr(error)
                        problem = problem.replace(os.path.join(self.media_root, ""), "")
                        if self.on_error == "fail":
                            raise UserError(f"Line {clip.row}: {problem}") from error
                        bad.append({"row": clip.row, "path": clip.file, "start": clip.start})
                        bad[-1] |= {"end": clip.end, "error": problem}
                        tick()
                        continue
                    writer.write(payload)
                    _measure(example, clip, stats, shapes)
                    tick()
        finally:
            reader.close()
        report = {
            "key": self.key,
            "split": shard.split,
            "clips": len(shard.clips),
            "bad": bad,
            "statistics": dict(sorted(stats.items())),
            "shapes": {name: sorted(values) for name, values in sorted(shapes.items())},
        }
        _write_json(_report_path(self.out, shard.name), report)
        return report


def pending(out: str, plan: Plan, *, retry_bad: bool = False) -> list[Shard]:
    """The shards that are not finished.

    Args:
      out: the dataset.
      plan: what is to be built.
      retry_bad: count shards with rows that could not be built as unfinished.
    """
    todo = []
    for shard in plan.shards():
        report = _read_report(out, shard.name)
        done = report is not None and report["key"] == plan.key
        done = done and os.path.exists(os.path.join(out, shard.name))
        if not done or (retry_bad and report["bad"]):
            todo.append(shard)
    return todo


def prepare(
    out: str,
    clips: Sequence[Clip],
    options: Options,
    *,
    media_root: str,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
    workers: int = 8,
    progress: bool = True,
) -> Plan:
    """The plan of a dataset, made and written into its folder, or found there.

    Args:
      out: the dataset.
      clips, options, media_root, class_names, workers, progress: see `make_plan`.
      overwrite: remove another dataset that is there.

    Raises:
      UserError: the folder holds another dataset, or `make_plan` finds something.
    """
    if os.path.isfile(out):
        raise UserError(f"{out} is a file; --out names a folder.")
    path = os.path.join(out, WORK, "plan.json")
    old = _read_json(path)
    if old is not None and old["key"] == key_of(clips, options, class_names):
        return load_plan(out)
    pattern = os.path.join(glob.escape(out), "*-of-*")
    unused_keys = [*glob.glob(pattern), *([path] if old is not None else [])]
    if unused_keys and not overwrite:
        raise UserError(
            f"{out} holds a dataset of another table or other options. Choose another folder, or "
            "give --overwrite to build it anew."
        )
    plan = make_plan(
        clips,
        options,
        media_root=media_root,
        class_names=class_names,
        workers=workers,
        progress=progress,
    )
    for name in (dataset.FILE, "vocab.txt", "bad_rows.csv"):
        unused_keys += glob.glob(os.path.join(glob.escape(out), name))
    for leftover in unused_keys:
        os.remove(leftover)
    os.makedirs(os.path.join(out, WORK), exist_ok=True)
    contents = {
        "key": plan.key,
        "options": dataclasses.asdict(plan.options),
        "classes": plan.classes,
        "clips": [dataclasses.astuple(clip) for clip in plan.clips],
    }
    _write_json(path, contents)
    return plan


def load_plan(out: str) -> Plan:
    """The plan in the folder of a dataset.

    Raises:
      UserError: there is none.
    """
    contents = _read_json(os.path.join(out, WORK, "plan.json"))
    if contents is None:
        raise UserError(f"{out} holds no dataset that `mmjax build` has begun.")
    fields = [field.name for field in dataclasses.fields(Clip)]
    clips = []
    for values in contents["clips"]:
        clip = dict(zip(fields, values, strict=True))
        clip |= {name: tuple(clip[name]) for name in ("captions", "labels", "touch")}
        clip["crop"] = tuple(clip["crop"]) if clip["crop"] else None
        clips.append(Clip(**clip))
    options = contents["options"]
    options |= {name: tuple(map(tuple, options[name])) for name in ("by_time", "by_file")}
    return Plan(
        options=Options(**options),
        clips=clips,
        classes=contents["classes"],
        key=contents["key"],
    )


def finalize(out: str, plan: Plan) -> list[dict[str, Any]]:
    """Writes `dataset.json`, `vocab.txt` and `bad_rows.csv`; returns the bad rows.

    Raises:
      UserError: shards that are missing, or a split without any example.
    """
    missing = pending(out, plan)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(plan.shards())} shards of {out} are not finished, first "
            f"{missing[0].name}. Run the same command again to build what is missing."
        )
    reports = {shard.name: _read_report(out, shard.name) for shard in plan.shards()}
    stats: collections.Counter = collections.Counter()
    shapes: dict[str, set] = collections.defaultdict(set)
    splits: dict[str, dataset.SplitInfo] = {}
    for name, report in reports.items():
        info = splits.setdefault(report["split"], dataset.SplitInfo(num_examples=0, shards=[]))
        info.num_examples += report["clips"] - len(report["bad"])
        info.shards.append(name)
        stats.update(report["statistics"])
        for key, values in report["shapes"].items():
            shapes[key].update(tuple(v) if isinstance(v, list) else v for v in values)
    bad = [row for report in reports.values() for row in report["bad"]]
    _write_bad_rows(os.path.join(out, "bad_rows.csv"), bad)
    if not stats["examples"]:
        raise UserError(f"Not one of {len(bad)} rows could be built. First: {bad[0]['error']}")
    splits = {name: split for name, split in splits.items() if split.num_examples}
    words = _write_vocabulary(os.path.join(out, "vocab.txt"), plan, bad)
    only = {key: values.pop() for key, values in shapes.items() if len(values) == 1}
    labels = [int(label) for clip in plan.clips for label in clip.labels if not plan.classes]
    dataset.DatasetInfo(
        name=os.path.basename(os.path.abspath(out)),
        splits=splits,
        modalities=tuple(name for name in STORED if stats[f"with_{name}"]),
        num_classes=len(plan.classes) or max(labels, default=-1) + 1,
        class_names=list(plan.classes),
        multi_label=any(len(clip.labels) > 1 for clip in plan.clips),
        num_frames=only.get("num_frames", 0),
        frame_size=only.get("frame_size"),
        fps=plan.options.fps if stats["with_video"] else 0.0,
        num_samples=only.get("num_samples", 0),
        sample_rate=plan.options.sample_rate if stats["with_audio"] else 0.0,
        vocabulary="vocab.txt" if words else "",
        statistics=_summary(stats),
        source={
            "tool": "mmjax build",
            "key": plan.key,
            "options": dataclasses.asdict(plan.options),
        },
    ).save(out)
    return bad


def _measure(example: schema.Example, clip: Clip, stats, shapes) -> None:
    stats["examples"] += 1
    stats["seconds"] += (example.end_us - example.start_us) / 1e6
    stats["captions"] += len(example.captions)
    for name in example.modalities:
        stats[f"with_{name}"] += 1
    stats["touch_backgrounds"] += len(example.touch_background)
    if clip.end is not None and example.end_us < round(clip.end * 1e6):
        stats["shortened"] += 1
    if example.frames:
        stats["frames"] += len(example.frames)
        shapes["num_frames"].add(len(example.frames))
        width, height = Image.open(io.BytesIO(example.frames[0])).size
        shapes["frame_size"].add((height, width))
    if example.waveform is not None:
        stats["audio_rms"] += float(np.sqrt(np.mean(np.square(example.waveform, dtype=np.float64))))
        shapes["num_samples"].add(len(example.waveform))


def _summary(stats) -> dict[str, Any]:
    """Sums as the figures of dataset.json."""
    summary = {
        "examples": stats["examples"],
        "seconds": round(stats["seconds"], 3),
        "captions": stats["captions"],
        "examples_with": {
            name: stats[f"with_{name}"] for name in STORED if stats[f"with_{name}"]
        },
        "shortened": stats["shortened"],
    }
    if stats["with_video"]:
        summary["mean_frames"] = round(stats["frames"] / stats["with_video"], 3)
    if stats["touch_backgrounds"]:
        summary["touch_backgrounds"] = stats["touch_backgrounds"]
    if stats["with_audio"]:
        summary["mean_audio_rms"] = round(stats["audio_rms"] / stats["with_audio"], 6)
    return summary


def _write_vocabulary(path: str, plan: Plan, bad: Sequence[dict[str, Any]]) -> int:
    """The words of the captions of the split train, or of all without one; returns their number."""
    from mmjax.data.text import tokenizers

    unusable = {(row["row"], row["start"]) for row in bad}
    clips = [clip for clip in plan.clips if (clip.row, clip.start) not in unusable]
    train = [clip for clip in clips if "train" in dataset.split_members(clip.split)] or clips
    captions = [caption for clip in train for caption in clip.captions]
    if captions:
        words = tokenizers.build_word_vocab(captions, size=plan.options.vocab_size)
        tokenizers.write_word_vocab(path, words)
    return len(captions)


def _write_bad_rows(path: str, bad: Sequence[dict[str, Any]]) -> None:
    if not bad:
        if os.path.exists(path):
            os.remove(path)
        return
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["row", "path", "start", "end", "error"])
        writer.writeheader()
        writer.writerows(bad)


def _report_path(out: str, shard: str) -> str:
    return os.path.join(out, WORK, f"{shard}.json")


def _read_report(out: str, shard: str) -> dict[str, Any] | None:
    return _read_json(_report_path(out, shard))


def _read_json(path: str) -> Any:
    if not os.path.exists(path):
        return None
    with open(path) as file:
        return json.load(file)


def _write_json(path: str, value: Any) -> None:
    temporary = f"{path}.tmp-{os.getpid()}"
    with open(temporary, "w") as file:
        json.dump(value, file)
    os.replace(temporary, path)
