"""Parameters of one run in another: by name, resized where that makes sense, with a report."""

import fakes
import jax
import numpy as np
import pytest

from mmjax import initialize, tree
from mmjax.checkpoint import Checkpoints
from mmjax.errors import UserError
from mmjax.models import positions

LEFT, RIGHT, HEAD = "left/mlp/wi/kernel", "right/mlp/wi/kernel", "head/mlp/wo/kernel"


def shapes(**sizes):
    return {
        path.replace("__", "/"): jax.ShapeDtypeStruct(size, np.float32)
        for path, size in sizes.items()
    }


def arrays(**sizes):
    rng = np.random.default_rng(0)
    return {
        path.replace("__", "/"): rng.normal(size=size).astype(np.float32)
        for path, size in sizes.items()
    }


# ---- match


def test_what_fits_is_taken_and_the_rest_reported():
    target = shapes(a__kernel=(2, 3), a__bias=(3,), b=(4,), c=(5,))
    source = arrays(a__kernel=(2, 3), a__bias=(3,), c=(6,), d=(7,))
    values, report = initialize.match(target, source)
    assert set(values) == {"a/kernel", "a/bias"}
    assert all(values[path] is source[path] for path in values)
    assert report.loaded == ["a/kernel", "a/bias"]
    assert report.missing == ["b"] and report.unexpected == ["d"]
    assert report.mismatched == ["c (6,) ≠ (5,)"] and report.resized == []


def test_the_report_counts_and_names():
    report = initialize.Report(loaded=["x"] * 3, missing=[f"m{i}" for i in range(14)])
    lines = dict(line.split(None, 1) for line in str(report).splitlines())
    assert lines["loaded"] == "3" and lines["unexpected"] == "0"
    assert lines["missing"].startswith("14: m0, m1, ") and lines["missing"].endswith("2 more")


def test_renaming_goes_through_the_pairs_in_turn():
    source = arrays(encoder__layer_0__w=(2,), encoder__layer_1__w=(2,))
    names = ((r"layer_(\d)", r"block/\1"), ("^encoder/block", "video"))
    values, report = initialize.match(
        shapes(video__0__w=(2,), video__1__w=(2,)), source, names=names
    )
    assert np.array_equal(values["video/1/w"], source["encoder/layer_1/w"])
    assert len(report.loaded) == 2 and not report.unexpected and not report.missing


@pytest.mark.parametrize(
    "names, words",
    [
        ((("^vidoe", "video"),), "config.init_map: the pattern '\\^vidoe' matches nothing"),
        ((("(", ""),), "not a regular expression"),
        ((("[ab]", "c"),), "config.init_map: b and another path both become c"),
    ],
)
def test_renaming_that_cannot_be_meant(names, words):
    with pytest.raises(UserError, match=words):
        initialize.match(shapes(c=(1,)), arrays(a=(1,), b=(1,)), names=names)


@pytest.mark.parametrize("axis", ["temporal", "vertical", "horizontal", "spectral"])
def test_tables_of_positions_are_resampled(axis):
    path = f"video/positions/{axis}"
    table = np.stack([np.arange(8.0), np.full(8, 3.0)], axis=1).astype(np.float32)
    target = {path: jax.ShapeDtypeStruct((16, 2), np.float32)}
    values, report = initialize.match(target, {path: table})
    assert report.resized == [f"{path} (8, 2) → (16, 2)"] and not report.mismatched
    # Straight lines stay straight: row q of 16 lies at row q / 2 of 8.
    wanted = np.stack([np.arange(16) / 2, np.full(16, 3.0)], axis=1)
    np.testing.assert_allclose(values[path], wanted, atol=1e-5)
    assert np.array_equal(values[path], positions.resize_table(table, 16))


def test_nothing_else_is_resampled():
    target = shapes(video__positions__temporal=(16, 3), video__positions__norm__scale=(4,))
    source = arrays(video__positions__temporal=(8, 2), video__positions__norm__scale=(8,))
    values, report = initialize.match(target, source)
    assert values == {} and len(report.mismatched) == 2


# ---- from a run


@pytest.fixture(scope="module")
def trainer():
    return fakes.Trainer(fakes.Contrast(), ema_decay=0.5, frozen=["^right/"])


@pytest.fixture(scope="module")
def run(trainer, tmp_path_factory):
    """`(directory, {step: state})` of a run with two checkpoints."""
    path = tmp_path_factory.mktemp("run")
    first, _ = trainer.run(1, state=trainer.init(seed=5))
    second, _ = trainer.run(1, state=first, first=1)
    saved = Checkpoints(path)
    saved.save(1, first, {})
    saved.save(2, second, {})
    saved.close()
    return path, {1: first, 2: second}


def test_the_newest_checkpoint_or_the_one_asked_for(run):
    path, states = run
    for source, step in ((path, 2), (path / "checkpoints/1", 1), (path / "checkpoints/2", 2)):
        leaves, words = initialize.load_params(str(source))
        assert words == f"step {step} of {path}"
        state = states[step]
        # The average where there is one, the parameter elsewhere.
        assert np.array_equal(leaves[LEFT], tree.flatten(state["ema"])[LEFT])
        assert np.array_equal(leaves[RIGHT], tree.flatten(state["params"])[RIGHT])
        assert np.array_equal(leaves["extra/mean"], state["extra"]["mean"])
        assert set(leaves) == {LEFT, RIGHT, HEAD, "extra/mean", "extra/calls"}


def test_a_source_without_checkpoints(run, tmp_path):
    path, _ = run
    nothing = "not a run directory.*no complete checkpoint in it"
    with pytest.raises(UserError, match=f"{tmp_path}: {nothing}"):
        initialize.load_params(str(tmp_path))
    with pytest.raises(UserError, match=r"it has the steps \[1, 2\]"):
        initialize.load_params(str(path / "checkpoints" / "7"))
    with pytest.raises(UserError, match=nothing):
        initialize.load_params(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_a_fresh_state_takes_parameters_statistics_and_average(run, trainer):
    path, states = run
    fresh = trainer.init(seed=0)
    state = initialize.from_source(fresh, str(path))
    wanted = initialize.load_params(str(path))[0]
    for name, leaf in tree.flatten(state["params"]).items():
        assert np.array_equal(leaf, wanted[name]), name
        assert leaf.sharding == tree.flatten(fresh["params"])[name].sharding
    assert np.array_equal(state["extra"]["mean"], states[2]["extra"]["mean"])
    assert set(tree.flatten(state["ema"])) == {LEFT, HEAD}
    assert np.array_equal(tree.flatten(state["ema"])[LEFT], wanted[LEFT])
    assert fakes.equal(state["opt"], fresh["opt"]) and int(state["step"]) == 0
    trainer.step(state, fakes.batch_of(0))  # and it can be trained


@pytest.fixture
def without_head(run):
    """The fresh state of a model whose head is new."""

    class Other(fakes.Contrast):
        def init(self, key):
            params, extra = super().init(key)
            params["tail"] = {"kernel": params.pop("head")["mlp"]["wo"]["kernel"]}
            return params, extra

    return fakes.Trainer(Other()).init()


def test_what_is_on_one_side_only_must_be_allowed(run, without_head):
    path, _ = run
    with pytest.raises(UserError) as error:
        initialize.from_source(without_head, str(path), allow=["^head/"])
    message = str(error.value)
    assert f"step 2 of {path}" in message
    assert "Not allowed by config.init_allow: tail/kernel." in message
    state = initialize.from_source(without_head, str(path), allow=["^head/", "^tail/", "unused"])
    assert np.array_equal(
        state["params"]["tail"]["kernel"], without_head["params"]["tail"]["kernel"]
    )
    assert not np.array_equal(
        tree.flatten(state["params"])[LEFT], tree.flatten(without_head["params"])[LEFT]
    )


def test_renamed_it_fits(run, without_head):
    names = (("^head/mlp/wo", "tail"),)
    state = initialize.from_source(without_head, str(run[0]), names=names)
    wanted = initialize.load_params(str(run[0]))[0]
    assert np.array_equal(state["params"]["tail"]["kernel"], wanted[HEAD])


def test_other_shapes_are_never_allowed(run):
    class Wider(fakes.Contrast):
        def init(self, key):
            params, extra = super().init(key)
            params["head"]["mlp"]["wo"]["kernel"] = np.zeros((fakes.HIDDEN, 3), np.float32)
            return params, extra

    fresh = fakes.Trainer(Wider()).init()
    with pytest.raises(UserError, match=r"head/mlp/wo/kernel \(128, 64\) ≠ \(128, 3\)"):
        initialize.from_source(fresh, str(run[0]), allow=[".*"])


def test_a_source_of_which_nothing_fits(run):
    with pytest.raises(UserError, match="do not fit this model(.|\\n)*: nothing fits"):
        initialize.from_source(
            fakes.Trainer(fakes.Classify()).init(),
            str(run[0]),
            allow=["^(left|right|head|backbone)"],
        )
