"""Well-known sets of labeled images: what their parts are, and where they lie on a disk.

The parts are those with which LGSSL evaluates (El Banani et al. 2023, Learning Visual
Representations via Language-Guided Sampling, arXiv 2302.12248): TFDS's contiguous slices.
"""

from __future__ import annotations

import dataclasses
import glob
import os

from mmjax.errors import UserError, choose


@dataclasses.dataclass(frozen=True)
class Entry:
    """A set of images.

    Attributes:
      tfds: what comes after `tfds:` in a specification; '' if TFDS does not have it.
      train, valid, test: the splits of TFDS to fit a classifier on, to choose its strength, to
        report; '' if there is none.
      num_classes: of the whole set.
      metric: 'top1' or 'mean_per_class'; '' if LGSSL reports none.
      few_shot: whether it is also used for few-shot classification.
      corrupt: 'skip' where the published set has an image that cannot be decoded, see
        `config.data.corrupt`; '' is as the config says.
      note: what there is to know.
    """

    tfds: str
    train: str
    valid: str
    test: str
    num_classes: int
    metric: str
    few_shot: bool = True
    corrupt: str = ""
    note: str = ""


_FIFTH = ("train[:80%]", "train[80%:]", "test")
_THREE = ("train", "validation", "test")

CATALOG = {
    "food101": Entry("food101", "train[:80%]", "train[80%:]", "validation", 101, "top1"),
    "cifar10": Entry("cifar10", *_FIFTH, 10, "top1"),
    "cifar100": Entry("cifar100", *_FIFTH, 100, "top1"),
    "cub2011": Entry("caltech_birds2011", *_FIFTH, 200, "top1"),
    "sun397": Entry(
        "sun397/standard-part1-120k",
        *_FIFTH,
        397,
        "top1",
        corrupt="skip",
        note="One image cannot be decoded.",
    ),
    "cars196": Entry("cars196", *_FIFTH, 196, "top1"),
    "aircraft": Entry("", *_THREE, 100, "mean_per_class", note="Variants of FGVC-Aircraft."),
    "dtd": Entry("dtd", *_THREE, 47, "top1"),
    "pets": Entry("oxford_iiit_pet", *_FIFTH, 37, "mean_per_class"),
    "caltech101": Entry("caltech101", *_FIFTH, 102, "mean_per_class"),
    "flowers": Entry("oxford_flowers102", *_THREE, 102, "mean_per_class"),
    "stl10": Entry("stl10", *_FIFTH, 10, "top1"),
    "eurosat": Entry(
        "eurosat", "train[:5000]", "train[5000:10000]", "train[10000:15000]", 10, "top1"
    ),
    "resisc45": Entry("resisc45", "train[:10%]", "train[10%:20%]", "train[20%:]", 45, "top1"),
    "pcam": Entry("patch_camelyon", *_THREE, 2, "top1", few_shot=False),
    "mnist": Entry("mnist", *_FIFTH, 10, "top1"),
    "clevr": Entry(
        "clevr,label=objects",
        "train[:1500]",
        "train[1500:2000]",
        "validation[:500]",
        8,
        "top1",
        note="The class is the number of objects: 10, 3, 4, 5, 6, 7, 8, 9.",
    ),
    "imagenet": Entry("imagenet2012", "train", "", "validation", 1000, "top1"),
    "imagenet_a": Entry("imagenet_a", "", "", "test", 1000, ""),
    "imagenet_r": Entry("imagenet_r", "", "", "test", 1000, ""),
    "imagenet_v2": Entry("imagenet_v2", "", "", "test", 1000, ""),
    "imagenet_sketch": Entry("imagenet_sketch", "", "", "test", 1000, ""),
}

ALL = tuple(CATALOG)[:15]  # the sets over which LGSSL's figures are averaged


def find(name: str, root: str = "") -> str:
    """The specification of a set for `sources.open_source`, by what lies on the disk.

    In this order: a dataset folder ROOT/NAME, a table ROOT/NAME.csv or ROOT/NAME/labels.csv (before
    the images that it lies beside), a folder of images ROOT/NAME, arrays ROOT/NAME.npz or
    ROOT/NAME/*.npz, what TFDS has prepared in ROOT, and in its own folder ($TFDS_DATA_DIR, or
    ~/tensorflow_datasets).

    Args:
      name: in `CATALOG`.
      root: a folder of sets; '' is TFDS's own folder alone.

    Raises:
      UserError: an unknown name, or nothing there: then with all that was looked for.
    """
    from mmjax.data.sources import image_folder

    entry = choose("image set", name, CATALOG)
    own = os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if root:
        root = os.path.expanduser(root)
        directory = os.path.join(root, name)
        arrays = glob.glob(os.path.join(glob.escape(directory), "*.npz"))
        for there, spec in (
            (os.path.exists(os.path.join(directory, "dataset.json")), directory),
            (os.path.isfile(f"{directory}.csv"), f"csv:{directory}.csv"),
            (os.path.isfile(f"{directory}/labels.csv"), f"csv:{directory}/labels.csv"),
            (image_folder.has_images(directory), f"images:{directory}"),
            (os.path.isfile(f"{directory}.npz"), f"npz:{directory}.npz"),
            (bool(arrays), f"npz:{directory}"),
        ):
            if there:
                return spec
    if entry.tfds:
        for data_dir in filter(None, (root, own)):
            if _prepared(entry.tfds, data_dir):
                return f"tfds:{entry.tfds},data_dir={data_dir}"
    directory = os.path.join(root or "ROOT", name)
    where = f"{root} or {own}" if root else own
    by_tfds = f", or what TFDS has prepared of {entry.tfds} in {where}" if entry.tfds else ""
    raise UserError(
        f"There is no {name}. It can be a dataset folder {directory} (with dataset.json), a table "
        f"({directory}.csv or {directory}/labels.csv with the columns path, label, split), a folder of "
        f"images ({directory}/SPLIT/CLASS/*.jpg), arrays ({directory}.npz or {directory}/SPLIT.npz)"
        f"{by_tfds}. See docs/image_sets.md."
    )


def splits_of(name: str, spec: str, *, stratified: bool | None = None) -> tuple[str, str, str]:
    """The splits (train, valid, test) of a set as it lies on the disk; '' where there is none.

    What TFDS has is parted as the entry says. For other data, their own validation and test
    splits are used where they have them, and slices of the training split where they do not.

    Args:
      name: in `CATALOG`.
      spec: from `find`.
      stratified: take slices of each class. None: only where the records come class by class, as in
        folders.

    Raises:
      UserError: no such set, or data that have no split to test on.
    """
    from mmjax.data.sources import image_folder
    from mmjax.data.sources import registry as sources
    from mmjax.data.sources.split_slicing import same_split

    entry = choose("image set", name, CATALOG)
    kind, _, directory = spec.partition(":")
    parts = (entry.train, entry.valid, entry.test)
    if kind != "tfds":
        there = sources.split_names(spec)
        found = {word: same_split(word, there) or "" for word in _THREE}
        parts = _parts(entry, found, any_name=not there)
        if not parts[2] or entry.train and not parts[0]:
            raise UserError(
                f"{spec} has {'the splits ' + ', '.join(there) if there else 'no splits'}: {name} "
                "needs train and test. Name its folders or arrays like that, or its rows in a "
                "column split."
            )
    if stratified is None:
        stratified = kind == "images" and not image_folder.is_aircraft(directory)
    if stratified:
        parts = tuple(part.replace("]", ":stratified]") for part in parts)
    return parts


def _parts(entry: Entry, found: dict[str, str], *, any_name: bool) -> tuple[str, str, str]:
    """The splits of data that have those in `found`, {'train': their name or ''}."""
    train, valid, test = (found[word] for word in _THREE)
    if not entry.train:
        return "", "", test or valid or train or ("test" if any_name else "")
    one = any_name or bool(train) and not valid and not test
    if one and entry.test.startswith("train["):
        return entry.train, entry.valid, entry.test
    if any_name:
        return "", "", ""
    if valid and not test:  # what people call the test split where there is no other
        valid, test = "", valid
    if not (train and test):
        return train, valid, test
    if not entry.valid:
        return train, "", test
    if not valid:
        return f"{train}[:80%]", f"{train}[80%:]", test
    return train, valid, test


def _prepared(text: str, data_dir: str) -> bool:
    name = text.partition(",")[0]
    below = ("*",) if "/" in name else ("*", "*/*")  # version, or configuration and version
    base = glob.escape(os.path.join(data_dir, name))
    return any(glob.glob(os.path.join(base, some, "dataset_info.json")) for some in below)
