"""CKA against the formula of the unbiased estimator, and the features that it finds on disk."""

import json

import numpy as np
import pytest

from mmjax.benchmark import names, results
from mmjax.benchmark.report import cached_features, cka, table
from mmjax.errors import UserError
from tests.benchmark import synthetic
from tests.messages import raises


def hsic(k, l):  # noqa: E741
    """The unbiased estimator of Song et al. 2012, Feature Selection via Dependence Maximization."""
    n, one = len(k), np.ones(len(k))
    k, l = (m * (1 - np.eye(n)) for m in (k, l))  # noqa: E741
    total = np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


def test_values_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    x, y = rng.normal(2, 1, (30, 5)), rng.normal(size=(30, 8))
    y[:, 0] += 2 * x[:, 0]
    k, l = x @ x.T, y @ y.T  # noqa: E741
    expected = hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))
    found = cka.similarity({"x": x, "y": y})
    np.testing.assert_allclose(found.values, [[1, expected], [expected, 1]], rtol=1e-5)
    assert found.examples == 30 and 0.1 < expected < 0.95


def test_rotation_and_scale_do_not_matter_and_independent_features_have_none():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2500, 64))
    rotated = 3 * x @ np.linalg.qr(rng.normal(size=(64, 64)))[0] + 1
    other = rng.normal(size=(2500, 64)).astype(np.float16)
    found = cka.similarity({"x": x, "rotated": rotated, "other": other})
    assert found.values[0, 1] == pytest.approx(1, abs=1e-5)
    assert abs(found.values[0, 2]) < 0.03
    assert found.examples == cka.MAX_EXAMPLES


def test_constant_features_have_no_value():
    x = np.random.default_rng(0).normal(size=(9, 3))
    found = cka.similarity({"x": x, "constant": np.full((9, 4), 0.1)})
    assert np.isnan(found.values[0, 1]) and found.values[0, 0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("other", "facts"),
    [
        (np.zeros((8, 2)), ["9", "8"]),
        (np.zeros((9, 2, 2)), ["[9, 2, 2]"]),
        (np.full((9, 2), np.nan), ["finite"]),
    ],
)
def test_features_of_other_shapes_are_refused(other, facts):
    with raises(UserError, "other", *facts):
        cka.similarity({"x": np.eye(9), "other": other})


def write_embedding(out, cache, experiment, features, labels):
    directory = cache / experiment / "test"
    directory.mkdir(parents=True)
    np.save(directory / "embedding.npy", features[:, None])
    np.save(directory / "label.npy", labels)
    run = names.run_directory(out, experiment, "Pets")
    run.mkdir(parents=True)
    config = {"data": {"train": f"features:{directory.parent}"}}
    (run / "config.json").write_text(json.dumps(config))


def test_encoders_with_cached_features_of_the_same_images_are_compared(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(12, dtype=np.int32)
    for name in "abcd":
        results.write(synthetic.make(experiment=name), tmp_path / "out")
    for name in "abc":
        x = rng.normal(size=(12, 3)).astype(np.float16)
        own = labels[::-1] if name == "c" else labels
        write_embedding(tmp_path / "out", tmp_path / "cache", name, x, own)
    damaged = names.run_directory(tmp_path / "out", "d", "Pets")
    damaged.mkdir(parents=True)
    (damaged / "config.json").write_text('{"data": 3}')
    built = table.build(
        [synthetic.make(experiment=name) for name in "abcd"], end_tasks=synthetic.TASKS
    )
    (found,) = cached_features.find(tmp_path / "out", built).values()
    assert found.names == ("a", "b") and found.examples == 12
    assert "Pets Cls." in found.title
