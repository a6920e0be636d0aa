"""The source `end_task:NAME[,root=DIRECTORY][,paper=true]`: the files of an end task.

| setting                     | meaning                                                            |
| --------------------------- | ------------------------------------------------------------------ |
| `root=DIRECTORY`            | directory of all datasets, in the layout of docs/end_tasks.md      |
| `root=world`                | procedural stand-ins, drawn on first use                           |
| `size=64`, `seed=0`         | of stand-ins: height in pixels, and seed                           |
| `train=200`, `test=100`     | of stand-ins: approximate number of examples per split             |
| `paper=true`                | read as pyVTAB does, see docs/end_tasks.md                         |

If no file of the published layout exists, a dataset of `mmjax build` or TFDS is read instead; see
`mmjax.data.sources.end_task_datasets`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable

from mmjax.data.sources import layouts
from mmjax.data.sources.base import Source
from mmjax.data.sources.end_task_datasets import Frames
from mmjax.data.sources.split_slicing import match_split
from mmjax.data.world import end_tasks as stand_ins
from mmjax.end_tasks.declaration import EndTask
from mmjax.end_tasks.registry import find
from mmjax.errors import UserError, unknown

WORLD = "world"
_STAND_IN = ("size", "train", "test", "seed")
_KEYS = ("root", "paper", *_STAND_IN)
_SETTING = re.compile(r",(\w+)=")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndTaskSpec:
    """The part of a specification after `end_task:`.

    Attributes:
      task: The end task.
      root: Directory of all datasets, or 'world'.
      paper: Whether to read the files as pyVTAB does.
      stand_in: Settings of stand-ins.
    """

    task: EndTask
    root: str = "datasets"
    paper: bool = False
    stand_in: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> EndTaskSpec:
        """Parses `NAME[,KEY=VALUE]…`.

        Raises:
          UserError: The end task or a setting is unknown, or a value is invalid.
        """
        name, *parts = _SETTING.split(text)
        values = dict(zip(parts[::2], parts[1::2], strict=True))
        where, name = f"end_task:{text}", name.strip()
        for key in values:
            if key not in _KEYS:
                raise unknown(f"setting in {where}:", key, _KEYS)
        task = find(name)
        paper = values.get("paper", "false")
        if paper.lower() not in ("true", "false"):
            raise UserError(f"{where}: paper must be true or false; got {paper!r}.")
        root = values.get("root", "datasets")
        stand_in = {key: values[key] for key in _STAND_IN if key in values}
        if stand_in and root != WORLD:
            raise UserError(
                f"{where}: {', '.join(stand_in)} can only be set for stand-ins. Set root=world, or "
                f"remove them."
            )
        for key, value in stand_in.items():
            if not value.isdecimal() or (int(value) < 1 and key != "seed"):
                raise UserError(f"{where}: {key} must be a positive integer; got {value!r}.")
        return cls(
            task=task,
            root=root,
            paper=paper.lower() == "true",
            stand_in={key: int(value) for key, value in stand_in.items()},
        )


def open_end_task(text: str, *, split: str, open_source: Callable[..., Source]) -> Source:
    """Opens a split of an end task.

    Args:
      text: The part of a specification after `end_task:`.
      split: Name of the split, or a synonym of it.
      open_source: Opens another source by its specification.

    Raises:
      UserError: An invalid specification, an unknown split, or missing or damaged files.
    """
    spec = EndTaskSpec.parse(text)
    reader, root = layouts.reader_of(spec.task), os.path.expanduser(spec.root)
    prepared = None if root == WORLD else layouts.prepared(spec.task, root)
    names = list(prepared.splits) if prepared else layouts.split_names(reader)
    if not names:
        return reader(root, split, spec.paper)
    if (known := match_split(split, names)) is None:
        raise unknown(f"split of end_task:{spec.task.name}", split, names)
    if prepared:
        log.info("End task %s: reading %s.", spec.task.name, prepared.spec)
        source = open_source(prepared.spec, split=prepared.splits[known])
        return source if spec.task.num_images == 1 else Frames(source, spec.task.num_images)
    if root == WORLD:
        root = stand_ins.ensure(layouts.datasets(reader), **spec.stand_in)
    layouts.check(reader, root, known)
    return reader(root, known, spec.paper)


def end_task_splits(text: str) -> list[str]:
    """Returns the splits of an end task; [] if its reader accepts any name."""
    spec = EndTaskSpec.parse(text)
    if spec.root != WORLD and (prepared := layouts.prepared(spec.task, spec.root)):
        return list(prepared.splits)
    return layouts.split_names(layouts.reader_of(spec.task))
