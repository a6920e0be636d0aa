"""No classifier is scored on examples that it was fitted to, whatever their names are."""

import shutil
import types

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import evals, sharding
from mmjax.errors import UserError
from tests.data.sources.images import write_image
from tests.evals.synthetic import train_and_test
from tests.messages import assert_mentions, raises

STATE = {"params": {}, "extra": {}}
TASK = types.SimpleNamespace(
    predict={
        "features": lambda params, extra, batch: {
            "video": batch["video"].astype(jnp.float32).mean((2, 3, 4))
        },
        "logits": lambda params, extra, batch: {"logits": jnp.zeros((len(batch["video"]), 2))},
    }
)
FITTED = {
    "knn": {},
    "linear_probe": dict(classifier="sweep", max_iterations=2),
    "few_shot": dict(feature="video", ways=2, shots=1, queries=1, episodes=2),
}
SUITE = dict(
    type="suite", datasets=(), feature="video", batch_size=8, probe=dict(max_iterations=2),
    few_shot=dict(ways=2, shots=1, queries=1, episodes=2), knn={},
)  # fmt: skip


@pytest.fixture
def images(tmp_path):
    """Two classes of four images each, without split directories."""
    for n in range(8):
        write_image(tmp_path / "shells" / "ab"[n // 4] / f"{n}.png", 20 * n)
    return tmp_path / "shells"


def make(section, directory, **data):
    data_cfg = dict(train="", split="train", video=dict(num_frames=1, size=4), label={}) | data
    (evaluator,) = evals.make_evaluators(
        {"e": section}, task=TASK, data_cfg=data_cfg, mesh=sharding.make_mesh(), directory=directory
    )
    return evaluator


@pytest.mark.parametrize("evaluator_type", FITTED)
def test_evaluators_refuse_to_score_what_they_are_fitted_on(images, evaluator_type):
    cfg = dict(type=evaluator_type, data=f"images:{images}", batch_size=8, **FITTED[evaluator_type])
    facts = ("config.evals.e", "8 of 8", "'test'", "'train'", images, "train[80%::stratified]")
    with raises(UserError, *facts):
        make(cfg, images.parent).check(STATE)
    with raises(UserError, *facts):  # as in an evaluation job
        make(cfg, images.parent).run(STATE, 1)
    overlapping = dict(train_split="train[:50%:stratified]", split="train[25%::stratified]")
    with raises(UserError, "config.evals.e", "2 of 6"):
        make(cfg | overlapping, images.parent).check(STATE)
    disjoint = dict(train_split="train[:50%:stratified]", split="train[50%::stratified]")
    evaluator = make(cfg | disjoint, images.parent)
    evaluator.check(STATE)
    assert evaluator.run(STATE, 1)


def test_the_probe_refuses_to_select_on_what_it_is_fitted_on(images):
    cfg = dict(type="linear_probe", data=f"images:{images}", batch_size=8, classifier="sweep")
    splits = dict(train_split="train[:4]", valid_split="train[3:6]", split="train[6:]")
    with raises(UserError, "config.evals.e", "1 of 3", "'train[3:6]'", "'train[:4]'"):
        make(cfg | splits, images.parent).check(STATE)
    splits |= dict(valid_split="train[5:7]")
    with raises(UserError, "config.evals.e", "1 of 2", "'train[6:]'", "'train[5:7]'"):
        make(cfg | splits, images.parent).check(STATE)


def test_the_suite_refuses_datasets_without_splits(images):
    extra = dict(shells=dict(data=f"images:{images}"))
    with raises(UserError, "config.evals.e", images, "'test'", "'train'", "8 of 8"):
        make(dict(SUITE, extra=extra), images.parent).check(STATE)
    extra["shells"] |= dict(train="train[:50%:stratified]", test="train[50%::stratified]")
    evaluator = make(dict(SUITE, extra=extra), images.parent)
    evaluator.check(STATE)
    results = evaluator.run(STATE, 1)
    assert {"e/shells/linear", "e/shells/knn", "e/shells/few_shot"} <= results.keys()


def test_copies_of_images_are_recognized_by_their_features(images, caplog):
    shutil.copytree(images, images.parent / "sets" / "train")
    shutil.copytree(images, images.parent / "sets" / "test")
    cfg = dict(type="knn", data=f"images:{images.parent / 'sets'}", batch_size=8)
    evaluator = make(cfg, images.parent)
    evaluator.check(STATE)  # other files
    with raises(UserError, "config.evals.e", "all 8", "'test'", "'train'"):
        evaluator.run(STATE, 1)
    write_image(images.parent / "sets" / "test" / "a" / "new.png", 250)
    assert 0 < make(cfg, images.parent).run(STATE, 1)["e/video/top1"] <= 1
    assert_mentions(caplog.text, "config.evals.e", "8 of 9", "duplicates")


def test_a_model_that_collapses_is_not_mistaken_for_equal_data(make_harness):
    arrays = {"video": np.ones((6, 1, 2), np.float32), "label": np.arange(6, dtype=np.int32) % 2}
    harness = make_harness({"train": arrays, "test": arrays})
    assert harness.run(k=dict(type="knn"))["k/video/top1"] == 0.5


@pytest.mark.parametrize("split", ["test", "train"])
def test_streams_that_return_the_same_examples_are_refused(make_harness, split):
    rng = np.random.default_rng(0)
    arrays = {
        "video": rng.normal(size=(6, 1, 2)).astype(np.float32),
        "label": np.arange(6, dtype=np.int32) % 2,
    }
    with raises(UserError, "config.evals.k", repr(split), "'train'"):
        make_harness({"train": arrays, "test": arrays}).run(k=dict(type="knn", split=split))
    assert make_harness(train_and_test(arrays)).run(k=dict(type="knn"))


def test_the_training_data_are_refused_under_the_name_of_another_split(images, caplog):
    cfg = dict(type="knn", data=f"images:{images}", batch_size=8)
    cfg |= dict(train_split="train[:4]", split="train[4:]")
    make(cfg, images.parent).check(STATE)
    train = dict(train=f"images:{images}", split="train[3:]")
    make(cfg, images.parent, **train).check(STATE)
    assert_mentions(caplog.text, "config.evals.e", "4 of 4", "'train[4:]'", "'train[3:]'")
    other = dict(train=f"images:{images}", split="train")
    cfg = dict(type="classification", data=f"images:{images}", batch_size=8)
    with raises(UserError, "config.evals.e", "'test'", "'train'", "8", "config.data.split"):
        make(cfg, images.parent, **other).check(STATE)
    make(dict(cfg, split="train"), images.parent, **other).check(STATE)  # on purpose
