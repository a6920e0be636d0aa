"""Worked examples of a prompt: the built-in drawn one, or your own from a JSON file."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmjax import files
from mmjax.diagnostic_text.describer import describe
from mmjax.diagnostic_text.pairs import Pair, resize_mask, resize_scene
from mmjax.diagnostic_text.prompt import WorkedExample
from mmjax.diagnostic_text.prompt_images import comparison_images, encode_png
from mmjax.errors import UserError, check_choice

DRAWN = "drawn"
_KEYS = ("scene", "truth", "prediction", "class_name", "label", "answer")


def load_examples(source: str, *, size: int = 224, alpha: float = 0.6) -> Sequence[WorkedExample]:
    """Returns worked examples.

    Args:
      source: 'drawn' for the built-in example; '' for none; or a JSON file with a list of objects
        with the keys scene, truth and prediction (image files, relative to the JSON file; masks of
        class indices), class_name, label (the index of the class in the masks) and answer.
      size: Side of the images in pixels.
      alpha: Opacity of the masks.

    Raises:
      UserError: The file or an image is missing or not valid.
    """
    if not source:
        return ()
    if source == DRAWN:
        pair = drawn_pair(size)
        return (_example(pair, describe(pair), alpha),)
    rows = files.read_json(source)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{source} must contain a list of objects with {', '.join(_KEYS)}.")
    return tuple(_read(source, number, row, size, alpha) for number, row in enumerate(rows, 1))


def _example(pair: Pair, answer: str, alpha: float) -> WorkedExample:
    truth, prediction = comparison_images(pair, alpha)
    return WorkedExample(encode_png(truth), encode_png(prediction), answer)


def _read(source: str, number: int, row: dict, size: int, alpha: float) -> WorkedExample:
    where = f"{source}, example {number}"
    for key in row:
        check_choice(f"key in {where}:", key, _KEYS)
    if missing := [key for key in _KEYS if key not in row]:
        raise UserError(f"{where} lacks {', '.join(missing)}. Add them.")
    arrays = {}
    for key, mode in (("scene", "RGB"), ("truth", None), ("prediction", None)):
        path = pathlib.Path(source).parent / str(row[key])
        try:
            with Image.open(path) as image:
                arrays[key] = np.asarray(image.convert(mode) if mode else image)
        except (OSError, SyntaxError) as error:
            raise UserError(f"{where}: cannot read {key} {path}: {error}.") from error
        if key != "scene" and arrays[key].ndim != 2:
            raise UserError(
                f"{where}: {key} {path} has mode RGB; expected a mask with one class index per "
                "pixel (mode P or L)."
            )
    pair = Pair(
        key=f"example-{number}",
        class_name=str(row["class_name"]),
        scene=resize_scene(arrays["scene"], size),
        truth=resize_mask(arrays["truth"], size) == row["label"],
        prediction=resize_mask(arrays["prediction"], size) == row["label"],
    )
    return _example(pair, str(row["answer"]), alpha)


def drawn_pair(size: int = 224) -> Pair:
    """Returns a drawn pair: a balloon whose prediction misses a part and extends too far."""
    y, x = np.mgrid[:size, :size] / size
    sky = np.stack([0.45 + 0.3 * y, 0.65 + 0.2 * y, 0.9 + 0 * y], -1)
    scene = np.where((y > 0.75)[..., None], np.array([0.25, 0.5, 0.2]), sky)
    truth = (x - 0.35) ** 2 + (y - 0.4) ** 2 < 0.2**2
    scene = np.where(truth[..., None], np.array([0.85, 0.2, 0.15]), scene)
    prediction = truth & (y < 0.5) | ((x - 0.55) ** 2 + (y - 0.35) ** 2 < 0.1**2)
    return Pair(
        key="drawn-1",
        class_name="BALLOON",
        scene=(scene * 255).astype(np.uint8),
        truth=truth,
        prediction=prediction,
    )
