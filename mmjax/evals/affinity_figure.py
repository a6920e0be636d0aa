"""The figure of the evaluator `affinity`: cosines, with what their rows and columns are."""

from __future__ import annotations

import dataclasses
import os
import textwrap
import warnings
from collections.abc import Sequence

import numpy as np

MAX_DETAILED = 32  # a larger matrix has neither images nor captions
_MAX_VALUES = 12  # nor does one larger than this have its values written in the cells
_INK, _OUTLINE = "#1a1a1a", "#ff2d2d"
_LINE = 0.155  # inches of a line of text
_LETTER = 0.066  # and of a letter, on average
_MARGIN, _GAP = 0.3, 0.08
_CAPTION = 2.3  # inches of the captions beside the rows


@dataclasses.dataclass(frozen=True)
class Side:
    """What stands at the rows, or the columns, of the matrix.

    Attributes:
      name: the modality.
      images: uint8 [h, w, 3] each, or None.
      captions: or None.
    """

    name: str
    images: Sequence[np.ndarray] | None = None
    captions: Sequence[str] | None = None


def draw(
    cosines: np.ndarray,
    path: str | os.PathLike,
    *,
    rows: Side,
    columns: Side,
    title: str,
    subtitle: str = "",
    outlined: np.ndarray | None = None,
) -> None:
    """Draws a matrix of cosines as a PNG.

    Args:
      cosines: float [R, C].
      path: the PNG; its folder must be there.
      rows, columns: images and captions, left out where the matrix is larger than MAX_DETAILED.
      title, subtitle: above it.
      outlined: bool [R, C], cells to mark.

    Raises:
      OSError: the file cannot be written.
    """
    # Imported here: a run that draws nothing need not wait for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    high, wide = cosines.shape
    size = max(high, wide)
    detailed = size <= MAX_DETAILED
    cell = 0.95 if size <= _MAX_VALUES else 0.6 if detailed else 8.0 / size
    caption_letters, below = _column_text(columns, cell) if detailed else (0, 0.25)
    pictures_left = cell + _GAP if detailed and rows.images is not None else 0.0
    captions_left = _CAPTION + _GAP if detailed and rows.captions is not None else 0.0
    pictures_below = cell + _GAP if detailed and columns.images is not None else 0.0

    left = _MARGIN + 0.3 + captions_left + pictures_left
    lines = textwrap.wrap(subtitle, int(max(left + wide * cell, 6.0) / 0.075))
    top = 0.75 + 0.2 * len(lines)
    width = max(left + wide * cell + 1.1, 7.0)
    height = top + high * cell + pictures_below + below + 0.35 + _MARGIN
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def axes(x: float, y: float, w: float, h: float):
        """Axes whose top left is x, y inches from that of the figure."""
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    def text(x: float, y: float, words: str, **style) -> None:
        # Captions may hold $ and _, which matplotlib would take for mathematics.
        figure.text(x / width, 1 - y / height, words, parse_math=False, color=_INK, **style)

    text(_MARGIN, 0.3, title, fontsize=14, weight="bold", va="center")
    for number, line in enumerate(lines):
        text(_MARGIN, 0.6 + 0.2 * number, line, fontsize=10, va="center")

    matrix = axes(left, top, wide * cell, high * cell)
    image = matrix.imshow(cosines, cmap="viridis", aspect="auto", interpolation="nearest")
    matrix.set(xticks=(), yticks=())
    if size <= _MAX_VALUES:
        _write_values(matrix, cosines, image)
    if outlined is not None and detailed:
        for row, column in zip(*np.nonzero(outlined), strict=True):
            place = (column - 0.46, row - 0.46)
            matrix.add_patch(Rectangle(place, 0.92, 0.92, fill=False, edgecolor=_OUTLINE, lw=1.8))
    bar = figure.colorbar(image, cax=axes(left + wide * cell + 0.15, top, 0.18, high * cell))
    bar.set_label("cosine", fontsize=9)
    bar.ax.tick_params(labelsize=8)

    side = cell * 0.94
    for row in range(high if detailed else 0):
        y = top + (row + 0.5) * cell
        if rows.images is not None:
            _image(axes(left - _GAP - side, y - side / 2, side, side), rows.images[row])
        if rows.captions is not None:
            words = _wrapped(rows.captions[row], int(_CAPTION / _LETTER), int(cell / _LINE))
            x = left - pictures_left - _GAP
            text(x, y, words, fontsize=9, ha="right", va="center", linespacing=1.15)
    for column in range(wide if detailed else 0):
        x = left + (column + 0.5) * cell
        y = top + high * cell + _GAP
        if columns.images is not None:
            _image(axes(x - side / 2, y, side, side), columns.images[column])
        if columns.captions is not None:
            turned = cell < 0.9
            words = _wrapped(columns.captions[column], caption_letters, 3 if turned else 7)
            style = dict(fontsize=8, ha="center", va="top", linespacing=1.15)
            text(x, y + pictures_below, words, rotation=90 if turned else 0, **style)
    text(
        left + wide * cell / 2,
        height - _MARGIN,
        columns.name,
        fontsize=12,
        ha="center",
        va="center",
    )
    text(
        _MARGIN,
        top + high * cell / 2,
        rows.name,
        fontsize=12,
        rotation=90,
        ha="center",
        va="center",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # scripts the font lacks show as boxes
        figure.savefig(path, dpi=100)


def _column_text(columns: Side, cell: float) -> tuple[int, float]:
    """Letters of a line of the captions below the columns, and inches they need."""
    if columns.captions is None:
        return 0, 0.0
    if cell < 0.9:  # too narrow: turned by a quarter
        return 28, 28 * _LETTER
    letters = int(cell / 0.062)
    lines = max(len(_wrapped(words, letters, 7).splitlines()) for words in columns.captions)
    return letters, lines * _LINE


def _wrapped(words: str, letters: int, lines: int) -> str:
    options = dict(max_lines=lines, placeholder=" …", break_on_hyphens=False)
    return "\n".join(textwrap.wrap(words, letters, **options))


def _write_values(axes, cosines: np.ndarray, image) -> None:
    for (row, column), value in np.ndenumerate(cosines):
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        color = "white" if dark else _INK
        axes.text(
            column,
            row,
            f"{round(float(value), 2) + 0.0:.2f}",
            ha="center",
            va="center",
            color=color,
            fontsize=10,
        )


def _image(axes, picture: np.ndarray) -> None:
    axes.imshow(picture, interpolation="antialiased")
    axes.axis("off")
