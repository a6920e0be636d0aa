"""NYU Depth V2, AI2-THOR and Taskonomy: indoor images with depth, edges or walkable areas."""

from __future__ import annotations

from collections.abc import Callable

from mmjax.data.end_tasks.pairing import pair
from mmjax.data.end_tasks.source import EndTaskSource
from mmjax.data.sources import layouts


def _reader(name: str, images: str, targets: str, *, depth: int = 1) -> Callable:
    """Returns the reader of images with targets.

    Args:
      name: Name of the dataset.
      images: Pattern of the images; SPLIT stands for train or test.
      targets: Pattern of the targets; '' for a target that is the image itself.
      depth: See `pair`.
    """
    patterns = {
        split: tuple(p.replace("SPLIT", split) for p in (images, targets) if p)
        for split in ("train", "test")
    }

    @layouts.reads(**patterns)
    def reader(root: str, split: str, paper: bool) -> EndTaskSource:
        paths = [layouts.find_files(root, pattern) for pattern in patterns[split]]
        found = pair(*paths, depth=depth) if targets else None
        return EndTaskSource(name, split, [(i,) for i in paths[0]], targets=found, exact=paper)

    return reader


nyu_depth = _reader("nyu", "nyu/SPLIT/images/*.png", "nyu/SPLIT/depths/*.tiff")
nyu_walkable = _reader("nyu", "nyu/SPLIT/images/*.png", "nyu/SPLIT/walkable/*.png")
thor_depth = _reader(
    "thor_depth_prediction",
    "thor_depth_prediction/SPLIT/*/*rgb.jpg",
    "thor_depth_prediction/SPLIT/*/*depth.jpg",
    depth=2,
)
taskonomy_depth = _reader(
    "taskonomy",
    "taskonomy/SPLIT/rgb/*/*.png",
    "taskonomy/SPLIT/depth_zbuffer/*/*.png",
    depth=2,
)
taskonomy_edges = _reader(
    "taskonomy", "taskonomy/SPLIT/rgb/*/*.png", "taskonomy/SPLIT/edges/*/*.png", depth=2
)
taskonomy_rgb = _reader("taskonomy", "taskonomy/SPLIT/rgb/*/*.png", "")
