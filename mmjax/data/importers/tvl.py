"""TVL: touch images with an image and a caption of the touched object.

Source: Fu et al. 2024, A Touch, Vision, and Language Dataset for Multimodal Alignment, arXiv
2402.13232. Crops, validation set and out-of-contact images equal those of TVL's published code,
unless an option changes them.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
import posixpath
from collections.abc import Iterator, Sequence

import numpy as np

from mmjax.data.importers.base import AnnotatedExample, Importer, Job, Option
from mmjax.data.importers.tvl_files import (
    Pair,
    Subset,
    Tree,
    read_hct,
    read_ssvtp,
    usable_background,
)
from mmjax.data.importers.tvl_swapped import find_swapped
from mmjax.data.storage import image_files
from mmjax.errors import UserError

SUBSETS = ("ssvtp", "hct")
_MAX_NAMES = 20  # recordings that a message names


def crop_of(subset: str, width: int, height: int) -> tuple[int, int, int, int]:
    """Returns the crop of a camera image around the sensor's contact: (top, left, height, width).

    Args:
      subset: 'ssvtp', or 'hct/' and the name of its part.
      width: Width of the image in pixels.
      height: Height of the image in pixels.
    """
    side = math.ceil(math.sqrt(2) * 0.18 * max(width, height))
    if subset == "ssvtp":
        return round((height - side) / 2), round((width - side) / 2), side, side
    # In the third part, the contact is lower in the image.
    return 200 if subset == "hct/data3" else 0, (width - side) // 2, side, side


def validation_indices(count: int) -> np.ndarray:
    """Returns the published validation set: a tenth of the indices of `count` training pairs."""
    return np.random.RandomState(42).permutation(count)[: count - math.floor(0.9 * count)]


def _read(job: Job) -> Iterator[AnnotatedExample]:
    options, tree = job.options, Tree(job.media.root)
    if options.no_contact < 0 or not math.isfinite(options.no_contact):
        raise UserError(f"--no-contact must be a number >= 0; got {options.no_contact}.")
    subsets: dict[str, Subset] = {}
    for name in _selected_subsets(job, tree):
        if name == "ssvtp":
            subsets[name] = read_ssvtp(tree, background=_ssvtp_background(job, tree))
        else:
            subsets[name] = read_hct(tree, no_contact=options.no_contact > 0)
        job.notes += subsets[name].notes
    if options.no_contact and not any(subset.no_contact for subset in subsets.values()):
        raise UserError(
            f"--no-contact={options.no_contact:g} needs images without contact; found none in "
            f"{tree.path('hct')}/data*/not_contact.json."
        )
    if "hct" in subsets:
        _handle_swapped(subsets["hct"], job, tree)
    names = {
        pair.subset
        for subset in subsets.values()
        for pairs in (subset.test, subset.train, subset.missing, subset.no_contact)
        for pair in pairs
    }
    job.classes = sorted(names, key=lambda name: (name != "ssvtp", name))
    pairs = [item for subset in subsets.values() for item in _assign_splits(subset, job)]
    num_without = {"caption": 0, "background image": 0}
    for example in _examples(pairs, job, tree):
        if not example.missing_file:
            num_without["caption"] += not example.captions
            num_without["background image"] += not example.background
        yield example
    for name, count in num_without.items():
        if count:
            job.notes.append(f"kept examples without a {name}: {count}.")


def _selected_subsets(job: Job, tree: Tree) -> list[str]:
    """Returns the subsets to import: those of --subsets, or those that exist."""
    existing = [subset for subset in SUBSETS if os.path.isdir(tree.path(subset))]
    selected = job.options.subsets or existing
    for subset in selected:
        if subset not in existing:
            raise UserError(
                f"--subsets {subset}: no such directory {tree.path(subset)}. --media must contain "
                "the directories ssvtp and hct."
            )
    if not selected:
        raise UserError(
            f"--media {tree.root} must contain a directory ssvtp or hct; found neither."
        )
    if not job.options.subsets and len(existing) < len(SUBSETS):
        (absent,) = set(SUBSETS) - set(existing)
        job.notes.append(f"skipped the subset {absent}: no such directory {tree.path(absent)}.")
    if job.options.background and "ssvtp" not in selected:
        raise UserError(
            "--background applies only to the subset ssvtp, which is not imported: hct has its own "
            "background images. Remove --background."
        )
    return [subset for subset in SUBSETS if subset in selected]


def _ssvtp_background(job: Job, tree: Tree) -> str:
    """Returns the path of --background for the table; '' without one."""
    if not job.options.background:
        return ""
    try:
        image_files.image_size(job.options.background)
    except UserError as error:
        raise UserError(f"--background: {error}") from error
    path, root = os.path.abspath(job.options.background), os.path.abspath(tree.root)
    return os.path.relpath(path, root) if os.path.commonpath([root, path]) == root else path


def _handle_swapped(subset: Subset, job: Job, tree: Tree) -> None:
    """Detects recordings with swapped touch and vision directories, and applies --swapped."""
    lists = (subset.train, subset.test, subset.no_contact)
    swapped, ambiguous = find_swapped([pair for pairs in lists for pair in pairs], tree)
    if ambiguous:
        job.notes.append(
            "recordings for which neither image sizes nor contents show which images are touch: "
            f"{len(ambiguous)} ({_first_names(ambiguous)}). Their directory names are trusted."
        )
    if not swapped:
        return
    problem = (
        f"recordings with swapped touch and vision directories: {len(swapped)} "
        f"({_first_names(swapped)})"
    )
    if job.options.swapped == "fail":
        raise UserError(
            f"tvl: found {problem}. Pass `--swapped fix` to swap them back in the table, or "
            "`--swapped keep` to leave them."
        )
    if job.options.swapped == "keep":
        job.notes.append(f"kept {problem}.")
        return
    job.notes.append(f"fixed {problem}.")
    for pairs in lists:
        pairs[:] = [_swap(p, tree) if p.recording in swapped else p for p in pairs]


def _swap(pair: Pair, tree: Tree) -> Pair:
    background = pair.background
    directory, file = posixpath.split(background)
    if background and directory == posixpath.dirname(pair.touch):
        # The background is an image of the same recording, so it is in the wrong directory too.
        background = f"{posixpath.dirname(pair.vision)}/{file}"
        background = usable_background(background, pair.subset, tree)
    return dataclasses.replace(pair, vision=pair.touch, touch=pair.vision, background=background)


def _assign_splits(subset: Subset, job: Job) -> Iterator[tuple[str, Pair]]:
    """Yields `(split, pair)`, the test set first."""
    for split, pairs in (("test", subset.test), ("train", subset.missing)):
        for pair in pairs:
            yield split, pair
    validation = set(validation_indices(len(subset.train)).tolist())
    if job.options.split == "original":
        yield from _original_split(subset, validation, job)
        return
    seen = {pair.vision for pair in subset.test}
    valid = [pair for index, pair in enumerate(subset.train) if index in validation]
    train = [pair for index, pair in enumerate(subset.train) if index not in validation]
    train += _sample(subset.no_contact, job.options.no_contact, len(train))
    for split, pairs in (("valid", valid), ("train", train)):
        for pair in pairs:
            if pair.vision in seen:
                job.skip(f"{split} examples whose image is in another split", example=pair.vision)
            else:
                yield split, pair
        seen.update(pair.vision for pair in pairs)


def _original_split(subset: Subset, validation: set[int], job: Job) -> Iterator[tuple[str, Pair]]:
    """Yields `(split, pair)` as in the published code, with 'train+valid' for the overlap.

    The published code samples the training set from a longer list, which also contains the pairs
    without contact. Only the seed of the two samples is the same.
    """
    pairs = [
        *subset.train,
        *_sample(subset.no_contact, job.options.no_contact, len(subset.train)),
    ]
    held_out = set(validation_indices(len(pairs)).tolist())
    for index, pair in enumerate(pairs):
        splits = ["train"] * (index not in held_out) + ["valid"] * (index in validation)
        if splits:
            yield "+".join(splits), pair
        else:
            group = "examples in neither train nor valid of the original split"
            job.skip(group, example=pair.vision)


def _sample(pairs: Sequence[Pair], fraction: float, count: int) -> list[Pair]:
    """Returns at most `fraction * count` of the pairs, the same on every machine."""
    if len(pairs) <= fraction * count:
        return list(pairs)
    indices = np.random.RandomState(0).choice(len(pairs), int(fraction * count), replace=False)
    return [pairs[index] for index in sorted(indices)]


def _examples(
    pairs: Sequence[tuple[str, Pair]], job: Job, tree: Tree
) -> Iterator[AnnotatedExample]:
    """Yields the examples of `(split, pair)`; skips unreadable images."""

    def size_of(item: tuple[str, Pair]) -> tuple[int, int] | UserError | None:
        if not tree.has(item[1].vision):
            return None
        try:
            return image_files.image_size(tree.path(item[1].vision))
        except UserError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # limited by the disk, not the CPU
        for (split, pair), size in zip(pairs, pool.map(size_of, pairs), strict=True):
            if isinstance(size, UserError):
                job.skip("examples with an unreadable image", example=str(size).rstrip("."))
                continue
            missing = (path for path in (pair.vision, pair.touch) if not tree.has(path))
            yield AnnotatedExample(
                split=split,
                location=pair.location,
                path=pair.vision,
                touch=(pair.touch,),
                background=pair.background,
                crop=crop_of(pair.subset, *size) if size else None,
                captions=(pair.caption,) if pair.caption else (),
                labels=(pair.subset,),
                missing_file=next(missing, ""),
            )


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMES]) + (", …" if len(names) > _MAX_NAMES else "")


TVL = Importer(
    name="tvl",
    title="TVL: touch images with images and captions of the touched objects (SSVTP and HCT)",
    annotation_files="""ssvtp/train.csv, ssvtp/test.csv, ssvtp/text/labels_N.txt
    hct/data1/train.csv, test.csv, contact.json, not_contact.json; the same for data2 and data3""",
    media_names="""ssvtp/images_rgb/image_N_rgb.jpg, ssvtp/images_tac/image_N_tac.jpg
    hct/data1/RECORDING/vision/FRAME.jpg, hct/data1/RECORDING/tactile/FRAME.jpg
    hct/data1/digit_background.png""",
    read=_read,
    options=(
        Option(
            name="subsets",
            nargs="+",
            choices=SUBSETS,
            help="subsets to import (default: those that exist)",
        ),
        Option(
            name="background",
            metavar="FILE",
            help="background image of ssvtp, that is, an image without contact; see "
            "`mmjax background`",
        ),
        Option(
            name="no_contact",
            type=float,
            default=0.0,
            metavar="F",
            help="add images without contact to train, at most this fraction of the training "
            "examples of hct (default: 0)",
        ),
        Option(
            name="split",
            choices=("clean", "original"),
            default="clean",
            help="original: train and valid overlap with --no-contact, as in TVL's code "
            "(default: clean)",
        ),
        Option(
            name="swapped",
            choices=("fail", "fix", "keep"),
            default="fail",
            help="treatment of recordings with swapped touch and vision directories: stop, swap "
            "them back in the table, or keep them (default: fail)",
        ),
    ),
    separate_annotations=False,
    columns=("touch", "background", "crop", "caption", "label"),
    num_classes=4,
    skip_duplicates=False,
    build_options="--size 0 --quality 95 --clips-per-shard 1024",
)
