"""Tests of reading, cropping and copying image files, against NumPy slices and Pillow."""

import io
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mmjax.data.storage import image_files
from mmjax.errors import UserError
from tests.data import films
from tests.messages import assert_mentions, raises


def noise(height, width, seed=0):
    """Returns an image of 8 × 8 blocks, which keep their contrast when downscaled."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return small.repeat(8, 0).repeat(8, 1)


def save(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return path


def rotated_exif():
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: rotate clockwise for display.
    return exif


def test_transparency_is_white_orientation_is_applied_and_bad_files_are_named(tmp_path):
    image = np.zeros((40, 60, 4), np.uint8)
    image[:, :30] = (255, 0, 0, 255)  # the right half is transparent black
    save(tmp_path / "cut-out.png", image)
    result = image_files.read_image(tmp_path / "cut-out.png", size=20)
    assert result.shape == (20, 30, 3)
    assert result[10, 2].tolist() == [255, 0, 0] and result[10, 28].tolist() == [255, 255, 255]
    save(tmp_path / "phone.jpg", image[..., :3], exif=rotated_exif())
    assert image_files.read_image(tmp_path / "phone.jpg").shape == (60, 40, 3)
    assert image_files.image_size(tmp_path / "phone.jpg") == (40, 60)
    assert image_files.image_size(tmp_path / "cut-out.png") == (60, 40)
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "phone.jpg").read_bytes()[:300])
    for read in (image_files.read_image, image_files.read_encoded):
        with raises(UserError, tmp_path / "broken.jpg") as info:
            read(tmp_path / "broken.jpg")
        assert_mentions(info.value, info.value.__cause__)  # Pillow's reason
    for read in (image_files.read_image, image_files.image_size, image_files.read_encoded):
        with raises(UserError, tmp_path / "none.png") as info:
            read(tmp_path / "none.png")
        assert isinstance(info.value.__cause__, FileNotFoundError)


def test_images_are_recognized_by_suffix_and_gif_is_a_video_by_default():
    assert image_files.is_image("a/b.JPG") and image_files.is_image("b.tiff")
    assert image_files.is_image("b.jfif") and image_files.is_image("b.JPE")
    assert not image_files.is_image("b.mp4") and not image_files.is_image("jpg")
    assert not image_files.is_image("b.gif") and image_files.is_image("b.GIF", gif=True)


def test_files_with_other_suffixes_are_recognized_by_content(tmp_path):
    for file_format in ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "PPM", "JPEG2000"):
        for name in ("photo", "photo.jpg_large", "photo.mp4"):
            path = tmp_path / file_format / name
            path.parent.mkdir(exist_ok=True)
            save(path, noise(16, 24), format=file_format)
            assert image_files.is_image(path) and image_files.has_image(path), path
            assert image_files.read_image(path).shape == (16, 24, 3)
    for name in ("motion.mjpeg", "motion.apng", "notes.txt"):
        (tmp_path / name).write_bytes((tmp_path / "PNG" / "photo").read_bytes())
        assert not image_files.is_image(tmp_path / name)
    path = films.write_film(tmp_path / "x.mp4", frames=[films.coded_frame(1)] * 2)
    os.rename(path, tmp_path / "film.jpg")
    assert not image_files.has_image(tmp_path / "film.jpg")
    (tmp_path / "page.jpg").write_text("<html>")  # reading it reports the error
    assert image_files.has_image(tmp_path / "page.jpg")
    assert not image_files.has_image(tmp_path / "nothing.mp4")


def test_encoded_jpeg_keeps_full_chroma_resolution():
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, ::2] = (255, 0, 0)
    image[:, 1::2] = (0, 0, 255)
    decoded = np.asarray(Image.open(io.BytesIO(image_files.encode_jpeg(image)))).astype(int)
    assert np.abs(decoded - image).max() < 40  # Chroma subsampling would mix the columns to purple.


def test_encoded_jpeg_decodes_to_the_pixels_of_tensorflow_jpeg():
    image = noise(48, 64)
    for quality in (50, 90, 95, 100):
        ours = image_files.encode_jpeg(image, quality=quality)
        theirs = tf.io.encode_jpeg(image, quality=quality, chroma_downsampling=False).numpy()
        np.testing.assert_array_equal(*(tf.io.decode_jpeg(data).numpy() for data in (ours, theirs)))


def test_image_size_reads_only_the_header(tmp_path):
    save(tmp_path / "a.jpg", noise(480, 640))
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 4])
    assert image_files.image_size(tmp_path / "a.jpg") == (640, 480)


@pytest.mark.parametrize(
    "crop", [(0, 10, 40, 50), (30, 60, 40, 40), (70, 90, 40, 40), (-8, -16, 48, 32)]
)
def test_crop_equals_slice_padded_with_black(tmp_path, crop):
    image = noise(96, 120)
    top, left, height, width = crop
    result, roi = image_files.read_crop(save(tmp_path / "a.png", image), crop)
    padded = np.pad(image, ((100, 100), (100, 100), (0, 0)))
    expected = padded[100 + top : 100 + top + height, 100 + left : 100 + left + width]
    assert roi == (0, 0, height, width)
    np.testing.assert_array_equal(result, expected)


def test_margin_is_limited_to_the_image(tmp_path):
    image = noise(96, 120)
    path = save(tmp_path / "a.png", image)
    result, roi = image_files.read_crop(path, (4, 40, 40, 40), margin=0.25)
    np.testing.assert_array_equal(result, image[0:54, 30:90])  # 10 on three sides, 4 at the top
    assert roi == (4, 10, 40, 40)
    # A crop that extends beyond the image is padded with zeros and has no margin on that side.
    result, roi = image_files.read_crop(path, (70, 40, 40, 40), margin=0.25)
    assert result.shape == (50, 60, 3) and roi == (10, 10, 40, 40)
    np.testing.assert_array_equal(result[:36], image[60:96, 30:90])
    assert not result[36:].any()


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.37])
def test_large_crop_and_its_margin_are_downscaled(tmp_path, margin):
    image = noise(240, 320)
    crop = (48, 80, 120, 160)
    result, (top, left, height, width) = image_files.read_crop(
        save(tmp_path / "a.png", image), crop, margin=margin, size=50
    )
    assert (height, width) == (50, 67)
    sides = np.array([top, left, result.shape[0] - top - height, result.shape[1] - left - width])
    expected = margin * np.array([50, 67, 50, 67])
    assert (sides <= expected + 0.5).all() and (sides >= expected - 1.5).all()
    reference = Image.fromarray(image[48:168, 80:240]).resize((67, 50), Image.Resampling.BICUBIC)
    inner = result[top : top + height, left : left + width]
    difference = np.abs(inner - np.asarray(reference, float))
    # At the edges, the resampling filter reaches into the margin.
    assert difference[3:-3, 3:-3].max() <= 2
    if not margin:
        assert difference.max() == 0


@pytest.mark.parametrize("crop", [(96, 0, 10, 10), (0, -10, 10, 10), (0, 0, 0, 10)])
def test_crop_outside_the_image_is_rejected(tmp_path, crop):
    path = save(tmp_path / "a.png", noise(96, 120))
    top, left, height, width = crop
    with raises(UserError, path, "120×96", f"{width}×{height}", top, left):
        image_files.read_crop(path, crop)


def test_jpeg_and_png_files_are_copied_and_others_become_png(tmp_path):
    image = noise(48, 64)
    for name in ("a.jpg", "a.png"):
        path = save(tmp_path / name, image)
        assert image_files.read_encoded(path) == path.read_bytes()
    data = image_files.read_encoded(save(tmp_path / "a.bmp", image))
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
    path = save(tmp_path / "rotated.png", image, exif=rotated_exif())
    data = image_files.read_encoded(path)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), np.rot90(image, -1))
