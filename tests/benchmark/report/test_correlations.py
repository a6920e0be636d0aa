"""Correlations against SciPy and by enumeration, levels and groups against known data."""

import itertools

import numpy as np
import pytest
from scipy import stats

from mmjax.benchmark.report import correlations, encoder_names, table
from tests.benchmark import synthetic


def test_coefficients_and_p_values_are_those_of_scipy():
    scores = np.random.default_rng(0).normal(size=(20, 3))
    scores[3:5, 1] = np.nan
    known = np.isfinite(scores[:, 1])
    for method, function in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        found = correlations.correlate(scores, method)
        r, p = function(scores[known, 0], scores[known, 1])
        assert found.coefficients[0, 1] == found.coefficients[1, 0] == pytest.approx(r)
        assert found.p_values[0, 1] == pytest.approx(p)
        assert found.counts.tolist() == [[20, 18, 20], [18, 18, 18], [20, 18, 20]]


def test_p_values_of_few_encoders_count_permutations():
    x, y = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 3, 5])
    found = correlations.correlate(np.stack([x, y], axis=1), "spearman")
    values = [stats.spearmanr(p, y).statistic for p in itertools.permutations(x)]
    extreme = [abs(v) >= abs(found.coefficients[0, 1]) - 1e-9 for v in values]
    assert found.p_values[0, 1] == pytest.approx(np.mean(extreme))


def test_two_encoders_and_equal_scores_have_no_correlation():
    assert np.isnan(correlations.correlate(np.eye(2), "pearson").coefficients).all()
    scores = np.array([[1.0, 1], [1, 2], [1, 3]])
    assert np.isnan(correlations.correlate(scores, "spearman").coefficients[0, 1])


def test_regression_uses_encoders_above_a_value():
    x = np.array([0.1, 0.5, 0.6, 0.7, np.nan])
    y = np.array([9.0, 1.0, 1.2, 1.4, 5.0])
    line = correlations.regress(x, y, above=0.4)
    assert (line.slope, line.intercept, line.r) == pytest.approx((2, 0, 1))
    assert line.count == 3
    assert correlations.regress(x, y, above=0.55) is None


def test_image_level_tasks_correlate_with_each_other_only():
    built = table.build(synthetic.results(30, 20, seeds=1), end_tasks=synthetic.TASKS)
    found = correlations.correlate(built.scores, "spearman")
    pixelwise = np.array([c.pixelwise for c in built.columns])
    same = pixelwise[:, None] == pixelwise
    assert found.coefficients[same].min() > 0.9  # depth the right way up
    assert np.abs(found.coefficients[~same]).max() < 0.4
    assert found.p_values[same].max() < 1e-3 < found.p_values[~same].min()


def test_the_best_encoder_has_level_means_of_one():
    built = table.build(synthetic.results(3, 20, seeds=1), end_tasks=synthetic.TASKS)
    row = [e.name for e in built.encoders].index(synthetic.ENCODERS[0])
    np.testing.assert_allclose(correlations.level_means(built)[row], [1, 1])


def test_groups_compare_datasets_at_equal_epochs():
    encoders = [encoder_names.parse(name) for name in synthetic.ENCODERS]
    names = {
        group: [synthetic.ENCODERS[n] for n in rows]
        for group, rows in correlations.groups(encoders, "data").items()
    }
    assert names["Kinetics"] == ["MoCov2Kinetics", "SWAVKinetics"]
    assert names["Imagenet"] == ["MoCov1_200", "MoCov2_200", "SWAV_200"]
    assert "PIRL" in correlations.groups(encoders, "method")
