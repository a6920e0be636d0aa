"""The evaluator `linear_probe`: its classifiers, splits and options."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mmjax.errors import UserError
from mmjax.evals.probes.lgssl_sweep import fit_sweep
from tests.evals.synthetic import labeled_arrays
from tests.messages import raises


def test_linear_probe_averages_over_split_pairs(make_harness):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(6, 10))
    splits = {
        name: labeled_arrays(rng, 60, centers) for name in ("train1", "test1", "train2", "test2")
    }
    splits["test1"]["label"][:5] = -1  # unlabeled
    results = make_harness(splits, num_classes=20).run(
        p=dict(
            type="linear_probe",
            train_split=("train1", "train2"),
            split=("test1", "test2"),
            views={},
        ),
        k=dict(type="knn", train_split="train1", split="test1", views={}),
    )
    parts = [results[f"p/video/split{i}/top1"] for i in (1, 2)]
    assert results["p/video/top1"] == pytest.approx(np.mean(parts))
    assert parts[0] * 55 == pytest.approx(round(parts[0] * 55))
    assert results["p/video/top1"] > 0.8
    assert results["p/video/top5"] > 0.95  # chance: 5 / 6
    # Chance counts the six classes that occur, not the 20 that the dataset declares.
    for name in ("p", "k"):
        assert results[f"{name}/video/top1_chance"] == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    "options", [dict(classifier="svm"), dict(classifier="vatt", epochs=100), dict(seed=1)]
)
def test_linear_probe_protocols(make_harness, options):
    """Two pairs of splits, one training window, two test windows, a partial last batch."""
    rng = np.random.default_rng(0)
    centers = 2 * rng.normal(size=(7, 10))
    splits = {
        name: labeled_arrays(rng, 70, centers) for name in ("train1", "test1", "train2", "test2")
    }
    for name in ("train1", "train2"):
        splits[name]["video"] = splits[name]["video"][:, :1]
    splits["train2"]["label"][:3] = -1
    results = make_harness(splits, num_classes=7).run(
        p=dict(
            type="linear_probe",
            train_split=("train1", "train2"),
            split=("test1", "test2"),
            batch_size=16,
            **options,
        )
    )
    names = ["top1", "top5", "mean_class_top1", "train_top1", "train_top5"]
    for name in names:
        parts = [results[f"p/video/split{i}/{name}"] for i in (1, 2)]
        assert results[f"p/video/{name}"] == pytest.approx(np.mean(parts))
        assert results[f"p/video/{name}"] > 0.8
    assert ("p/video/loss" in results) == (options.get("classifier") != "svm")
    assert ("p/video/C" in results) == (options.get("classifier") != "vatt")
    assert results["p/video/top5_chance"] == pytest.approx(5 / 7)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (dict(classifier="svm", average="logits"), ("classifier=svm", "evals.p.average")),
        (
            dict(classifier="svm", epochs=3),
            ("classifier=svm", "'evals.p.epochs'", "evals.p.seed, evals.p.standardize"),
        ),
        (
            dict(classifier="vatt", Cs=(1.0,)),
            ("classifier=vatt", "'evals.p.Cs'", "evals.p.epochs, evals.p.seed"),
        ),
        (dict(epochs=3), ("classifier=logistic", "'evals.p.epochs'")),
        (dict(classifier="smv"), ("config.evals.p.classifier", "'smv'", "'svm'", "vatt")),
        (dict(Cs=()), ("config.evals.p.Cs", "()")),
        (dict(Cs=1.0), ("config.evals.p.Cs", "tuple", 1.0)),
        (dict(classifier="svm", validation=1.0), ("config.evals.p.validation", 1.0)),
        (dict(average="mean"), ("config.evals.p.average", "'mean'", "logits, probabilities")),
        (dict(classifier="vatt", epochs=0), ("config.evals.p.epochs", 0)),
        (dict(train_split=("a", "b")), ("config.evals.p", "train_split", 2, 1)),
        (dict(train_limit=-1), ("config.evals.p.train_limit", -1)),
    ],
)
def test_invalid_linear_probe_options_are_refused(make_harness, options, facts):
    with raises(UserError, *facts):
        make_harness({}).make(p=dict(type="linear_probe", **options))


def split(rng, x, labels, size):
    chosen = rng.choice(len(x), size, replace=False)
    return {"image": x[chosen][:, None], "label": labels[chosen].astype(np.int32)}


def test_sweep_selects_c_on_the_valid_split(make_harness, correlated_features):
    x, labels = correlated_features
    rng = np.random.default_rng(0)
    parts = {name: split(rng, x, labels, n) for name, n in dict(train=300, val=80, test=90).items()}
    harness = make_harness(parts, num_classes=7)
    section = dict(type="linear_probe", feature="image", classifier="sweep", valid_split="val")
    section |= dict(max_iterations=60)
    results = harness.run(p=section)
    assert sorted(o.split for o in harness.opened) == ["test", "train", "val"]
    both = [np.concatenate([parts[s][k] for s in ("train", "val")]) for k in ("image", "label")]
    held_out = np.arange(380) >= 300
    options = dict(num_classes=7, held_out=held_out, max_iterations=60)
    fitted = fit_sweep(2 * both[0], both[1], **options)
    correct = fitted.scores(2 * parts["test"]["image"]).argmax(1) == parts["test"]["label"]
    assert results["p/image/C"] == pytest.approx(fitted.selection["C"])
    assert results["p/image/top1"] == pytest.approx(correct.mean())
    assert results["p/image/top1_chance"] == pytest.approx(1 / 5)  # five classes occur in training


def test_logistic_selects_c_on_the_valid_split(make_harness, correlated_features):
    x, labels = correlated_features
    rng = np.random.default_rng(0)
    parts = {name: split(rng, x, labels, n) for name, n in dict(train=300, val=80, test=90).items()}
    Cs, accuracy = (1e-4, 1e-1, 10.0), {}
    for c in Cs:
        reference = LogisticRegression(C=c, tol=1e-8, max_iter=20000)
        reference.fit(2 * parts["train"]["image"][:, 0], parts["train"]["label"])
        accuracy[c] = reference.score(2 * parts["val"]["image"][:, 0], parts["val"]["label"])
    section = dict(type="linear_probe", feature="image", valid_split="val", standardize=False)
    results = make_harness(parts).run(p=section | dict(Cs=Cs))
    assert accuracy[results["p/image/C"]] == max(accuracy.values())


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(classifier="vatt", valid_split="val"), ("'vatt'", "valid_split")),
        (dict(valid_split=("a", "b")), ("train_split", "valid_split", 1, 2)),
        (
            dict(classifier="sweep", penalty="cubed"),
            ("evals.p.penalty", "'cubed'", "norm, squared"),
        ),
        (
            dict(classifier="sweep", metric="top5"),
            ("evals.p.metric", "'top5'", "'top1'", "mean_per_class"),
        ),
        (dict(classifier="sweep", Cs=(1.0,)), ("classifier=sweep", "evals.p.Cs", "penalty")),
        (dict(classifier="logistic", penalty="norm"), ("classifier=logistic", "evals.p.penalty")),
    ],
)
def test_options_of_other_classifiers_are_refused(make_harness, options, facts):
    arrays = {"image": np.zeros((4, 1, 2), np.float32), "label": np.zeros(4, np.int32)}
    with raises(UserError, *facts):
        make_harness({"train": arrays, "test": arrays}).run(p=dict(type="linear_probe", **options))
