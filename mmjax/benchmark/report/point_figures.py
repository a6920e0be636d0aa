"""Figures with a point per encoder: scatter plots, groups of encoders, and levels of end tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from mmjax.benchmark.report import correlations
from mmjax.benchmark.report.drawing import PALETTE, SMALL, Figure, Panel, decimals, ticks
from mmjax.benchmark.report.table import Table

_MAX_NAMED = len(PALETTE)  # encoders up to which each has a color of its own
_WIDTH, _HEIGHT = 250.0, 200.0  # of a scatter plot
_LEFT, _RIGHT, _TOP, _BOTTOM = 42.0, 10.0, 24.0, 34.0  # its margins
_STRIP_WIDTH, _ROW = 340.0, 42.0  # of a chart with one row per group or encoder
_LEVELS = ((False, "image-level", PALETTE[0]), (True, "pixelwise", PALETTE[1]))


class _Axis:
    """Maps values to coordinates, with a margin around the values.

    Args:
      values: What it must show; not empty.
      start, end: Coordinates of its ends.
    """

    def __init__(self, values: np.ndarray, start: float, end: float):
        low, high = float(values.min()), float(values.max())
        margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        self.low, self.high = low - margin, high + margin
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self._start + float(share) * (self._end - self._start)


def _colors(table: Table) -> tuple[list[str], dict[str, str]]:
    """Returns the color of each encoder, and the legend: its name, or its method."""
    few = len(table.encoders) <= _MAX_NAMED
    keys = [e.short_name if few else e.method for e in table.encoders]
    legend = {key: PALETTE[n % len(PALETTE)] for n, key in enumerate(dict.fromkeys(keys))}
    return [legend[key] for key in keys], legend


def scatter(table: Table, x_column: int, *, above: float) -> Figure:
    """Draws each end task against one of them, with a regression line.

    Args:
      table: The results.
      x_column: Index of the end task on the horizontal axes.
      above: Regression lines use the encoders with a larger value on the horizontal axis.
    """
    colors, legend = _colors(table)
    x_title = f"{table.columns[x_column].title} ({table.columns[x_column].metric})"
    return Figure(
        title=f"End tasks against {table.columns[x_column].title}",
        caption=f"Horizontal axes: {x_title}. Up is better: the axes of errors (↓) are inverted. "
        f"Lines are linear regressions over the encoders above {above:g}; r is Pearson's "
        "correlation of scores, of which larger is better. A line needs three encoders.",
        panels=[
            _scatter_panel(table, number, x_column, colors, above)
            for number in range(len(table.columns))
            if number != x_column
        ],
        legend=legend,
    )


def _scatter_panel(
    table: Table, number: int, x_column: int, colors: Sequence[str], above: float
) -> Panel:
    """Draws the points and the regression line of an end task."""
    column, panel = table.columns[number], Panel(_WIDTH, _HEIGHT)
    x, y = table.values[:, x_column], table.values[:, number]
    panel.label(_LEFT, 14, column.title + ("" if column.higher_is_better else " ↓"))
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if not len(known):
        panel.text(_WIDTH / 2, _HEIGHT / 2, "no encoder has both results", anchor="middle")
        return panel
    low, high = _HEIGHT - _BOTTOM, _TOP
    x_axis = _Axis(x[known], _LEFT, _WIDTH - _RIGHT)
    y_axis = _Axis(y[known], *((low, high) if column.higher_is_better else (high, low)))
    _draw_axes(panel, x_axis, y_axis)
    line = correlations.regress(x, y, above=above)
    if line is not None:
        ends = [max(above, float(x[known].min())), float(x[known].max())]
        (x1, y1), (x2, y2) = ((x_axis(e), y_axis(line.slope * e + line.intercept)) for e in ends)
        panel.line(x1, y1, x2, y2)
        r = line.r if column.higher_is_better else -line.r
        note = f"r = {decimals(r, 2)}, n = {line.count}"
        panel.text(_WIDTH - _RIGHT, _HEIGHT - 4, note, size=SMALL, anchor="end")
    for row in known:
        tip = f"{table.encoders[row].name}: {x[row]:.4g}, {y[row]:.4g}"
        panel.dot(x_axis(x[row]), y_axis(y[row]), colors[row], tip)
    return panel


def _draw_axes(panel: Panel, x_axis: _Axis, y_axis: _Axis) -> None:
    """Draws the axes of a scatter plot with their numbers."""
    bottom = panel.height - _BOTTOM
    panel.line(_LEFT, bottom, panel.width - _RIGHT, bottom)
    panel.line(_LEFT, _TOP, _LEFT, bottom)
    for value in ticks(x_axis.low, x_axis.high):
        panel.line(x_axis(value), bottom, x_axis(value), bottom + 3)
        panel.text(x_axis(value), bottom + 14, f"{value:.3g}", size=SMALL, anchor="middle")
    for value in ticks(y_axis.low, y_axis.high):
        panel.line(_LEFT - 3, y_axis(value), _LEFT, y_axis(value))
        panel.text(_LEFT - 6, y_axis(value) + 4, f"{value:.3g}", size=SMALL, anchor="end")


def group_strips(
    table: Table, groups: Mapping[str, Sequence[int]], by: Literal["method", "data"]
) -> Figure:
    """Draws the normalized scores of groups of encoders, for image-level and pixelwise end tasks.

    Args:
      table: The results.
      groups: {name of a group: indices of encoders}.
      by: What the groups are, for the title.
    """
    what = {"method": "pretraining method", "data": "pretraining data"}[by]
    reference = table.reference or "the mean"
    known = table.normalized[np.isfinite(table.normalized)]
    panel = _rows_panel(len(groups))
    axis = _Axis(np.append(known, 0.0), 6, _STRIP_WIDTH - 6)
    _draw_grid(panel, axis)
    for position, (name, rows) in enumerate(groups.items()):
        y = position * _ROW
        panel.label(0, y + 12, f"{name} ({len(rows)})", size=SMALL)
        for level, _, color in _LEVELS:
            columns = [n for n, c in enumerate(table.columns) if c.pixelwise is level]
            below = y + (30 if level else 21)
            values = []
            for row in rows:
                for number in columns:
                    value = float(table.normalized[row, number])
                    if np.isfinite(value):
                        values.append(value)
                        tip = f"{table.encoders[row].name}, {table.columns[number].title}"
                        panel.dot(axis(value), below, color, f"{tip}: {value:.2f}", 2.5)
            if values:
                median = axis(float(np.median(values)))
                panel.line(median, below - 4, median, below + 4, "median")
    return Figure(
        title=f"Scores by {what}",
        caption=f"Points are encoders on end tasks: the score minus that of {reference}, in "
        "standard deviations over encoders; right is better. Bars are medians, and numbers in "
        "brackets are numbers of encoders.",
        panels=[panel],
        legend={name: color for _, name, color in _LEVELS},
    )


def levels(table: Table) -> Figure:
    """Draws the mean relative score of each encoder on image-level and on pixelwise end tasks."""
    means = correlations.level_means(table)
    order = np.argsort(-np.nan_to_num(means.sum(axis=1), nan=-1.0), kind="stable")
    panel = _rows_panel(len(order))
    axis = _Axis(np.array([0.0, 1.0]), 6, _STRIP_WIDTH - 6)
    _draw_grid(panel, axis)
    for position, row in enumerate(order):
        y = position * _ROW
        panel.label(0, y + 12, table.encoders[row].short_name, size=SMALL)
        known = means[row][np.isfinite(means[row])]
        if len(known):
            panel.line(axis(known.min()), y + 24, axis(known.max()), y + 24)
        for (_, name, color), mean in zip(_LEVELS, means[row], strict=True):
            if np.isfinite(mean):
                tip = f"{table.encoders[row].name}, {name}: {mean:.3f}"
                panel.dot(axis(float(mean)), y + 24, color, tip, 5.0)
    return Figure(
        title="Image-level and pixelwise end tasks",
        caption="Mean over end tasks of the score scaled to 0 for the worst and 1 for the best "
        "encoder, errors the right way up.",
        panels=[panel],
        legend={name: color for _, name, color in _LEVELS},
    )


def _rows_panel(count: int) -> Panel:
    return Panel(_STRIP_WIDTH, count * _ROW + 24)


def _draw_grid(panel: Panel, axis: _Axis) -> None:
    """Draws vertical lines at round numbers."""
    for value in ticks(axis.low, axis.high):
        panel.line(axis(value), 16, axis(value), panel.height - 18, "grid")
        text = f"{value:.3g}".replace("-", "−")
        panel.text(axis(value), panel.height - 5, text, size=SMALL, anchor="middle")
