"""The catalog of image datasets: split sizes against published ones, and data found on disk."""

import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from mmjax.data.sources import benchmarks, split_slicing
from mmjax.data.sources import registry as sources
from mmjax.data.sources.benchmarks import BENCHMARKS, LGSSL_BENCHMARKS
from mmjax.errors import UserError
from tests.data import toy_clips as toy
from tests.messages import assert_mentions, raises

# Images per TFDS split, and the number of images that LGSSL trains, validates and tests on.
SIZES = {
    "food101": (dict(train=75750, validation=25250), (60600, 15150, 25250)),
    "cifar10": (dict(train=50000, test=10000), (40000, 10000, 10000)),
    "cifar100": (dict(train=50000, test=10000), (40000, 10000, 10000)),
    "cub2011": (dict(train=5994, test=5794), (4795, 1199, 5794)),
    "sun397": (dict(train=19850, test=19850), (15880, 3970, 19850)),
    "cars196": (dict(train=8144, test=8041), (6515, 1629, 8041)),
    "aircraft": (dict(train=3334, validation=3333, test=3333), (3334, 3333, 3333)),
    "dtd": (dict(train=1880, validation=1880, test=1880), (1880, 1880, 1880)),
    "pets": (dict(train=3680, test=3669), (2944, 736, 3669)),
    "caltech101": (dict(train=3059, test=6084), (2447, 612, 6084)),
    "flowers": (dict(train=1020, validation=1020, test=6149), (1020, 1020, 6149)),
    "stl10": (dict(train=5000, test=8000), (4000, 1000, 8000)),
    "eurosat": (dict(train=27000), (5000, 5000, 5000)),
    "resisc45": (dict(train=31500), (3150, 3150, 25200)),
    "pcam": (dict(train=262144, validation=32768, test=32768), (262144, 32768, 32768)),
    "mnist": (dict(train=60000, test=10000), (48000, 12000, 10000)),
    "clevr": (dict(train=70000, validation=15000), (1500, 500, 500)),
}


@pytest.mark.parametrize("name", SIZES)
def test_split_sizes_are_those_of_lgssl_and_do_not_overlap(name):
    splits, expected = SIZES[name]
    entry, sizes, seen = BENCHMARKS[name], [], {}
    for text in (entry.train, entry.valid, entry.test):
        (part,) = split_slicing.parse(text)
        start, stop = part.bounds(splits[part.name])
        sizes.append(stop - start)
        indices = set(range(start, stop))
        assert not indices & seen.get(part.name, set())  # no leak from training into evaluation
        seen[part.name] = seen.get(part.name, set()) | indices
    assert tuple(sizes) == expected


def test_lgssl_averages_over_15_datasets():
    assert (
        len(LGSSL_BENCHMARKS) == 15
        and LGSSL_BENCHMARKS[0] == "food101"
        and LGSSL_BENCHMARKS[-1] == "pcam"
    )
    per_class = {name for name in LGSSL_BENCHMARKS if BENCHMARKS[name].metric == "mean_per_class"}
    assert per_class == {"aircraft", "pets", "caltech101", "flowers"}
    assert [name for name in LGSSL_BENCHMARKS if not BENCHMARKS[name].few_shot] == ["pcam"]
    classes = [101, 10, 100, 200, 397, 196, 100, 47, 37, 102, 102, 10, 10, 45, 2]
    assert [BENCHMARKS[name].num_classes for name in LGSSL_BENCHMARKS] == classes


def test_every_tfds_name_is_a_tfds_builder():
    """TFDS lists its builders without downloading data."""
    known = set(tfds.list_builders(with_community_datasets=False))
    for name, entry in BENCHMARKS.items():
        if entry.tfds:
            assert entry.tfds.split(",")[0].split("/")[0] in known, name
    assert not {builder for builder in known if "aircraft" in builder}


def test_importing_benchmarks_does_not_import_tensorflow(user_env):
    code = "import sys, mmjax.data.sources.benchmarks; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=user_env())


@pytest.fixture(autouse=True)
def empty_tfds_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own"))


def write_images(root, *directories, count=1):
    for directory in directories:
        (root / directory).mkdir(parents=True)
        for number in range(count):
            PIL.Image.new("RGB", (4, 4)).save(root / directory / f"{number}.png")


def write_arrays(path, count=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=np.zeros((count, 4, 4, 3), np.uint8), labels=np.arange(count))


def test_datasets_are_found_in_order_of_precedence(tmp_path):
    root, name = tmp_path / "sets", "cifar10"
    base = f"{root}/{name}"
    arrays = (f"{base}.npz", f"{base}/SPLIT.npz")
    tables = (f"{base}.csv", f"{base}/labels.csv", "path, label, split")
    tfds_dirs = ("TFDS", f"{tmp_path}/own", "docs/image_sets.md")
    with raises(UserError, "dataset.json", f"{base}/SPLIT/CLASS", *arrays, *tables, *tfds_dirs):
        benchmarks.find_benchmark(name, str(root))
    for make, spec in (
        (
            lambda: prepare(tmp_path / "own" / name / "3.0.2"),
            f"tfds:cifar10,data_dir={tmp_path}/own",
        ),
        (lambda: prepare(root / name / "3.0.2"), f"tfds:cifar10,data_dir={root}"),
        (lambda: write_arrays(root / name / "train.npz"), f"npz:{root}/{name}"),
        (lambda: write_arrays(root / f"{name}.npz"), f"npz:{root}/{name}.npz"),
        (lambda: write_images(root / name, "train/cat"), f"images:{root}/{name}"),
        (lambda: (root / name / "labels.csv").touch(), f"csv:{root}/{name}/labels.csv"),
        (lambda: (root / f"{name}.csv").touch(), f"csv:{root}/{name}.csv"),
        (lambda: toy.build(root / name, 2, shards=1), f"{root}/{name}"),
    ):
        make()
        assert benchmarks.find_benchmark(name, str(root)) == spec


def prepare(directory):
    directory.mkdir(parents=True)
    (directory / "dataset_info.json").write_text("{}")


def test_find_checks_the_tfds_configuration(tmp_path):
    prepare(tmp_path / "eurosat" / "rgb" / "2.0.0")
    assert (
        benchmarks.find_benchmark("eurosat", str(tmp_path)) == f"tfds:eurosat,data_dir={tmp_path}"
    )
    prepare(tmp_path / "sun397" / "tfds" / "4.0.0")
    with raises(UserError, tmp_path / "sun397", "TFDS", "sun397/standard-part1-120k"):
        benchmarks.find_benchmark("sun397", str(tmp_path))
    prepare(tmp_path / "own" / "clevr" / "3.1.0")
    assert benchmarks.find_benchmark("clevr") == f"tfds:clevr,label=objects,data_dir={tmp_path}/own"
    with raises(UserError, "aircraft", "SPLIT.npz", "docs/image_sets.md") as info:
        benchmarks.find_benchmark("aircraft")
    assert "TFDS" not in str(info.value)  # TFDS has no builder for it
    with raises(UserError, "'cifar'", "cifar10", "cifar100", "food101"):
        benchmarks.find_benchmark("cifar")


@pytest.mark.parametrize(
    "name, existing, expected",
    [
        ("cifar10", "train test", ("train[:80%]", "train[80%:]", "test")),
        ("cifar10", "train val test", ("train", "val", "test")),
        ("cifar10", "train val", ("train[:80%]", "train[80%:]", "val")),
        ("food101", "train test", ("train[:80%]", "train[80%:]", "test")),
        ("food101", "train validation", ("train[:80%]", "train[80%:]", "validation")),
        ("dtd", "train test", ("train[:80%]", "train[80%:]", "test")),
        ("dtd", "training valid testing", ("training", "valid", "testing")),
        ("eurosat", "train", ("train[:5000]", "train[5000:10000]", "train[10000:15000]")),
        ("eurosat", "train test", ("train[:80%]", "train[80%:]", "test")),
        ("imagenet", "train val", ("train", "", "val")),
        ("imagenet_r", "test", ("", "", "test")),
        ("imagenet_r", "val", ("", "", "val")),
    ],
)
def test_splits_follow_the_splits_of_local_data(tmp_path, name, existing, expected):
    for split in existing.split():
        write_arrays(tmp_path / f"{split}.npz")
    spec = f"npz:{tmp_path}"
    assert benchmarks.benchmark_splits(name, spec) == expected
    stratified = tuple(part.replace("]", ":stratified]") for part in expected)
    assert benchmarks.benchmark_splits(name, spec, stratified=True) == stratified


def test_tfds_data_uses_the_published_splits():
    entry = BENCHMARKS["food101"]
    published = (entry.train, entry.valid, entry.test)
    assert benchmarks.benchmark_splits("food101", "tfds:food101,data_dir=/nowhere") == published


def test_image_folders_are_split_per_class(tmp_path):
    """Image folders are sorted by class: a contiguous slice would lose classes."""
    write_images(tmp_path / "a", *(f"train/{c}" for c in "abc"), "test/a", count=10)
    spec = f"images:{tmp_path}/a"
    parts = benchmarks.benchmark_splits("cifar10", spec)
    assert parts == ("train[:80%:stratified]", "train[80%::stratified]", "test")
    for split, count in zip(parts, (8, 2), strict=False):
        assert np.bincount(sources.open_source(spec, split=split).labels()).tolist() == [count] * 3
    plain = benchmarks.benchmark_splits("cifar10", spec, stratified=False)
    assert plain == ("train[:80%]", "train[80%:]", "test")
    write_images(tmp_path / "b", "a", "b")  # no splits: every split name means all images
    spec = f"images:{tmp_path}/b"
    assert benchmarks.benchmark_splits("imagenet_a", spec) == ("", "", "test")
    assert benchmarks.benchmark_splits("resisc45", spec)[2] == "train[20%::stratified]"


@pytest.mark.parametrize("name, existing", [("cifar10", "train"), ("cifar10", "test")])
def test_error_when_a_split_is_missing(tmp_path, name, existing):
    write_arrays(tmp_path / f"{existing}.npz")
    spec = f"npz:{tmp_path}"
    with raises(UserError, spec) as info:
        benchmarks.benchmark_splits(name, spec)
    assert_mentions(str(info.value).replace(spec, ""), name, "train", "test", "split")
    write_images(tmp_path / "flat", "a")
    spec = f"images:{tmp_path}/flat"
    with raises(UserError, spec) as info:
        benchmarks.benchmark_splits(name, spec)
    assert_mentions(str(info.value).replace(spec, ""), name, "train", "test", "split")
