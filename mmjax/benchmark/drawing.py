"""A Matplotlib figure with positions in inches, as PNG for files and as SVG for the HTML page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

from mmjax.plain_text import plain

# Colors that are readable on white and on black, and distinguishable with color blindness.
PALETTE = (
    *("#2f7fc1", "#e0701a", "#2a9d6f", "#c44e9c", "#8a6fd1", "#b08800", "#3aa6b9", "#c2453d"),
)
INK = "#1a1a1b"  # in SVG, the color of the text around the figure
FAINT = "#8c8c94"
LETTER = 0.0085  # average width of a letter in inches, per point of its size
_MAX_LABEL = 40  # letters


def label(text: str) -> str:
    """Returns text from files for a figure: without control characters, and not too long."""
    text = plain(text)
    return text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…"


def width_of(texts: Sequence[str], size: float) -> float:
    """Returns the width of the longest text in inches at a font size in points."""
    return max(map(len, texts), default=0) * LETTER * size


class Drawing:
    """A figure. Positions are inches from the top left corner.

    Attributes:
      width, height: Size in inches.
      figure: The Matplotlib figure.
      description: What the figure shows, for readers who cannot see it.
    """

    def __init__(self, width: float, height: float, description: str):
        # Imported here because Matplotlib takes long to import.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height, self.description = width, height, plain(description)
        self.figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(self.figure)

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        """Returns axes with their top left corner at (x, y), in the colors of the figure."""
        left, bottom = x / self.width, 1 - (y + height) / self.height
        axes = self.figure.add_axes((left, bottom, width / self.width, height / self.height))
        axes.set_facecolor("none")
        axes.tick_params(labelsize=8, colors=INK, length=2.5)
        for side, spine in axes.spines.items():
            spine.set_color(FAINT)
            spine.set_visible(side in ("left", "bottom"))
        return axes

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Writes text at (x, y)."""
        style = {"color": INK, "fontsize": 9, "va": "center"} | style
        self.figure.text(x / self.width, 1 - y / self.height, text, parse_math=False, **style)

    def png(self) -> bytes:
        """Returns the figure as a PNG file with a white background."""
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # missing ones become boxes
            self.figure.savefig(content, format="png", dpi=110)
        return content.getvalue()

    def svg(self) -> str:
        """Returns the figure as an SVG element with a transparent background.

        Its text has the color and the font of the page, so it is readable in light and dark mode.
        """
        import matplotlib

        content = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mmjax"}):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Glyph")
                self.figure.savefig(content, format="svg", transparent=True)
        text = content.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
        text = re.sub(r"'?DejaVu Sans'?(, [^;\"]*sans-serif)?", "system-ui, sans-serif", text)
        return text.replace(INK, "currentColor")


def add_text(axes: Any, x: float, y: float, text: str, **style: Any) -> None:
    """Writes text in the coordinates of axes, never as mathematics."""
    axes.text(x, y, text, parse_math=False, **({"color": INK} | style))


def readable_on(color: Sequence[float]) -> str:
    """Returns black or white, whichever is readable on a color (red, green, blue, …) in [0, 1]."""
    return "#ffffff" if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 0.55 else "#111111"
