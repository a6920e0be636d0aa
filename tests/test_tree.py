"""Names of leaves, and rules over names."""

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax import tree
from mmjax.errors import UserError

NAMES = st.text(st.characters(exclude_characters="/"), min_size=1, max_size=5)
TREES = st.recursive(
    st.integers(), lambda children: st.dictionaries(NAMES, children, min_size=1, max_size=3)
).filter(lambda value: isinstance(value, dict))


@given(TREES)
def test_flat_and_back(value):
    flat = tree.flatten(value)
    assert tree.unflatten(flat) == value
    assert list(flat.values()) == jax.tree.leaves(value)


def test_names_of_an_optimizers_state_end_like_its_parameters():
    params = {"video": {"kernel": jnp.zeros((2, 3)), "frozen": None}, "list": [jnp.zeros(1)]}
    names = tree.flatten(optax.adam(1e-3).init(params))
    assert sorted(names) == [
        "0/count",
        *(f"0/{slot}/{path}" for slot in ("mu", "nu") for path in ("list/0", "video/kernel")),
    ]


def test_map_named():
    first, second = {"a": {"b": 1}, "c": 2}, {"a": {"b": 10}, "c": 20}
    named = tree.map_named(lambda path, x, y: (path, x + y), first, second)
    assert named == {"a": {"b": ("a/b", 11)}, "c": ("c", 22)}


PATHS = ["video/kernel", "video/bias", "audio/kernel"]


def test_the_first_pattern_found_counts():
    rules = ["^video/b", "kernel$", "video"]
    assert tree.first_match(rules, PATHS, what="rules") == {
        "video/kernel": 1,
        "video/bias": 0,
        "audio/kernel": 1,
    }
    assert tree.first_match([], PATHS, what="rules") == dict.fromkeys(PATHS)


@pytest.mark.parametrize(
    "patterns, keywords, words",
    [
        (["vidoe"], {}, "model.frozen: the pattern 'vidoe' matches nothing.*video/kernel"),
        (["^video"], dict(every_path=True), "model.frozen: no pattern matches audio/kernel"),
        (["(video"], {}, r"model.frozen: '\(video' is not a regular expression"),
    ],
)
def test_rules_that_cannot_be_meant(patterns, keywords, words):
    with pytest.raises(UserError, match=words):
        tree.first_match(patterns, PATHS, what="model.frozen", **keywords)


def test_unused_patterns_can_be_accepted():
    found = tree.first_match(["vidoe"], PATHS, what="preset", every_pattern=False)
    assert set(found.values()) == {None}
