"""Tests of `data.image` and `data.touch` against NumPy and PIL: crops, rotation and resizing."""

import io
import re

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from mmjax.data.pipeline import image_modality, loader
from mmjax.data.pipeline.common import Context
from mmjax.data.pipeline.examples import Examples
from mmjax.data.storage import schema
from mmjax.errors import UserError
from tests.data import toy_clips as toy
from tests.messages import raises


def noise(height, width, seed=0):
    """Returns a smooth random image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.asarray(PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.BICUBIC))


def png(image):
    out = io.BytesIO()
    PIL.Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def jpeg(image):
    """Returns a JPEG with chroma subsampling, as cameras write them."""
    out = io.BytesIO()
    PIL.Image.fromarray(image).save(out, "JPEG", quality=90)
    return out.getvalue()


def sharp(image):
    """Returns a JPEG without chroma subsampling, so that decoding a part of it is exact."""
    return tf.io.encode_jpeg(image, quality=100, chroma_downsampling=False).numpy()


def as_pil(image, options, box=None, resample=PIL.Image.BILINEAR):
    """Crops, pads, rotates and resizes with PIL, as `options` say."""
    image = PIL.Image.fromarray(image)
    if box:
        top, left, height, width = box
        image = image.crop((left, top, left + width, top + height))
    side = (min if options.square == "crop" else max)(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if options.square == "pad":  # The leading margin is the smaller one, as in TVL.
        left, top = -((side - image.width) // 2), -((side - image.height) // 2)
    image = image.crop((left, top, left + side, top + side))
    image = image.rotate(90 * options.quarter_turns)
    return np.asarray(image.resize((options.size, options.size), resample))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return toy.build(
        tmp_path_factory.mktemp("toy"), 4, modalities=("video", "text", "touch", "label")
    )


def run(data, record, position=0):
    features = {
        "_serialized": tf.constant(schema.encode(record)),
        "_seed": tf.constant([0, position], tf.int64),
        "_source": tf.constant(0, tf.int64),
    }
    batch = data.pipeline.batch({k: v[None] for k, v in data.pipeline.example(features).items()})
    return {key: value.numpy()[0] for key, value in batch.items()}


def train(directory, **section):
    return loader.make_train_data(dict(train=directory, **section), batch_size=2, seed=0)


def evaluate(directory, **section):
    return loader.make_eval_data(dict(train=directory, **section), split="train", batch_size=2)


@pytest.mark.parametrize("square", ["crop", "pad"])
@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize("shape", [(320, 240), (97, 130)])
def test_prepare_agrees_with_pil(square, turns, shape):
    options = image_modality.Touch(size=56, square=square, quarter_turns=turns)
    image = noise(*shape)
    result = image_modality.prepare(image, options).astype(int)
    difference = np.abs(result - as_pil(image, options))
    assert result.shape == (56, 56, 3) and difference.max() <= 1 and difference.mean() < 0.2


def test_without_antialiasing_pixels_are_interpolated_from_nearest_neighbors():
    image = noise(64, 64)
    result = image_modality.prepare(image, image_modality.Image(size=16, antialias=False))
    # The center of a 4 × 4 block is the mean of its middle 2 × 2 pixels.
    blocks = image.reshape(16, 4, 16, 4, 3)[:, 1:3, :, 1:3].astype(float).mean((1, 3))
    assert np.abs(result - blocks).max() <= 0.5 + 1e-3


def test_roi_is_cropped_and_evaluation_equals_prepare(directory):
    image, roi = noise(120, 160), (30, 50, 64, 64)
    record = toy.example(1, frames=[jpeg(image)], roi=roi)
    options = image_modality.Image(size=32)
    decoded = np.asarray(PIL.Image.open(io.BytesIO(jpeg(image))))
    result = run(evaluate(directory, image=dict(size=32)), record)
    assert result["image"].shape == (1, 32, 32, 3) and result["image_mask"] == 1
    assert np.array_equal(result["image"][0], image_modality.prepare(decoded, options, roi=roi))
    assert np.abs(result["image"][0].astype(int) - as_pil(decoded, options, roi)).max() <= 1
    whole = run(evaluate(directory, image=dict(size=32, roi=False)), record)
    assert np.abs(whole["image"][0].astype(int) - as_pil(decoded, options)).max() <= 1
    trained = run(train(directory, image=dict(size=32)), record)["image"]
    assert np.abs(trained.astype(int) - result["image"][0]).max() <= 8  # chroma at JPEG block edges
    assert trained.shape == (32, 32, 3)


def test_jittered_windows_have_the_offsets_of_tvl():
    options = image_modality.Image(size=8, jitter=0.05)
    roi, shape = tf.constant([10, 60, 100, 100]), tf.constant([400, 400])
    windows = [
        image_modality.window(shape, options, roi=roi, seed=tf.constant([5, n], tf.int64)).numpy()
        for n in range(300)
    ]
    assert {tuple(window[2:]) for window in windows} == {(100, 100)}
    assert {window[0] - 10 for window in windows} == set(range(0, 5))
    assert {window[1] - 60 for window in windows} == set(
        range(-3, 2)
    )  # floor(-5/2) … floor(5/2) - 1
    narrow = [
        image_modality.window(tf.constant([101, 100]), options, seed=tf.constant([5, n], tf.int64))
        for n in range(100)
    ]
    assert {tuple(window.numpy()) for window in narrow} == {(0, 0, 100, 100), (1, 0, 100, 100)}


def test_jitter_applies_only_to_training(directory):
    encoded = jpeg(noise(120, 160))
    decoded = np.asarray(PIL.Image.open(io.BytesIO(encoded)))
    record = toy.example(1, frames=[encoded], roi=(20, 20, 64, 64))
    section = dict(image=dict(size=64, jitter=0.2))
    fixed = run(evaluate(directory, **section), record)["image"][0]
    assert np.array_equal(fixed, decoded[20:84, 20:84])
    data = train(directory, **section)
    jittered = [run(data, record, position)["image"] for position in range(6)]
    assert len({image.tobytes() for image in jittered}) > 3
    assert np.array_equal(jittered[2], run(data, record, 2)["image"])


def test_frame_is_random_in_training_and_the_middle_one_in_evaluation(directory):
    record = toy.example(1)
    data = train(directory, image=dict(size=8))
    seen = {round((run(data, record, p)["image"][..., 0].mean() - 3) / 10) for p in range(60)}
    assert len(seen) > 12 and seen <= set(range(toy.FRAMES))
    middle = run(evaluate(directory, image=dict(size=8)), record)["image"]
    assert round((middle[..., 0].mean() - 3) / 10) == toy.FRAMES // 2


def test_a_reference_is_another_frame_with_the_same_region(directory):
    frames = [noise(64, 80, seed) for seed in range(3)]
    record = toy.example(1, frames=[sharp(frame) for frame in frames], roi=(10, 20, 32, 32))
    section = dict(image=dict(size=32, frame=-1), reference=dict(size=32))
    for data in (train(directory, **section), evaluate(directory, **section)):
        out = run(data, record)
        assert out["image_mask"] == out["reference_mask"] == 1
        for name, frame in (("image", frames[2]), ("reference", frames[0])):
            pixels = out[name].reshape(32, 32, 3).astype(int)
            assert np.abs(pixels - frame[10:42, 20:52]).max() <= 4
    second = run(train(directory, reference=dict(size=32, frame=1)), record)["reference"]
    assert np.abs(second.astype(int) - frames[1][10:42, 20:52]).max() <= 4
    out = run(train(directory, **section), toy.example(1, frames=[]))
    assert out["image_mask"] == out["reference_mask"] == 0 and not out["reference"].any()


@pytest.mark.parametrize("frame", [-2, 1])
def test_a_frame_that_does_not_exist_is_an_error(tmp_path, frame):
    one = toy.build(
        tmp_path / "one",
        3,
        payload=lambda n: schema.encode(toy.example(n, frames=[jpeg(noise(16, 16))])),
    )
    with raises(UserError, one, f"data.reference.frame={frame}", 1):
        next(train(one, reference=dict(size=8, frame=frame)).iterate())


def test_image_and_video_of_the_same_record_in_one_batch(directory, monkeypatch):
    section = dict(image=dict(size=8), video=dict(num_frames=2, size=8))
    whole = next(train(directory, **section).iterate())
    monkeypatch.setattr(Examples, "records_per_read", 1)
    data = train(directory, **section)
    assert data.examples.omitted_list == schema.FRAMES[0]  # Only the selected frames are read.
    assert toy.same(whole, next(data.iterate()))
    image_only = train(directory, image=dict(size=8))
    assert image_only.examples.omitted_list == schema.FRAMES[0]
    assert np.array_equal(next(image_only.iterate())["image"], whole["image"])


def test_bicubic_resizing_agrees_with_pil():
    for shape, size in (((240, 320), 56), ((97, 130), 64), ((64, 64), 100)):
        image = noise(*shape)
        result = image_modality.prepare(
            image, image_modality.Image(size=size, resize="bicubic")
        ).astype(int)
        options = image_modality.Image(size=size)
        difference = np.abs(result - as_pil(image, options, resample=PIL.Image.BICUBIC))
        assert difference.max() <= 2 and difference.mean() < 0.25
        assert np.abs(result - as_pil(image, options)).max() > 2  # differs from bilinear


def resized_then_cropped(image, size, resample):
    """Reproduces torchvision's Resize and CenterCrop with PIL."""
    height, width = image.shape[:2]
    short = min(height, width)
    extent = [int(size * side / short) for side in (width, height)]
    image = PIL.Image.fromarray(image).resize(extent, resample)
    left, top = (int(round((side - size) / 2)) for side in extent)
    return np.asarray(image.crop((left, top, left + size, top + size))).astype(int)


@pytest.mark.parametrize("shape", [(240, 320), (130, 97), (97, 131), (64, 64), (50, 300)])
@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_crop_resized_agrees_with_torchvision(shape, resize):
    image, resample = noise(*shape), getattr(PIL.Image, resize.upper())
    section = dict(size=56, resize=resize, square="crop_resized")
    expected = resized_then_cropped(image, 56, resample)
    difference = np.abs(image_modality.prepare(image, image_modality.Image(**section)) - expected)
    assert difference.max() <= 2 and difference.mean() < 0.25


def test_crop_resized_in_batches_equals_prepare(directory):
    image = noise(120, 175)
    record = toy.example(1, frames=[sharp(image)])
    section = dict(size=40, square="crop_resized", quarter_turns=1)
    decoded = np.asarray(PIL.Image.open(io.BytesIO(sharp(image))))
    expected = image_modality.prepare(decoded, image_modality.Image(**section))
    assert np.array_equal(run(evaluate(directory, image=section), record)["image"][0], expected)
    assert np.array_equal(run(train(directory, image=section), record)["image"], expected)


def test_bicubic_overshoot_is_clipped():
    stripes = np.repeat(np.repeat([[0, 255] * 8], 16, 0)[..., None], 3, 2).astype(np.uint8)
    result = image_modality.prepare(stripes, image_modality.Image(size=64, resize="bicubic"))
    assert result.min() == 0 and result.max() == 255
    assert (np.abs(np.diff(result[0, :, 0].astype(int))) < 200).all()  # no wrap-around


CROPS = ((0.2, 0.4), (0.2, 0.4), (0.9, 1.0))


def coordinates(height, width):
    """Returns an image whose channels are the pixel's row, its column, and 255."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 255)], -1).astype(np.uint8)


def test_crops_are_inside_the_roi_and_have_the_configured_area(directory):
    data = train(directory, image=dict(size=32, crops=CROPS))
    image, roi = coordinates(200, 240), (40, 80, 100, 120)
    areas = []
    for position in range(30):
        crops = run(data, toy.example(1, frames=[sharp(image)], roi=roi), position)["image"]
        assert crops.shape == (3, 32, 32, 3) and (crops[..., 2] > 250).all()
        down, across = crops[..., 0].astype(int), crops[..., 1].astype(int)
        assert down.min() >= 39 and down.max() <= 140 and across.min() >= 79 and across.max() <= 200
        # The centers of the first and last of 32 pixels are 31/32 of the crop's side apart.
        height = (down[:, -1, 16] - down[:, 0, 16]) * 32 / 31
        width = (across[:, 16, -1] - across[:, 16, 0]) * 32 / 31
        areas.append(height * width / (100 * 120))
        assert (0.7 < width[:2] / height[:2]).all() and (width[:2] / height[:2] < 1.4).all()
    areas = np.array(areas)
    assert (
        (areas[:, :2] > 0.18).all() and (areas[:, :2] < 0.43).all() and (areas[:, 2] > 0.83).all()
    )
    assert np.abs(areas[:, 0] - areas[:, 1]).mean() > 0.02  # Views are sampled independently.
    whole = run(evaluate(directory, image=dict(size=32, crops=CROPS)), toy.example(1, roi=roi[:0]))
    assert whole["image"].shape == (1, 32, 32, 3)


def test_decoding_only_the_window_gives_the_same_crop(directory):
    record = toy.example(1, frames=[sharp(noise(80, 100))])
    all_views = train(directory, image=dict(size=24, crops=CROPS))
    for view in range(3):
        pipeline = type(all_views.pipeline)()
        options = image_modality.Image(size=24, crops=CROPS)
        image_modality.add_image(pipeline, options, Context(train=True, views=[view]))
        one_view = type("Data", (), {"pipeline": pipeline})
        for position in range(3):
            expected = run(all_views, record, position)["image"][view]
            assert np.array_equal(run(one_view, record, position)["image"][0], expected)


TOUCH = dict(size=40, square="pad", quarter_turns=1)


def test_background_comes_from_the_record_or_from_a_file(directory, tmp_path):
    touch, recorded, other = (noise(80, 60, seed) for seed in range(3))
    record = toy.example(1, touch=[png(touch)], touch_background=[png(recorded)])
    from_record = {**TOUCH, "background": "recording"}
    (tmp_path / "background.png").write_bytes(png(other))
    from_file = {**TOUCH, "background": str(tmp_path / "background.png")}
    options = image_modality.Touch(**TOUCH)
    for make, index in ((train, ...), (evaluate, 0)):
        for section, background in ((from_record, recorded), (from_file, other)):
            result = run(make(directory, touch=section), record)
            assert np.array_equal(result["touch"][index], image_modality.prepare(touch, options))
            expected = image_modality.prepare(background, options)
            assert np.array_equal(result["touch_background"][index], expected)
    assert "touch_background" not in run(train(directory, touch=TOUCH), record)


def test_a_record_without_touch_needs_no_background(directory):
    section = dict(touch={**TOUCH, "background": "recording"})
    out = run(train(directory, **section), toy.example(1))
    assert out["touch_mask"] == 0 and not out["touch"].any() and not out["touch_background"].any()


def test_errors_for_missing_background_and_invalid_roi_name_the_record(tmp_path):
    bare = toy.build(
        tmp_path / "bare",
        3,
        payload=lambda n: schema.encode(toy.example(n, touch=[png(noise(16, 16))])),
    )
    section = dict(touch={**TOUCH, "background": "recording"})
    with raises(UserError, bare, "data.touch.background") as info:
        next(train(bare, **section).iterate())
    assert re.search(r"record \d", str(info.value))
    outside = toy.build(
        tmp_path / "outside",
        3,
        payload=lambda n: schema.encode(toy.example(n, roi=(0, 30, 20, 20))),
    )
    with raises(UserError, outside, "image/roi", "0 30 20 20", "32 40") as info:
        next(train(outside, image=dict(size=8)).iterate())
    assert re.search(r"record \d", str(info.value))
    batch = next(train(outside, image=dict(size=8, roi=False)).iterate())
    assert batch["image_mask"].tolist() == [1, 1]


def test_evaluation_batches_have_one_view_and_labels(directory):
    data = evaluate(directory, image=dict(size=8), touch=dict(size=8))
    batch = next(data.iterate())
    assert batch["image"].shape == (2, 1, 8, 8, 3) and batch["touch"].shape == (2, 1, 8, 8, 3)
    assert batch["image_mask"].tolist() == [1, 1] and batch["touch_mask"].tolist() == [0, 0]
    assert batch["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "section, facts",
    [
        (dict(image=dict(size=0)), ("data.image.size", 0, 1)),
        (dict(touch=dict(square="middle")), ("data.touch.square", "'middle'", "crop", "pad")),
        (dict(image=dict(jitter=1.5)), ("data.image.jitter=1.5", 0, 1)),
        (
            dict(image=dict(resize="lanczos")),
            ("data.image.resize", "'lanczos'", "bicubic", "bilinear"),
        ),
        (
            dict(image=dict(crops=((0.5, 0.2),))),
            ("data.image.crops[0]=(0.5, 0.2)", "0 < low <= high <= 1"),
        ),
        (
            dict(image=dict(crops=((0.5, 1.0), (0, 1)))),
            ("data.image.crops[1]=(0.0, 1.0)", "0 < low <= high <= 1"),
        ),
        (dict(image=dict(crops=(0.5, 1.0))), ("data.image.crops[0]", "tuple", "0.5")),
        (
            dict(image=dict(crops=CROPS, jitter=0.1)),
            ("data.image.jitter=0.1", "data.image.crops", "data.image.jitter=0."),
        ),
        (
            dict(image=dict(crops=CROPS, features="x")),
            ("data.image.features", "data.image.crops"),
        ),
        (dict(image=dict(background="")), ("data.image.background", "quarter_turns")),
        (
            dict(touch=dict(background="nowhere.png")),
            ("data.touch.background", "nowhere.png"),
        ),
    ],
)
def test_invalid_options_are_named(directory, section, facts):
    with raises(UserError, *facts):
        train(directory, **section)


def test_dataset_without_images_is_rejected(tmp_path):
    directory = toy.build(tmp_path, 3, statistics={"examples_with": {"text": 3}})
    with raises(UserError, "config.data.image=None", "toy", directory, "video, audio, text"):
        train(directory, image=dict(size=8))


def test_prepare_rejects_float_images_and_roi_outside_the_image():
    with raises(UserError, "uint8", "[height, width, 3]", "float64", "[4, 4, 3]"):
        image_modality.prepare(np.zeros((4, 4, 3)), image_modality.Touch())
    with raises(UserError, "roi=(0, 0, 9, 9)", "4 x 4"):
        image_modality.prepare(
            np.zeros((4, 4, 3), np.uint8), image_modality.Image(), roi=(0, 0, 9, 9)
        )
