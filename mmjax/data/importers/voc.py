"""PASCAL VOC and SBD: images with masks of 20 classes of objects.

SBD annotates more images of PASCAL VOC, in files of MATLAB (Hariharan et al. 2011, Semantic
Contours from Inverse Detectors).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from mmjax.data.importers.annotations import location, read_lines
from mmjax.data.importers.base import EVALUATION, AnnotatedExample, Importer, Job, Option
from mmjax.data.importers.painting import mask_path, write_mask
from mmjax.errors import UserError

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
_SPLITS = {"train": "train", "val": EVALUATION}  # split of each list


def _read_voc(job: Job) -> Iterator[AnnotatedExample]:
    year, lists = f"VOC{job.options.year}", os.path.join("ImageSets", "Segmentation")
    parent = _find(job, ("", year, os.path.join("VOCdevkit", year)), lists)
    job.mask_classes = list(CLASSES)
    for name, split, where in _listed(os.path.join(job.media.root, parent, lists)):
        image = os.path.join(parent, "JPEGImages", f"{name}.jpg")
        mask = os.path.join(parent, "SegmentationClass", f"{name}.png")
        if _exists(job, mask):
            yield _example(job, image, mask=mask, split=split, where=where)
        else:
            job.skip("images without a mask", example=mask)


def _read_sbd(job: Job) -> Iterator[AnnotatedExample]:
    parent = _find(job, ("", "dataset", os.path.join("benchmark_RELEASE", "dataset")), "cls")
    job.mask_classes = list(CLASSES)
    excluded = {name for path in job.options.exclude or () for name, _ in _names(path)}
    for name, split, where in _listed(os.path.join(job.media.root, parent)):
        if name in excluded:
            job.skip("images in the lists of --exclude", example=name)
            continue
        image = os.path.join(parent, "img", f"{name}.jpg")
        source = os.path.join(parent, "cls", f"{name}.mat")
        if not _exists(job, source):
            job.skip("images without a mask", example=source)
            continue
        mask = mask_path(job.mask_dir, os.path.join("sbd", name))
        if _exists(job, image):
            write_mask(mask, read_sbd_mask(os.path.join(job.media.root, source)), CLASSES)
        split = job.options.split or split
        yield _example(job, image, mask=mask, split=split, where=where)


def read_sbd_mask(path: str) -> np.ndarray:
    """Returns the class map in a file of SBD, uint8 [H, W].

    Raises:
      UserError: The file is damaged, of another format, or has other classes.
    """
    import scipy.io

    try:
        mask = np.asarray(scipy.io.loadmat(path, simplify_cells=True)["GTcls"]["Segmentation"])
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        raise UserError(
            f"{path} is not a mask of SBD, a MATLAB file with GTcls.Segmentation: {error!r}. Copy "
            "it again, or remove it."
        ) from error
    valid = mask.ndim == 2 and np.issubdtype(mask.dtype, np.integer)
    if not valid or (mask.size and (mask.min() < 0 or mask.max() >= len(CLASSES))):
        raise UserError(
            f"{path}: GTcls.Segmentation is {mask.dtype} {list(mask.shape)}; expected classes from "
            f"0 to {len(CLASSES) - 1} for each pixel. Copy the file again, or remove it."
        )
    return mask.astype(np.uint8)


def _find(job: Job, parents: Sequence[str], name: str) -> str:
    """Returns the directory, relative to the media directory, that has a subdirectory `name`."""
    for parent in parents:
        if os.path.isdir(os.path.join(job.media.root, parent, name)):
            return parent
    places = ", ".join(os.path.join(parent, name) for parent in parents)
    raise UserError(f"--media {job.media.root}: found none of the directories {places}.")


def _listed(directory: str) -> list[tuple[str, str, str]]:
    """Returns (name, split, location) of the images in train.txt and val.txt, sorted by name."""
    result: dict[str, tuple[str, str, str]] = {}
    for file, split in _SPLITS.items():
        path = os.path.join(directory, f"{file}.txt")
        if not os.path.exists(path):
            raise UserError(f"{path} does not exist. It lists the images of {split.split('+')[0]}.")
        for name, where in _names(path):
            if name in result:
                raise UserError(f"{where}: {name} is also listed in {result[name][2]}. Remove one.")
            result[name] = (name, split, where)
    return [result[name] for name in sorted(result)]


def _names(path: str) -> Iterator[tuple[str, str]]:
    """Yields (name, location) of the lines of a list of images."""
    for number, line in read_lines(path):
        yield line.split()[0], location(path, number)


def _exists(job: Job, path: str) -> bool:
    return os.path.exists(os.path.join(job.media.root, path))


def _example(job: Job, image: str, *, mask: str, split: str, where: str) -> AnnotatedExample:
    missing = "" if _exists(job, image) else image
    return AnnotatedExample(
        path=image, mask=mask, split=split, location=where, missing_file=missing
    )


VOC = Importer(
    name="voc",
    title="PASCAL VOC: segmentation masks of 20 classes and background",
    annotation_files="""ImageSets/Segmentation/train.txt and val.txt,
    SegmentationClass/2007_000032.png""",
    media_names="JPEGImages/2007_000032.jpg, below DIR, DIR/VOC2012 or DIR/VOCdevkit/VOC2012",
    read=_read_voc,
    options=(
        Option(name="year", help="year of the dataset (default: 2012)", type=int, default=2012),
    ),
    separate_annotations=False,
    columns=("mask",),
    build_options="--size 0 --clips-per-shard 256",
)

SBD = Importer(
    name="sbd",
    title="SBD: more segmentation masks for PASCAL VOC",
    annotation_files="train.txt, val.txt, cls/2008_000002.mat",
    media_names="img/2008_000002.jpg, below DIR, DIR/dataset or DIR/benchmark_RELEASE/dataset",
    read=_read_sbd,
    options=(
        Option(
            name="exclude",
            help="lists of images to leave out, such as the validation list of PASCAL VOC",
            nargs="+",
            metavar="FILE",
        ),
        Option(
            name="split", help="split of all images (default: that of their list)", metavar="NAME"
        ),
    ),
    separate_annotations=False,
    columns=("mask",),
    build_options="--size 0 --clips-per-shard 256",
)
