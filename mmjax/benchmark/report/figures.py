"""The figures of a benchmark. `draw_all` returns those that its results allow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from mmjax.benchmark.report import correlations, heat_map, point_figures
from mmjax.benchmark.report.cka import Similarity
from mmjax.benchmark.report.drawing import Figure
from mmjax.benchmark.report.table import Table

NAMES = (
    *correlations.METHODS,
    *("scatter", "groups_method", "groups_data", "levels", "cka_encoders", "cka_layers"),
)
TOP1 = "Imagenet"  # the end task that others are plotted against
_ABOVE = 0.4  # top-1 accuracy from which pyVTAB computes regression lines


def draw_all(table: Table, similarities: Mapping[str, Similarity]) -> dict[str, Figure]:
    """Returns the figures by name, in the order of a report.

    Args:
      table: The results.
      similarities: {name of the figure: CKA}.
    """
    result: dict[str, Figure] = {}
    several = len(table.encoders) > 1
    if len(table.encoders) >= correlations.MIN_ENCODERS and len(table.columns) > 1:
        for method in correlations.METHODS:
            result[method] = correlation(table, method)
    x = table.column(TOP1)
    if x is not None and len(table.columns) > 1 and several:
        result["scatter"] = point_figures.scatter(table, x, above=_ABOVE)
    if several and np.isfinite(table.normalized).any():
        for by in ("method", "data"):
            groups = correlations.groups(table.encoders, by)
            if len(groups) > 1:
                result[f"groups_{by}"] = point_figures.group_strips(table, groups, by)
    if several and np.isfinite(correlations.level_means(table)).any(axis=0).all():
        result["levels"] = point_figures.levels(table)
    return result | {name: cka(one) for name, one in similarities.items()}


def p_value(value: float) -> str:
    """Returns a p-value such as 'p=.03' or 'p<.001'; '' for NaN."""
    if not math.isfinite(value):
        return ""
    if value < 0.001:
        return "p<.001"
    return "p=" + f"{value:.{2 if value >= 0.01 else 3}f}".removeprefix("0")


def correlation(table: Table, method: Literal["spearman", "pearson"]) -> Figure:
    """Draws the correlations between all end tasks, with their p-values."""
    found = correlations.correlate(table.scores, method)
    what = {"spearman": "Spearman's rank correlation", "pearson": "Pearson's correlation"}[method]
    return heat_map.draw(
        found.coefficients,
        names=[column.title for column in table.columns],
        notes=[
            ["" if i == j else p_value(p) for j, p in enumerate(row)]
            for i, row in enumerate(found.p_values)
        ],
        title=f"{what} of end tasks",
        caption=f"Over {len(table.encoders)} encoders, of scores of which larger is better. "
        "P-values are two-sided and not corrected for the number of pairs.",
    )


def cka(similarity: Similarity) -> Figure:
    """Draws the linear CKA between layers or encoders."""
    return heat_map.draw(
        similarity.values,
        names=similarity.names,
        title=similarity.title,
        caption=f"Linear centered kernel alignment of the features of {similarity.examples} "
        "images, without the bias of few images. 1: equal up to rotation and scale.",
    )
