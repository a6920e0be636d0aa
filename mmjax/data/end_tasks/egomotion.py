"""AI2-THOR and nuScenes: steps to an object, and the motion of the camera between two images."""

from __future__ import annotations

import os

from mmjax import files
from mmjax.data.end_tasks.source import EndTaskSource, class_indices, counted_classes, relative
from mmjax.data.sources import layouts
from mmjax.errors import UserError

_DIRECTORIES = {"train": "train", "test": "val"}
_STEPS = "thor_num_steps"
_STEPS_IMAGES = {k: f"{_STEPS}/{name}/*/*rgb.jpg" for k, name in _DIRECTORIES.items()}
_STEPS_LABELS = {k: f"{_STEPS}/{name}_labels.txt" for k, name in _DIRECTORIES.items()}
_ACTION = "thor_action_prediction"
_ACTION_LABELS = {k: f"{_ACTION}/{name}_labels.txt" for k, name in _DIRECTORIES.items()}
ACTIONS = ("MoveAhead", "RotateLeft", "RotateRight", "LookUp", "LookDown")
_NUSCENES = {k: f"nuScenes/nuScenes_{k}.json" for k in _DIRECTORIES}


@layouts.reads(
    train=(_STEPS_LABELS["train"], _STEPS_IMAGES["train"]),
    test=(_STEPS_LABELS["train"], _STEPS_LABELS["test"], _STEPS_IMAGES["test"]),
)
def thor_num_steps(root: str, split: str, paper: bool) -> EndTaskSource:
    """Reads images with the number of steps to an object as the class."""
    path = os.path.join(root, _STEPS_LABELS[split])
    by_key, train = _read_steps(path), _read_steps(os.path.join(root, _STEPS_LABELS["train"]))
    images = layouts.find_files(root, _STEPS_IMAGES[split])
    keys = [_steps_key(image, root) for image in images]
    if absent := [image for image, key in zip(images, keys, strict=True) if key not in by_key]:
        raise UserError(
            f"{path} has no label for {len(absent)} of {len(images)} images, the first one "
            f"{absent[0]} (expected '{_steps_key(absent[0], root)} STEPS'). Add the labels, or "
            "remove the images."
        )
    labels = [by_key[key] for key in keys]
    class_names = counted_classes(labels, list(train.values()), name="THORNumSteps", split=split)
    return EndTaskSource(
        _STEPS,
        split,
        [(image,) for image in images],
        labels=labels,
        class_names=class_names,
        exact=paper,
    )


@layouts.reads(train=(_ACTION_LABELS["train"],), test=(_ACTION_LABELS["test"],))
def thor_action(root: str, split: str, paper: bool) -> EndTaskSource:
    """Reads pairs of images with the action between them as the class."""
    path = os.path.join(root, _ACTION_LABELS[split])
    pairs, labels = [], []
    for line, (stem, action) in _read_table(path).items():
        if action not in ACTIONS:
            raise UserError(
                f"{path}, line {line}: unknown action {action!r}. Expected one of "
                f"{', '.join(ACTIONS)}."
            )
        start = os.path.join(root, _ACTION, stem)
        pairs.append((f"{start}_rgb_a.jpg", f"{start}_rgb_b.jpg"))
        labels.append(ACTIONS.index(action))
    _check_exist(pairs, path)
    return EndTaskSource(_ACTION, split, pairs, labels=labels, class_names=ACTIONS, exact=paper)


@layouts.reads(train=(_NUSCENES["train"],), test=(_NUSCENES["train"], _NUSCENES["test"]))
def nuscenes_action(root: str, split: str, paper: bool) -> EndTaskSource:
    """Reads pairs of images with the motion between them as the class."""
    path = os.path.join(root, _NUSCENES[split])
    entries, train = _read_nuscenes(path), _read_nuscenes(os.path.join(root, _NUSCENES["train"]))
    labels, class_names = class_indices(
        [entry["label"] for entry in entries],
        [entry["label"] for entry in train],
        name="nuScenesActionPrediction",
        split=split,
        paper=paper,
    )
    directory = os.path.join(root, "nuScenes")
    pairs = [
        tuple(os.path.join(directory, entry[key]) for key in ("img_a", "img_b"))
        for entry in entries
    ]
    _check_exist(pairs, path)
    return EndTaskSource(
        "nuScenes", split, pairs, labels=labels, class_names=class_names, exact=paper
    )


def _steps_key(image: str, root: str) -> str:
    """Returns the key of an image in the file of labels: its path without prefix and suffix."""
    key = relative(image, os.path.join(root, _STEPS)).removesuffix("rgb.jpg")
    return key.removesuffix("_")


def _read_steps(path: str) -> dict[str, int]:
    steps = {}
    for line, (key, number) in _read_table(path).items():
        if not number.isdecimal():
            raise UserError(f"{path}, line {line}: expected 'KEY STEPS'; STEPS is {number!r}.")
        if steps.setdefault(key, int(number)) != int(number):
            raise UserError(
                f"{path}, line {line}: {key} has {number} steps, but {steps[key]} in an earlier "
                "line. Remove one of both lines."
            )
    return steps


def _read_table(path: str) -> dict[int, tuple[str, str]]:
    """Returns {line number: (first column, last column)}; the first one may contain spaces."""
    rows = {}
    for line, text in enumerate(files.read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        columns = text.strip().rsplit(maxsplit=1)
        if len(columns) < 2:
            raise UserError(f"{path}, line {line}: expected two columns; got {text.strip()!r}.")
        rows[line] = tuple(columns)
    if not rows:
        raise UserError(f"{path} has no lines. Replace it by the complete file.")
    return rows


def _read_nuscenes(path: str) -> list[dict]:
    entries = files.read_json(path)
    expected = {"img_a": str, "img_b": str, "label": (str, int)}
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: expected a list of entries with the keys {', '.join(expected)}.")
    for index, entry in enumerate(entries):
        for key, types in expected.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(key), types):
                raise UserError(f"{path}, entry {index}: {key!r} is missing or of a wrong type.")
    if len({type(entry["label"]) for entry in entries}) > 1:
        raise UserError(f"{path}: the labels are texts and numbers; expected one of both.")
    return entries


def _check_exist(pairs: list[tuple[str, ...]], listed: str) -> None:
    """Raises UserError if images that a file lists do not exist."""
    paths = {path for pair in pairs for path in pair}
    names: dict[str, set[str]] = {}
    for directory in {os.path.dirname(path) for path in paths}:
        names[directory] = set(os.listdir(directory)) if os.path.isdir(directory) else set()
    absent = sorted(p for p in paths if os.path.basename(p) not in names[os.path.dirname(p)])
    if absent:
        raise UserError(
            f"{len(absent)} of {len(paths)} images that {listed} lists do not exist, the first one "
            f"{absent[0]}. Copy the rest of the dataset, or remove these lines."
        )
