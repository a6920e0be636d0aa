"""Cityscapes, EgoHands, Oxford-IIIT Pet and COCO: images with masks."""

from __future__ import annotations

import os

from mmjax.data.end_tasks.pairing import pair
from mmjax.data.end_tasks.source import EndTaskSource
from mmjax.data.sources import layouts
from mmjax.errors import UserError

_CITYSCAPES = {
    split: (
        f"cityscapes/leftImg8bit/{name}/*/*.png",
        f"cityscapes/gtFine/{name}/*/*gtFine_labelIds.png",
    )
    for split, name in (("train", "train"), ("test", "val"))
}
_EGOHANDS = ("egohands/images/*/*.jpg", "egohands/labels/*/*.png")
# Indices of the sorted videos; the others are for training.
_EGOHANDS_VIDEOS = {
    "test": (0, 10, 12, 19, 30, 33, 37, 43),
    "validation": (6, 13, 27, 46),
}
_NUM_VIDEOS = 48
_TRIMAPS = "pets/annotations/trimaps/*.png"
_PETS = {split: (f"pets/{split}/*/*.jpg", _TRIMAPS) for split in ("train", "test")}
_COCO = {
    split: (f"coco/{name}2017/*.jpg", f"coco/annotations/panoptic_labels_{name}2017/*.png")
    for split, name in (("train", "train"), ("test", "val"))
}


def _open(
    name: str, root: str, split: str, patterns: tuple[str, str], paper: bool, *, depth: int = 1
) -> EndTaskSource:
    images, targets = (layouts.find_files(root, pattern) for pattern in patterns)
    targets = pair(images, targets, depth=depth)
    return EndTaskSource(name, split, [(i,) for i in images], targets=targets, exact=paper)


@layouts.reads(**_CITYSCAPES)
def cityscapes(root: str, split: str, paper: bool) -> EndTaskSource:
    """Reads Cityscapes with fine annotations."""
    return _open("cityscapes", root, split, _CITYSCAPES[split], paper, depth=2)


@layouts.reads(**_PETS)
def pets(root: str, split: str, paper: bool) -> EndTaskSource:
    """Reads Oxford-IIIT Pet with trimaps."""
    return _open("pets", root, split, _PETS[split], paper)


@layouts.reads(**_COCO)
def coco(root: str, split: str, paper: bool) -> EndTaskSource:
    """Reads COCO 2017 with panoptic labels."""
    return _open("coco", root, split, _COCO[split], paper)


@layouts.reads(**dict.fromkeys(("train", "validation", "test"), _EGOHANDS))
def egohands(root: str, split: str, paper: bool) -> EndTaskSource:
    """Reads EgoHands, whose splits consist of whole videos."""
    images, targets = (layouts.find_files(root, pattern) for pattern in _EGOHANDS)
    videos = sorted({_video(path) for path in images})
    if len(videos) != _NUM_VIDEOS:
        raise UserError(
            f"{os.path.join(root, 'egohands', 'images')} has images of {len(videos)} videos; "
            f"expected {_NUM_VIDEOS}, because the splits are defined by their order. Copy the rest "
            "of the dataset."
        )
    held_out = {index: name for name, ones in _EGOHANDS_VIDEOS.items() for index in ones}
    chosen = {name for n, name in enumerate(videos) if held_out.get(n, "train") == split}
    images = [path for path in images if _video(path) in chosen]
    targets = pair(images, [path for path in targets if _video(path) in chosen], depth=2)
    return EndTaskSource("egohands", split, [(i,) for i in images], targets=targets, exact=paper)


def _video(path: str) -> str:
    return os.path.basename(os.path.dirname(path))
