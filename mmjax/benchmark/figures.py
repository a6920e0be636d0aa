"""The figures of a benchmark. `draw_all` returns those that its results allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mmjax.benchmark import correlations, heat_map, point_figures
from mmjax.benchmark.cka import Similarity
from mmjax.benchmark.drawing import Drawing
from mmjax.benchmark.table import Table

TOP1 = "Imagenet"  # the end task that others are plotted against


def draw_all(
    table: Table,
    *,
    against: str = TOP1,
    above: float | None = None,
    similarity: Similarity | None = None,
) -> dict[str, Drawing]:
    """Returns the figures by name, in the order of a report.

    Args:
      table: The results.
      against: Run or end task on the horizontal axes of the scatter plots.
      above: Regression lines use the encoders with more than this value of `against`.
      similarity: CKA to show.
    """
    result = {"results": results(table)}
    enough = len(table.encoders) >= correlations.MIN_ENCODERS
    if enough and len(table.columns) > 1:
        for method in correlations.METHODS:
            result[method] = correlation(table, method)
    x = table.column(against)
    if x is not None and len(table.columns) > 1 and len(table.encoders) > 1:
        result["scatter"] = point_figures.scatter(table, x, above=above)
    if len(table.encoders) > 1:
        for by in ("method", "data"):
            groups = correlations.groups(table.encoders, by)
            if len(groups) > 1:
                result[f"groups_{by}"] = point_figures.group_strips(table, groups, by)
        if np.isfinite(correlations.level_means(table)).any(axis=0).all():
            result["levels"] = point_figures.levels(table)
    if similarity is not None:
        result["cka"] = cka(similarity)
    return result


def number(value: float) -> str:
    """Returns a metric with three or four digits; '' for NaN."""
    if not math.isfinite(value):
        return ""
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:.{digits}f}"


def p_value(value: float) -> str:
    """Returns a p-value such as 'p=.03' or 'p<.001'; '' for NaN."""
    if not math.isfinite(value):
        return ""
    digits = 2 if value >= 0.01 else 3
    text = f"{value:.{digits}f}".removeprefix("0")
    return "p<.001" if value < 0.001 else f"p={text}"


def by_mean_rank(table: Table) -> list[int]:
    """Returns the indices of the encoders, the best mean rank first."""
    ranks = table.mean_ranks
    return sorted(range(len(ranks)), key=lambda n: (math.isnan(ranks[n]), ranks[n]))


def results(table: Table) -> Drawing:
    """Draws the metric of each encoder on each end task, with colors that compare encoders."""
    order = by_mean_rank(table)
    downward = any(not c.higher_is_better for c in table.columns)
    return heat_map.draw(
        table.relative[order],
        [[number(value) for value in table.values[row]] for row in order],
        rows=[table.encoders[row].short_name for row in order],
        columns=[c.title + ("" if c.higher_is_better else " ↓") for c in table.columns],
        title="Results on test",
        subtitle="Encoders are ordered by their mean rank. Colors compare the encoders on one end "
        "task." + (" ↓ lower is better." if downward else ""),
        bar="relative score",
        limits=(0, 1),
        bar_ticks=((0, "worst"), (1, "best")),
    )


def correlation(table: Table, method: Literal["spearman", "pearson"]) -> Drawing:
    """Draws the correlations between all end tasks, with their p-values."""
    found = correlations.correlate(table.scores, method)
    names = [column.title for column in table.columns]
    what = {"spearman": "Spearman's rank correlation", "pearson": "Pearson's correlation"}[method]
    return heat_map.draw(
        found.coefficients,
        [[f"{r:.2f}" if math.isfinite(r) else "–" for r in row] for row in found.coefficients],
        small=[
            ["" if i == j else p_value(p) for j, p in enumerate(row)]
            for i, row in enumerate(found.p_values)
        ],
        rows=names,
        columns=names,
        title=f"{what} of end tasks",
        subtitle=f"Over {len(table.encoders)} encoders, of scores of which larger is better. "
        "P-values are two-sided and not corrected for the number of pairs.",
        bar="correlation",
        limits=(-1, 1),
        color_map="RdBu_r",
    )


def cka(similarity: Similarity) -> Drawing:
    """Draws the linear CKA between layers or encoders."""
    return heat_map.draw(
        similarity.values,
        [[f"{v:.2f}" if math.isfinite(v) else "–" for v in row] for row in similarity.values],
        rows=similarity.names,
        columns=similarity.names,
        title="Linear CKA",
        subtitle="1: equal features up to rotation and scale.",
        bar="CKA",
        limits=(0, 1),
        color_map="magma",
    )


def names_of(table: Table, rows: Sequence[int]) -> list[str]:
    """Returns the short names of encoders by their indices."""
    return [table.encoders[row].short_name for row in rows]
