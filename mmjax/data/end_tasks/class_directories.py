"""End tasks whose images are in one directory per class."""

from __future__ import annotations

import os
from collections.abc import Callable

from mmjax.data.end_tasks.source import EndTaskSource, class_indices, counted_classes
from mmjax.data.sources import layouts
from mmjax.data.storage.class_labels import clean
from mmjax.errors import UserError

Reader = Callable[[str, str, bool], EndTaskSource]


def class_directories(name: str, directory: str, *, test: str = "test", suffix: str = "jpg"):
    """Returns the reader of DIRECTORY/{train,TEST}/CLASS/*.SUFFIX.

    Args:
      name: Name of the dataset.
      directory: Its directory below the root.
      test: Name of the directory of the test split.
      suffix: Usual suffix of the images; files with another suffix of images are read too.
    """
    patterns = {
        split: f"{directory}/{parent}/*/*.{suffix}"
        for split, parent in (("train", "train"), ("test", test))
    }

    @layouts.reads(train=(patterns["train"],), test=(patterns["train"], patterns["test"]))
    def reader(root: str, split: str, paper: bool) -> EndTaskSource:
        paths = layouts.find_files(root, patterns[split])
        # Only the classes of the training split are needed: directories with images.
        train = paths if split == "train" or paper else layouts.find_files(root, patterns["train"])
        labels, class_names = class_indices(
            _classes(paths), sorted(set(_classes(train))), name=name, split=split, paper=paper
        )
        return EndTaskSource(
            name,
            split,
            [(path,) for path in paths],
            labels=labels,
            class_names=class_names,
            exact=paper,
        )

    return reader


imagenet = class_directories("imagenet", "imagenet", test="val", suffix="JPEG")
pets = class_directories("pets", "pets")
caltech_101 = class_directories("caltech-101", "{caltech-101,caltech}")
sun397 = class_directories("sun397", "SUN397")
eurosat = class_directories("eurosat", "eurosat")
dtd = class_directories("dtd", "dtd")

_IMAGENETV2 = "imagenetv2/*/*.jpeg"


@layouts.reads(train=(_IMAGENETV2,), test=(_IMAGENETV2,))
def imagenetv2(root: str, split: str, paper: bool) -> EndTaskSource:
    """Reads ImageNet v2, whose directories are class indices of ImageNet. Splits are the same."""
    paths = layouts.find_files(root, _IMAGENETV2)
    labels = []
    for path, name in zip(paths, _classes(paths), strict=True):
        if not name.isdecimal():
            raise UserError(
                f"{os.path.dirname(path)}: expected a directory name that is a class index, such "
                "as 0 or 999. The directories of ImageNet v2 are named by index."
            )
        labels.append(int(name))
    class_names = counted_classes(labels, labels, name="imagenetv2", split=split)
    images = [(path,) for path in paths]
    return EndTaskSource(
        "imagenetv2", split, images, labels=labels, class_names=class_names, exact=paper
    )


def _classes(paths: list[str]) -> list[str]:
    return [clean(os.path.basename(os.path.dirname(path))) for path in paths]
