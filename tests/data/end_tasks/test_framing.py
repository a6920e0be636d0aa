"""Images and targets become arrays of one size exactly as Pillow makes them."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from mmjax.data.end_tasks.framing import NUM_DRAWS, Example, Framer
from mmjax.data.end_tasks.targets import FORMATS, MEAN, STD
from mmjax.end_tasks.declaration import Framing
from mmjax.end_tasks.registry import END_TASKS
from mmjax.errors import UserError
from tests.data.end_tasks import trees
from tests.messages import raises

NAN = np.nan
PIL = Image.Resampling


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def framer(name, *, train=True, paper=False, size=(12, 10), **changes):
    """Returns the framer of an end task; `size` replaces its size."""
    task = END_TASKS[name]
    framing = task.train_framing if train else task.test_framing
    target_format = FORMATS[task.target_format] if task.target_format else None
    return Framer(framing=framing, size=size, format=target_format, paper=paper, **changes)


def draws(seed=0, **fixed):
    """Returns the random numbers of an example; `n3=0.5` sets that with index 3."""
    values = np.random.default_rng(seed).random(NUM_DRAWS)
    for name, value in fixed.items():
        values[int(name[1:])] = value
    return values


def framed(made_by, images, target=None, numbers=None):
    """Returns the images and the target of PNG files with these pixels."""
    files = [png(image) for image in images]
    target = target if target is None or isinstance(target, bytes) else png(target)
    return made_by.frame(made_by.decode(files, target), draws() if numbers is None else numbers)


def nearest(size, full):
    """Returns the index of the nearest of `full` pixels for each of `size` pixels."""
    return ((np.arange(size) + 0.5) * full / size).astype(int)


# Resizing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 60), (7, 9)])
def test_images_are_resized_by_the_antialiasing_bilinear_filter(shape):
    images = [noise(*shape, seed=n) for n in range(6)]
    result, target = framed(framer("KineticsActionPrediction"), images)
    assert target is None and result.shape == (6, 12, 10, 3) and result.dtype == np.uint8
    for image, frame in zip(images, result, strict=True):
        np.testing.assert_array_equal(frame, Image.fromarray(image).resize((10, 12), PIL.BILINEAR))


@pytest.mark.parametrize(
    ("name", "convert"),
    [
        ("Pets-Detection", lambda x: np.select([x == 1, x == 2], [1, 0], NAN)),
        ("NYUWalkable", lambda x: x != 0),
        ("COCODetection", lambda x: np.where(x == 0, -1, x)),
        ("THORDepth", lambda x: (x / 255 - 0.5) / 0.25),
        ("NYUDepth", lambda x: np.where(x == 0, NAN, x)),
    ],
)
def test_targets_are_resized_to_the_nearest_pixel(name, convert):
    stored = noise(40, 60, 0) % 3 + (name == "Pets-Detection")
    _, target = framed(framer(name), [noise(40, 60)], stored)
    expected = convert(stored[nearest(12, 40)][:, nearest(10, 60)].astype(float))
    np.testing.assert_allclose(target[..., 0], expected, rtol=1e-6)
    assert target.shape == (12, 10, 1)
    assert target.dtype == (np.int32 if name == "COCODetection" else np.float32)


def test_depth_is_not_mixed_with_unknown_depth():
    depth = np.where(noise(40, 60, 0) % 2, 5000, 65535).astype(np.uint16)
    _, target = framed(framer("TaskonomyDepth"), [noise(40, 60)], depth)
    known = target[np.isfinite(target)]
    assert 0 < known.size < target.size
    np.testing.assert_allclose(known, 0.5)


def test_paper_resizes_targets_as_pyvtab():
    """With Pillow's default filter, bicubic, of the pixels in their own type."""
    image, size = noise(40, 60), (10, 12)
    trimap = (noise(40, 60, 0) % 3 + 1).astype(np.uint8)
    _, target = framed(framer("Pets-Detection", paper=True), [image], trimap)
    shifted = np.asarray(Image.fromarray(trimap).resize(size)).astype(int) - 1
    np.testing.assert_array_equal(target[..., 0], np.where(shifted == 2, 1, shifted))

    depth = noise(40, 60, 0).astype(np.int32) * 200
    stored = depth.astype(np.uint16)
    _, target = framed(framer("TaskonomyDepth", paper=True), [image], stored)
    resized = np.minimum(np.asarray(Image.fromarray(depth).resize(size)), 10_000).astype(float)
    scaled = resized / resized.max()
    np.testing.assert_allclose(target[..., 0], scaled - scaled.min(), atol=1e-6)

    gray = noise(40, 60, 0)
    _, target = framed(framer("THORDepth", paper=True), [image], gray)
    resized = np.asarray(Image.fromarray(gray).resize(size, PIL.BILINEAR)) / 255
    np.testing.assert_allclose(target[..., 0], (resized - 0.5) / 0.25, atol=1e-6)

    _, target = framed(framer("NYUWalkable", paper=True), [image], gray // 128)
    resized = np.asarray(Image.fromarray(gray // 128).resize(size))
    np.testing.assert_array_equal(target[..., 0], resized != 0)


def test_inpainting_hides_the_center_and_predicts_the_normalized_image():
    image = noise(300, 200)
    (result,), target = framed(framer("TaskonomyInpainting", size=(224, 224)), [image])
    resized = np.asarray(Image.fromarray(image).resize((224, 224), PIL.BILINEAR))
    np.testing.assert_allclose(target, (resized / 255 - MEAN) / STD, atol=1e-5)
    hidden = np.zeros((224, 224), bool)
    hidden[64:160, 64:160] = True
    np.testing.assert_array_equal(result[~hidden], resized[~hidden])
    np.testing.assert_allclose((result[hidden] / 255 - MEAN) / STD, 0, atol=0.01)


# Windows ------------------------------------------------------------------------------------------


def coordinates(height, width):
    """Returns an image whose red and green are the row and column of each pixel."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)


def test_crops_of_frames_and_target_are_the_same_and_reach_all_offsets():
    frames, mask = coordinates(6, 5), np.arange(30, dtype=np.uint8).reshape(6, 5) % 5
    made_by = framer("EgoHands", size=(3, 4))
    corners = set()
    for seed in range(60):
        (image,), target = framed(made_by, [frames], mask, draws(seed))
        top, left = image[0, 0, :2]
        corners.add((int(top), int(left)))
        np.testing.assert_array_equal(image, frames[top : top + 3, left : left + 4])
        np.testing.assert_array_equal(target[..., 0], mask[top : top + 3, left : left + 4])
    assert corners == {(top, left) for top in range(4) for left in range(2)}


def test_crops_are_drawn_again_until_they_have_two_classes():
    mask = np.zeros((40, 40), np.uint8)
    mask[:10, :10] = 3
    made_by = framer("EgoHands", size=(8, 8))
    found = [len(np.unique(framed(made_by, [noise(40, 40)], mask, draws(n))[1])) for n in range(60)]
    once = Framer(
        framing=Framing(type="crop"), size=(8, 8), format=FORMATS["egohands"], paper=False
    )
    single = [len(np.unique(framed(once, [noise(40, 40)], mask, draws(n))[1])) for n in range(60)]
    assert found.count(2) > single.count(2) > 0
    # The 11th window is taken in any case.
    _, target = framed(made_by, [noise(40, 40)], 0 * mask, draws(n20=0.0, n21=1 - 1e-9))
    assert target.shape == (8, 8, 1)
    (image,), _ = framed(made_by, [coordinates(40, 40)], 0 * mask, draws(n20=0.0, n21=1 - 1e-9))
    assert image[0, 0, :2].tolist() == [0, 32]


def test_small_images_are_padded_with_ignored_pixels():
    (image,), target = framed(
        framer("EgoHands", size=(4, 6)), [noise(3, 8) | 1], np.full((3, 8), 2, np.uint8)
    )
    assert (image[3] == 0).all() and (image[:3] > 0).all()
    assert (target[3] == -1).all() and (target[:3] == 2).all()
    (_, _), target = framed(
        framer("KITTI", size=(4, 6)), [noise(3, 8)] * 2, np.full((3, 8, 3), 9, np.uint8)
    )
    assert np.isnan(target[3]).all() and np.isfinite(target[:3]).all()


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("scale", [0.5, 0.77, 1.0, 1.93])
@pytest.mark.parametrize("mirror", [False, True])
def test_scaled_crops_equal_those_of_the_whole_scaled_image(paper, scale, mirror):
    """Scaling, mirroring and cropping the whole image, as pyVTAB does, gives the same pixels."""
    height, width, side = 32, 64, 20
    image, labels = noise(height, width), noise(height, width, 0) % 34
    for seed in range(4):
        numbers = draws(seed, n0=(scale - 0.5) / 1.5, n1=0.2 if mirror else 0.7)
        (result,), target = framed(
            framer("CityscapesSemanticSegmentation", size=(side, side), paper=paper),
            [image],
            labels,
            numbers,
        )
        scaled = (int(width * scale), int(height * scale))
        limits = (width, height) if paper else scaled
        left, top = (
            int(u * (max(full - side, 0) + 1))
            for u, full in zip(numbers[[3, 2]], limits, strict=True)
        )
        box = (left, top, left + side, top + side)
        whole = Image.fromarray(image).resize(scaled, PIL.BICUBIC)
        ids = Image.fromarray(labels).resize(scaled, PIL.NEAREST)
        if mirror:
            whole, ids = ImageOps.mirror(whole), ImageOps.mirror(ids)
        difference = np.abs(result.astype(int) - np.asarray(whole.crop(box)))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01
        inside = np.asarray(Image.new("1", scaled, 1).crop(box)) > 0
        expected = FORMATS["cityscapes"].convert(np.asarray(ids.crop(box)), paper)
        expected = np.where(inside, expected, 0 if paper else -1)
        np.testing.assert_array_equal(target[..., 0], expected)
        assert inside.any() or paper


# Whole images -------------------------------------------------------------------------------------


def test_stored_images_are_kept_and_others_resized():
    made_by = framer("EgoHands", train=False, size=(12, 10))
    image, mask = noise(12, 10), noise(12, 10, 0) % 5
    (result,), target = framed(made_by, [image], mask)
    np.testing.assert_array_equal(result, image)
    np.testing.assert_array_equal(target[..., 0], mask)
    (result,), target = framed(made_by, [noise(24, 30)], noise(24, 30, 0) % 5)
    expected = Image.fromarray(noise(24, 30)).resize((10, 12), PIL.BILINEAR)
    np.testing.assert_array_equal(result, expected)
    expected = (noise(24, 30, 0) % 5)[nearest(12, 24)][:, nearest(10, 30)]
    np.testing.assert_array_equal(target[..., 0], expected)


def test_paper_pads_frames_by_a_row_and_resizes_colored_flow():
    frames = [noise(11, 30, seed=n) for n in range(2)]
    colors = noise(11, 30, seed=2)
    colors[:, :15] = 0
    images, target = framed(framer("KITTI", train=False, paper=True, size=(12, 30)), frames, colors)
    np.testing.assert_array_equal(images[:, :11], frames)
    assert images[1, 11].tolist() == [[124, 116, 104]] * 30
    luminance = colors @ np.float32([0.299, 0.587, 0.114])
    resized = np.asarray(Image.fromarray(luminance.astype(np.float32)).resize((30, 12)))
    np.testing.assert_allclose(np.nan_to_num(target[..., 0]), resized / 255, atol=1e-5)
    assert (np.isnan(target[..., 0]) == (resized == 0)).all()


def test_paper_resizes_colored_flow_to_the_frame_before_it_is_cropped():
    frames, colors = [noise(12, 30, seed=n) for n in range(2)], noise(11, 28, seed=2)
    numbers = draws(n0=0.999, n1=0.0)
    images, target = framed(framer("KITTI", paper=True, size=(8, 8)), frames, colors, numbers)
    np.testing.assert_array_equal(images, np.stack(frames)[:, 4:, :8])
    luminance = (colors @ np.float32([0.299, 0.587, 0.114])).astype(np.float32)
    resized = np.asarray(Image.fromarray(luminance).resize((30, 12)))
    np.testing.assert_allclose(target[..., 0], resized[4:, :8] / 255, atol=1e-5)


def test_flow_is_scaled_with_the_frames(tmp_path):
    width, height = trees.SIZE
    valid = np.ones((height, width), bool)
    valid[: height // 2] = False
    trees.flow_png(tmp_path / "flow.png", 3, -2, valid)
    images, target = framed(
        framer("KITTIFlow", train=False, size=(2 * height, 3 * width)),
        [noise(height, width)] * 2,
        (tmp_path / "flow.png").read_bytes(),
    )
    assert images.shape == (2, 2 * height, 3 * width, 3)
    assert np.isnan(target[:height]).all()
    np.testing.assert_allclose(target[height:], np.broadcast_to([9, -4], (height, 3 * width, 2)))


# Errors -------------------------------------------------------------------------------------------


def test_targets_of_another_size_are_errors_except_in_the_paper():
    with raises(UserError, "9×8", "7×8"):
        framer("Pets-Detection").decode([png(noise(8, 9))], png(noise(8, 7, 0)))
    framer("KITTI", paper=True).decode([png(noise(8, 9))] * 2, png(noise(8, 7)))


def test_frames_of_different_sizes_are_errors_if_they_are_not_resized():
    files = [png(noise(8, 9)), png(noise(8, 7))]
    with raises(UserError, "9×8, 7×8"):
        framer("KITTI").decode(files, png(noise(8, 9)))
    assert isinstance(framer("THORActionPrediction").decode(files, None), Example)


def test_damaged_and_missing_files_are_errors():
    with raises(UserError, "Image 1", "truncated"):
        framer("THORActionPrediction").decode([png(noise(8, 9)), png(noise(8, 9))[:60]], None)
    with raises(UserError, "no target"):
        framer("NYUDepth").decode([png(noise(8, 9))], None)
    with raises(UserError, "its target is invalid", "7"):
        framed(framer("EgoHands"), [noise(8, 9)], np.full((8, 9), 7, np.uint8))
