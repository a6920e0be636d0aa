"""Heat maps with a number in each cell: correlations and CKA."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mmjax.benchmark.report.drawing import (
    SMALL,
    Figure,
    Panel,
    decimals,
    shortened,
    width_of,
)

_CELL_WIDTH, _GAP = 46.0, 8.0
_ANGLE = -50.0  # degrees, of the labels of columns


def draw(
    values: np.ndarray,
    *,
    names: Sequence[str],
    title: str,
    caption: str,
    notes: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Draws a symmetric matrix.

    Args:
      values: float [N, N] in [-1, 1], which are the colors and the texts of the cells; NaN where
        there is no value.
      names: Names of the rows and of the columns.
      title, caption: See `Figure`.
      notes: N x N second lines in the cells.
    """
    height = 38.0 if notes else 26.0
    widths = [width_of(shortened(name)) for name in names]
    slope = math.radians(-_ANGLE)
    top = max(widths) * math.sin(slope) + 14
    overhang = max(widths) * math.cos(slope)
    rows = Panel(max(widths) + 2 * _GAP, top + height * len(names))
    cells = Panel(_CELL_WIDTH * len(names) + overhang, rows.height)
    for n, name in enumerate(names):
        rows.label(rows.width - _GAP, top + (n + 0.5) * height + 4, name, anchor="end")
        cells.label((n + 0.5) * _CELL_WIDTH + 4, top - 6, name, angle=_ANGLE)
    for i, j in np.ndindex(values.shape):
        x, y, value = j * _CELL_WIDTH, top + i * height, float(values[i, j])
        note = notes[i][j] if notes else ""
        text = decimals(value, 2)
        tip = f"{names[i]}, {names[j]}: {text} {note}".rstrip()
        cells.box(x + 0.5, y + 0.5, _CELL_WIDTH - 1, height - 1, value, tip)
        center = dict(anchor="middle", pointer_events="none")
        middle = y + height / 2
        cells.text(x + _CELL_WIDTH / 2, middle + (-1 if note else 4), text, **center)
        if note:
            cells.text(x + _CELL_WIDTH / 2, middle + 12, note, size=SMALL, **center)
    return Figure(title=title, caption=caption, panels=(rows, cells), frozen=True)
