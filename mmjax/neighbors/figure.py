"""Draws images next to their nearest neighbors, to inspect pairs by eye."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np

from mmjax import files

_IMAGE_INCHES, _LINE_INCHES, _LINE_CHARACTERS, _CAPTION_LINES = 1.9, 0.17, 30, 4
_MARGIN_INCHES, _GAP_INCHES, _TITLE_INCHES = 0.15, 0.35, 0.5


def draw(
    rows: Sequence[Sequence[tuple[np.ndarray | None, str, str]]], path: str, *, title: str
) -> None:
    """Writes a PNG with one row per record: the record first, then its neighbors.

    Args:
      rows: (image uint8 [H, W, 3] or None, heading, caption) of each cell.
      path: The PNG file. Its directory is created.
      title: Title of the figure.

    Raises:
      OSError: The file cannot be written.
    """
    # Imported here because Matplotlib takes long to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    captions = [
        [textwrap.wrap(text, _LINE_CHARACTERS)[:_CAPTION_LINES] for _, _, text in row]
        for row in rows
    ]
    heights = [_IMAGE_INCHES + _LINE_INCHES * (2.2 + max(map(len, row))) for row in captions]
    width = columns * (_IMAGE_INCHES + _GAP_INCHES) + 0.2
    height = sum(heights) + _TITLE_INCHES
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    position = (_MARGIN_INCHES / width, 1 - 0.28 / height)
    figure.text(*position, title, fontsize=10, parse_math=False)
    top = height - _TITLE_INCHES
    style = {"fontsize": 7.5, "parse_math": False, "va": "top"}
    for row, lines, row_height in zip(rows, captions, heights, strict=True):
        for column, (image, heading, _) in enumerate(row):
            left = (_MARGIN_INCHES + column * (_IMAGE_INCHES + _GAP_INCHES)) / width
            weight = "bold" if column == 0 else "normal"
            figure.text(left, top / height, heading, weight=weight, **style)
            bottom = top - _LINE_INCHES - _IMAGE_INCHES
            size = (_IMAGE_INCHES / width, _IMAGE_INCHES / height)
            axes = figure.add_axes((left, bottom / height, *size))
            axes.axis("off")
            if image is not None:
                axes.imshow(image, interpolation="antialiased")
            caption = "\n".join(lines[column])
            figure.text(left, (bottom - 0.05) / height, caption, color="#444", **style)
        top -= row_height
    content = io.BytesIO()
    figure.savefig(content, format="png")
    with files.atomic_open(path, "wb") as file:
        file.write(content.getvalue())
