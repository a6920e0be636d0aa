"""ImageNet (ILSVRC 2012): images of 1000 classes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from mmjax.data.importers.annotations import line_error, location, read_lines, read_table
from mmjax.data.importers.base import EVALUATION, AnnotatedExample, Importer, Job, MediaName
from mmjax.data.storage import directories, image_files
from mmjax.errors import UserError

_SYNSET = re.compile(r"n\d{8}")
_VALIDATION = "ILSVRC2012_val_{:08d}"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def _read(job: Job) -> Iterator[AnnotatedExample]:
    root = job.media.root
    train, val = (os.path.join(root, name) for name in ("train", "val"))
    by_class = {directory: _class_directories(directory) for directory in (train, val)}
    if not by_class[train] and not os.path.isdir(val):
        raise UserError(
            f"--media {root}: expected class directories such as train/n01440764, or a directory "
            "val; found neither."
        )
    names = _class_names(job, by_class)
    job.classes = list(names.values())
    for directory, split in ((train, "train"), (val, EVALUATION)):
        for synset in by_class[directory]:
            class_directory = os.path.join(directory, synset)
            _check_synset(synset, names, class_directory)
            for file in _images(class_directory):
                path = os.path.relpath(os.path.join(class_directory, file), root)
                yield AnnotatedExample(
                    path=path, labels=[names[synset]], split=split, location=class_directory
                )
    if os.path.isdir(val) and not by_class[val]:
        yield from _flat_validation(job, val, names)


def _flat_validation(job: Job, val: str, names: dict[str, str]) -> Iterator[AnnotatedExample]:
    """Yields the validation images of a directory without class directories."""
    images = {os.path.splitext(file)[0]: file for file in _images(val)}
    directory = os.path.relpath(val, job.media.root)
    for name, synset, line in _ground_truth(job):
        _check_synset(synset, names, line)
        exists = name in images
        yield AnnotatedExample(
            path=os.path.join(directory, images[name]) if exists else None,
            media=() if exists else (MediaName(name),),
            labels=[names[synset]],
            split=EVALUATION,
            location=line,
        )


def _check_synset(synset: str, names: dict[str, str], where: str) -> None:
    if synset not in names:
        raise UserError(f"{where}: the synset {synset!r} is not one of the {len(names)} classes.")


def _class_names(job: Job, by_class: dict[str, list[str]]) -> dict[str, str]:
    """Returns `{synset: class name}` in the standard class order, sorted by synset."""
    path = job.annotations.find_one("LOC_synset_mapping.txt", "synset_words.txt")
    if path is None:
        return {
            synset: synset for synset in sorted({s for names in by_class.values() for s in names})
        }
    names = {}
    for number, line in read_lines(path):
        synset, _, synonyms = line.partition(" ")
        if not _SYNSET.fullmatch(synset) or not synonyms:
            raise line_error(path, number, f"expected 'n01440764 tench, Tinca tinca'; got {line!r}")
        # Two classes are called crane, and two maillot: the synset makes names unique.
        names[synset] = f"{synset} {synonyms.split(',')[0]}"
    return dict(sorted(names.items()))


def _ground_truth(job: Job) -> Iterator[tuple[str, str, str]]:
    """Yields `(image name, synset, location)` of the validation set."""
    if path := job.annotations.find_one("LOC_val_solution.csv"):
        for number, row in read_table(path, "ImageId", "PredictionString"):
            synset = row["PredictionString"].partition(" ")[0]
            yield row["ImageId"], synset, location(os.path.basename(path), number)
        return
    path = job.annotations.require_one(_TRUTH, "LOC_val_solution.csv")
    synsets = _synsets_of_development_kit(job)
    for count, (number, line) in enumerate(read_lines(path), 1):
        if line not in synsets:
            raise line_error(
                path, number, f"expected a class number of the development kit; got {line!r}"
            )
        yield _VALIDATION.format(count), synsets[line], location(os.path.basename(path), number)


def _synsets_of_development_kit(job: Job) -> dict[str, str]:
    """Returns `{class number: synset}` of the development kit, which does not sort by synset."""
    if path := job.annotations.find_one("map_clsloc.txt"):
        rows = [(number, line, line.split()) for number, line in read_lines(path)]
        for number, line, cells in rows:
            if len(cells) != 3 or not _SYNSET.fullmatch(cells[0]):
                raise line_error(path, number, f"expected 'n02119789 1 kit_fox'; got {line!r}")
        return {cells[1]: cells[0] for _, _, cells in rows}
    path = job.annotations.find_one("meta.mat")
    if path is None:
        raise UserError(
            f"{_TRUTH} uses the class numbers of the development kit. Also pass its meta.mat (or "
            "map_clsloc.txt) to --annotations. Alternatively, pass LOC_val_solution.csv instead, "
            "or sort val into one directory per synset."
        )
    import scipy.io

    try:
        table = scipy.io.loadmat(path, simplify_cells=True)["synsets"]
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in table}
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is not the meta.mat of the development kit: {error!r}.") from error


def _class_directories(directory: str) -> list[str]:
    if not os.path.isdir(directory):
        return []
    return [name for name in directories.list_directories(directory) if _SYNSET.fullmatch(name)]


def _images(directory: str) -> list[str]:
    names = directories.list_files(directory)
    return [name for name in names if image_files.is_image(os.path.join(directory, name))]


IMAGENET = Importer(
    name="imagenet",
    title="ImageNet (ILSVRC 2012): images, 1000 classes",
    annotation_files="""LOC_synset_mapping.txt (or synset_words.txt) for class names;
    if val has no class directories: LOC_val_solution.csv,
    or ILSVRC2012_validation_ground_truth.txt with meta.mat or map_clsloc.txt""",
    media_names="""train/n01440764/*.JPEG
    val/n01440764/*.JPEG, or val/ILSVRC2012_val_00000001.JPEG …""",
    read=_read,
    num_classes=1000,
    skip_duplicates=False,
    build_options="--size 256 --clips-per-shard 1024",
)
