"""Single pictures against numpy and PIL: the part shown, squares, turns, sizes, backgrounds."""

import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from mmjax.data import loader, schema, stills
from mmjax.errors import UserError
from tests.data import toy_clips as toy


def noise(height, width, seed=0):
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.asarray(PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.BICUBIC))


def png(image):
    out = io.BytesIO()
    PIL.Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def jpeg(image):
    """A JPEG with halved colours, as cameras write them."""
    out = io.BytesIO()
    PIL.Image.fromarray(image).save(out, "JPEG", quality=90)
    return out.getvalue()


def sharp(image):
    """A JPEG with all its colours, of which any part can be decoded alone."""
    return tf.io.encode_jpeg(image, quality=100, chroma_downsampling=False).numpy()


def as_pil(image, options, box=None, resample=PIL.Image.BILINEAR):
    """The same picture by PIL: cut, margin or middle, turn, resize."""
    image = PIL.Image.fromarray(image)
    if box:
        top, left, height, width = box
        image = image.crop((left, top, left + width, top + height))
    side = (min if options.square == "crop" else max)(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if options.square == "pad":  # the margin before is the smaller one, as with TVL's int()
        left, top = -((side - image.width) // 2), -((side - image.height) // 2)
    image = image.crop((left, top, left + side, top + side))
    image = image.rotate(90 * options.quarter_turns)
    return np.asarray(image.resize((options.size, options.size), resample))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy.build(
        tmp_path_factory.mktemp("toy"), 4, modalities=("video", "text", "touch", "label")
    )


def run(data, stored, position=0):
    features = {
        "_serialized": tf.constant(schema.encode(stored)),
        "_seed": tf.constant([0, position], tf.int64),
        "_source": tf.constant(0, tf.int64),
    }
    batch = data.pipeline.batch({k: v[None] for k, v in data.pipeline.example(features).items()})
    return {key: value.numpy()[0] for key, value in batch.items()}


def train(folder, **section):
    return loader.make_train_data(dict(train=folder, **section), batch_size=2, seed=0)


def evaluate(folder, **section):
    return loader.make_eval_data(dict(train=folder, **section), split="train", batch_size=2)


@pytest.mark.parametrize("square", ["crop", "pad"])
@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize("shape", [(320, 240), (97, 130)])
def test_a_picture_is_that_of_pil(square, turns, shape):
    options = stills.Touch(size=56, square=square, quarter_turns=turns)
    image = noise(*shape)
    got = stills.prepare(image, options).astype(int)
    difference = np.abs(got - as_pil(image, options))
    assert got.shape == (56, 56, 3) and difference.max() <= 1 and difference.mean() < 0.2


def test_without_antialiasing_a_pixel_is_one_of_its_neighbours_mean():
    image = noise(64, 64)
    got = stills.prepare(image, stills.Picture(size=16, antialias=False))
    # Centres of 4 x 4 blocks lie between their middle 2 x 2 pixels.
    blocks = image.reshape(16, 4, 16, 4, 3)[:, 1:3, :, 1:3].astype(float).mean((1, 3))
    assert np.abs(got - blocks).max() <= 0.5 + 1e-3


def test_the_roi_is_cut_out_and_evaluation_is_what_prepare_does(folder):
    image, roi = noise(120, 160), (30, 50, 64, 64)
    stored = toy.example(1, frames=[jpeg(image)], roi=roi)
    options = stills.Picture(size=32)
    decoded = np.asarray(PIL.Image.open(io.BytesIO(jpeg(image))))
    got = run(evaluate(folder, image=dict(size=32)), stored)
    assert got["image"].shape == (1, 32, 32, 3) and got["image_mask"] == 1
    assert np.array_equal(got["image"][0], stills.prepare(decoded, options, roi=roi))
    assert np.abs(got["image"][0].astype(int) - as_pil(decoded, options, roi)).max() <= 1
    whole = run(evaluate(folder, image=dict(size=32, roi=False)), stored)
    assert np.abs(whole["image"][0].astype(int) - as_pil(decoded, options)).max() <= 1
    trained = run(train(folder, image=dict(size=32)), stored)["image"]
    assert np.abs(trained.astype(int) - got["image"][0]).max() <= 8  # colours at the JPEG's edges
    assert trained.shape == (32, 32, 3)


def test_a_jittered_part_is_where_tvl_draws_it():
    options = stills.Picture(size=8, jitter=0.05)
    roi, shape = tf.constant([10, 60, 100, 100]), tf.constant([400, 400])
    seen = [
        stills.window(shape, options, roi=roi, seed=tf.constant([5, n], tf.int64)).numpy()
        for n in range(300)
    ]
    assert {tuple(window[2:]) for window in seen} == {(100, 100)}
    assert {window[0] - 10 for window in seen} == set(range(0, 5))
    assert {window[1] - 60 for window in seen} == set(range(-3, 2))  # floor(-5/2) … floor(5/2) - 1
    narrow = [
        stills.window(tf.constant([101, 100]), options, seed=tf.constant([5, n], tf.int64))
        for n in range(100)
    ]
    assert {tuple(window.numpy()) for window in narrow} == {(0, 0, 100, 100), (1, 0, 100, 100)}


def test_jitter_is_for_training_only(folder):
    picture = jpeg(noise(120, 160))
    decoded = np.asarray(PIL.Image.open(io.BytesIO(picture)))
    stored = toy.example(1, frames=[picture], roi=(20, 20, 64, 64))
    section = dict(image=dict(size=64, jitter=0.2))
    calm = run(evaluate(folder, **section), stored)["image"][0]
    assert np.array_equal(calm, decoded[20:84, 20:84])
    data = train(folder, **section)
    moved = [run(data, stored, position)["image"] for position in range(6)]
    assert len({m.tobytes() for m in moved}) > 3
    assert np.array_equal(moved[2], run(data, stored, 2)["image"])


def test_any_frame_in_training_and_the_middle_one_in_tests(folder):
    stored = toy.example(1)
    data = train(folder, image=dict(size=8))
    seen = {round((run(data, stored, p)["image"][..., 0].mean() - 3) / 10) for p in range(60)}
    assert len(seen) > 12 and seen <= set(range(toy.FRAMES))
    middle = run(evaluate(folder, image=dict(size=8)), stored)["image"]
    assert round((middle[..., 0].mean() - 3) / 10) == toy.FRAMES // 2


def test_image_and_video_of_one_record_beside_each_other(folder, monkeypatch):
    section = dict(image=dict(size=8), video=dict(num_frames=2, size=8))
    whole = next(train(folder, **section).iterate())
    monkeypatch.setattr(loader._Data, "_records_per_read", lambda data: 1)
    data = train(folder, **section)
    assert data._without == schema.FRAMES[0]  # only chosen frames are read
    assert toy.same(whole, next(data.iterate()))
    alone = train(folder, image=dict(size=8))
    assert alone._without == schema.FRAMES[0]
    assert np.array_equal(next(alone.iterate())["image"], whole["image"])


def test_bicubic_pictures_are_those_of_pil():
    for shape, size in (((240, 320), 56), ((97, 130), 64), ((64, 64), 100)):
        image = noise(*shape)
        got = stills.prepare(image, stills.Picture(size=size, resize="bicubic")).astype(int)
        options = stills.Picture(size=size)
        difference = np.abs(got - as_pil(image, options, resample=PIL.Image.BICUBIC))
        assert difference.max() <= 2 and difference.mean() < 0.25
        assert np.abs(got - as_pil(image, options)).max() > 2  # which is bilinear


def resized_then_cropped(image, size, resample):
    """Resize and CenterCrop of torchvision, by PIL."""
    height, width = image.shape[:2]
    short = min(height, width)
    extent = [int(size * side / short) for side in (width, height)]
    image = PIL.Image.fromarray(image).resize(extent, resample)
    left, top = (int(round((side - size) / 2)) for side in extent)
    return np.asarray(image.crop((left, top, left + size, top + size))).astype(int)


@pytest.mark.parametrize("shape", [(240, 320), (130, 97), (97, 131), (64, 64), (50, 300)])
@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_the_middle_after_resizing_is_that_of_pytorch(shape, resize):
    image, resample = noise(*shape), getattr(PIL.Image, resize.upper())
    section = dict(size=56, resize=resize, square="crop_resized")
    want = resized_then_cropped(image, 56, resample)
    difference = np.abs(stills.prepare(image, stills.Picture(**section)) - want)
    assert difference.max() <= 2 and difference.mean() < 0.25


def test_the_middle_after_resizing_in_batches(folder):
    image = noise(120, 175)
    stored = toy.example(1, frames=[sharp(image)])
    section = dict(size=40, square="crop_resized", quarter_turns=1)
    decoded = np.asarray(PIL.Image.open(io.BytesIO(sharp(image))))
    want = stills.prepare(decoded, stills.Picture(**section))
    assert np.array_equal(run(evaluate(folder, image=section), stored)["image"][0], want)
    assert np.array_equal(run(train(folder, image=section), stored)["image"], want)


def test_bicubic_overshoot_is_clipped():
    stripes = np.repeat(np.repeat([[0, 255] * 8], 16, 0)[..., None], 3, 2).astype(np.uint8)
    got = stills.prepare(stripes, stills.Picture(size=64, resize="bicubic"))
    assert got.min() == 0 and got.max() == 255
    assert (np.abs(np.diff(got[0, :, 0].astype(int))) < 200).all()  # nothing wraps round


CROPS = ((0.2, 0.4), (0.2, 0.4), (0.9, 1.0))


def plain(height, width):
    """A picture whose pixels say where they are: row, column, and 255."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 255)], -1).astype(np.uint8)


def test_crops_are_parts_of_the_picture_of_the_area_asked_for(folder):
    data = train(folder, image=dict(size=32, crops=CROPS))
    image, roi = plain(200, 240), (40, 80, 100, 120)
    areas = []
    for position in range(30):
        got = run(data, toy.example(1, frames=[sharp(image)], roi=roi), position)["image"]
        assert got.shape == (3, 32, 32, 3) and (got[..., 2] > 250).all()
        down, across = got[..., 0].astype(int), got[..., 1].astype(int)
        assert down.min() >= 39 and down.max() <= 140 and across.min() >= 79 and across.max() <= 200
        # Of 32 pixels the centres of the first and last are 31/32 of the crop apart.
        height = (down[:, -1, 16] - down[:, 0, 16]) * 32 / 31
        width = (across[:, 16, -1] - across[:, 16, 0]) * 32 / 31
        areas.append(height * width / (100 * 120))
        assert (0.7 < width[:2] / height[:2]).all() and (width[:2] / height[:2] < 1.4).all()
    areas = np.array(areas)
    assert (
        (areas[:, :2] > 0.18).all() and (areas[:, :2] < 0.43).all() and (areas[:, 2] > 0.83).all()
    )
    assert np.abs(areas[:, 0] - areas[:, 1]).mean() > 0.02  # each view is a draw of its own
    whole = run(evaluate(folder, image=dict(size=32, crops=CROPS)), toy.example(1, roi=roi[:0]))
    assert whole["image"].shape == (1, 32, 32, 3)


def test_one_crop_is_the_same_whether_its_window_or_all_is_decoded(folder):
    stored = toy.example(1, frames=[sharp(noise(80, 100))])
    both = train(folder, image=dict(size=24, crops=CROPS))
    for number in range(3):
        pipeline = type(both.pipeline)()
        options = stills.Picture(size=24, crops=CROPS)
        stills.add_picture(pipeline, options, train=True, views=[number])
        alone = type("Data", (), {"pipeline": pipeline})
        for position in range(3):
            want = run(both, stored, position)["image"][number]
            assert np.array_equal(run(alone, stored, position)["image"][0], want)


TOUCH = dict(size=40, square="pad", quarter_turns=1)


def test_backgrounds_of_the_recording_and_of_a_file(folder, tmp_path):
    felt, calm, other = (noise(80, 60, seed) for seed in range(3))
    stored = toy.example(1, touch=[png(felt)], touch_background=[png(calm)])
    own = {**TOUCH, "background": "recording"}
    (tmp_path / "calm.png").write_bytes(png(other))
    given = {**TOUCH, "background": str(tmp_path / "calm.png")}
    options = stills.Touch(**TOUCH)
    for make, index in ((train, ...), (evaluate, 0)):
        got = run(make(folder, touch=own), stored)
        assert np.array_equal(got["touch"][index], stills.prepare(felt, options))
        assert np.array_equal(got["touch_background"][index], stills.prepare(calm, options))
        got = run(make(folder, touch=given), stored)
        assert np.array_equal(got["touch"][index], stills.prepare(felt, options))
        assert np.array_equal(got["touch_background"][index], stills.prepare(other, options))
    assert "touch_background" not in run(train(folder, touch=TOUCH), stored)


def test_a_record_without_touch_needs_no_background(folder):
    section = dict(touch={**TOUCH, "background": "recording"})
    out = run(train(folder, **section), toy.example(1))
    assert out["touch_mask"] == 0 and not out["touch"].any() and not out["touch_background"].any()


def test_missing_backgrounds_and_wrong_rois_name_the_record(tmp_path):
    bare = toy.build(
        tmp_path / "bare",
        3,
        payload=lambda n: schema.encode(toy.example(n, touch=[png(noise(16, 16))])),
    )
    section = dict(touch={**TOUCH, "background": "recording"})
    with pytest.raises(
        UserError, match=r"record \d.*without its background.*data.touch.background asks"
    ):
        next(train(bare, **section).iterate())
    outside = toy.build(
        tmp_path / "outside",
        3,
        payload=lambda n: schema.encode(toy.example(n, roi=(0, 30, 20, 20))),
    )
    with pytest.raises(UserError, match=r"record \d.*leaves the picture.*30 20 20"):
        next(train(outside, image=dict(size=8)).iterate())
    batch = next(train(outside, image=dict(size=8, roi=False)).iterate())
    assert batch["image_mask"].tolist() == [1, 1]


def test_evaluation_batches_have_one_view_and_labels(folder):
    data = evaluate(folder, image=dict(size=8), touch=dict(size=8))
    batch = next(data.iterate())
    assert batch["image"].shape == (2, 1, 8, 8, 3) and batch["touch"].shape == (2, 1, 8, 8, 3)
    assert batch["image_mask"].tolist() == [1, 1] and batch["touch_mask"].tolist() == [0, 0]
    assert batch["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "section, message",
    [
        (dict(image=dict(size=0)), "data.image.size must be at least 1"),
        (dict(touch=dict(square="middle")), "Unknown data.touch.square 'middle'"),
        (dict(image=dict(jitter=1.5)), "data.image.jitter=1.5 must be"),
        (dict(image=dict(resize="lanczos")), "Unknown data.image.resize 'lanczos'"),
        (dict(image=dict(crops=((0.5, 0.2),))), r"data.image.crops\[0\]=\(0.5, 0.2\) must be"),
        (dict(image=dict(crops=((0.5, 1.0), (0, 1)))), r"data.image.crops\[1\]=\(0.0, 1.0\)"),
        (dict(image=dict(crops=(0.5, 1.0))), r"data.image.crops\[0\] must be tuple"),
        (dict(image=dict(crops=CROPS, jitter=0.1)), "set data.image.jitter=0"),
        (dict(image=dict(crops=CROPS, features="x")), "data.image.features come in place of pic"),
        (dict(image=dict(background="")), "Unknown config key data.image.background"),
        (dict(touch=dict(background="nowhere.png")), "data.touch.background: .*nowhere.png"),
    ],
)
def test_wrong_options_are_named(folder, section, message):
    with pytest.raises(UserError, match=message):
        train(folder, **section)


def test_a_dataset_without_pictures_is_refused(tmp_path):
    folder = toy.build(tmp_path, 3, statistics={"examples_with": {"text": 3}})
    with pytest.raises(UserError, match="data.image is asked for, but no example has it"):
        train(folder, image=dict(size=8))


def test_what_prepare_refuses():
    with pytest.raises(UserError, match=r"uint8 \[height, width, 3\], not float64 \[4, 4, 3\]"):
        stills.prepare(np.zeros((4, 4, 3)), stills.Touch())
    with pytest.raises(UserError, match=r"roi=\(0, 0, 9, 9\).*leaves the picture of 4 x 4"):
        stills.prepare(np.zeros((4, 4, 3), np.uint8), stills.Picture(), roi=(0, 0, 9, 9))
