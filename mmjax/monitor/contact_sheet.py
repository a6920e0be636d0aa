"""Draws a contact sheet: texts, rows of images and waveforms on one page."""

from __future__ import annotations

import dataclasses
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmjax.plain_text import plain

WIDTH = 14.0  # inches of the contents
LINE = 0.19  # inches of a line of text
TEXT, FAINT, WAVE = "#1a1a1a", "#666666", "#2b6cb0"  # colors
_MARGIN = 0.35  # inches

Draw = Callable[[Axes], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Item:
    """Something to draw; positions in inches from the top left of the contents.

    Attributes:
      left: Left edge.
      top: Upper edge.
      width: Width of axes; 0 for a text.
      height: Height of axes; 0 for a text.
      draw: Draws on the axes.
      text: The text.
      style: Style of the text, as for `Figure.text`.
    """

    left: float
    top: float
    width: float = 0.0
    height: float = 0.0
    draw: Draw | None = None
    text: str = ""
    style: dict = dataclasses.field(default_factory=dict)


class Sheet:
    """A page that is filled from top to bottom.

    Attributes:
      top: Position of the next item in inches from the upper edge. Methods do not advance it.
    """

    def __init__(self):
        self.top = 0.55
        self._items: list[_Item] = []

    def text(self, text: str, *, left: float = 0.0, **style) -> None:
        """Adds a text; `style` as for `Figure.text`."""
        self._items.append(_Item(left=left, top=self.top, text=text, style=style))

    def axes(self, width: float, height: float, draw: Draw, *, left: float = 0.0) -> None:
        """Adds axes of a size in inches, and a function that draws on them."""
        self._items.append(_Item(left=left, top=self.top, width=width, height=height, draw=draw))

    def images(self, images: Sequence[np.ndarray | None], cell: float) -> None:
        """Adds a row of images in square cells, and advances by its height.

        Args:
          images: uint8 [H, W, 3]; None leaves a cell empty.
          cell: Width of a cell in inches.
        """
        side, tallest = cell - 0.12, 0.0
        for k, image in enumerate(images):
            if image is not None:
                height, width = image.shape[:2]
                scale = side / max(height, width)
                self.axes(width * scale, height * scale, draw_strip([image]), left=k * cell)
                tallest = max(tallest, height * scale)
        self.top += tallest + 0.06 if tallest else 0

    def legend(self, entries: Mapping[str, Sequence[int]]) -> None:
        """Adds rows of {name: RGB in [0, 255]}, and advances by their height."""
        left = 0.0
        for name, color in entries.items():
            name = textwrap.shorten(plain(name), 40, placeholder="…")
            width = 0.3 + 0.075 * len(name)
            if left and left + width > WIDTH:
                left, self.top = 0.0, self.top + LINE * 1.1
            self.axes(0.13, 0.13, _draw_swatch(color), left=left)
            self.text(name, left=left + 0.2, color=TEXT, fontsize=8)
            left += width + 0.1
        self.top += LINE * 1.1

    def save(self, title: str, path: str, *, format: str = "png") -> None:
        """Writes the page.

        Args:
          title: Title of the page.
          path: The file.
          format: A format that matplotlib supports.
        """
        page_width, page_height = WIDTH + 2 * _MARGIN, self.top + 0.1
        figure = Figure(figsize=(page_width, page_height), facecolor="white")
        FigureCanvasAgg(figure)
        figure.text(
            _MARGIN / page_width,
            1 - 0.16 / page_height,
            plain(title),
            parse_math=False,
            fontsize=14,
            weight="bold",
            va="top",
            color=TEXT,
        )
        for item in self._items:
            x, y = (_MARGIN + item.left) / page_width, 1 - item.top / page_height
            if item.draw:
                size = item.width / page_width, item.height / page_height
                item.draw(figure.add_axes((x, y - size[1], *size)))
            else:
                # Captions may contain $ and _, which matplotlib would typeset as mathematics.
                figure.text(
                    x, y, plain(item.text, keep="\n"), va="top", parse_math=False, **item.style
                )
        with warnings.catch_warnings():
            # Scripts that the font does not contain are drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(path, dpi=100, format=format)


def draw_strip(images: Sequence[np.ndarray]) -> Draw:
    """Returns a function that draws images side by side, in cells of equal size."""

    def draw(axes: Axes) -> None:
        for k, image in enumerate(images):
            axes.imshow(image, extent=(k, k + 1, 0, 1), aspect="auto", interpolation="antialiased")
        for k in range(1, len(images)):
            axes.axvline(k, color="white", linewidth=1.5)
        axes.set(xlim=(0, len(images)), ylim=(0, 1))
        axes.axis("off")

    return draw


def _draw_swatch(color: Sequence[int]) -> Draw:
    """Returns a function that fills axes with a color, RGB in [0, 255]."""

    def draw(axes: Axes) -> None:
        axes.set(facecolor=[value / 255 for value in color], xticks=(), yticks=())
        for spine in axes.spines.values():
            spine.set(color=FAINT, linewidth=0.5)

    return draw


def draw_waveform(waveform: np.ndarray, rate: float) -> Draw:
    """Returns a function that draws the envelope of a waveform over seconds.

    There are only two amplitude scales, so that quiet audio looks quiet.

    Args:
      waveform: Samples in [-1, 1].
      rate: Sample rate in Hz; 0 if it is unknown.
    """

    def draw(axes: Axes) -> None:
        seconds = len(waveform) / rate if rate else len(waveform)
        bins = min(1000, len(waveform))
        if bins:
            parts = np.array_split(np.nan_to_num(waveform), bins)
            low, high = [p.min() for p in parts], [p.max() for p in parts]
            axes.fill_between(np.linspace(0, seconds, bins), low, high, color=WAVE, linewidth=0.5)
        peak = float(np.abs(np.nan_to_num(waveform)).max(initial=0))
        scale = 1.0 if peak > 0.3 else 0.3
        axes.set(xlim=(0, seconds), ylim=(-scale, scale), yticks=(-scale, scale))
        axes.tick_params(labelsize=7, length=2, colors=FAINT)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color("#bbbbbb")

    return draw
