"""Figures in SVG: panels with text, lines and points, and the colors of light and dark mode.

A figure is part of the page, where its panels wrap to the width of the screen, and a file of its
own. Lengths are CSS pixels.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mmjax.benchmark.report.markup import Markup, element

# Colors that are readable on white and on black, and distinguishable with color blindness.
PALETTE = (
    *("#2f7fc1", "#e0701a", "#2a9d6f", "#c44e9c", "#8a6fd1", "#b08800", "#3aa6b9", "#c2453d"),
)
POSITIVE, NEGATIVE = "#2f7fc1", "#d0564d"  # of shades: text is readable on all of them
MAX_SHADE = 0.8  # opacity
TEXT, SMALL = 12, 10  # font sizes
_LETTER = 0.6  # average width of a letter, relative to the font size
_MAX_LABEL = 28  # letters
_MARGIN, _WIDTH = 20, 1100  # of a file
_NAMESPACE = "http://www.w3.org/2000/svg"
# Classes of SVG elements, with the variables that the page defines for light and dark mode.
STYLE = Markup(
    "svg text{font-family:system-ui,'DejaVu Sans',sans-serif;fill:var(--ink)}"
    "svg .axis{stroke:var(--faint);stroke-width:1}"
    "svg .grid{stroke:var(--faint);stroke-opacity:.3}"
    "svg .median{stroke:var(--ink);stroke-width:2}"
)
LIGHT = Markup("--ink:#1a1a1b;--faint:#6b6b73;--page:#ffffff")
DARK = Markup("--ink:#e8e8ea;--faint:#9a9aa3;--page:#141417")


def decimals(value: float, digits: int) -> str:
    """Returns a number with a minus sign and without '−0.00'; '–' for NaN."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def shortened(text: str) -> str:
    """Returns a label with its middle left out if it is long."""
    if len(text) <= _MAX_LABEL:
        return text
    half = _MAX_LABEL // 2
    return f"{text[:half]}…{text[len(text) - half + 1 :]}"


def width_of(text: str, size: float = TEXT) -> float:
    """Returns the approximate width of text at a font size."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return (len(text) + 0.8 * wide) * _LETTER * size


class Panel:
    """A part of a figure, to which elements are added. The origin is the top left corner.

    Attributes:
      width, height: Its size.
    """

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self._elements: list[Markup] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str = "axis") -> None:
        """Draws a line."""
        self._elements.append(element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_))

    def dot(self, x: float, y: float, color: str, tip: str, radius: float = 4.0) -> None:
        """Draws a point with a tooltip."""
        style = dict(cx=x, cy=y, r=radius, fill=color, fill_opacity=0.8)
        self._elements.append(element("circle", element("title", tip), **style))

    def box(self, x: float, y: float, width: float, height: float, value: float, tip: str) -> None:
        """Draws a rectangle in the color of a value in [-1, 1], with a tooltip."""
        style = dict(x=x, y=y, width=width, height=height, **shade(value))
        self._elements.append(element("rect", element("title", tip), **style))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = TEXT,
        anchor: Literal["start", "middle", "end"] = "start",
        angle: float = 0.0,
        tip: str | None = None,
        **attributes: Any,
    ) -> None:
        """Writes text with its baseline at y, rotated by an angle in degrees."""
        turn = f"rotate({angle:g} {x:.1f} {y:.1f})" if angle else None
        content = [text] if tip is None else [text, element("title", tip)]
        style = dict(x=x, y=y, font_size=size, text_anchor=anchor, transform=turn)
        self._elements.append(element("text", *content, **style, **attributes))

    def label(self, x: float, y: float, text: str, **options: Any) -> None:
        """Writes text; if it is long, a part of it, with a tooltip."""
        short = shortened(text)
        self.text(x, y, short, tip=None if short == text else text, **options)

    def place(self, panel: Panel, x: float, y: float) -> None:
        """Draws another panel with its top left corner at (x, y)."""
        self._elements.append(panel.svg(x=x, y=y))

    def svg(self, *first: Markup, **attributes: Any) -> Markup:
        """Returns the panel as an SVG element, with other elements before its own."""
        size = dict(width=self.width, height=self.height)
        box = f"0 0 {self.width:.2f} {self.height:.2f}"
        attributes |= dict(xmlns=_NAMESPACE, viewBox=box) | size
        return element("svg", *first, *self._elements, **attributes)


def shade(value: float) -> dict[str, Any]:
    """Returns the attributes `fill` and `fill-opacity` of a value in [-1, 1]; NaN has no color."""
    opacity = MAX_SHADE * min(abs(value), 1.0) if math.isfinite(value) else 0.0
    return dict(fill=POSITIVE if value > 0 else NEGATIVE, fill_opacity=round(opacity, 3))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure.

    Attributes:
      title: Its title.
      caption: What it shows.
      panels: Its panels.
      legend: {label: color}.
      frozen: Whether the first panel labels the rows of the second one. It stays visible on a
        narrow screen, where the second one is moved sideways.
    """

    title: str
    caption: str
    panels: Sequence[Panel]
    legend: Mapping[str, str] = dataclasses.field(default_factory=dict)
    frozen: bool = False

    def file(self) -> str:
        """Returns the figure as an SVG file with a white background."""
        whole = Panel(_WIDTH, 0)
        whole.text(_MARGIN, _MARGIN + 12, self.title, size=16, font_weight="bold")
        y = _MARGIN + 36.0
        for line in textwrap.wrap(self.caption, int((_WIDTH - 2 * _MARGIN) / (_LETTER * TEXT))):
            whole.text(_MARGIN, y, line)
            y += 17
        y = self._draw_legend(whole, y + 6)
        for row in self._rows():
            x = float(_MARGIN)
            for panel in row:
                whole.place(panel, x, y)
                x += panel.width + self._gap
            whole.width = max(whole.width, x - self._gap + _MARGIN)
            y += max(panel.height for panel in row) + 16
        whole.height = y
        style = element("style", Markup(f"svg{{{LIGHT}}}"), STYLE)
        page = element("rect", width="100%", height="100%", fill="#ffffff")
        return f"{whole.svg(style, page)}\n"

    @property
    def _gap(self) -> float:
        return 0.0 if self.frozen else 16.0

    def _rows(self) -> list[list[Panel]]:
        """Returns the panels in rows that fit into a file."""
        rows: list[list[Panel]] = [[]]
        x = float(_MARGIN)
        for panel in self.panels:
            if rows[-1] and not self.frozen and x + panel.width > _WIDTH - _MARGIN:
                rows.append([])
                x = float(_MARGIN)
            rows[-1].append(panel)
            x += panel.width + self._gap
        return rows

    def _draw_legend(self, whole: Panel, y: float) -> float:
        """Draws the legend, and returns the y coordinate below it."""
        x = float(_MARGIN)
        for name, color in self.legend.items():
            width = 30 + width_of(shortened(name))
            if x + width > _WIDTH - _MARGIN:
                x, y = float(_MARGIN), y + 18
            whole.dot(x + 5, y - 4, color, name)
            whole.label(x + 14, y, name)
            x += width
        return y + 18 if self.legend else y


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns at most about `count` round numbers from `low` to `high`."""
    rough = (high - low) / count
    if not (rough > 0 and math.isfinite(rough)):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]
