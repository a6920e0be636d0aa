"""A contact sheet of a dataset, to look at before training on it: `mmjax preview`."""

from __future__ import annotations

import io
import os
import textwrap
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mmjax.data.storage import dataset, schema
from mmjax.errors import UserError

_WIDTH = 14.0  # inches of the sheet
_LINE = 0.19  # inches of a line of text
_INK, _FAINT, _WAVE = "#1a1a1a", "#666666", "#2b6cb0"
_ROI = (255, 0, 160)  # the frame of the part that matters


def preview(
    path: str, *, split: str, out: str, clips: int = 8, frames: int = 8
) -> list[tuple[int, schema.Example]]:
    """Draws clips of a split, evenly spread, as a PNG; returns (record, example) of what it drew.

    Args:
      path: the dataset.
      split: which one.
      out: the PNG.
      clips: rows of the sheet. Single images and touch, without sound, are drawn `frames` to a
        row, below each other what belongs together.
      frames: how many of each clip, evenly spread, the first included.

    Raises:
      UserError: no such dataset or split, or a sheet that cannot be written.
    """
    directory = dataset.DatasetDir(path)
    records = directory.split(split)

    def read(record: int) -> schema.Example:
        return schema.decode(
            records.read(record),
            waveform_format=directory.info.waveform_format,
            where=records.where(record),
        )

    first = read(0)
    pictures = len(first.frames) <= 1 and first.waveform is None
    pictures &= bool(first.frames or first.touch)
    count = min(clips * frames if pictures else clips, len(records))
    numbers = [int(n) for n in np.unique(np.linspace(0, len(records) - 1, count).astype(int))]
    chosen = [(number, read(number)) for number in numbers]
    title = f"{directory.info.name} · {split} · {len(records)} examples"
    sheet = _images(chosen, frames) if pictures else _clips(chosen, directory.info, frames)
    try:
        if os.path.dirname(out):
            os.makedirs(os.path.dirname(out), exist_ok=True)
        _render(title, sheet, out)
    except (OSError, ValueError) as error:
        raise UserError(f"{out} cannot be written: {error}.") from error
    return chosen


# A sheet is a list of (top, left, width, height, what): inches from the top left, and a function
# that draws on axes of that place, or a text with its style.


class _Sheet:
    """Collects what is to be drawn, from top to bottom."""

    def __init__(self):
        self.top, self.items = 0.55, []

    def text(self, text: str, *, left: float = 0.0, **style) -> None:
        self.items.append((self.top, left, None, None, (text, style)))

    def axes(self, width: float, height: float, draw, *, left: float = 0.0) -> None:
        self.items.append((self.top, left, width, height, draw))


def _clips(chosen, info: dataset.DatasetInfo, frames: int) -> _Sheet:
    """One block per clip: what it is, its captions, frames and waveform on one axis of time."""
    sheet = _Sheet()
    for number, example in chosen:
        sheet.text(_head(number, example, info), color=_FAINT, fontsize=9)
        sheet.top += _LINE * 1.15
        lines = _captions(example)
        for line in lines:
            sheet.text(line, color=_INK, fontsize=11)
            sheet.top += _LINE * 1.2
        sheet.top += 0.05
        width = _WIDTH
        if example.frames:
            step = max(len(example.frames) / frames, 1)
            picked = [int(k * step) for k in range(min(frames, len(example.frames)))]
            images = [_frame(example, k) for k in picked]
            high, wide = images[0].shape[:2]
            cell = min(_WIDTH / frames, 1.9 * wide / high)
            width, height = cell * frames, cell * high / wide
            sheet.axes(cell * len(images), height, _strip(images))
            sheet.top += height + 0.04
        if example.waveform is not None:
            rate = example.sample_rate or info.sample_rate
            sheet.axes(width, 0.55, _wave(example.waveform, rate))
            sheet.top += 0.55 + 0.2
        else:
            sheet.text("no sound", color=_FAINT, fontsize=8)
            sheet.top += _LINE
        if example.touch:
            images = [_image(data) for data in (*example.touch[:frames], *example.touch_background)]
            sheet.text("touch", color=_FAINT, fontsize=8)
            if example.touch_background:
                left = float(len(images) - len(example.touch_background))
                sheet.text("background", left=left, color=_FAINT, fontsize=8)
            sheet.top += _LINE
            sheet.axes(len(images), 1.0, _strip(images))
            sheet.top += 1.05
        sheet.top += 0.28
    return sheet


def _images(chosen, columns: int) -> _Sheet:
    """A grid of images, the touch and its background below, their labels and captions."""
    sheet, cell = _Sheet(), _WIDTH / columns
    for first in range(0, len(chosen), columns):
        row = chosen[first : first + columns]
        for images in (
            [_frame(example, 0) if example.frames else None for _, example in row],
            [_image(example.touch[0]) if example.touch else None for _, example in row],
            [_image(data[0]) if (data := e.touch_background) else None for _, e in row],
        ):
            _draw_row(sheet, images, cell)
        letters = int(cell * 11)
        texts = []
        for number, example in row:
            labels = ", ".join(example.label_texts) or ", ".join(map(str, example.labels))
            lines = [f"{number}  {labels}", *_captions(example, width=letters - 2, lines=3)]
            texts.append([textwrap.shorten(line, letters, placeholder="…") for line in lines])
        top = sheet.top
        for k, lines in enumerate(texts):
            sheet.top = top
            for line in lines:
                sheet.text(line, left=k * cell, color=_INK, fontsize=8)
                sheet.top += _LINE * 0.9
        sheet.top = top + max(map(len, texts)) * _LINE * 0.9 + 0.15
    return sheet


def _draw_row(sheet: _Sheet, images: Sequence[np.ndarray | None], cell: float) -> None:
    """Images side by side in cells of `cell` inches, None leaves one empty; nothing if all do."""
    side, tallest = cell - 0.12, 0.0
    for k, image in enumerate(images):
        if image is not None:
            high, wide = image.shape[:2]
            scale = side / max(high, wide)
            sheet.axes(wide * scale, high * scale, _strip([image]), left=k * cell)
            tallest = max(tallest, high * scale)
    sheet.top += tallest + 0.06 if tallest else 0


def _render(title: str, sheet: _Sheet, out: str) -> None:
    margin = 0.35
    width, height = _WIDTH + 2 * margin, sheet.top + 0.1
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(
        margin / width, 1 - 0.16 / height, title, fontsize=14, weight="bold", va="top", color=_INK
    )
    for top, left, wide, high, what in sheet.items:
        x, y = (margin + left) / width, 1 - top / height
        if wide is None:
            text, style = what
            # Captions may hold $ and _, which matplotlib would take for mathematics.
            figure.text(x, y, text, va="top", parse_math=False, **style)
        else:
            what(figure.add_axes((x, y - high / height, wide / width, high / height)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # scripts the font lacks show as boxes
        figure.savefig(out, dpi=100)


def _head(number: int, example: schema.Example, info: dataset.DatasetInfo) -> str:
    start, end = example.start_us / 1e6, example.end_us / 1e6
    parts = [f"{number}", _tail(example.filename) or "no file name"]
    if end > start:
        parts.append(f"{start:.2f}–{end:.2f} s ({end - start:.2f} s)")
    if example.frames:
        high, wide = _image(example.frames[0]).shape[:2]
        fps = example.frame_rate or info.fps
        rate = f" at {fps:g} fps" if fps and len(example.frames) > 1 else ""
        parts.append(f"{len(example.frames)} frames {wide}×{high}{rate}")
    else:
        parts.append("no image")
    if example.waveform is not None:
        rate = example.sample_rate or info.sample_rate
        rms = float(np.sqrt(np.mean(np.square(example.waveform, dtype=np.float64))))
        parts.append(f"{len(example.waveform)} samples at {rate:g} Hz, RMS {rms:.3f}")
    labels = [
        f"{label} {text}".strip()
        for label, text in zip(
            example.labels,
            [*example.label_texts, *[""] * len(example.labels)],
            strict=False,
        )
    ]
    if labels:
        parts.append("label " + ", ".join(labels))
    return "  ·  ".join(parts)


def _tail(path: str, letters: int = 60) -> str:
    return path if len(path) <= letters else "…" + path[-letters + 1 :]


def _captions(example: schema.Example, *, width: int = 150, lines: int = 4) -> list[str]:
    wrapped = [line for text in example.captions for line in textwrap.wrap(f"“{text}”", width)]
    if len(wrapped) > lines:
        several = f"… {len(example.captions)} captions in all"
        end = several if len(example.captions) > 1 else wrapped[lines - 1] + " …"
        wrapped = [*wrapped[: lines - 1], end]
    return wrapped


def _image(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3]; gray with a cross where the data cannot be decoded."""
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (OSError, ValueError, SyntaxError):
        cross = np.full((64, 64, 3), 200, np.uint8)
        cross[np.arange(64), np.arange(64)] = cross[np.arange(64), np.arange(63, -1, -1)] = (
            200,
            0,
            0,
        )
        return cross


def _frame(example: schema.Example, number: int) -> np.ndarray:
    """A frame of a clip, with a line around the part that matters if that is not all of it."""
    image = _image(example.frames[number])
    if example.roi is None or example.roi == (0, 0, *image.shape[:2]):
        return image
    top, left, height, width = example.roi
    line = max(round(min(image.shape[:2]) / 80), 1)
    marked = image.copy()
    marked[top : top + height, left : left + width] = _ROI
    inner = slice(top + line, top + height - line), slice(left + line, left + width - line)
    marked[inner] = image[inner]
    return marked


def _strip(images: Sequence[np.ndarray]):
    """Draws images side by side, each in a cell of the first one's shape."""

    def draw(axes) -> None:
        for k, image in enumerate(images):
            axes.imshow(image, extent=(k, k + 1, 0, 1), aspect="auto", interpolation="antialiased")
        for k in range(1, len(images)):
            axes.axvline(k, color="white", linewidth=1.5)
        axes.set(xlim=(0, len(images)), ylim=(0, 1))
        axes.axis("off")

    return draw


def _wave(waveform: np.ndarray, rate: float):
    """Draws the envelope of a waveform over seconds, on one of two scales: silence looks silent."""

    def draw(axes) -> None:
        seconds = len(waveform) / rate if rate else len(waveform)
        bins = min(1000, len(waveform))
        if bins:
            parts = np.array_split(np.nan_to_num(waveform), bins)
            low, high = [p.min() for p in parts], [p.max() for p in parts]
            axes.fill_between(np.linspace(0, seconds, bins), low, high, color=_WAVE, linewidth=0.5)
        peak = float(np.abs(np.nan_to_num(waveform)).max(initial=0))
        scale = 1.0 if peak > 0.3 else 0.3
        axes.set(xlim=(0, seconds), ylim=(-scale, scale), yticks=(-scale, scale))
        axes.tick_params(labelsize=7, length=2, colors=_FAINT)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color("#bbbbbb")

    return draw
