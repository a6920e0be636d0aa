"""Values of mask files, and their conversion to class maps."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmjax.data.storage import mask_files
from mmjax.errors import UserError
from tests.messages import raises

VALUES = np.array([[0, 1, 2], [7, 21, 255]], np.uint8)


def write_png(path, *, bits, rows, width):
    """Writes a grayscale PNG with fewer than 8 bits per pixel, which Pillow cannot."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    return path


def test_palette_gray_and_equal_channels_give_the_same_values(tmp_path):
    gray = Image.fromarray(VALUES)
    palette = Image.fromarray(VALUES)
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    images = {
        "gray.png": gray,
        "palette.png": palette,
        "rgb.png": gray.convert("RGB"),
        "rgba.png": gray.convert("RGBA"),
        "wide.png": Image.fromarray(VALUES.astype(np.uint16)),
        "gray.tif": gray,
    }
    for name, image in images.items():
        image.save(tmp_path / name)
        assert np.array_equal(mask_files.read_values(tmp_path / name), VALUES), name


def test_gray_levels_of_few_bits_are_indices(tmp_path):
    two = write_png(tmp_path / "2.png", bits=2, rows=[b"\x1b"], width=4)
    four = write_png(tmp_path / "4.png", bits=4, rows=[b"\x0f\x50"], width=4)
    one = write_png(tmp_path / "1.png", bits=1, rows=[b"\xa0"], width=4)
    read = [mask_files.read_values(path).tolist() for path in (one, two, four)]
    assert read == [[[1, 0, 1, 0]], [[0, 1, 2, 3]], [[0, 15, 5, 0]]]


@pytest.mark.parametrize(
    "name, image, fact",
    [
        ("a.jpg", Image.new("L", (4, 4)), "JPEG"),
        ("a.png", Image.new("RGB", (4, 4), (128, 0, 64)), "(128, 0, 64)"),
        ("a.png", Image.new("RGBA", (4, 4), (1, 1, 1, 0)), "transparent"),
        ("a.tif", Image.new("F", (4, 4)), "F"),
        ("a.tif", Image.fromarray(np.full((2, 2), -1, np.int32)), "-1"),
    ],
    ids=["jpeg", "colors", "transparent", "float", "negative"],
)
def test_files_without_one_whole_number_per_pixel_are_refused(tmp_path, name, image, fact):
    image.save(tmp_path / name)
    with raises(UserError, tmp_path / name, fact):
        mask_files.read_values(tmp_path / name)


def test_classes_are_values_and_255_is_ignored():
    converted = mask_files.MaskFormat().convert(VALUES, "m.png")
    assert converted.dtype == np.uint8 and np.array_equal(converted, VALUES)


def test_values_and_ignored_values_are_mapped():
    form = mask_files.MaskFormat(classes=("a", "b"), values=(7, 255), ignore=(0, 1, 2, 21))
    assert form.convert(VALUES, "m.png").tolist() == [[255, 255, 255], [0, 255, 1]]


def test_unknown_values_are_listed_with_their_counts():
    form = mask_files.MaskFormat(classes=("a", "b"))
    values = np.array([[0, 1, 2, 2], [9, 255, 2, 1]])
    with raises(UserError, "m.png", "2 (3 pixels)", "9 (1 pixels)", "0 to 1", "255", "2 classes"):
        form.convert(values, "m.png")


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(values=(0, 255)), ("255", "--mask-values", "--mask-ignore")),
        (dict(values=(0, 1), classes=("a",)), ("2 values", "1 classes", "a")),
        (dict(values=(3, 3)), ("3,3", "twice")),
        (dict(classes=("a", "a")), ("'a'", "twice")),
        (dict(values=(0, 70_000)), ("70000", "65535")),
        (dict(classes=tuple(map(str, range(256)))), ("255", "256")),
    ],
)
def test_contradictory_formats_are_refused(options, facts):
    with raises(UserError, *facts):
        mask_files.MaskFormat(**options)


def test_resize_takes_the_nearest_pixel():
    classes = np.arange(36, dtype=np.uint8).reshape(6, 6)
    half = mask_files.resize(classes, (3, 2))
    assert half.tolist() == [[7, 10], [19, 22], [31, 34]]
    double = mask_files.resize(classes, (12, 12))
    assert np.array_equal(double, classes.repeat(2, 0).repeat(2, 1))
    pillow = Image.fromarray(classes).resize((4, 5), Image.Resampling.NEAREST)
    assert np.array_equal(mask_files.resize(classes, (5, 4)), np.asarray(pillow))
