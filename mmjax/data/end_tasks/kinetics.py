"""Kinetics-400 as six frames per clip, stored as image files."""

from __future__ import annotations

import collections
import os
import re

from mmjax import files
from mmjax.data.end_tasks.source import EndTaskSource, class_indices
from mmjax.data.sources import layouts
from mmjax.data.storage import directories, image_files
from mmjax.errors import UserError

_NUM_FRAMES = 6
_DIRECTORIES = {"train": "train", "test": "validate"}
_ANNOTATIONS = {k: f"kinetics400/annotations/{name}.json" for k, name in _DIRECTORIES.items()}
_FRAMES = {k: f"kinetics400/{name}/*/*.jpg" for k, name in _DIRECTORIES.items()}


@layouts.reads(
    train=(_ANNOTATIONS["train"], _FRAMES["train"]),
    test=(_ANNOTATIONS["train"], _ANNOTATIONS["test"], _FRAMES["test"]),
)
def kinetics(root: str, split: str, paper: bool) -> EndTaskSource:
    """Reads the clips that have at least six frames.

    The frames of a clip are the first six files in the order of the numbers in their names. In
    pyVTAB they are the first six that the file system lists, in alphabetical order.
    """
    annotations = _read_annotations(os.path.join(root, _ANNOTATIONS[split]))
    train = (
        annotations
        if split == "train"
        else _read_annotations(os.path.join(root, _ANNOTATIONS["train"]))
    )
    _, class_names = class_indices(
        list(annotations.values()),
        list(train.values()),
        name="KineticsActionPrediction",
        split=split,
        paper=paper,
    )
    index = {name: n for n, name in enumerate(class_names)}
    directory = os.path.join(root, "kinetics400", _DIRECTORIES[split])
    frames = _frames_by_clip(directory, set(annotations), paper=paper)
    clips = [clip for clip in annotations if len(frames[clip]) >= _NUM_FRAMES]
    if not clips:
        raise UserError(
            f"{directory}: no clip of {_ANNOTATIONS[split]} has {_NUM_FRAMES} frames. Expected "
            "image files named FIRST_2_CHARACTERS_OF_ID/ID_*."
        )
    return EndTaskSource(
        "kinetics400",
        split,
        [
            tuple(sorted(frames[clip][:_NUM_FRAMES], key=None if paper else _number_order))
            for clip in clips
        ],
        labels=[index[annotations[clip]] for clip in clips],
        class_names=class_names,
        exact=paper,
    )


def _read_annotations(path: str) -> dict[str, str]:
    """Returns {id of a clip: its class}."""
    content = files.read_object(path, "Download the annotations of Kinetics-400 again.")
    try:
        return {clip: str(entry["annotations"]["label"]) for clip, entry in content.items()}
    except (KeyError, TypeError) as error:
        raise UserError(
            f'{path}: expected {{ID: {{"annotations": {{"label": CLASS}}}}}}; an entry has another '
            "form. Download the annotations of Kinetics-400 again."
        ) from error


def _frames_by_clip(directory: str, clips: set[str], *, paper: bool) -> dict[str, list[str]]:
    """Returns {id: paths of the frames}, in the order in which the first six are taken."""
    frames = collections.defaultdict(list)
    for name in directories.list_directories(directory):
        parent = os.path.join(directory, name)
        for file in os.listdir(parent) if paper else directories.list_files(parent):
            path = os.path.join(parent, file)
            clip = _clip_of(file, clips)
            if clip and clip.startswith(name) and image_files.is_image(path):
                frames[clip].append(path)
    if not paper:
        for paths in frames.values():
            paths.sort(key=_number_order)
    return frames


def _clip_of(file: str, clips: set[str]) -> str | None:
    """Returns the longest id that is followed by '_' in a file name."""
    end = len(file)
    while (end := file.rfind("_", 0, end)) > 0:
        if file[:end] in clips:
            return file[:end]
    return None


def _number_order(path: str) -> list[tuple[int, str]]:
    """Returns a key that sorts names by the numbers in them: 9 before 10."""
    parts = re.findall(r"\d+|\D+", os.path.basename(path))
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
