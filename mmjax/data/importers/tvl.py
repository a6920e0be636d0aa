"""TVL: images of touch with images and words of what is touched.

Source: TVL (Fu et al. 2024, A Touch, Vision, and Language Dataset for Multimodal Alignment, arXiv
2402.13232); crops, validation set and out-of-contact images are those of TVL's published code,
except where an option says otherwise.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import math
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mmjax.data.importers.base import Importer, Item, Job
from mmjax.data.importers.tvl_files import Pair, Part, Tree, read_hct, read_ssvtp, usable_background
from mmjax.data.importers.tvl_swapped import find_swapped
from mmjax.data.storage import image_files
from mmjax.errors import UserError

SUBSETS = ("ssvtp", "hct")


def crop_of(subset: str, width: int, height: int) -> tuple[int, int, int, int]:
    """(top, left, height, width): the part of a camera image around the sensor's contact."""
    side = math.ceil(math.sqrt(2) * 0.18 * max(width, height))
    if subset == "ssvtp":
        return round((height - side) / 2), round((width - side) / 2), side, side
    # The third part was recorded with the contact lower in the image.
    return 200 if subset == "hct/data3" else 0, (width - side) // 2, side, side


def validation_rows(count: int) -> np.ndarray:
    """Which of `count` training rows are the published validation set: a tenth of them."""
    return np.random.RandomState(42).permutation(count)[: count - math.floor(0.9 * count)]


def _read(job: Job) -> Iterator[Item]:
    options, tree = job.options, Tree(job.media.root)
    if options.no_contact < 0 or not math.isfinite(options.no_contact):
        raise UserError(f"--no-contact must be 0 or more, not {options.no_contact}.")
    parts = {}
    for subset in _chosen(job, tree):
        if subset == "ssvtp":
            parts[subset] = read_ssvtp(tree, background=_shared_background(job, tree))
        else:
            parts[subset] = read_hct(tree, no_contact=options.no_contact > 0)
        job.notices += parts[subset].notices
    if options.no_contact and not any(part.no_contact for part in parts.values()):
        raise UserError(
            "--no-contact asks for images without contact, but there is no "
            f"{tree.path('hct')}/data*/not_contact.json with any."
        )
    if "hct" in parts:
        _turn_swapped(parts["hct"], job, tree)
    subsets = {
        pair.subset
        for part in parts.values()
        for pairs in (part.test, part.train, part.missing, part.no_contact)
        for pair in pairs
    }
    job.classes = sorted(subsets, key=lambda name: (name != "ssvtp", name))
    splits: list[tuple[str, Pair]] = []
    for part in parts.values():
        splits += _split(part, job)
    without = {"caption": 0, "background": 0}
    for item in _items(splits, job, tree):
        if not item.absent:
            without["caption"] += not item.captions
            without["background"] += not item.background
        yield item
    if without["caption"]:
        job.notices.append(f"{without['caption']} clips have no caption; they are kept.")
    if without["background"]:
        job.notices.append(
            f"{without['background']} clips have no image of the sensor untouched; they are kept."
        )


def _chosen(job: Job, tree: Tree) -> list[str]:
    """The subsets to import: those asked for, else those that are there."""
    there = [subset for subset in SUBSETS if os.path.isdir(tree.path(subset))]
    wanted = job.options.subsets or there
    for subset in wanted:
        if subset not in there:
            raise UserError(f"There is no folder {tree.path(subset)}; --media holds ssvtp and hct.")
    if not wanted:
        raise UserError(f"{tree.root} has neither a folder ssvtp nor a folder hct.")
    if not job.options.subsets and len(there) < len(SUBSETS):
        (absent,) = set(SUBSETS) - set(there)
        job.notices.append(f"There is no folder {absent}: it is left out.")
    if job.options.background and "ssvtp" not in wanted:
        raise UserError("--background is ssvtp's, which is not imported: hct has its own.")
    return [subset for subset in SUBSETS if subset in wanted]


def _shared_background(job: Job, tree: Tree) -> str:
    """The file of --background as it is to stand in the table; '' without one."""
    if not job.options.background:
        return ""
    image_files.image_size(job.options.background)  # an error that names it, if it is no image
    path, root = os.path.abspath(job.options.background), os.path.abspath(tree.root)
    return os.path.relpath(path, root) if os.path.commonpath([root, path]) == root else path


def _turn_swapped(part: Part, job: Job, tree: Tree) -> None:
    """Finds recordings whose folders of touch and vision are swapped; does as --swapped says."""
    lists = (part.train, part.test, part.no_contact)
    swapped, unclear = find_swapped([pair for pairs in lists for pair in pairs], tree)
    if unclear:
        job.notices.append(
            f"{len(unclear)} recordings do not tell by size or contents which images are touch; "
            f"taken as named: {_some(unclear)}."
        )
    if not swapped:
        return
    found = f"{len(swapped)} recordings have touch and vision swapped: {_some(swapped)}."
    if job.options.swapped == "fail":
        raise UserError(
            f"{found} `--swapped fix` swaps them back in the table, `--swapped keep` leaves them."
        )
    if job.options.swapped == "keep":
        job.notices.append(f"{found} They are left as they are.")
        return
    job.notices.append(f"{found} They are swapped back in the table.")
    for pairs in lists:
        pairs[:] = [_turned(p, tree) if p.recording in swapped else p for p in pairs]


def _turned(pair: Pair, tree: Tree) -> Pair:
    background = pair.background
    directory, file = posixpath.split(background)
    if background and directory == posixpath.dirname(pair.touch):
        # The sensor untouched is an image of the same recording, so in the wrong folder too.
        background = f"{posixpath.dirname(pair.vision)}/{file}"
        background = usable_background(background, pair.subset, tree)
    return dataclasses.replace(pair, vision=pair.touch, touch=pair.vision, background=background)


def _split(part: Part, job: Job) -> Iterator[tuple[str, Pair]]:
    """(split, pair), the test set first; 'train+valid' where the published sets overlap."""
    for split, pairs in (("test", part.test), ("train", part.missing)):
        for pair in pairs:
            yield split, pair
    validation = set(validation_rows(len(part.train)).tolist())
    if job.options.split == "original":
        # Published code draws the training set from a longer list, of the same rows and those
        # without contact: the two draws have nothing in common but their seed.
        rows = [*part.train, *_sample(part.no_contact, job.options.no_contact, len(part.train))]
        left_out = set(validation_rows(len(rows)).tolist())
        for number, pair in enumerate(rows):
            splits = ["train"] * (number not in left_out) + ["valid"] * (number in validation)
            if splits:
                yield "+".join(splits), pair
            else:
                job.skipped["in neither set of the published split"] += 1
        return
    seen = {pair.vision for pair in part.test}
    valid = [pair for number, pair in enumerate(part.train) if number in validation]
    train = [pair for number, pair in enumerate(part.train) if number not in validation]
    train += _sample(part.no_contact, job.options.no_contact, len(train))
    for split, pairs in (("valid", valid), ("train", train)):
        for pair in pairs:
            if pair.vision in seen:
                job.skipped[f"{split} rows whose image is in another split"] += 1
            else:
                yield split, pair
        seen.update(pair.vision for pair in pairs)


def _sample(pairs: Sequence[Pair], fraction: float, count: int) -> list[Pair]:
    """At most fraction · count of the pairs, the same ones on every machine."""
    if len(pairs) <= fraction * count:
        return list(pairs)
    chosen = np.random.RandomState(0).choice(len(pairs), int(fraction * count), replace=False)
    return [pairs[number] for number in sorted(chosen)]


def _items(splits: Iterable[tuple[str, Pair]], job: Job, tree: Tree) -> Iterator[Item]:
    splits = list(splits)
    unreadable: list[str] = []

    def size(row: tuple[str, Pair]) -> tuple[int, int] | UserError | None:
        if not tree.has(row[1].vision):
            return None
        try:
            return image_files.image_size(tree.path(row[1].vision))
        except UserError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # what takes time is the disk
        for (split, pair), found in zip(splits, pool.map(size, splits), strict=True):
            if isinstance(found, UserError):
                job.skipped["images that cannot be read"] += 1
                unreadable.append(str(found))
                continue
            absent = next((p for p in (pair.vision, pair.touch) if not tree.has(p)), "")
            yield Item(
                split=split,
                where=pair.where,
                path=pair.vision,
                touch=(pair.touch,),
                background=pair.background,
                crop=crop_of(pair.subset, *found) if found else None,
                captions=(pair.caption,) if pair.caption else (),
                labels=(pair.subset,),
                absent=absent,
            )
    if unreadable:
        job.notices.append(f"The first image that cannot be read: {unreadable[0]}")


def _some(names: Sequence[str], count: int = 20) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--subsets", nargs="+", choices=SUBSETS, help="only these (default: those that are there)"
    )
    parser.add_argument(
        "--background", metavar="FILE", help="ssvtp's sensor untouched (see `mmjax background`)"
    )
    parser.add_argument(
        "--no-contact",
        type=float,
        default=0.0,
        metavar="F",
        help="add images without contact to train, at most this fraction of its rows of hct (0)",
    )
    parser.add_argument(
        "--split",
        choices=("clean", "original"),
        default="clean",
        help="original: with --no-contact, train and valid overlap as in TVL's code (clean)",
    )
    parser.add_argument(
        "--swapped",
        choices=("fail", "fix", "keep"),
        default="fail",
        help="recordings whose folders of touch and vision are swapped (fail)",
    )


TVL = Importer(
    name="tvl",
    title="TVL: touch, images of what is touched, and words (SSVTP and HCT)",
    needs="""ssvtp/train.csv, ssvtp/test.csv, ssvtp/text/labels_N.txt
    hct/data1/train.csv, test.csv, contact.json, not_contact.json; hct/data2, hct/data3 likewise""",
    names="""ssvtp/images_rgb/image_N_rgb.jpg, ssvtp/images_tac/image_N_tac.jpg
    hct/data1/RECORDING/vision/FRAME.jpg, hct/data1/RECORDING/tactile/FRAME.jpg
    hct/data1/digit_background.png""",
    read=_read,
    add_options=_add_options,
    annotated=False,
    columns=("touch", "background", "crop", "caption", "label"),
    num_classes=4,
    check_repeats=False,
    build="--size 0 --quality 95 --clips-per-shard 1024",
)
