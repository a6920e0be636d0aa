"""The logistic regression of the linear probe, compared with scikit-learn."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imports JAX
    import numpy as np

    from mmjax.config import Config

# (C, tolerance) -> (kernel [D, K], bias [K], number of iterations)
Fit = Callable[[float, float], "tuple[np.ndarray, np.ndarray, int]"]


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the arguments of the benchmark."""
    group.add_argument(
        "--examples",
        type=int,
        default=10_000,
        metavar="N",
        help="number of training examples (default: %(default)s)",
    )
    group.add_argument(
        "--classes",
        type=int,
        default=100,
        metavar="N",
        help="number of classes (default: %(default)s)",
    )
    group.add_argument(
        "--C",
        type=float,
        nargs="*",
        default=(1e-2, 1.0),
        metavar="C",
        help="values of C, the inverse regularization (default: 0.01 1)",
    )
    group.add_argument(
        "--gap",
        type=float,
        default=1e-4,
        metavar="G",
        help="relative distance to the minimum that both must reach (default: %(default)s)",
    )


def features(num_examples: int, dim: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns features float32 [N, D] and labels [N] like those of a trained encoder.

    As after a ReLU and pooling, they are positive, with a few strong directions and many weak ones.
    The classes overlap.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, num_examples)
    spectrum = np.arange(1, dim + 1) ** -0.5
    centers = rng.standard_normal((num_classes, dim)) * spectrum * 0.6
    hidden = centers[labels] + rng.standard_normal((num_examples, dim)) * spectrum
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    x = hidden @ rotation * np.sqrt(dim / np.sum(spectrum**2))
    return np.maximum(x + 0.5, 0).astype(np.float32), labels


def run(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Measures, for each C, the time in which both come within --gap of the minimum.

    Both minimize 0.5 |W|² + C Σ cross-entropy over the same float32 features, starting from zeros.
    Each is timed with the loosest tolerance that meets the gap, found by bisection between 1e-1 and
    1e-9 to a quarter of a decade. The minimum is the lower objective of the two at 1e-9. Objectives
    are computed in float64. CPU seconds include all threads.
    """
    x, labels = features(args.examples, args.dim, args.classes)
    fits = _fits(x, labels, args.classes)
    start = time.perf_counter()
    fits["mmjax"](1.0, 0.9)
    result: dict[str, Any] = {
        "shape": [args.examples, args.dim, args.classes],
        "compile_seconds": time.perf_counter() - start,
    }
    for C in args.C:
        result[f"C={C:g}"] = _compare(fits, x, labels, C, gap=args.gap, repeats=args.repeats)
    return result


def _fits(x: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, Fit]:
    """Returns the two functions to compare."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from mmjax.evals.probes import logistic

    targets = np.eye(num_classes, dtype=np.float32)[labels]

    def fit_mmjax(C: float, tolerance: float) -> tuple[np.ndarray, np.ndarray, int]:
        solution = logistic.fit(x, targets, C=C, tolerance=tolerance)
        return solution.kernel, solution.bias, solution.iterations

    def fit_scikit_learn(C: float, tolerance: float) -> tuple[np.ndarray, np.ndarray, int]:
        model = LogisticRegression(C=C, tol=tolerance, max_iter=20_000).fit(x, labels)
        return model.coef_.T, model.intercept_, int(model.n_iter_.max())

    return {"mmjax": fit_mmjax, "scikit_learn": fit_scikit_learn}


def _compare(
    fits: dict[str, Fit], x: np.ndarray, labels: np.ndarray, C: float, *, gap: float, repeats: int
) -> dict[str, Any]:
    """Returns the measurements of both for one C."""

    def measure(fit: Fit, tolerance: float) -> dict[str, float]:
        start, cpu = time.perf_counter(), time.process_time()
        kernel, bias, iterations = fit(C, tolerance)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "iterations": iterations,
            "objective": _objective(x, labels, kernel, bias, C),
        }

    tightest = {name: measure(fit, 1e-9) for name, fit in fits.items()}
    lowest = min(measurement["objective"] for measurement in tightest.values())
    result: dict[str, Any] = {"lowest_objective": lowest}
    for name, fit in fits.items():
        loose, tight = -1.0, -9.0  # powers of ten
        best = tightest[name]
        while loose - tight > 0.25:
            middle = (loose + tight) / 2
            measurement = measure(fit, 10**middle)
            if measurement["objective"] <= lowest * (1 + gap):
                tight, best = middle, measurement
            else:
                loose = middle
        result[name] = {"tolerance": 10**tight, "gap": best["objective"] / lowest - 1, **best}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in fits}
    for _ in range(repeats):  # in turn
        for name, fit in fits.items():
            times[name].append(measure(fit, result[name]["tolerance"]))
    for clock in ("seconds", "cpu_seconds"):
        for name in fits:
            result[name][clock] = statistics.median(m[clock] for m in times[name])
        ratio = result["scikit_learn"][clock] / result["mmjax"][clock]
        result[f"scikit_learn_over_mmjax_{clock}"] = ratio
    return result


def _objective(
    x: np.ndarray, labels: np.ndarray, kernel: np.ndarray, bias: np.ndarray, C: float
) -> float:
    """Returns the objective in float64."""
    import numpy as np

    logits = x.astype(np.float64) @ kernel.astype(np.float64) + bias
    top = logits.max(1, keepdims=True)
    losses = np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(x)), labels]
    return float(0.5 * np.sum(kernel.astype(np.float64) ** 2) + C * losses.sum())
