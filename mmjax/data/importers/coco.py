"""COCO: images with masks painted from instances, and other datasets in its JSON format."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence

from mmjax.cpus import available_cpus
from mmjax.data.importers import voc
from mmjax.data.importers.annotations import read_lines
from mmjax.data.importers.base import EVALUATION, AnnotatedExample, Importer, Job, Option
from mmjax.data.importers.painting import mask_path, write_mask
from mmjax.data.storage.coco_masks import BACKGROUND, CocoMasks
from mmjax.errors import UserError, unknown

# Names of PASCAL VOC that COCO spells in another way.
VOC_NAMES = {
    "airplane": "aeroplane",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "couch": "sofa",
    "tv": "tvmonitor",
}
_BATCH = 64  # masks that are painted before their rows are written


def _read(job: Job) -> Iterator[AnnotatedExample]:
    if job.options.only_voc and job.options.classes:
        raise UserError("--only-voc and --classes exclude each other. Remove one.")
    for path in job.annotations.require_any("*.json"):
        masks = CocoMasks(path)
        names, classes = _classes(job, masks)
        if job.mask_classes not in (None, names):
            raise UserError(
                f"{path} has other categories than the files before it. Import them to separate "
                "tables, or select common classes with --classes."
            )
        job.mask_classes = names
        selected = bool(job.options.only_voc or job.options.classes)
        yield from _examples(job, masks, classes, selected)


def _classes(job: Job, masks: CocoMasks) -> tuple[list[str], dict[str, int]]:
    """Returns the class names by index, and {category: class index} of a file."""
    if job.options.only_voc:
        names = list(voc.CLASSES)
        spelled = {category: VOC_NAMES.get(category, category) for category in _all(masks)}
        classes = {c: names.index(name) for c, name in spelled.items() if name in names}
        if missing := set(names) - set(spelled.values()) - {BACKGROUND}:
            raise UserError(
                f"--only-voc: {masks.path} has no category {', '.join(sorted(missing))}. Use the "
                "files of COCO, or select classes with --classes."
            )
        return names, classes
    if job.options.classes:
        names = [name for _, name in read_lines(job.options.classes)]
        if names[:1] != [BACKGROUND]:
            raise UserError(
                f"--classes {job.options.classes} must start with {BACKGROUND!r}, the class of "
                "pixels of no instance."
            )
        for name in names[1:]:
            if name not in _all(masks):
                raise unknown(f"class in --classes among those of {masks.path}:", name, _all(masks))
    else:
        names = list(masks.class_names)
    return names, {name: index for index, name in enumerate(names)}


def _all(masks: CocoMasks) -> Sequence[str]:
    return list(masks.categories.values())


def _examples(
    job: Job, masks: CocoMasks, classes: Mapping[str, int], selected: bool
) -> Iterator[AnnotatedExample]:
    """Yields the images of a file, and paints their masks.

    Args:
      job: The import.
      masks: The file.
      classes: {category: class index}.
      selected: Whether to skip images without any of the categories.
    """
    match = re.search(r"((train|val|test)\d*)\.json$", os.path.basename(masks.path))
    directory, name = match.groups() if match else ("", "")
    split = job.options.split or {"val": EVALUATION}.get(name, name or "train")

    def paint(item: tuple[str, object]) -> AnnotatedExample:
        file, image_id = item
        path = _locate(job, directory, file)
        example = AnnotatedExample(
            path=path or file, split=split, location=f"{masks.path}, image {image_id!r}"
        )
        if path is None:
            return dataclasses.replace(example, missing_file=file)
        mask = mask_path(job.mask_dir, path)
        write_mask(mask, masks.paint(image_id, classes), job.mask_classes)
        return dataclasses.replace(example, mask=mask)

    items = []
    for file, image_id in masks.files().items():
        if selected and not masks.names_in(image_id) & classes.keys():
            job.skip("images without any of the classes", example=file)
        else:
            items.append((file, image_id))
    with concurrent.futures.ThreadPoolExecutor(available_cpus()) as threads:
        for first in range(0, len(items), _BATCH):
            yield from threads.map(paint, items[first : first + _BATCH])


def _locate(job: Job, directory: str, file: str) -> str | None:
    """Returns the path of an image relative to the media directory; None if it does not exist."""
    # Tools write the path that an image had on another machine.
    relative = os.path.basename(file) if os.path.isabs(file) else file
    for parent in ("", directory, "images", os.path.join("images", directory)):
        path = os.path.normpath(os.path.join(parent, relative))
        if os.path.isfile(os.path.join(job.media.root, path)):
            return path
    return None


COCO = Importer(
    name="coco",
    title="COCO, and other datasets in its JSON format: segmentation masks",
    annotation_files="""instances_train2017.json, instances_val2017.json,
    or any .json file with images, annotations and categories""",
    media_names="train2017/000000000009.jpg, or the file_name of an image, below DIR or DIR/images",
    read=_read,
    options=(
        Option(
            name="only_voc",
            help="only the 20 classes of PASCAL VOC, with its names and numbers, and only images "
            "that contain them",
            type=bool,
        ),
        Option(
            name="classes",
            help="only the categories in this file, one name per line, in its order after "
            "'background', and only images that contain them",
            metavar="FILE",
        ),
        Option(
            name="split",
            help="split of all images (default: by the name of their file, or train)",
            metavar="NAME",
        ),
    ),
    columns=("mask",),
    build_options="--size 0 --clips-per-shard 256",
    named_after_table=True,
)
