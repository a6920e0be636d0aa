"""Heat maps with a number in each cell: results, correlations, CKA."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.benchmark.drawing import FAINT, Drawing, add_text, label, readable_on, width_of

_MARGIN, _GAP, _BAR = 0.25, 0.08, 0.16  # inches
_LABEL_SIZE, _TEXT_SIZE, _SMALL_SIZE = 9.0, 8.0, 6.5  # points
_ANGLE = 40  # degrees, of the labels of the columns
_MIN_WIDTH = 5.5


def draw(
    colors: np.ndarray,
    texts: Sequence[Sequence[str]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    subtitle: str,
    bar: str,
    limits: tuple[float, float],
    small: Sequence[Sequence[str]] | None = None,
    color_map: str = "viridis",
    bar_ticks: Sequence[tuple[float, str]] | None = None,
) -> Drawing:
    """Draws a matrix.

    Args:
      colors: float [R, C], the colors of the cells; NaN for no color.
      texts: R x C texts in the cells.
      rows, columns: Their labels.
      title, subtitle: Text above the matrix.
      bar: Label of the color bar.
      limits: Values at the ends of the color bar.
      small: R x C second lines in the cells.
      color_map: Name of a Matplotlib color map.
      bar_ticks: (value, label) pairs of the color bar; None for numbers.
    """
    rows, columns = [label(t) for t in rows], [label(t) for t in columns]
    cell_width = max(0.42, width_of([t for row in texts for t in row], _TEXT_SIZE) + 0.1)
    cell_height = 0.42 if small else 0.27
    width, height = cell_width * len(columns), cell_height * len(rows)
    turned = math.radians(_ANGLE)
    overhang = max(  # of the labels of columns, which end below their column, to the left
        (
            width_of([t], _LABEL_SIZE) * math.cos(turned) - (n + 0.5) * cell_width
            for n, t in enumerate(columns)
        ),
        default=0.0,
    )
    left = _MARGIN + max(width_of(rows, _LABEL_SIZE) + _GAP, overhang)
    total = max(left + width + 1.0, _MIN_WIDTH)
    lines = textwrap.wrap(subtitle, int((total - 2 * _MARGIN) / 0.073))
    top = 0.65 + 0.17 * len(lines)
    below = width_of(columns, _LABEL_SIZE) * math.sin(turned) + 0.25
    drawing = Drawing(total, top + height + below + _MARGIN, f"{title}. {subtitle}")
    drawing.text(_MARGIN, 0.3, title, fontsize=12, weight="bold")
    for n, line in enumerate(lines):
        drawing.text(_MARGIN, 0.56 + 0.17 * n, line, fontsize=9)
    axes = drawing.axes(left, top, width, height)
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(colors), cmap=color_map, vmin=limits[0], vmax=limits[1]
    )
    mesh.set_edgecolor("face")
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0), xticks=(), yticks=())
    for spine in axes.spines.values():
        spine.set_visible(False)
    _write_cells(axes, mesh, colors, texts, small)
    for n, text in enumerate(rows):
        y = top + (n + 0.5) * cell_height
        drawing.text(left - _GAP, y, text, fontsize=_LABEL_SIZE, ha="right")
    style = dict(fontsize=_LABEL_SIZE, ha="right", va="top", rotation=_ANGLE)
    for n, text in enumerate(columns):
        x = left + (n + 0.5) * cell_width + 0.04
        drawing.text(x, top + height + 0.06, text, rotation_mode="anchor", **style)
    _draw_bar(drawing, mesh, (left + width + 0.15, top), max(height, 1.0), bar, bar_ticks)
    return drawing


def _write_cells(
    axes: Any,
    mesh: Any,
    colors: np.ndarray,
    texts: Sequence[Sequence[str]],
    small: Sequence[Sequence[str]] | None,
) -> None:
    """Writes the texts in black or white, whichever is readable on the cell."""
    for (row, column), value in np.ndenumerate(colors):
        empty = not np.isfinite(value)
        color = FAINT if empty else readable_on(mesh.cmap(mesh.norm(value)))
        style = dict(ha="center", va="center", color=color)
        second = small[row][column] if small else ""
        y = row + (0.36 if second else 0.52)
        add_text(axes, column + 0.5, y, texts[row][column], fontsize=_TEXT_SIZE, **style)
        if second:
            add_text(axes, column + 0.5, row + 0.74, second, fontsize=_SMALL_SIZE, **style)


def _draw_bar(
    drawing: Drawing,
    mesh: Any,
    corner: tuple[float, float],
    height: float,
    title: str,
    ticks: Sequence[tuple[float, str]] | None,
) -> None:
    bar_axes = drawing.axes(*corner, _BAR, min(height, 3.0))
    bar = drawing.figure.colorbar(mesh, cax=bar_axes)
    bar.outline.set_visible(False)
    bar.set_label(title, fontsize=8, color="#1a1a1b")
    if ticks is not None:
        bar.set_ticks([value for value, _ in ticks], labels=[text for _, text in ticks])
    bar_axes.tick_params(labelsize=8)
