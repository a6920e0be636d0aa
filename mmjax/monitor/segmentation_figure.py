"""Figures of predicted segmentation masks: image, truth, prediction and errors side by side."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections.abc import Sequence

import numpy as np

from mmjax import files
from mmjax.monitor.class_colors import blend, class_colors
from mmjax.monitor.contact_sheet import FAINT, LINE, TEXT, WIDTH, Sheet

_COLUMNS = ("image", "truth", "prediction", "errors")
_IGNORE = 255
_WRONG = (230, 30, 60)
_ALPHA = 0.75  # opacity of classes
_DIM = 0.45  # brightness of pixels with the right class in the last column
_LETTERS = 15  # per inch
_MAX_LINES = 6  # of a text
_ASPECT = 1.2  # largest height / width of an image that fills its cell


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """An image with its true and its predicted mask.

    Attributes:
      image: uint8 [H, W, 3].
      truth: Class of each pixel, uint8 [H, W], 255 for pixels without a class.
      prediction: Predicted classes, uint8 [H, W].
      title: One line, such as the file and the IoU.
      text: Text below the images, such as a description of the errors. It is wrapped.
    """

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    title: str = ""
    text: str = ""


def draw(
    path: str | os.PathLike,
    examples: Sequence[Example],
    *,
    names: Sequence[str],
    title: str,
    subtitle: str = "",
) -> None:
    """Draws examples as rows of a PNG file, with a legend of their classes.

    Masks are drawn in the colors of their classes on top of the gray image. In the last column,
    pixels with a wrong class are red, and those without a class in the truth are light.

    Args:
      path: The PNG file. Its directory is created.
      examples: The rows.
      names: Class names by index.
      title, subtitle: Text above the rows.

    Raises:
      OSError: The file cannot be written.
    """
    sheet, colors, cell = Sheet(), class_colors(names), WIDTH / len(_COLUMNS)
    for line in textwrap.wrap(subtitle, int(WIDTH * _LETTERS)):
        sheet.text(line, color=FAINT, fontsize=9)
        sheet.top += LINE * 1.1
    sheet.top += 0.08
    for k, name in enumerate(_COLUMNS):
        sheet.text(name, left=k * cell, color=FAINT, fontsize=9)
    sheet.top += LINE * 1.1
    for example in examples:
        sheet.images([_upright(image) for image in _row(example, colors)], cell)
        _write(sheet, example)
    sheet.legend(_legend(examples, names, colors))
    with files.atomic_path(path) as partial:
        sheet.save(title, str(partial))


def _row(example: Example, colors: np.ndarray) -> list[np.ndarray]:
    """Returns the images of a row, uint8 [H, W, 3] each."""
    image, truth, prediction = example.image, example.truth, example.prediction
    known = truth != _IGNORE
    errors = _DIM * blend(image, truth, colors, 0).astype(np.float32)
    errors[known & (truth != prediction)] = _WRONG
    errors[~known] = colors[_IGNORE]
    masks = [blend(image, mask, colors, _ALPHA) for mask in (truth, prediction)]
    return [image, *masks, np.round(errors).astype(np.uint8)]


def _upright(image: np.ndarray) -> np.ndarray:
    """Returns an image with a white margin if it is so tall that its row would be too high."""
    height, width = image.shape[:2]
    missing = round(height / _ASPECT) - width
    if missing <= 0:
        return image
    return np.pad(image, ((0, 0), (0, missing), (0, 0)), constant_values=255)


def _write(sheet: Sheet, example: Example) -> None:
    """Adds the title and the text of an example."""
    letters = int(WIDTH * _LETTERS)
    if example.title:
        line = textwrap.shorten(example.title, letters, placeholder=" …")
        sheet.text(line, color=TEXT, fontsize=9, weight="bold")
        sheet.top += LINE
    lines = textwrap.wrap(example.text, letters, max_lines=_MAX_LINES, placeholder=" …")
    for line in lines:
        sheet.text(line, color=TEXT, fontsize=9)
        sheet.top += LINE * 0.95
    sheet.top += 0.12


def _legend(
    examples: Sequence[Example], names: Sequence[str], colors: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns {name: color} of the classes that occur, and of wrong and ignored pixels."""
    values = {int(v) for e in examples for mask in (e.truth, e.prediction) for v in np.unique(mask)}
    named = dict(enumerate(names))
    legend = {named.get(v, f"class {v}"): colors[v] for v in sorted(values - {_IGNORE})}
    legend["wrong class"] = np.array(_WRONG)
    if _IGNORE in values:
        legend["no class in the truth"] = colors[_IGNORE]
    return legend
