"""The bench `probe`: fitting the linear probe's logistic regression beside scikit-learn."""

from __future__ import annotations

import argparse
import time
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the bench; --dim is that of `neighbors`."""
    group = parser.add_argument_group("probe")
    group.add_argument("--examples", type=int, default=10_000, help="of the training set (10000)")
    group.add_argument("--classes", type=int, default=100, help="of the probe (100)")
    group.add_argument(
        "--C", type=float, nargs="*", default=(1e-2, 1.0), help="values of C (0.01 1)"
    )
    group.add_argument(
        "--gap", type=float, default=1e-4, help="both reach this relative distance to the minimum"
    )


def features(examples: int, dim: int, classes: int) -> tuple[Any, Any]:
    """Features [N, D] and labels as those of a trained encoder after its ReLU and its pooling:
    positive, a few strong directions and many weak ones, classes that overlap."""
    import numpy as np

    draw = np.random.default_rng(0)
    labels = draw.integers(0, classes, examples)
    spectrum = np.arange(1, dim + 1) ** -0.5
    centers = draw.standard_normal((classes, dim)) * spectrum * 0.6
    hidden = centers[labels] + draw.standard_normal((examples, dim)) * spectrum
    turn = np.linalg.qr(draw.standard_normal((dim, dim)))[0]
    x = hidden @ turn * np.sqrt(dim / np.sum(spectrum**2))
    return np.maximum(x + 0.5, 0).astype(np.float32), labels


def bench_probe(cfg: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both until their objective is within --gap of the minimum, for each C.

    Both minimize 0.5 |W|² + C Σ cross-entropy over the same float32 features, from zeros. The
    tolerance of each is the loosest with which it meets the gap, to a quarter of a decade, found by
    bisection from 1e-1 to 1e-9; what is timed is a fit with that tolerance, in turns. The minimum
    is the lower of what both reach with 1e-9. Objectives are computed alike, in float64. CPU
    seconds are of all threads.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from mmjax.evals.probes import logistic

    x, labels = features(options.examples, options.dim, options.classes)
    targets = np.eye(options.classes, dtype=np.float32)[labels]

    def objective(kernel, bias, C):
        logits = x.astype(np.float64) @ kernel.astype(np.float64) + bias
        top = logits.max(1, keepdims=True)
        losses = np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(x)), labels]
        return 0.5 * np.sum(kernel.astype(np.float64) ** 2) + C * losses.sum()

    def ours(C, tolerance):
        found = logistic.fit(x, targets, C=C, tolerance=tolerance)
        return found.kernel, found.bias, found.iterations

    def theirs(C, tolerance):
        found = LogisticRegression(C=C, tol=tolerance, max_iter=20_000).fit(x, labels)
        return found.coef_.T, found.intercept_, int(found.n_iter_.max())

    def timed(fit, C, tolerance):
        began, cpu = time.perf_counter(), time.process_time()
        kernel, bias, iterations = fit(C, tolerance)
        row = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
        return row | {"iterations": iterations, "objective": objective(kernel, bias, C)}

    began = time.perf_counter()
    ours(1.0, 0.9)  # compiles
    figures: dict[str, Any] = {
        "shape": [options.examples, options.dim, options.classes],
        "compile_seconds": time.perf_counter() - began,
    }
    fits = {"mmjax": ours, "scikit_learn": theirs}
    for C in options.Cs:
        tightest = {name: timed(fit, C, 1e-9) for name, fit in fits.items()}
        lowest = min(found["objective"] for found in tightest.values())
        row: dict[str, Any] = {"lowest_objective": lowest}
        for name, fit in fits.items():
            loose, tight = -1.0, -9.0  # powers of ten
            found = tightest[name]
            while loose - tight > 0.25:
                middle = (loose + tight) / 2
                tried = timed(fit, C, 10**middle)
                if tried["objective"] <= lowest * (1 + options.gap):
                    tight, found = middle, tried
                else:
                    loose = middle
            gap = found["objective"] / lowest - 1
            row[name] = {"tolerance": 10**tight, "gap": gap, **found, "seconds": [], "cpu": []}
        for _ in range(options.repeats):  # in turns
            for name, fit in fits.items():
                found = timed(fit, C, row[name]["tolerance"])
                row[name]["seconds"].append(found["seconds"])
                row[name]["cpu"].append(found["cpu_seconds"])
        for name in fits:
            row[name]["cpu_seconds"] = float(np.median(row[name].pop("cpu")))
            row[name]["seconds"] = float(np.median(row[name]["seconds"]))
        for kind in ("seconds", "cpu_seconds"):
            row[f"scikit_learn_over_mmjax_{kind}"] = row["scikit_learn"][kind] / row["mmjax"][kind]
        figures[f"C={C:g}"] = row
    return figures
