"""Published image classification benchmarks: their splits, and where to find them on disk.

The splits are those with which LGSSL evaluates, contiguous slices of TFDS's splits.

Source: El Banani et al. 2023, Learning Visual Representations via Language-Guided Sampling, arXiv
2302.12248 (LGSSL).
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Mapping

from mmjax.data.sources import prepared_tfds
from mmjax.errors import UserError, choose


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """An image classification dataset and the protocol of its evaluation.

    Attributes:
      tfds: Name and options after `tfds:` in a specification; '' if TFDS does not have it.
      train: TFDS split on which a classifier is fitted; '' for datasets with only a test split.
      valid: TFDS split on which its regularization is chosen; '' if there is no such split.
      test: TFDS split on which results are reported.
      num_classes: Number of classes.
      metric: 'top1' or 'mean_per_class'; '' if LGSSL does not evaluate on it.
      few_shot: Whether it is used for few-shot classification, too.
      corrupt: 'skip' if the published data contain an image that cannot be decoded; '' follows
        `config.data.corrupt`.
      note: A remark for users.
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


_VALID_FROM_TRAIN = ("train[:80%]", "train[80%:]", "test")
_THREE_SPLITS = ("train", "validation", "test")

BENCHMARKS = {
    "food101": Benchmark("food101", "train[:80%]", "train[80%:]", "validation", 101, "top1"),
    "cifar10": Benchmark("cifar10", *_VALID_FROM_TRAIN, 10, "top1"),
    "cifar100": Benchmark("cifar100", *_VALID_FROM_TRAIN, 100, "top1"),
    "cub2011": Benchmark("caltech_birds2011", *_VALID_FROM_TRAIN, 200, "top1"),
    "sun397": Benchmark(
        "sun397/standard-part1-120k",
        *_VALID_FROM_TRAIN,
        397,
        "top1",
        corrupt="skip",
        note="One image cannot be decoded.",
    ),
    "cars196": Benchmark("cars196", *_VALID_FROM_TRAIN, 196, "top1"),
    "aircraft": Benchmark(
        "", *_THREE_SPLITS, 100, "mean_per_class", note="Variants of FGVC-Aircraft."
    ),
    "dtd": Benchmark("dtd", *_THREE_SPLITS, 47, "top1"),
    "pets": Benchmark("oxford_iiit_pet", *_VALID_FROM_TRAIN, 37, "mean_per_class"),
    "caltech101": Benchmark("caltech101", *_VALID_FROM_TRAIN, 102, "mean_per_class"),
    "flowers": Benchmark("oxford_flowers102", *_THREE_SPLITS, 102, "mean_per_class"),
    "stl10": Benchmark("stl10", *_VALID_FROM_TRAIN, 10, "top1"),
    "eurosat": Benchmark(
        "eurosat", "train[:5000]", "train[5000:10000]", "train[10000:15000]", 10, "top1"
    ),
    "resisc45": Benchmark("resisc45", "train[:10%]", "train[10%:20%]", "train[20%:]", 45, "top1"),
    "pcam": Benchmark("patch_camelyon", *_THREE_SPLITS, 2, "top1", few_shot=False),
    "mnist": Benchmark("mnist", *_VALID_FROM_TRAIN, 10, "top1"),
    "clevr": Benchmark(
        "clevr,label=objects",
        "train[:1500]",
        "train[1500:2000]",
        "validation[:500]",
        8,
        "top1",
        note="The class is the number of objects: 10, 3, 4, 5, 6, 7, 8, 9.",
    ),
    "imagenet": Benchmark("imagenet2012", "train", "", "validation", 1000, "top1"),
    "imagenet_a": Benchmark("imagenet_a", "", "", "test", 1000, ""),
    "imagenet_r": Benchmark("imagenet_r", "", "", "test", 1000, ""),
    "imagenet_v2": Benchmark("imagenet_v2", "", "", "test", 1000, ""),
    "imagenet_sketch": Benchmark("imagenet_sketch", "", "", "test", 1000, ""),
}

LGSSL_BENCHMARKS = tuple(BENCHMARKS)[:15]  # LGSSL reports averages over these


def find_benchmark(name: str, root: str = "") -> str:
    """Returns the specification of a benchmark on disk, for `registry.open_source`.

    Returns the first of these that exists: a dataset directory ROOT/NAME; a table ROOT/NAME.csv or
    ROOT/NAME/labels.csv; an image folder ROOT/NAME; arrays ROOT/NAME.npz or ROOT/NAME/*.npz; a
    prepared TFDS dataset in ROOT or in TFDS's directory ($TFDS_DATA_DIR or ~/tensorflow_datasets).

    Args:
      name: A name in `BENCHMARKS`.
      root: Directory of datasets; '' searches only TFDS's directory.

    Raises:
      UserError: An unknown name, or no data; the message lists all locations.
    """
    benchmark = choose("image benchmark", name, BENCHMARKS)
    root = os.path.expanduser(root)
    if root and (spec := _find_local(os.path.join(root, name))):
        return spec
    if benchmark.tfds and (spec := prepared_tfds.find_prepared(benchmark.tfds, root)):
        return spec
    path = os.path.join(root or "ROOT", name)
    locations = [
        f"a dataset directory {path} (with dataset.json)",
        f"a table {path}.csv or {path}/labels.csv with the columns path, label, split",
        f"an image folder {path}/SPLIT/CLASS/*.jpg",
        f"arrays {path}.npz or {path}/SPLIT.npz",
    ]
    if benchmark.tfds:
        where = " or ".join(filter(None, (root, prepared_tfds.default_directory())))
        locations.append(f"{benchmark.tfds} prepared by TFDS in {where}")
    raise UserError(
        f"The dataset {name} was not found. Searched for: {'; '.join(locations)}. See "
        "docs/image_sets.md."
    )


def _find_local(path: str) -> str:
    """Returns the specification of the dataset at `path`, with any suffix; '' if none exists."""
    from mmjax.data.sources import image_folder

    # A table is preferred to the image folder that contains it.
    candidates = (
        (lambda: os.path.exists(os.path.join(path, "dataset.json")), path),
        (lambda: os.path.isfile(f"{path}.csv"), f"csv:{path}.csv"),
        (lambda: os.path.isfile(f"{path}/labels.csv"), f"csv:{path}/labels.csv"),
        (lambda: image_folder.has_images(path), f"images:{path}"),
        (lambda: os.path.isfile(f"{path}.npz"), f"npz:{path}.npz"),
        (lambda: bool(glob.glob(os.path.join(glob.escape(path), "*.npz"))), f"npz:{path}"),
    )
    return next((spec for exists, spec in candidates if exists()), "")


def benchmark_splits(
    name: str, spec: str, *, stratified: bool | None = None
) -> tuple[str, str, str]:
    """Returns the splits (train, valid, test) of a benchmark; '' for one that does not exist.

    TFDS datasets are split as published. Other data are split by their own validation and test
    splits, and by slices of the training split if they lack these.

    Args:
      name: A name in `BENCHMARKS`.
      spec: Specification of the data, from `find_benchmark`.
      stratified: Whether slices are taken from every class. None selects this only for image
        folders, because their records are sorted by class.

    Raises:
      UserError: An unknown name, or data without a split to train or test on.
    """
    from mmjax.data.sources import fgvc_aircraft, registry
    from mmjax.data.sources.split_slicing import match_split

    benchmark = choose("image benchmark", name, BENCHMARKS)
    prefix, _, path = spec.partition(":")
    splits = (benchmark.train, benchmark.valid, benchmark.test)
    if prefix != "tfds":
        available = registry.split_names(spec)
        matches = {split: match_split(split, available) or "" for split in _THREE_SPLITS}
        splits = _local_splits(benchmark, matches, any_name=not available)
        if not splits[2] or benchmark.train and not splits[0]:
            existing = f"the splits {', '.join(available)}" if available else "no splits"
            raise UserError(
                f"{spec} has {existing}, but {name} needs train and test. Name its subdirectories "
                "or arrays after the splits, or add a column split to its table."
            )
    if stratified is None:
        stratified = prefix == "images" and not fgvc_aircraft.find_lists(path)
    if stratified:
        splits = tuple(split.replace("]", ":stratified]") for split in splits)
    return splits


def _local_splits(
    benchmark: Benchmark, matches: Mapping[str, str], *, any_name: bool
) -> tuple[str, str, str]:
    """Returns the splits (train, valid, test) of data that are not from TFDS.

    Args:
      benchmark: The benchmark.
      matches: {'train', 'validation' and 'test': name of the split in the data, or ''}.
      any_name: Whether the data have no splits, so that any name means all of them.
    """
    train, valid, test = (matches[split] for split in _THREE_SPLITS)
    if not benchmark.train:
        return "", "", test or valid or train or ("test" if any_name else "")
    only_train = any_name or bool(train) and not valid and not test
    if only_train and benchmark.test.startswith("train["):
        return benchmark.train, benchmark.valid, benchmark.test
    if any_name:
        return "", "", ""
    if valid and not test:  # data with two splits often call the test split 'val'
        valid, test = "", valid
    if not (train and test):
        return train, valid, test
    if not benchmark.valid:
        return train, "", test
    if not valid:
        return f"{train}[:80%]", f"{train}[80%:]", test
    return train, valid, test
