"""Figures of predicted masks."""

import numpy as np
from PIL import Image

from mmjax.monitor import segmentation_figure
from mmjax.monitor.class_colors import class_colors
from mmjax.monitor.segmentation_figure import Example

NAMES = ["background", "cat", "dog", "cow"]


def example(height=60, width=80, **changes):
    truth = np.zeros((height, width), np.uint8)
    truth[10:40, 10:40] = 1
    truth[:5] = 255
    prediction = np.zeros((height, width), np.uint8)
    prediction[20:40, 10:40] = 1
    prediction[45:50, 50:70] = 2
    image = np.full((height, width, 3), (90, 90, 90), np.uint8)
    return Example(**dict(image=image, truth=truth, prediction=prediction) | changes)


def draw(path, examples, **options):
    segmentation_figure.draw(path, examples, names=NAMES, title="t", **options)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def count(figure, color):
    return int((np.abs(figure - np.asarray(color)).max(-1) < 8).sum())


def test_masks_and_errors_have_their_colors_and_areas(tmp_path):
    figure = draw(tmp_path / "a" / "f.png", [example()])
    colors = class_colors(NAMES).astype(int)
    cat, dog = (0.25 * 90 + 0.75 * colors[k] for k in (1, 2))
    unit = count(figure, cat) / (30 * 30 + 20 * 30)  # pixels of the figure per pixel of an image
    assert count(figure, dog) / (5 * 20) / unit > 0.8
    wrong = count(figure, segmentation_figure._WRONG)
    assert abs(wrong / (10 * 30 + 5 * 20) / unit - 1) < 0.2
    # Swatches of the classes that occur, but not of cow.
    assert count(figure, colors[1]) > 50 and count(figure, colors[2]) > 50
    assert count(figure, colors[3]) == 0


def test_a_perfect_prediction_has_no_wrong_pixels(tmp_path):
    one = example()
    perfect = example(prediction=np.where(one.truth == 255, 2, one.truth).astype(np.uint8))
    whole, right = draw(tmp_path / "a.png", [one]), draw(tmp_path / "b.png", [perfect])
    wrong = segmentation_figure._WRONG
    assert count(right, wrong) < 200 < count(whole, wrong)  # only the swatch of the legend


def test_texts_are_wrapped_and_tall_images_do_not_fill_the_page(tmp_path):
    plain = draw(tmp_path / "a.png", [example()])
    text = "The $cat_ region is over-extended, and its lower_left part is missing. " * 30
    long = draw(tmp_path / "b.png", [example(text=text, title="2007_000032.jpg · mIoU 0.5")])
    assert plain.shape[1] == long.shape[1]
    assert 60 < long.shape[0] - plain.shape[0] < 200
    tall = draw(tmp_path / "c.png", [example(height=300, width=80)])
    assert tall.shape[0] < 1.3 * plain.shape[1]


def test_unknown_values_do_not_stop_the_figure(tmp_path):
    prediction = np.full((60, 80), 9, np.uint8)
    draw(tmp_path / "a.png", [example(prediction=prediction)], subtitle="9 has no name. " * 40)
