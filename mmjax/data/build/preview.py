"""Draws examples of a dataset as a PNG, to check it before training: `mmjax preview`."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mmjax import files
from mmjax.data.storage import dataset, mask_files, record_images, schema
from mmjax.errors import UserError
from mmjax.monitor.class_colors import blend, class_colors
from mmjax.monitor.contact_sheet import (
    FAINT,
    LINE,
    TEXT,
    WIDTH,
    Sheet,
    draw_strip,
    draw_waveform,
)

_MASK_ALPHA = 0.7  # opacity of masks
_ROI_COLOR = (255, 0, 160)

Indexed = tuple[int, schema.Example]  # index of the record, its example


def preview(path: str, *, split: str, out: str, clips: int = 8, frames: int = 8) -> list[Indexed]:
    """Draws evenly spaced examples of a split as a PNG.

    Clips are drawn below each other, with frames and waveform on the same time axis. Single images
    and touch images without audio are drawn in a grid, with the images of one example in a column.
    Segmentation masks are drawn in color on top of their gray images; a legend names the classes.

    Args:
      path: The dataset.
      split: The split.
      out: The PNG, or a file of another format that matplotlib supports.
      clips: Number of clips, or of rows of the grid.
      frames: Number of frames per clip, or of columns of the grid.

    Returns:
      `(index, example)` of the records that are drawn.

    Raises:
      UserError: The dataset or split does not exist, or the PNG cannot be written.
    """
    directory = dataset.DatasetDir(path)
    records = directory.split(split)

    def read(index: int) -> schema.Example:
        return schema.decode(
            records.read(index),
            waveform_format=directory.info.waveform_format,
            where=records.where(index),
        )

    first = read(0)
    in_grid = len(first.frames) <= 1 and first.waveform is None
    in_grid &= bool(first.frames or first.touch)
    count = min(clips * frames if in_grid else clips, len(records))
    indices = [int(n) for n in np.unique(np.linspace(0, len(records) - 1, count).astype(int))]
    examples = [(index, read(index)) for index in indices]
    masks = _Masks(directory.info.mask_classes)
    if in_grid:
        sheet = _draw_grid(examples, frames, masks)
    else:
        sheet = _draw_clips(examples, directory, frames, masks)
    if masks.shown:
        sheet.legend(masks.legend())
    title = f"{directory.info.name} · {split} · {len(records)} examples"
    try:
        with files.atomic_path(out) as partial:
            suffix = os.path.splitext(out)[1]
            sheet.save(title, str(partial), format=suffix.lstrip(".") or "png")
    except (OSError, ValueError) as error:
        raise UserError(f"--out {out} cannot be written: {error}.") from error
    return examples


class _Masks:
    """Draws segmentation masks.

    Args:
      names: Class names by value; values without one are named by their number.

    Attributes:
      shown: Values that were drawn.
    """

    def __init__(self, names: Sequence[str]):
        self._names, self._colors = names, class_colors(names)
        self.shown: set[int] = set()

    def draw(self, example: schema.Example, index: int) -> np.ndarray | None:
        """Returns the image of a frame with its mask, or None without a mask."""
        if index >= len(example.masks):
            return None
        try:
            record_images.size(example.masks[index])
            classes = schema.decode_mask(example.masks[index])
        except (UserError, tf.errors.InvalidArgumentError):
            return _decode(example.masks[index])
        self.shown.update(np.unique(classes).tolist())
        image = _decode(example.frames[index]) if index < len(example.frames) else None
        if image is None or image.shape[:2] != classes.shape:
            return self._colors[classes]
        return blend(image, classes, self._colors, _MASK_ALPHA)

    def legend(self) -> dict[str, np.ndarray]:
        """Returns {name: color} of the values that were drawn."""
        names = dict(enumerate(self._names)) | {mask_files.IGNORE: "ignored (255)"}
        return {names.get(v, f"unknown ({v})"): self._colors[v] for v in sorted(self.shown)}


def _draw_clips(
    examples: Sequence[Indexed], directory: dataset.DatasetDir, max_frames: int, masks: _Masks
) -> Sheet:
    """Returns a sheet with one block per clip: captions, frames, masks, waveform and touch."""
    sheet, info = Sheet(), directory.info
    for index, example in examples:
        sheet.text(_describe(index, example, info), color=FAINT, fontsize=9)
        sheet.top += LINE * 1.15
        for line in _wrap_captions(example):
            sheet.text(line, color=TEXT, fontsize=11)
            sheet.top += LINE * 1.2
        sheet.top += 0.05
        width = _draw_frames(sheet, example, max_frames, masks) if example.frames else WIDTH
        if example.waveform is not None:
            rate = example.sample_rate or info.sample_rate
            sheet.axes(width, 0.55, draw_waveform(example.waveform, rate))
            sheet.top += 0.55 + 0.2
        else:
            sheet.text("no audio", color=FAINT, fontsize=8)
            sheet.top += LINE
        if example.touch:
            _draw_touch(sheet, example, max_frames)
        sheet.top += 0.28
    return sheet


def _draw_frames(sheet: Sheet, example: schema.Example, max_frames: int, masks: _Masks) -> float:
    """Adds strips of frames and masks; returns the width in inches of a strip of `max_frames`."""
    step = max(len(example.frames) / max_frames, 1)
    indices = [int(k * step) for k in range(min(max_frames, len(example.frames)))]
    images = [_frame(example, k) for k in indices]
    image_height, image_width = images[0].shape[:2]
    cell = min(WIDTH / max_frames, 1.9 * image_width / image_height)
    height = cell * image_height / image_width
    sheet.axes(cell * len(images), height, draw_strip(images))
    sheet.top += height + 0.04
    if masked := [image for k in indices if (image := masks.draw(example, k)) is not None]:
        sheet.axes(cell * len(masked), height, draw_strip(masked))
        sheet.top += height + 0.04
    return cell * max_frames


def _draw_touch(sheet: Sheet, example: schema.Example, max_images: int) -> None:
    """Adds a strip of touch images, followed by their background."""
    touch = [_decode(data) for data in example.touch[:max_images]]
    background = [_decode(data) for data in example.touch_background]
    sheet.text("touch", color=FAINT, fontsize=8)
    if background:
        sheet.text("background", left=float(len(touch)), color=FAINT, fontsize=8)
    sheet.top += LINE
    sheet.axes(len(touch + background), 1.0, draw_strip(touch + background))
    sheet.top += 1.05


def _draw_grid(examples: Sequence[Indexed], num_columns: int, masks: _Masks) -> Sheet:
    """Returns a sheet with a grid of images, masks, touch images, backgrounds and texts."""
    sheet, cell = Sheet(), WIDTH / num_columns
    num_letters = int(cell * 11)
    for first in range(0, len(examples), num_columns):
        row = examples[first : first + num_columns]
        sheet.images([_frame(e, 0) if e.frames else None for _, e in row], cell)
        sheet.images([masks.draw(e, 0) for _, e in row], cell)
        for images in ([e.touch for _, e in row], [e.touch_background for _, e in row]):
            sheet.images([_decode(encoded[0]) if encoded else None for encoded in images], cell)
        texts = []
        for index, example in row:
            labels = ", ".join(example.label_texts) or ", ".join(map(str, example.labels))
            captions = _wrap_captions(example, width=num_letters - 2, max_lines=3)
            lines = [f"{index}  {labels}", *captions]
            texts.append([textwrap.shorten(line, num_letters, placeholder="…") for line in lines])
        top = sheet.top
        for k, lines in enumerate(texts):
            sheet.top = top
            for line in lines:
                sheet.text(line, left=k * cell, color=TEXT, fontsize=8)
                sheet.top += LINE * 0.9
        sheet.top = top + max(map(len, texts)) * LINE * 0.9 + 0.15
    return sheet


def _describe(index: int, example: schema.Example, info: dataset.DatasetInfo) -> str:
    """Returns one line about an example: file, times, frames, audio and labels."""
    start, end = example.start_us / 1e6, example.end_us / 1e6
    parts = [f"{index}", _shorten_left(example.filename) or "no file name"]
    if end > start:
        parts.append(f"{start:.2f}–{end:.2f} s ({end - start:.2f} s)")
    if example.frames:
        height, width = _decode(example.frames[0]).shape[:2]
        fps = example.frame_rate or info.fps
        rate = f" at {fps:g} fps" if fps and len(example.frames) > 1 else ""
        parts.append(f"{len(example.frames)} frames {width}×{height}{rate}")
    else:
        parts.append("no image")
    if example.waveform is not None:
        rate = example.sample_rate or info.sample_rate
        rms = float(np.sqrt(np.mean(np.square(example.waveform, dtype=np.float64))))
        parts.append(f"{len(example.waveform)} samples at {rate:g} Hz, RMS {rms:.3f}")
    texts = [*example.label_texts, *[""] * len(example.labels)]
    labels = [f"{i} {text}".strip() for i, text in zip(example.labels, texts, strict=False)]
    if labels:
        parts.append("label " + ", ".join(labels))
    return "  ·  ".join(parts)


def _shorten_left(path: str, max_letters: int = 60) -> str:
    return path if len(path) <= max_letters else "…" + path[-max_letters + 1 :]


def _wrap_captions(example: schema.Example, *, width: int = 150, max_lines: int = 4) -> list[str]:
    lines = [line for text in example.captions for line in textwrap.wrap(f"“{text}”", width)]
    if len(lines) > max_lines:
        count = len(example.captions)
        last = f"… {count} captions in total" if count > 1 else lines[max_lines - 1] + " …"
        lines = [*lines[: max_lines - 1], last]
    return lines


def _decode(data: bytes) -> np.ndarray:
    """Returns an image as uint8 [H, W, 3]; a red cross if it cannot be decoded."""
    try:
        return record_images.decode(data)
    except UserError:
        cross = np.full((64, 64, 3), 200, np.uint8)
        diagonal = np.arange(64)
        cross[diagonal, diagonal] = cross[diagonal, 63 - diagonal] = (200, 0, 0)
        return cross


def _frame(example: schema.Example, index: int) -> np.ndarray:
    """Returns a frame with the outline of its region of interest, if that is not all of it."""
    image = _decode(example.frames[index])
    if example.roi is None or example.roi == (0, 0, *image.shape[:2]):
        return image
    top, left, height, width = example.roi
    line = max(round(min(image.shape[:2]) / 80), 1)
    outlined = image.copy()
    outlined[top : top + height, left : left + width] = _ROI_COLOR
    inside = slice(top + line, top + height - line), slice(left + line, left + width - line)
    outlined[inside] = image[inside]
    return outlined
