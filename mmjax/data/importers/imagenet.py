"""ImageNet (ILSVRC 2012): images of 1000 classes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from mmjax.data.importers.annotations import lines, malformed, rows
from mmjax.data.importers.base import EVALUATION, File, Importer, Item, Job
from mmjax.data.importers.media_directory import PICTURES
from mmjax.errors import UserError

_SYNSET = re.compile(r"n\d{8}")
_VALIDATION = "ILSVRC2012_val_{:08d}"


def _read(job: Job) -> Iterator[Item]:
    root = job.media.root
    train, val = (os.path.join(root, name) for name in ("train", "val"))
    by_class = {directory: _subfolders(directory) for directory in (train, val)}
    if not by_class[train] and not os.path.isdir(val):
        raise UserError(f"{root} has neither train/n01440764/… nor val/….")
    names = _names(job, by_class)
    job.classes = list(names.values())
    for directory, split in ((train, "train"), (val, EVALUATION)):
        for synset in by_class[directory]:
            where = os.path.join(directory, synset)
            if synset not in names:
                raise UserError(f"{where}: {synset} is none of the {len(names)} classes.")
            for file in _images(where):
                path = os.path.relpath(os.path.join(where, file), root)
                yield Item(path=path, labels=[names[synset]], split=split, where=where)
    if os.path.isdir(val) and not by_class[val]:
        yield from _flat_validation(job, val, names)


def _flat_validation(job: Job, val: str, names: dict[str, str]) -> Iterator[Item]:
    images = {os.path.splitext(file)[0]: file for file in _images(val)}
    directory = os.path.relpath(val, job.media.root)
    for name, synset, where in _ground_truth(job):
        if synset not in names:
            raise UserError(f"{where}: {synset} is none of the {len(names)} classes.")
        found = name in images
        yield Item(
            path=os.path.join(directory, images[name]) if found else None,
            files=() if found else (File(name),),
            labels=[names[synset]],
            split=EVALUATION,
            where=where,
        )


def _names(job: Job, by_class: dict[str, list[str]]) -> dict[str, str]:
    """{synset: class name} in the order everybody uses, that of the synsets' numbers."""
    path = job.annotations.optional("LOC_synset_mapping.txt", "synset_words.txt")
    if path is None:
        return {
            synset: synset for synset in sorted({s for found in by_class.values() for s in found})
        }
    names = {}
    for number, line in lines(path):
        synset, _, words = line.partition(" ")
        if not _SYNSET.fullmatch(synset) or not words:
            raise malformed(path, number, f"{line!r} is not 'n01440764 tench, Tinca tinca'")
        # Two classes are called crane, and two maillot: the synset makes names unique.
        names[synset] = f"{synset} {words.split(',')[0]}"
    return dict(sorted(names.items()))


def _ground_truth(job: Job) -> Iterator[tuple[str, str, str]]:
    """(name of the image, synset, where) of the validation set."""
    if path := job.annotations.optional("LOC_val_solution.csv"):
        for number, row in rows(path, "ImageId", "PredictionString"):
            synset = row["PredictionString"].partition(" ")[0]
            yield row["ImageId"], synset, f"{os.path.basename(path)}:{number}"
        return
    path = job.annotations.one("ILSVRC2012_validation_ground_truth.txt", "LOC_val_solution.csv")
    synsets = _devkit_numbers(job)
    for count, (number, line) in enumerate(lines(path), 1):
        if line not in synsets:
            raise malformed(path, number, f"{line!r} is no class number of the development kit")
        yield _VALIDATION.format(count), synsets[line], f"{os.path.basename(path)}:{number}"


def _devkit_numbers(job: Job) -> dict[str, str]:
    """{class number of the development kit: synset}; its order is its own, not by synset."""
    if path := job.annotations.optional("map_clsloc.txt"):
        split = [(number, line.split()) for number, line in lines(path)]
        for number, words in split:
            if len(words) != 3 or not _SYNSET.fullmatch(words[0]):
                raise malformed(path, number, "not 'n02119789 1 kit_fox'")
        return {words[1]: words[0] for _, words in split}
    path = job.annotations.optional("meta.mat")
    if path is None:
        raise UserError(
            "ILSVRC2012_validation_ground_truth.txt counts classes in the order of the development "
            "kit: give its meta.mat (or map_clsloc.txt) too. Or give LOC_val_solution.csv instead "
            "of both, or sort val into folders by synset."
        )
    import scipy.io

    try:
        table = scipy.io.loadmat(path, simplify_cells=True)["synsets"]
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in table}
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is not the development kit's table: {error!r}.") from error


def _subfolders(directory: str) -> list[str]:
    if not os.path.isdir(directory):
        return []
    entries = os.scandir(directory)
    return sorted(e.name for e in entries if _SYNSET.fullmatch(e.name) and e.is_dir())


def _images(directory: str) -> list[str]:
    return sorted(file for file in os.listdir(directory) if file.lower().endswith(PICTURES))


IMAGENET = Importer(
    name="imagenet",
    title="ImageNet (ILSVRC 2012): images, 1000 classes",
    needs="""LOC_synset_mapping.txt (or synset_words.txt) for names;
    if val has no folders: LOC_val_solution.csv,
    or ILSVRC2012_validation_ground_truth.txt with meta.mat or map_clsloc.txt""",
    names="""train/n01440764/*.JPEG
    val/n01440764/*.JPEG, or val/ILSVRC2012_val_00000001.JPEG …""",
    read=_read,
    num_classes=1000,
    check_repeats=False,
    build="--size 256 --clips-per-shard 1024",
)
