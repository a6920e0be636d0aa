"""Tests of the world's splits: disjoint combinations and complete values."""

import itertools

import pytest

from mmjax.data.world.attributes import ATTRIBUTES
from mmjax.data.world.config import attributes_of


def combination(attributes):
    return tuple(attributes[name] for name in ("shape", "color", "size", "motion"))


@pytest.mark.parametrize("seed", [0, 7])
def test_splits_share_no_combination_and_have_every_value(seed):
    combinations = {}
    for split, count in (("train", 2000), ("valid", 96), ("test", 240)):
        scene_attributes = [attributes_of(seed, split, i) for i in range(count)]
        combinations[split] = {combination(attributes) for attributes in scene_attributes}
        for name, values in ATTRIBUTES.items():
            actual = {attributes[name] for attributes in scene_attributes}
            assert actual == set(values), (split, name)
    for one, other in itertools.combinations(combinations.values(), 2):
        assert not one & other
    assert len(combinations["test"]) == 240  # All differ, so that retrieval is well posed.
    assert sum(map(len, combinations.values())) == 8 * 8 * 3 * 6
    full = [tuple(attributes_of(seed, "test", i).values()) for i in range(4 * 240)]
    assert len(set(full)) == 4 * 240


def test_held_out_combinations_do_not_depend_on_the_seed():
    first, second = (
        {combination(attributes_of(seed, "test", i)) for i in range(240)} for seed in (0, 1)
    )
    assert first == second
    assert attributes_of(0, "test", 0) != attributes_of(1, "test", 0)
