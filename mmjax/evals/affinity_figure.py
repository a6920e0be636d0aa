"""The figure of the evaluator `affinity`: a matrix of cosines with labeled rows and columns."""

from __future__ import annotations

import dataclasses
import os
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax import files
from mmjax.plain_text import plain

MAX_DETAILED = 32  # rows or columns above which there are no images, captions and outlines
_MAX_VALUES = 12  # rows or columns above which cells have no numbers
_INK, _OUTLINE = "#1a1a1a", "#ff2d2d"
# Sizes in inches.
_LINE_HEIGHT = 0.155
_LETTER_WIDTH = 0.066  # on average
_MARGIN, _GAP = 0.3, 0.08
_CAPTION_WIDTH = 2.3  # of captions next to the rows
_NARROW_CELL = 0.9  # below this width, captions of columns are rotated
_IMAGE_SHARE = 0.94  # of the width of a cell


@dataclasses.dataclass(frozen=True)
class Axis:
    """Labels of the rows or of the columns.

    Attributes:
      name: Name of the modality.
      images: uint8 [H, W, 3] for each row or column, or None.
      captions: A text for each row or column, or None.
    """

    name: str
    images: Sequence[np.ndarray] | None = None
    captions: Sequence[str] | None = None


def draw(
    cosines: np.ndarray,
    path: str | os.PathLike,
    *,
    rows: Axis,
    columns: Axis,
    title: str,
    subtitle: str = "",
    outlined: np.ndarray | None = None,
) -> None:
    """Draws a matrix of cosines as a PNG file.

    Args:
      cosines: float [R, C].
      path: The PNG file. Its directory is created.
      rows, columns: Labels. Matrices larger than MAX_DETAILED have only the names.
      title, subtitle: Text above the matrix.
      outlined: bool [R, C], cells to outline.

    Raises:
      OSError: The file cannot be written.
    """
    layout = _Layout.of(cosines, rows, columns, subtitle)
    canvas = _Canvas(layout.width, layout.height)
    canvas.text(_MARGIN, 0.3, title, fontsize=14, weight="bold", va="center")
    for n, line in enumerate(layout.subtitle):
        canvas.text(_MARGIN, 0.6 + 0.2 * n, line, fontsize=10, va="center")
    _draw_matrix(canvas, layout, cosines, outlined)
    if layout.detailed:
        _draw_rows(canvas, layout, rows, len(cosines))
        _draw_columns(canvas, layout, columns, cosines.shape[1])
    center = dict(fontsize=12, ha="center", va="center")
    x, y = layout.left + layout.matrix_width / 2, layout.top + layout.matrix_height / 2
    canvas.text(x, layout.height - _MARGIN, columns.name, **center)
    canvas.text(_MARGIN, y, rows.name, rotation=90, **center)
    with warnings.catch_warnings(), files.atomic_path(path) as partial:
        warnings.filterwarnings("ignore", message="Glyph")  # missing glyphs are drawn as boxes
        canvas.figure.savefig(partial, dpi=100, format="png")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layout:
    """Positions and sizes in inches from the top left corner of the figure.

    Attributes:
      cell: Width and height of a cell.
      left, top: Top left corner of the matrix.
      matrix_width, matrix_height: Size of the matrix.
      width, height: Size of the figure.
      detailed: Whether there are images, captions and outlines.
      row_image, column_image: Space for an image next to a row and below a column.
      caption_letters: Number of letters in a line of the captions below the columns.
      subtitle: Lines of the subtitle.
    """

    cell: float
    left: float
    top: float
    matrix_width: float
    matrix_height: float
    width: float
    height: float
    detailed: bool
    row_image: float
    column_image: float
    caption_letters: int
    subtitle: Sequence[str]

    @classmethod
    def of(cls, cosines: np.ndarray, rows: Axis, columns: Axis, subtitle: str) -> _Layout:
        num_rows, num_columns = cosines.shape
        size = max(num_rows, num_columns)
        detailed = size <= MAX_DETAILED
        cell = 0.95 if size <= _MAX_VALUES else 0.6 if detailed else 8.0 / size
        letters, caption_height = _column_captions(columns, cell) if detailed else (0, 0.25)
        row_image = cell + _GAP if detailed and rows.images is not None else 0.0
        row_caption = _CAPTION_WIDTH + _GAP if detailed and rows.captions is not None else 0.0
        column_image = cell + _GAP if detailed and columns.images is not None else 0.0
        left = _MARGIN + 0.3 + row_caption + row_image
        matrix_width, matrix_height = num_columns * cell, num_rows * cell
        lines = textwrap.wrap(subtitle, int(max(left + matrix_width, 6.0) / 0.075))
        top = 0.75 + 0.2 * len(lines)
        return cls(
            cell=cell,
            left=left,
            top=top,
            matrix_width=matrix_width,
            matrix_height=matrix_height,
            width=max(left + matrix_width + 1.1, 7.0),
            height=top + matrix_height + column_image + caption_height + 0.35 + _MARGIN,
            detailed=detailed,
            row_image=row_image,
            column_image=column_image,
            caption_letters=letters,
            subtitle=lines,
        )


class _Canvas:
    """A Matplotlib figure whose positions are inches from the top left corner."""

    def __init__(self, width: float, height: float):
        # Imported here so that runs without figures do not wait for it.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(self.figure)
        self._width, self._height = width, height

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        """Returns axes with their top left corner at (x, y)."""
        left, bottom = x / self._width, 1 - (y + height) / self._height
        return self.figure.add_axes((left, bottom, width / self._width, height / self._height))

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Writes text at (x, y)."""
        # Captions may contain $ and _, which Matplotlib would parse as mathematics.
        x, y = x / self._width, 1 - y / self._height
        self.figure.text(x, y, plain(text, keep="\n"), parse_math=False, color=_INK, **style)

    def image(self, x: float, y: float, size: float, image: np.ndarray) -> None:
        """Draws an image with its top left corner at (x, y)."""
        axes = self.axes(x, y, size, size)
        axes.imshow(image, interpolation="antialiased")
        axes.axis("off")


def _draw_matrix(
    canvas: _Canvas, layout: _Layout, cosines: np.ndarray, outlined: np.ndarray | None
) -> None:
    from matplotlib.patches import Rectangle

    left, top = layout.left, layout.top
    axes = canvas.axes(left, top, layout.matrix_width, layout.matrix_height)
    image = axes.imshow(cosines, cmap="viridis", aspect="auto", interpolation="nearest")
    axes.set(xticks=(), yticks=())
    if max(cosines.shape) <= _MAX_VALUES:
        _write_values(axes, cosines, image)
    if outlined is not None and layout.detailed:
        for row, column in zip(*np.nonzero(outlined), strict=True):
            corner = (column - 0.46, row - 0.46)
            axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=_OUTLINE, lw=1.8))
    bar_axes = canvas.axes(left + layout.matrix_width + 0.15, top, 0.18, layout.matrix_height)
    bar = canvas.figure.colorbar(image, cax=bar_axes)
    bar.set_label("cosine", fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _draw_rows(canvas: _Canvas, layout: _Layout, rows: Axis, num_rows: int) -> None:
    """Draws the images and captions next to the rows."""
    size = layout.cell * _IMAGE_SHARE
    for row in range(num_rows):
        y = layout.top + (row + 0.5) * layout.cell
        if rows.images is not None:
            canvas.image(layout.left - _GAP - size, y - size / 2, size, rows.images[row])
        if rows.captions is not None:
            letters = int(_CAPTION_WIDTH / _LETTER_WIDTH)
            text = _wrapped(rows.captions[row], letters, int(layout.cell / _LINE_HEIGHT))
            x = layout.left - layout.row_image - _GAP
            canvas.text(x, y, text, fontsize=9, ha="right", va="center", linespacing=1.15)


def _draw_columns(canvas: _Canvas, layout: _Layout, columns: Axis, num_columns: int) -> None:
    """Draws the images and captions below the columns."""
    size = layout.cell * _IMAGE_SHARE
    rotated = layout.cell < _NARROW_CELL
    for column in range(num_columns):
        x = layout.left + (column + 0.5) * layout.cell
        y = layout.top + layout.matrix_height + _GAP
        if columns.images is not None:
            canvas.image(x - size / 2, y, size, columns.images[column])
        if columns.captions is not None:
            text = _wrapped(columns.captions[column], layout.caption_letters, 3 if rotated else 7)
            style = dict(fontsize=8, ha="center", va="top", linespacing=1.15)
            canvas.text(x, y + layout.column_image, text, rotation=90 if rotated else 0, **style)


def _column_captions(columns: Axis, cell: float) -> tuple[int, float]:
    """Returns letters per line and height in inches of the captions below the columns."""
    if columns.captions is None:
        return 0, 0.0
    if cell < _NARROW_CELL:
        return 28, 28 * _LETTER_WIDTH
    letters = int(cell / 0.062)
    lines = max(len(_wrapped(text, letters, 7).splitlines()) for text in columns.captions)
    return letters, lines * _LINE_HEIGHT


def _wrapped(text: str, letters: int, lines: int) -> str:
    options = dict(max_lines=lines, placeholder=" …", break_on_hyphens=False)
    return "\n".join(textwrap.wrap(text, letters, **options))


def _write_values(axes: Any, cosines: np.ndarray, image: Any) -> None:
    """Writes the cosines into the cells, in a color that is readable on them."""
    for (row, column), value in np.ndenumerate(cosines):
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        text = f"{round(float(value), 2) + 0.0:.2f}"
        color = "white" if dark else _INK
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=10)
