"""KITTI 2015 optical flow: pairs of frames with color-coded or true flow."""

from __future__ import annotations

import os

from mmjax.data.end_tasks.pairing import pair
from mmjax.data.end_tasks.source import EndTaskSource
from mmjax.data.sources import layouts
from mmjax.errors import UserError

_FRAMES = ("KITTI/training/image_2/*_10.png", "KITTI/training/image_2/*_11.png")
_COLORED = "KITTI/training/viz_flow_occ/*_10.png"
_FLOW = "KITTI/training/flow_occ/*_10.png"
_TRAIN_PERCENT = 90


@layouts.reads(**dict.fromkeys(("train", "test"), (*_FRAMES, _COLORED)))
def colored_flow(root: str, split: str, paper: bool) -> EndTaskSource:
    """Reads pairs of frames with images of their color-coded flow."""
    return _open(root, split, paper, _COLORED)


@layouts.reads(**dict.fromkeys(("train", "test"), (*_FRAMES, _FLOW)))
def flow(root: str, split: str, paper: bool) -> EndTaskSource:
    """Reads pairs of frames with their flow as 16-bit PNG."""
    return _open(root, split, paper, _FLOW)


def _open(root: str, split: str, paper: bool, pattern: str) -> EndTaskSource:
    """Returns the first 90% of the sorted examples, or the others."""
    first, second, targets = (layouts.find_files(root, p) for p in (*_FRAMES, pattern))
    by_path = set(second)
    pairs = [(path, f"{path.removesuffix('_10.png')}_11.png") for path in first]
    if absent := [frame for _, frame in pairs if frame not in by_path]:
        raise UserError(
            f"{len(absent)} of {len(first)} second frames do not exist, the first one {absent[0]}. "
            f"Copy the rest of {os.path.dirname(absent[0])}."
        )
    targets = pair(first, targets)
    count = len(first) * _TRAIN_PERCENT // 100
    part = slice(count) if split == "train" else slice(count, None)
    if not pairs[part]:
        raise UserError(
            f"{os.path.dirname(first[0])} has {len(first)} pairs of frames, of which none is in "
            f"the {split} split (the first {_TRAIN_PERCENT}% are for training). Copy the rest."
        )
    return EndTaskSource("kitti", split, pairs[part], targets=targets[part], exact=paper)
