"""Path names of leaves, and pattern rules over paths."""

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax import tree
from mmjax.errors import UserError
from tests.messages import raises

NAMES = st.text(st.characters(exclude_characters="/"), min_size=1, max_size=5)
TREES = st.recursive(
    st.integers(), lambda children: st.dictionaries(NAMES, children, min_size=1, max_size=3)
).filter(lambda value: isinstance(value, dict))


@given(TREES)
def test_flatten_and_unflatten_are_inverse(value):
    flat = tree.flatten(value)
    assert tree.unflatten(flat) == value
    assert list(flat.values()) == jax.tree.leaves(value)


def test_paths_of_optimizer_slots_end_with_the_parameter_path():
    params = {"video": {"kernel": jnp.zeros((2, 3)), "frozen": None}, "list": [jnp.zeros(1)]}
    names = tree.flatten(optax.adam(1e-3).init(params))
    assert sorted(names) == [
        "0/count",
        *(f"0/{slot}/{path}" for slot in ("mu", "nu") for path in ("list/0", "video/kernel")),
    ]


def test_map_named_passes_the_path_and_all_leaves():
    first, second = {"a": {"b": 1}, "c": 2}, {"a": {"b": 10}, "c": 20}
    named = tree.map_named(lambda path, x, y: (path, x + y), first, second)
    assert named == {"a": {"b": ("a/b", 11)}, "c": ("c", 22)}


PATHS = ["video/kernel", "video/bias", "audio/kernel"]


def test_the_first_matching_pattern_wins():
    rules = ["^video/b", "kernel$", "video"]
    assert tree.first_match(rules, PATHS, what="rules") == {
        "video/kernel": 1,
        "video/bias": 0,
        "audio/kernel": 1,
    }
    assert tree.first_match([], PATHS, what="rules") == dict.fromkeys(PATHS)


@pytest.mark.parametrize(
    ("patterns", "keywords", "facts"),
    [
        (["vidoe"], {}, ("model.frozen", "'vidoe'", "video/kernel, video/bias")),
        (["^video"], dict(every_path=True), ("model.frozen", "audio/kernel")),
        (["(video"], {}, ("model.frozen", "'(video'", "unterminated subpattern")),
    ],
)
def test_invalid_patterns_are_an_error(patterns, keywords, facts):
    with raises(UserError, *facts):
        tree.first_match(patterns, PATHS, what="model.frozen", **keywords)


def test_patterns_without_a_match_can_be_allowed():
    matches = tree.first_match(["vidoe"], PATHS, what="preset", every_pattern=False)
    assert set(matches.values()) == {None}
