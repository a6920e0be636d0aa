"""Records that two splits have in common, under any name."""

import os

import numpy as np
import pytest

from mmjax.data.sources import identity
from mmjax.data.sources import registry as sources
from mmjax.data.sources.base import Source
from mmjax.data.storage.dataset import DatasetInfo
from tests.data import toy_clips as toy
from tests.data.sources.images import write_image


class Numbers(Source):
    """Six records; those of the split 'test' have other bytes at the same locations."""

    def __init__(self, *, split):
        self.num_examples, self.name, self.info = 6, f"numbers/{split}", DatasetInfo(name="numbers")
        self._first = 100 if split == "test" else 0

    def fetch(self, record):
        return b"%d" % (self._first + record)

    def where(self, record):
        return f"record {record}"


def common(first, second):
    """Returns the number of common records of two (specification, split)."""
    opened = [sources.open_source(spec, split=split) for spec, split in (first, second)]
    return identity.count_common(*opened, tuple(source.num_examples for source in opened))


@pytest.fixture
def specs(tmp_path):
    """Writes the same six images in every format; the record with index n is gray level 10 n."""
    lines = ["path,label,split"]
    for n in range(6):
        write_image(tmp_path / "images" / "ab"[n // 3] / f"{n}.png", 10 * n)
        lines.append(f"images/{'ab'[n // 3]}/{n}.png,{'ab'[n // 3]},train")
    (tmp_path / "a.csv").write_text("\n".join(lines))
    (tmp_path / "b.csv").write_text("\n".join([*lines[:1], *lines[3:5]]))
    pixels = np.arange(6, dtype=np.uint8)[:, None, None] * 10
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(6) // 3)
    os.symlink(tmp_path / "images", tmp_path / "link")
    os.symlink("a.npz", tmp_path / "b.npz")
    toy.build(tmp_path / "folder", 6, shards=2)
    os.symlink("folder", tmp_path / "alias")
    return tmp_path


@pytest.mark.parametrize("spec", ["images:{}/images", "csv:{}/a.csv", "npz:{}/a.npz", "{}/folder"])
def test_overlapping_slices_have_common_records(specs, spec):
    spec = spec.format(specs)
    assert common((spec, "train"), (spec, "train")) == 6
    assert common((spec, "train[:4]"), (spec, "train[2:]")) == 2
    assert common((spec, "train[4:]+train[:1]"), (spec, "train[:50%]")) == 1
    assert common((spec, "train[:50%:stratified]"), (spec, "train[50%::stratified]")) == 0


@pytest.mark.parametrize(
    "first, second, expected",
    [
        ("images:{}/images", "images:{}/link", 6),
        ("images:{}/images", "csv:{}/a.csv", 6),
        ("csv:{}/a.csv", "csv:{}/b.csv", 2),
        ("images:{}/link", "csv:{}/b.csv", 2),
        ("npz:{}/a.npz", "npz:{}/b.npz", 6),
        ("npz:{}/a.npz", "csv:{}/b.csv", 0),
        ("{}/folder", "{}/alias", 6),
    ],
)
def test_records_are_recognized_under_other_names(specs, first, second, expected):
    assert common((first.format(specs), "train"), (second.format(specs), "train")) == expected


def test_linked_files_are_recognized(specs):
    for n in (0, 4):
        path = specs / "other" / "ab"[n // 3] / "z.png"
        path.parent.mkdir(parents=True)
        path.symlink_to(specs / "images" / "ab"[n // 3] / f"{n}.png")
    write_image(specs / "other" / "a" / "new.png")
    assert common((f"images:{specs}/images", "train"), (f"images:{specs}/other", "train")) == 2


def test_any_split_of_a_directory_without_splits_has_the_same_records(specs):
    spec = f"images:{specs}/images"
    assert common((spec, "train"), (spec, "test")) == 6


def test_equal_locations_of_own_sources_are_compared_by_their_bytes():
    spec = f"{__name__}:Numbers"
    assert common((spec, "train"), (spec, "test")) == 0
    assert common((spec, "train"), (spec, "valid")) == 6
    assert common((spec, "train[:4]"), (spec, "train[3:]")) == 1
