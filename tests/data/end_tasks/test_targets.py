"""Target formats against the numbers of pyVTAB and formulas: classes, depth, edges, flow."""

import io

import numpy as np
import pytest
from PIL import Image

from mmjax.data.end_tasks.targets import FORMATS, find_format, stacked
from mmjax.errors import UserError
from tests.data.end_tasks import trees
from tests.messages import raises


def encoded(pixels, file_format="PNG", mode=None):
    out = io.BytesIO()
    Image.fromarray(np.asarray(pixels), mode).save(out, file_format)
    return out.getvalue()


def converted(name, data, *, paper=False):
    """Returns the target [H, W, K] of the content of a file, without resizing."""
    target_format = FORMATS[name]
    return target_format.convert(stacked(target_format.read(data, "the target")), paper)


def gray(*values, dtype=np.uint8):
    return encoded(np.array([values], dtype))


NAN = np.nan


def test_taskonomy_depth_is_in_units_of_ten_thousand_and_unknown_where_saturated():
    depth = np.array([[500, 2000], [65535, 8000]], np.uint16)
    result = converted("taskonomy_depth", encoded(depth))[..., 0]
    np.testing.assert_allclose(result, [[0.05, 0.2], [NAN, 0.8]], rtol=1e-6)
    paper = converted("taskonomy_depth", encoded(depth), paper=True)[..., 0]
    np.testing.assert_allclose(paper, [[0, 0.15], [0.95, 0.75]], atol=1e-6)
    np.testing.assert_allclose(
        converted("taskonomy_depth", gray(0, 12_000, dtype=np.uint16)).ravel(), [NAN, 1]
    )


def test_thor_depth_is_centered():
    depth = encoded(np.array([[0, 64], [128, 255]], np.uint8))
    for paper in (False, True):
        result = converted("thor_depth", depth, paper=paper).ravel()
        np.testing.assert_allclose(result, [-2, -0.9960784, 0.0078431, 2], atol=1e-6)


def test_taskonomy_edges_are_fractions_and_in_the_paper_a_range_per_image():
    edges = gray(0, 13107, 65535, dtype=np.uint16)
    np.testing.assert_allclose(converted("taskonomy_edges", edges).ravel(), [0, 0.2, 1], rtol=1e-6)
    edges = gray(100, 200, 300, dtype=np.uint16)
    result = converted("taskonomy_edges", edges, paper=True).ravel()
    np.testing.assert_allclose(result, [0, 0.5, 1])


def test_nyu_depth_is_unknown_where_it_is_not_positive():
    depth = encoded(np.array([[0, 2.5, -1, NAN, np.inf]], np.float32), "TIFF")
    np.testing.assert_array_equal(converted("depth", depth).ravel(), [NAN, 2.5, NAN, NAN, NAN])
    np.testing.assert_array_equal(
        converted("depth", depth, paper=True).ravel(), [0, 2.5, -1, NAN, np.inf]
    )


def test_cityscapes_has_19_classes_from_1_and_void():
    labels = {7: 1, 8: 2, 11: 3, 12: 4, 13: 5, 17: 6, 19: 7, 20: 8, 21: 9, 22: 10, 23: 11, 24: 12}
    labels |= {25: 13, 26: 14, 27: 15, 28: 16, 31: 17, 32: 18, 33: 19}
    data = gray(*range(256))
    for paper, void in ((False, -1), (True, 0)):
        result = converted("cityscapes", data, paper=paper)
        assert result.dtype == np.int32 and result.shape == (1, 256, 1)
        assert result.ravel().tolist() == [labels.get(n, void) for n in range(256)]
    license_plate = FORMATS["cityscapes"].convert(np.array([[[-1]]]), False)
    assert license_plate.ravel().tolist() == [-1]


def test_trimap_is_the_object_and_in_the_paper_everything_else():
    data = gray(1, 2, 3)
    np.testing.assert_array_equal(converted("trimap", data).ravel(), [1, 0, NAN])
    np.testing.assert_array_equal(converted("trimap", data, paper=True).ravel(), [0, 1, 1])


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("egohands", (0, 4), [0, 4]),
        ("coco", (0, 1, 200), [-1, 1, 200]),
        ("nonzero", (0, 9), [0, 1]),
    ],
)
def test_masks_keep_their_classes(name, values, expected):
    assert converted(name, gray(*values)).ravel().tolist() == expected


def test_masks_may_be_palettes_and_bits():
    palette = Image.fromarray(np.array([[3, 0, 4]], np.uint8), "P")
    palette.putpalette([5] * 768)
    out = io.BytesIO()
    palette.save(out, "PNG")
    assert converted("egohands", out.getvalue()).ravel().tolist() == [3, 0, 4]
    out = io.BytesIO()
    Image.fromarray(np.array([[True, False]])).save(out, "PNG")
    assert converted("nonzero", out.getvalue()).ravel().tolist() == [1, 0]


def test_luminance_of_colored_flow_is_not_rounded():
    colors = np.array([[[255, 0, 100], [1, 2, 3], [0, 0, 0]]], np.uint8)
    result = converted("flow_luminance", encoded(colors)).ravel()
    expected = (colors.reshape(3, 3) @ [0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(result[:2], expected[:2], atol=1e-6)
    assert np.isnan(result[2])


def test_flow_is_read_with_16_bits(tmp_path):
    valid = np.ones((6, 8), bool)
    valid[:2] = False
    trees.flow_png(tmp_path / "flow.png", 3.515625, -200.25, valid)
    result = converted("flow", (tmp_path / "flow.png").read_bytes())
    assert result.shape == (6, 8, 2) and np.isnan(result[:2]).all()
    np.testing.assert_array_equal(result[2:], np.broadcast_to([3.515625, -200.25], (4, 8, 2)))


@pytest.mark.parametrize(
    ("name", "value", "facts"),
    [
        ("egohands", 5, ("5", "0 to 4")),
        ("coco", 201, ("201", "0 to 200")),
        ("trimap", 0, ("0", "1 to 3")),
    ],
)
def test_classes_out_of_range_are_errors(name, value, facts):
    with raises(ValueError, *facts):
        converted(name, gray(2, value))


def test_files_of_another_type_are_errors(tmp_path):
    with raises(UserError, "RGB", "one channel"):
        converted("egohands", encoded(np.zeros((2, 2, 3), np.uint8)))
    with raises(UserError, "8 bits", "16-bit"):
        converted("flow", encoded(np.zeros((2, 2, 3), np.uint8)))
    with raises(UserError, "not a PNG"):
        converted("flow", encoded(np.zeros((2, 2, 3), np.uint8), "JPEG"))
    with raises(UserError, "the target"):
        converted("depth", b"nothing")
    trees.flow_png(tmp_path / "flow.png", 1, 1, np.ones((6, 8), bool))
    with raises(UserError, "the target", "truncated"):
        converted("flow", (tmp_path / "flow.png").read_bytes()[:-20])


def test_formats_are_found_by_name_and_reference():
    with raises(UserError, "detph", "depth", "package.module:Name"):
        find_format("detph")
    with raises(UserError, "TargetFormat", "dict"):
        find_format("mmjax.data.end_tasks.targets:FORMATS")
