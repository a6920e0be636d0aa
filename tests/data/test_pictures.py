"""Picture files: upright, reduced, cut, stored as they are; against NumPy's slices and Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from mmjax.data import pictures
from mmjax.errors import UserError


def noise(height, width, seed=0):
    """A picture of blocks of 8 pixels, so that reduction leaves something to compare."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return small.repeat(8, 0).repeat(8, 1)


def save(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return path


def sideways():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    return exif


def test_transparency_orientation_and_damage(tmp_path):
    image = np.zeros((40, 60, 4), np.uint8)
    image[:, :30] = (255, 0, 0, 255)  # the right half is transparent black
    save(tmp_path / "cut-out.png", image)
    picture = pictures.read_image(tmp_path / "cut-out.png", size=20)
    assert picture.shape == (20, 30, 3)
    assert picture[10, 2].tolist() == [255, 0, 0] and picture[10, 28].tolist() == [255, 255, 255]
    save(tmp_path / "phone.jpg", image[..., :3], exif=sideways())
    assert pictures.read_image(tmp_path / "phone.jpg").shape == (60, 40, 3)
    assert pictures.image_size(tmp_path / "phone.jpg") == (40, 60)
    assert pictures.image_size(tmp_path / "cut-out.png") == (60, 40)
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "phone.jpg").read_bytes()[:300])
    for read in (pictures.read_image, pictures.read_encoded):
        with pytest.raises(UserError, match="broken.jpg cannot be read"):
            read(tmp_path / "broken.jpg")
    for read in (pictures.read_image, pictures.image_size, pictures.read_encoded):
        with pytest.raises(UserError, match="There is no file .*none.png"):
            read(tmp_path / "none.png")


def test_size_needs_only_the_header(tmp_path):
    save(tmp_path / "a.jpg", noise(480, 640))
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 4])
    assert pictures.image_size(tmp_path / "a.jpg") == (640, 480)


@pytest.mark.parametrize(
    "crop", [(0, 10, 40, 50), (30, 60, 40, 40), (70, 90, 40, 40), (-8, -16, 48, 32)]
)
def test_a_crop_is_the_slice_with_black_beyond_the_edges(tmp_path, crop):
    image = noise(96, 120)
    top, left, height, width = crop
    found, roi = pictures.read_crop(save(tmp_path / "a.png", image), crop)
    padded = np.pad(image, ((100, 100), (100, 100), (0, 0)))
    wanted = padded[100 + top : 100 + top + height, 100 + left : 100 + left + width]
    assert roi == (0, 0, height, width)
    np.testing.assert_array_equal(found, wanted)


def test_a_margin_is_kept_where_the_picture_has_it(tmp_path):
    image = noise(96, 120)
    path = save(tmp_path / "a.png", image)
    found, roi = pictures.read_crop(path, (4, 40, 40, 40), margin=0.25)
    np.testing.assert_array_equal(found, image[0:54, 30:90])  # 10 on three sides, 4 at the top
    assert roi == (4, 10, 40, 40)
    # A crop that leaves the picture has no margin there, and its zeros all the same.
    found, roi = pictures.read_crop(path, (70, 40, 40, 40), margin=0.25)
    assert found.shape == (50, 60, 3) and roi == (10, 10, 40, 40)
    np.testing.assert_array_equal(found[:36], image[60:96, 30:90])
    assert not found[36:].any()


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.37])
def test_a_large_crop_is_reduced_and_its_margin_with_it(tmp_path, margin):
    image = noise(240, 320)
    crop = (48, 80, 120, 160)
    found, (top, left, height, width) = pictures.read_crop(
        save(tmp_path / "a.png", image), crop, margin=margin, size=50
    )
    assert (height, width) == (50, 67)
    sides = np.array([top, left, found.shape[0] - top - height, found.shape[1] - left - width])
    wanted = margin * np.array([50, 67, 50, 67])
    assert (sides <= wanted + 0.5).all() and (sides >= wanted - 1.5).all()
    alone = Image.fromarray(image[48:168, 80:240]).resize((67, 50), Image.Resampling.BICUBIC)
    difference = np.abs(found[top : top + height, left : left + width] - np.asarray(alone, float))
    assert difference[3:-3, 3:-3].max() <= 2  # the same grid; the edges see beyond the crop
    if not margin:
        assert difference.max() == 0


@pytest.mark.parametrize("crop", [(96, 0, 10, 10), (0, -10, 10, 10), (0, 0, 0, 10)])
def test_a_crop_without_picture_is_refused(tmp_path, crop):
    path = save(tmp_path / "a.png", noise(96, 120))
    with pytest.raises(UserError, match="a.png is 120×96; the crop"):
        pictures.read_crop(path, crop)


def test_jpeg_and_png_keep_their_bytes(tmp_path):
    image = noise(48, 64)
    for name in ("a.jpg", "a.png"):
        path = save(tmp_path / name, image)
        assert pictures.read_encoded(path) == path.read_bytes()
    data = pictures.read_encoded(save(tmp_path / "a.bmp", image))
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
    turned = pictures.read_encoded(save(tmp_path / "turned.png", image, exif=sideways()))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(turned))), np.rot90(image, -1))
