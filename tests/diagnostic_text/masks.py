"""Masks and pairs of tests."""

import numpy as np

from mmjax.diagnostic_text.pairs import Pair

SIDE = 112


def disk(row, column, radius, side=SIDE):
    y, x = np.mgrid[:side, :side]
    return (y - row) ** 2 + (x - column) ** 2 < radius**2


def box(top, bottom, left, right, side=SIDE):
    mask = np.zeros((side, side), bool)
    mask[top:bottom, left:right] = True
    return mask


def empty(side=SIDE):
    return np.zeros((side, side), bool)


def pair(truth, prediction, key="img-8", name="CAT", **options):
    scene = np.zeros((*truth.shape, 3), np.uint8)
    return Pair(key, name, scene, truth, prediction, **options)
