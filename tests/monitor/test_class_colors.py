"""Colors of classes."""

import numpy as np
import pytest

from mmjax.monitor.class_colors import blend, class_colors, voc_palette


def test_colors_of_pascal_voc():
    palette = voc_palette()
    expected = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        3: (128, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {index: tuple(palette[index].tolist()) for index in expected} == expected


@pytest.mark.parametrize("count", [2, 21, 22, 150, 255])
def test_classes_have_different_colors(count):
    colors = class_colors(["background", *map(str, range(count - 1))])
    used = colors[:count].astype(int)
    distances = np.abs(used[:, None] - used[None]).sum(-1) + 1000 * np.eye(count)
    assert distances.min() > 0
    assert tuple(colors[0]) == (0, 0, 0) and tuple(colors[255]) == (224, 224, 192)
    neighbors = np.abs(np.diff(used, axis=0)).sum(-1)
    assert neighbors.min() >= 64


def test_blending():
    image = np.uint8([[[100, 100, 100], [0, 100, 0]]])
    classes = np.array([[0, 1]], np.uint8)
    assert blend(image, classes, voc_palette(), 0.5).tolist() == [[[50] * 3, [93, 29, 29]]]
