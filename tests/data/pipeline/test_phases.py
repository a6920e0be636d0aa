"""Tests of pipeline phases, which are lists of named functions."""

import tensorflow as tf

from mmjax.data.pipeline.phases import Pipeline, seed_of
from mmjax.errors import UserError
from tests.messages import raises


def test_functions_are_added_replaced_and_removed_by_name():
    pipeline = Pipeline()
    pipeline.remove("parse", "record")
    double = lambda features: features | {"x": features["x"] * 2}  # noqa: E731
    plus = lambda features: features | {"x": features["x"] + 1}  # noqa: E731
    pipeline.add("sample", "double", double)
    pipeline.add("sample", "plus", plus, before="double")
    pipeline.add("postprocess", "minus", lambda f: f | {"x": f["x"] - 100})
    x = {"x": tf.constant(3), "_private": tf.constant(0)}
    assert {k: int(v) for k, v in pipeline.example(x).items()} == {"x": 8}
    assert int(pipeline.batch({"x": tf.constant(3)})["x"]) == -97
    pipeline.replace("sample", "plus", double)
    assert int(pipeline.example(x)["x"]) == 12
    pipeline.remove("sample", "double")
    assert int(pipeline.example(x)["x"]) == 6
    assert pipeline.names()["sample"] == ("plus",)


def test_errors_suggest_the_nearest_valid_name():
    pipeline = Pipeline()
    with raises(UserError, "'samples'", "'sample'", "parse, postprocess, preprocess, sample"):
        pipeline.add("samples", "x", None)
    with raises(UserError, "'parse'", "'records'", "'record'"):
        pipeline.replace("parse", "records", None)
    with raises(UserError, "'parse'", "'record'", "replace()"):
        pipeline.add("parse", "record", None)
    with raises(UserError, "'parse'", "'nothing'", "record"):
        pipeline.add("parse", "x", None, before="nothing")


def test_seeds_differ_by_name_and_by_example():
    one = {"_seed": tf.constant([0, 1], tf.int64)}
    two = {"_seed": tf.constant([0, 2], tf.int64)}
    seeds = {tuple(seed_of(f, n).numpy()) for f in (one, two) for n in ("crop", "flip")}
    assert len(seeds) == 4
