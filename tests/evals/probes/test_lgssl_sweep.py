"""The search for C, its two penalties, and the linear probe with `classifier='sweep'`."""

import math

import numpy as np
import pytest
from scipy import optimize, special
from sklearn.linear_model import LogisticRegression

from mmjax.errors import UserError
from mmjax.evals.probes import lgssl_logistic, line_search
from mmjax.evals.probes.lgssl_sweep import fine_grid, fit_sweep, mean_per_class, search
from tests.messages import raises

# Six points of three classes.
POINTS = np.array([[1, 0], [0.8, 0.3], [0, 1], [0.2, 0.9], [-1, -1], [-0.7, -1.2]], np.float32)
CLASSES = np.array([0, 0, 1, 1, 2, 2])


@pytest.fixture(scope="module")
def data():
    """(x, labels) of 500 examples of 5 classes, correlated features."""
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=500)
    x = rng.normal(size=(500, 12)) + rng.normal(size=(5, 12))[labels]
    return (x * np.geomspace(1, 0.05, 12) @ rng.normal(size=(12, 12))).astype(np.float32), labels


def objective(theta, x, labels, c):
    """Mean cross-entropy + 0.5 / C |W|, and its gradient, in float64."""
    theta = theta.reshape(x.shape[1] + 1, -1)
    logits = x @ theta[:-1] + theta[-1]
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    norm = np.linalg.norm(theta[:-1])
    loss = -np.log(probs[np.arange(len(x)), labels]).mean() + 0.5 / c * norm
    error = (probs - np.eye(theta.shape[1])[labels]) / len(x)
    kernel = x.T @ error + 0.5 / c * theta[:-1] / max(norm, 1e-30)
    return loss, np.concatenate([kernel, error.sum(0, keepdims=True)]).ravel()


# The penalty of the published LGSSL code.


@pytest.mark.parametrize(
    "c, expected, norm", [(1.0, 1.065795, 0.478345), (100.0, 0.0479057, 7.887211)]
)
def test_optima_equal_published_code(c, expected, norm):
    solution = lgssl_logistic.fit(POINTS, CLASSES, num_classes=3, C=c)
    assert solution.objective == pytest.approx(expected, rel=1e-5)
    assert np.linalg.norm(solution.kernel) == pytest.approx(norm, rel=1e-3)
    theta = np.concatenate([solution.kernel, solution.bias[None]])
    assert objective(theta, POINTS, CLASSES, c)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("c", [10.0, 300.0])
def test_the_fit_reaches_the_minimum_of_scipy(data, c):
    x, labels = data
    solution = lgssl_logistic.fit(x, labels, num_classes=5, C=c)
    start = np.random.default_rng(1).normal(size=(13, 5)).ravel()
    best = optimize.minimize(
        objective, start, (x.astype(np.float64), labels, c), jac=True, tol=1e-10
    )
    assert solution.objective == pytest.approx(best.fun, rel=1e-5)


def test_a_strong_penalty_shrinks_the_kernel_to_zero():
    """At zero, |W| is not smooth; the line search of the published code also stops there."""
    for c in (1e-6, 1e-2):
        solution = lgssl_logistic.fit(POINTS, CLASSES, num_classes=3, C=c)
        np.testing.assert_array_equal(solution.kernel, 0)
        assert solution.objective == pytest.approx(math.log(3))


def test_examples_with_zero_weight_are_ignored(data):
    x, labels = data
    weight = (np.arange(500) < 300).astype(np.float32)
    weighted = lgssl_logistic.fit(x, labels, num_classes=5, C=30.0, weight=weight)
    subset = lgssl_logistic.fit(x[:300], labels[:300], num_classes=5, C=30.0)
    assert weighted.objective == pytest.approx(subset.objective, rel=1e-5)


def test_the_fit_equals_torch_lbfgs(data):
    torch = pytest.importorskip("torch")
    x, labels = data
    for c in (1e-2, 1.0, 100.0, 1e3):
        kernel = torch.zeros(5, 12, requires_grad=True)
        bias = torch.zeros(5, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [kernel, bias],
            lr=1,
            max_iter=1000,
            tolerance_grad=1e-7,
            tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )

        def closure(parts=(kernel, bias), optimizer=optimizer, c=c):
            optimizer.zero_grad()
            logits = torch.tensor(x) @ parts[0].T + parts[1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
            loss = loss + 0.5 / c * parts[0].norm()
            loss.backward()
            return loss

        optimizer.step(closure)
        solution = lgssl_logistic.fit(x, labels, num_classes=5, C=c)
        assert solution.objective == pytest.approx(closure().item(), rel=1e-4)


@pytest.mark.parametrize("first", [1e-3, 1.0, 40.0])
def test_the_line_search_meets_the_wolfe_conditions(first):
    import jax
    import jax.numpy as jnp

    def value(t):  # decreases, with a bump, to a minimum near 8
        return (t - 8) ** 2 / 20 + jnp.sin(2 * t) / 2

    value_and_slope = jax.value_and_grad(value)
    line = lambda t: value_and_slope(t + 1.2)  # noqa: E731
    start = line_search.Point(jnp.float32(0), *line(jnp.float32(0)))
    assert start.slope < 0
    step, calls = line_search.strong_wolfe(
        line, start, jnp.float32(first), length=jnp.float32(1), tolerance=1e-9
    )
    end, slope = line(step)
    assert end <= start.value + line_search.DECREASE * step * start.slope
    assert abs(slope) <= -line_search.CURVATURE * start.slope
    assert 1 <= calls <= line_search.MAX_STEPS + 1


# The search.


def test_the_fine_grid_has_seven_steps_per_decade():
    grid = fine_grid(1.0)
    assert len(grid) == 29
    np.testing.assert_allclose(np.diff(np.log10(grid)), 1 / 7, rtol=1e-5)
    assert grid[0] == pytest.approx(1e-2) and grid[-1] == pytest.approx(1e2)
    for end, low, high in ((1e-6, 1e-6, 1e-4), (1e6, 1e4, 1e6)):
        grid = fine_grid(end)
        assert len(grid) == 15
        assert (grid[0], grid[-1]) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("peak", [-4.6, -1.0, 0.3, 2.2, 5.9])
def test_the_search_finds_the_maximum_of_a_unimodal_score(peak):
    evaluated = []

    def score(c):
        evaluated.append(c)
        return -abs(math.log10(c) - peak)

    best, value = search(score)
    assert abs(math.log10(best) - peak) <= 1 / 7
    assert value == score(best)
    assert len(set(evaluated)) == len(evaluated) - 1  # each once; the last call is above
    assert 7 + 5 <= len(evaluated) - 1 <= 7 + 9


def test_the_smallest_c_wins_among_equal_scores():
    assert search(lambda c: 0.5) == (1e-6, 0.5)
    plateau = lambda c: float(1e-1 < c < 1e3)  # noqa: E731
    assert search(plateau) == (1.0, 1.0)


def test_the_search_evaluates_the_same_grid_points_as_a_reference():
    """The reference bisects integer indices of the grid."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        table = {}

        def score(c, table=table):
            key = round(math.log10(c) * 7)
            return table.setdefault(key, float(rng.integers(4)))

        best, value = search(score)
        coarse = [table[7 * e] for e in range(-6, 7, 2)]
        winner = 7 * (2 * coarse.index(max(coarse)) - 6)
        left = [k for k in range(winner - 14, winner + 15) if -42 <= k <= 42]
        order = [winner]
        while len(left) > 1:
            n = len(left)
            quarter, half, last = n // 4, n // 2, n + math.floor(-n / 4)
            order += [left[quarter], left[half], left[last]]
            top = max(table[left[quarter]], table[left[half]], table[left[last]])
            if table[left[quarter]] == top:
                left = left[:half]
            elif table[left[last]] == top:
                left = left[half:]
            else:
                left = left[quarter : math.floor(-n / 4)]
        expected = max(order, key=lambda k: table[k])  # the first among equals
        assert round(math.log10(best) * 7) == expected and value == table[expected]
        assert set(table) == {*range(-42, 43, 14), *order}


# The classifier.


def test_squared_penalty_equals_scikit_learn_at_the_selected_c(data):
    x, labels = data
    held_out = np.arange(500) % 4 == 0
    fitted = fit_sweep(x[:, None], labels, num_classes=5, held_out=held_out, penalty="squared")
    reference = LogisticRegression(C=fitted.selection["C"], tol=1e-8, max_iter=20000).fit(x, labels)
    probabilities = special.softmax(fitted.scores(x[:, None]), axis=1)
    np.testing.assert_allclose(probabilities, reference.predict_proba(x), atol=5e-3)
    reference = LogisticRegression(C=fitted.selection["C"], tol=1e-8, max_iter=20000)
    reference.fit(x[~held_out], labels[~held_out])
    accuracy = reference.score(x[held_out], labels[held_out])
    assert fitted.selection["valid_top1"] == pytest.approx(accuracy, abs=0.01)
    for c in (1e-6, 1e-3, 1e-2):
        reference = LogisticRegression(C=c, max_iter=20000).fit(x[~held_out], labels[~held_out])
        assert (
            reference.score(x[held_out], labels[held_out]) <= fitted.selection["valid_top1"] + 0.01
        )


def test_norm_penalty_is_refitted_on_all_examples(data):
    x, labels = data
    options = dict(num_classes=6, max_iterations=60)
    fitted = fit_sweep(x[:, None], labels, validation=0.3, **options)
    refitted = lgssl_logistic.fit(x, labels, C=fitted.selection["C"], **options)
    logits = refitted.logits(x)
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    scores = fitted.scores(x[:, None])
    scores = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    np.testing.assert_allclose(scores, log_probs, atol=1e-4)
    assert scores.shape == (500, 6)


def test_mean_per_class_counts_absent_classes_as_zero():
    logits = np.eye(4)[[0, 0, 1, 2]] * 1.0
    labels = np.array([0, 0, 1, 1])  # correct: 2 of 2, 1 of 2, and no examples of classes 2 and 3
    assert mean_per_class(logits, labels, 4) == pytest.approx((1 + 0.5) / 4)
    assert mean_per_class(logits, labels, 2) == pytest.approx((1 + 0.5) / 2)


def test_the_metric_changes_the_selected_c():
    """With 90% of one class, top-1 prefers a strong penalty and the mean per class a weak one."""
    rng = np.random.default_rng(3)
    labels = (np.arange(400) % 10 == 0) * 1
    x = (rng.normal(size=(400, 80)) + 0.15 * labels[:, None]).astype(np.float32)
    top1 = fit_sweep(x[:, None], labels, num_classes=2, metric="top1", penalty="squared")
    mean_class = fit_sweep(
        x[:, None], labels, num_classes=2, metric="mean_per_class", penalty="squared"
    )
    assert set(top1.selection) == {"C", "valid_top1"}
    assert set(mean_class.selection) == {"C", "valid_mean_per_class"}
    assert mean_class.selection["C"] != top1.selection["C"]


def test_multi_label_data_are_refused(data):
    x, labels = data
    with raises(UserError, "classifier", "'sweep'", "'logistic'"):
        fit_sweep(x[:, None], np.eye(5)[labels], num_classes=5)


# The evaluator.


def split(rng, x, labels, size):
    chosen = rng.choice(len(x), size, replace=False)
    return {"image": x[chosen][:, None], "label": labels[chosen].astype(np.int32)}


def test_sweep_selects_c_on_the_valid_split(make_harness, data):
    x, labels = data
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


def test_logistic_selects_c_on_the_valid_split(make_harness, data):
    x, labels = data
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
def test_invalid_options_are_refused(make_harness, options, facts):
    arrays = {"image": np.zeros((4, 1, 2), np.float32), "label": np.zeros(4, np.int32)}
    with raises(UserError, *facts):
        make_harness({"train": arrays, "test": arrays}).run(p=dict(type="linear_probe", **options))
