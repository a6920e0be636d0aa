"""Images beside their nearest neighbors, to see whether pairs make sense."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence

import numpy as np

_PICTURE, _LINE, _LETTERS = 1.9, 0.17, 30  # inches, inches, letters of a line


def draw(
    rows: Sequence[Sequence[tuple[np.ndarray | None, str, str]]], path: str, *, title: str
) -> None:
    """Draws a PNG: a row for each record, the record first, then its neighbors.

    Args:
      rows: of (image uint8 [h, w, 3] or None, heading, caption).
      path: the PNG; its folder is made if need be.
      title: above all.

    Raises:
      OSError: the file cannot be written.
    """
    # Imported here: a command that draws nothing need not wait for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    texts = [[textwrap.wrap(caption, _LETTERS)[:4] for _, _, caption in row] for row in rows]
    heights = [_PICTURE + _LINE * (2.2 + max(map(len, row))) for row in texts]
    width, height = columns * (_PICTURE + 0.35) + 0.2, sum(heights) + 0.5
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.15 / width, 1 - 0.28 / height, title, fontsize=10, parse_math=False)
    top = height - 0.5
    for row, lines, tall in zip(rows, texts, heights, strict=True):
        for column, (image, heading, _) in enumerate(row):
            left = 0.15 + column * (_PICTURE + 0.35)
            style = {"fontsize": 7.5, "parse_math": False, "va": "top"}
            weight = "bold" if column == 0 else "normal"
            figure.text(left / width, top / height, heading, weight=weight, **style)
            bottom = top - _LINE - _PICTURE
            where = (left / width, bottom / height, _PICTURE / width, _PICTURE / height)
            axes = figure.add_axes(where)
            axes.axis("off")
            if image is not None:
                axes.imshow(image, interpolation="antialiased")
            caption = "\n".join(lines[column])
            figure.text(left / width, (bottom - 0.05) / height, caption, color="#444", **style)
        top -= tall
    if os.path.dirname(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    figure.savefig(path, format="png")
