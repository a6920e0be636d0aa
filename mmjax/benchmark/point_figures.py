"""Figures with a point per encoder: scatter plots, groups of encoders, and levels of end tasks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mmjax.benchmark import correlations
from mmjax.benchmark.drawing import FAINT, INK, PALETTE, Drawing, add_text, label, width_of
from mmjax.benchmark.table import Table

_MARGIN = 0.3  # inches
_PANEL, _PANEL_HEIGHT, _PER_ROW = 2.35, 1.75, 4
_MAX_NAMED = 6  # encoders up to which each has a color of its own
_MIN_VIOLIN = 8  # points for which a density is drawn


def _colors(table: Table) -> tuple[list[str], dict[str, str]]:
    """Returns the color of each encoder, and the legend: its name, or its method."""
    few = len(table.encoders) <= _MAX_NAMED
    keys = [label(e.short_name) if few else e.method for e in table.encoders]
    legend = {key: PALETTE[n % len(PALETTE)] for n, key in enumerate(dict.fromkeys(keys))}
    return [legend[key] for key in keys], legend


def _draw_legend(drawing: Drawing, y: float, legend: Mapping[str, str]) -> None:
    x = _MARGIN
    for name, color in legend.items():
        drawing.text(x, y, "●", color=color, fontsize=10)
        drawing.text(x + 0.16, y, name)
        x += 0.42 + width_of([name], 9)


def _head(drawing: Drawing, title: str, lines: Sequence[str]) -> None:
    drawing.text(_MARGIN, 0.3, title, fontsize=12, weight="bold")
    for n, line in enumerate(lines):
        drawing.text(_MARGIN, 0.56 + 0.17 * n, line)


def scatter(table: Table, x_column: int, *, above: float | None = None) -> Drawing:
    """Draws each end task against one of them, with a regression line.

    Args:
      table: The results.
      x_column: Index of the end task on the horizontal axes.
      above: Regression lines use the encoders with a larger value on the horizontal axis.
    """
    colors, legend = _colors(table)
    others = [n for n in range(len(table.columns)) if n != x_column]
    per_row = min(_PER_ROW, len(others))
    num_rows = math.ceil(len(others) / per_row)
    x_title = label(f"{table.columns[x_column].title} ({table.columns[x_column].metric})")
    width = max(_MARGIN + per_row * (_PANEL + 0.55), 0.6 + width_of(["".join(legend)], 9) + 1.2, 6)
    text = "Lines are linear regressions" + (f" of encoders above {above:g}" if above else "")
    text += "; r is Pearson's correlation. Up is better: the axes of errors (↓) are inverted."
    lines = textwrap.wrap(text, int((width - 2 * _MARGIN) / 0.073))
    top = 1.15 + 0.17 * len(lines)
    step = _PANEL_HEIGHT + 0.75
    drawing = Drawing(width, top + num_rows * step + 0.1, f"End tasks against {x_title}. {text}")
    _head(drawing, f"End tasks against {x_title}", lines)
    _draw_legend(drawing, top - 0.42, legend)
    x = table.values[:, x_column]
    for position, number in enumerate(others):
        row, place = divmod(position, per_row)
        corner = (_MARGIN + 0.3 + place * (_PANEL + 0.55), top + row * step)
        axes = drawing.axes(*corner, _PANEL, _PANEL_HEIGHT)
        last = position + per_row >= len(others)
        _panel(axes, table, number, x, colors, above, x_title if last else "")
    return drawing


def _panel(
    axes: Any,
    table: Table,
    number: int,
    x: np.ndarray,
    colors: Sequence[str],
    above: float | None,
    x_title: str,
) -> None:
    """Draws the points and the regression line of an end task."""
    column, y = table.columns[number], table.values[:, number]
    axes.scatter(x, y, c=colors, s=20, alpha=0.85, linewidths=0)
    line = correlations.regress(x, y, above=above)
    note = "no line"
    if line is not None:
        known = x[np.isfinite(x) & np.isfinite(y)]
        ends = np.array([known.min() if above is None else above, known.max()])
        axes.plot(ends, line.slope * ends + line.intercept, color=FAINT, lw=1.2, zorder=0)
        r = line.r if column.higher_is_better else -line.r
        note = f"r = {r:.2f} (n = {line.count})"
    if not column.higher_is_better:
        axes.invert_yaxis()
    axes.margins(0.08)
    axes.locator_params(nbins=4)
    title = label(column.title) + ("" if column.higher_is_better else " ↓")
    style = dict(transform=axes.transAxes, fontsize=9)
    add_text(axes, 0, 1.08, title, weight="bold", **style)
    add_text(axes, 1, 0.03, note, ha="right", **(style | dict(fontsize=7.5)))
    if x_title:
        axes.set_xlabel(x_title, fontsize=8, color=INK, parse_math=False)


def group_strips(
    table: Table, groups: Mapping[str, Sequence[int]], by: Literal["method", "data"]
) -> Drawing:
    """Draws the normalized scores of groups of encoders, for image-level and pixelwise end tasks.

    Args:
      table: The results.
      groups: {name of a group: indices of encoders}.
      by: What the groups are, for the title.
    """
    what = {"method": "pretraining method", "data": "pretraining data"}[by]
    levels = [(False, "image-level", PALETTE[0]), (True, "pixelwise", PALETTE[1])]
    levels = [one for one in levels if any(c.pixelwise is one[0] for c in table.columns)]
    width = max(7.0, 1.2 + len(groups) * 1.15)
    reference = label(table.reference) if table.reference else "the mean"
    text = (
        f"Points are encoders on end tasks: the score minus that of {reference}, in standard "
        "deviations over encoders; larger is better. Bars are medians."
    )
    lines = textwrap.wrap(text, int((width - 2 * _MARGIN) / 0.073))
    top, height = 1.05 + 0.17 * len(lines), 3.0
    names = [f"{label(name)}\n({len(rows)})" for name, rows in groups.items()]
    names = ["\n".join(textwrap.wrap(name, 13)) for name in names]
    drawing = Drawing(width, top + height + 0.9, f"Scores by {what}. {text}")
    _head(drawing, f"Scores by {what}", lines)
    _draw_legend(drawing, top - 0.3, {name: color for _, name, color in levels})
    axes = drawing.axes(_MARGIN + 0.45, top, width - 2 * _MARGIN - 0.45, height)
    axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
    for position, rows in enumerate(groups.values()):
        for side, (level, _, color) in enumerate(levels):
            columns = [n for n, c in enumerate(table.columns) if c.pixelwise is level]
            points = table.normalized[np.ix_(rows, columns)].ravel()
            x = position + (0.4 * side - 0.2 if len(levels) > 1 else 0.0)
            _strip(axes, x, points[np.isfinite(points)], color)
    axes.set(xlim=(-0.6, len(groups) - 0.4))
    axes.set_xticks(range(len(groups)), names, parse_math=False)
    axes.set_ylabel("normalized score", fontsize=8, color=INK)
    return drawing


def _strip(axes: Any, x: float, points: np.ndarray, color: str) -> None:
    """Draws points next to each other, their density, and their median."""
    if len(points) == 0:
        return
    if len(points) >= _MIN_VIOLIN and np.ptp(points) > 0:
        parts = axes.violinplot([points], [x], widths=0.36, showextrema=False)
        for body in parts["bodies"]:
            body.set(facecolor=color, alpha=0.22)
    jitter = np.random.default_rng(0).uniform(-0.09, 0.09, len(points))
    axes.scatter(x + jitter, points, c=color, s=9, alpha=0.7, linewidths=0)
    median = float(np.median(points))
    axes.plot([x - 0.16, x + 0.16], [median, median], color=INK, lw=1.8)


def levels(table: Table) -> Drawing:
    """Draws the mean relative score of each encoder on image-level and on pixelwise end tasks."""
    means = correlations.level_means(table)
    order = np.argsort(-np.nan_to_num(means.sum(axis=1), nan=-1.0), kind="stable")
    names = [label(table.encoders[n].short_name) for n in order]
    text = (
        "Mean over end tasks of the score scaled to 0 for the worst and 1 for the best encoder, "
        "errors the right way up."
    )
    left, height = _MARGIN + width_of(names, 9) + 0.1, 0.24 * len(names)
    width = left + 4.8
    lines = textwrap.wrap(text, int((width - 2 * _MARGIN) / 0.073))
    top = 1.0 + 0.17 * len(lines)
    title = "Image-level and pixelwise end tasks"
    drawing = Drawing(width, top + height + 0.65, f"{title}. {text}")
    _head(drawing, title, lines)
    _draw_legend(drawing, top - 0.3, {"image-level": PALETTE[0], "pixelwise": PALETTE[1]})
    axes = drawing.axes(left, top, 4.5, height)
    y = np.arange(len(names))
    axes.hlines(y, means[order].min(axis=1), means[order].max(axis=1), color=FAINT, lw=1.2)
    for column in (0, 1):
        axes.scatter(means[order, column], y, c=PALETTE[column], s=34, linewidths=0, zorder=3)
    axes.set(xlim=(-0.03, 1.03), ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(y, names, parse_math=False)
    axes.tick_params(axis="y", labelsize=9, length=0)
    axes.grid(axis="x", color=FAINT, alpha=0.25, lw=0.6)
    axes.set_xlabel("mean relative score", fontsize=8, color=INK)
    return drawing
