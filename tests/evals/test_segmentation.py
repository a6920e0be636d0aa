"""The evaluator `segmentation`, against NumPy, SciPy and scikit-learn on each image by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import confusion_matrix

from mmjax import evals, sharding
from mmjax.data.pipeline import loader
from mmjax.data.storage import schema
from mmjax.data.storage.image_files import encode_jpeg, read_image
from mmjax.errors import UserError
from mmjax.evals.segmentation import metrics
from mmjax.monitor import segmentation_figure
from tests.data import quarters
from tests.messages import raises

COUNT = 11
PROTOTYPES = quarters.COLORS / np.float32(255)


class NearestColor:
    """A task whose logits are similarities of a pixel to the colors of the classes.

    It mistakes dark yellow for red, so that it makes errors.
    """

    def __init__(self, num_classes=4):
        colors = PROTOTYPES[:num_classes] * np.float32([[1], [1], [1], [0.4]])[:num_classes]
        self.colors = colors
        self.predict = {"logits": self.logits}
        self.shapes = set()

    def logits(self, params, extra, batch):
        self.shapes.add(batch["image"].shape)
        image = batch["image"].astype(jnp.float32)[..., None, :] / 255
        return {"logits": -params["scale"] * jnp.square(image - self.colors).sum(-1)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Images of four quarters, with noise, ignored pixels, and one without a mask."""

    def example(number):
        rng = np.random.default_rng(number)
        mask = quarters.classes_of(number)
        noise = ndimage.gaussian_filter(rng.normal(size=mask.shape), 2)
        shade = np.clip(0.5 + 2 * noise, 0.02, 1)[..., None]
        pixels = (quarters.COLORS[mask] * shade).astype(np.uint8)
        image = encode_jpeg(pixels, quality=100)
        mask[rng.random(mask.shape) < 0.1] = 255
        masks = [] if number == 4 else [schema.encode_mask(mask)]
        return quarters.example(number, frames=[image], masks=masks)

    return quarters.build(tmp_path_factory.mktemp("shaded"), COUNT, payload=example)


def make(directory, *, task=None, devices=1, corrupt="fail", segmentation=None, **options):
    section = dict(size=24) | (segmentation or {})
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    options = dict(type="segmentation", split="train", batch_size=8) | options
    (evaluator,) = evals.make_evaluators(
        {"seg": options},
        task=task or NearestColor(),
        data_cfg=dict(train=directory, corrupt=corrupt, segmentation=section),
        mesh=mesh,
    )
    return evaluator


STATE = {"params": {"scale": np.float32(5.0)}, "extra": {}}


def evaluate(directory, **options):
    results = make(directory, **options).run(STATE, 3)
    return {name.removeprefix("seg/"): value for name, value in results.items()}


def stored(directory):
    """Yields the image and the mask of each example with a mask."""
    source = loader.make_eval_data(
        dict(train=directory, segmentation=dict(size=8)), split="train", batch_size=1
    ).sources[0]
    for record in range(COUNT):
        example = schema.decode(source.fetch(record))
        if example.masks:
            path = f"{directory}/{record}.jpg"
            with open(path, "wb") as file:
                file.write(example.frames[0])
            yield read_image(path), schema.decode_mask(example.masks[0])


def expected_metrics(pairs, ratio=0.02):
    """Metrics of (prediction, truth) pairs, image by image with other libraries."""
    confusion, edges = np.zeros((4, 4), int), np.zeros((4, 3), int)
    for prediction, truth in pairs:
        kept = truth != 255
        if not kept.any():
            continue
        confusion += confusion_matrix(truth[kept], prediction[kept], labels=range(4))
        radius = max(round(ratio * float(np.hypot(*truth.shape))), 1)
        prediction = np.where(kept, prediction, 255)
        for value in range(4):
            near = []
            for mask in (prediction == value, truth == value):
                inner = ndimage.binary_erosion(mask, np.ones((3, 3)), radius, border_value=0)
                near.append(mask & ~inner)
            edges[value] += [(near[0] & near[1]).sum(), near[0].sum(), near[1].sum()]
    return confusion, metrics(confusion, edges, quarters.CLASSES)


def nearest(pixels):
    task = NearestColor()
    return np.square(pixels[..., None, :] / 255 - task.colors).sum(-1).argmin(-1)


def test_whole_images_of_their_stored_size_equal_an_evaluation_image_by_image(directory):
    confusion, expected = expected_metrics((nearest(i), m) for i, m in stored(directory))
    evaluator = make(directory)
    sums = list(evaluator._sums(STATE))
    assert np.array_equal(sum(s["confusion"] for s in sums), confusion)
    assert confusion.sum() == sum((mask != 255).sum() for _, mask in stored(directory))
    actual = evaluate(directory)
    assert actual == pytest.approx(expected, rel=1e-9)
    assert 0.4 < actual["miou"] < 0.95 and actual["boundary_iou"] < actual["miou"]
    assert set(actual) == {
        *("miou", "pixel_accuracy", "mean_class_accuracy", "boundary_iou"),
        *(f"iou/{name}" for name in quarters.CLASSES),
    }


@pytest.mark.parametrize(
    "options",
    [
        dict(batch_size=3),
        dict(batch_size=16, multiple=19),
        dict(devices=8, batch_size=8),
        dict(mode="windows"),
        dict(mode="windows", size=13, overlap=0.6, batch_size=4),
    ],
    ids=["batches of 3", "multiples of 19", "8 devices", "windows", "other windows"],
)
def test_batches_padding_devices_and_windows_do_not_change_a_model_of_single_pixels(
    directory, options
):
    assert evaluate(directory, **options) == pytest.approx(evaluate(directory), rel=1e-6)


def test_scaled_images_are_predicted_and_their_logits_resized_to_the_mask(directory):
    def predictions():
        for image, mask in stored(directory):
            height, width = mask.shape
            size = (30, 30 * width // height) if height < width else (30 * height // width, 30)
            small = jax.image.resize(image.astype(np.float32), (*size, 3), "linear", antialias=True)
            pixels = np.round(np.asarray(small))[..., None, :] / 255
            logits = -np.square(pixels - NearestColor().colors).sum(-1)
            # Bilinear interpolation between pixel centers, without antialiasing.
            grid = np.meshgrid(
                *(
                    (np.arange(n) + 0.5) * s / n - 0.5
                    for n, s in zip(mask.shape, size, strict=True)
                ),
                indexing="ij",
            )
            resized = [
                ndimage.map_coordinates(logits[..., c], grid, order=1, mode="nearest")
                for c in range(4)
            ]
            yield np.argmax(resized, 0), mask

    confusion, expected = expected_metrics(predictions())
    evaluator = make(directory, shorter_side=30)
    actual = sum(s["confusion"] for s in evaluator._sums(STATE))
    assert actual.sum() == confusion.sum()
    assert np.abs(actual - confusion).sum() < 0.01 * confusion.sum()  # rounding of pixels
    result = evaluate(directory, segmentation=dict(shorter_side=30))
    assert result["miou"] == pytest.approx(expected["miou"], abs=0.01)


def test_crops_are_those_of_the_evaluation_batches(directory):
    options = dict(size=32, shorter_side=36, nearest="floor")
    data = loader.make_eval_data(
        dict(train=directory, segmentation=options), split="train", batch_size=COUNT
    )
    (batch,) = data.iterate()
    pairs = zip(nearest(batch["image"].astype(float)), batch["segmentation"], strict=True)
    confusion, expected = expected_metrics(pairs)
    evaluator = make(directory, mode="crop", segmentation=options)
    assert np.array_equal(sum(s["confusion"] for s in evaluator._sums(STATE)), confusion)
    assert evaluate(directory, mode="crop", segmentation=options) == pytest.approx(expected)


def test_few_shapes_are_compiled(directory):
    whole, windows = NearestColor(), NearestColor()
    evaluate(directory, task=whole, multiple=64)
    assert whole.shapes == {(8, 64, 64, 3), (8, 64, 128, 3)}
    evaluate(directory, task=windows, mode="windows")
    assert windows.shapes == {(8, 24, 24, 3)}


def test_metrics_without_boundaries_and_of_absent_classes():
    confusion = np.diag([3, 3, 2, 0])
    confusion[0, 2] = confusion[1, 2] = 0
    confusion[0, 1], confusion[1, 0] = 1, 0
    result = metrics(confusion, None, ["a", "b", "c", "d"])
    assert result["iou/a"] == 0.75 and result["iou/b"] == 0.75 and result["iou/c"] == 1
    assert "iou/d" not in result and "boundary_iou" not in result
    assert result["miou"] == pytest.approx((0.75 + 0.75 + 1) / 3)
    assert result["mean_class_accuracy"] == pytest.approx((3 / 4 + 1 + 1) / 3)
    assert "boundary_iou" in metrics(confusion, np.ones((4, 3), int), list("abcd"))


def test_a_predicted_class_without_truth_counts_as_zero():
    confusion = np.array([[5, 5], [0, 0]])
    assert metrics(confusion, None, ["a", "b"])["miou"] == 0.25


def test_other_logits_are_refused_before_training(directory):
    with raises(UserError, "config.evals.seg", "logits", "4 classes"):
        make(directory, task=NearestColor(3)).check(STATE)
    make(directory).check(STATE)


def test_logits_that_are_not_finite_are_refused(directory):
    state = {"params": {"scale": np.float32("nan")}, "extra": {}}
    with raises(UserError, "config.evals.seg", "finite", "config.model.dtype"):
        make(directory).run(state, 0)


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(overlap=1.0), ("evals.seg.overlap", "1.0")),
        (dict(boundary=-0.1), ("evals.seg.boundary", "-0.1")),
        (dict(shorter_side=-2), ("evals.seg.shorter_side", "-2")),
        (dict(multiple=0), ("evals.seg.multiple", "0")),
        (dict(mode="full"), ("evals.seg.mode", "full", "whole")),
    ],
)
def test_invalid_options_are_refused(directory, options, facts):
    with raises(UserError, *facts):
        make(directory, **options)


def test_data_without_the_section_segmentation_are_refused(directory):
    with raises(UserError, "config.evals.seg.type", "config.data.segmentation"):
        evals.make_evaluators(
            {"seg": dict(type="segmentation")},
            task=NearestColor(),
            data_cfg=dict(train=directory, image=dict(size=24)),
            mesh=sharding.make_mesh(devices=jax.devices()[:1]),
        )


def test_a_split_without_masks_is_refused(tmp_path):
    path = quarters.build(tmp_path, 3, payload=lambda n: quarters.example(n, masks=[]))
    with raises(UserError, "config.evals.seg", "train", "No pixel"):
        make(path).run(STATE, 0)


def damaged(directory, record):
    """Writes a dataset whose record has a truncated image."""

    def example(number):
        changes = {}
        if number == record:
            changes["frames"] = [quarters.example(number).frames[0][:200]]
        return quarters.example(number, **changes)

    return quarters.build(directory, 6, payload=example)


def test_a_corrupt_record_stops_the_evaluation_or_is_skipped(tmp_path):
    path = damaged(tmp_path, 2)
    with raises(UserError, "train-00000-of-00001.tfrecord, record 2"):
        make(path, batch_size=2).run(STATE, 0)
    evaluator = make(path, batch_size=2, corrupt="skip")
    total = sum(s["confusion"].sum() for s in evaluator._sums(STATE))
    assert total == sum(quarters.classes_of(n).size for n in range(6) if n != 2)


def test_masks_with_unknown_classes_are_refused(tmp_path):
    mask = schema.encode_mask(np.full((40, 70), 7, np.uint8))
    path = quarters.build(tmp_path, 1, payload=lambda n: quarters.example(n, masks=[mask]))
    with raises(UserError, "record 0", "7", "4 classes"):
        make(path).run(STATE, 0)


def test_each_process_reads_its_share_of_the_batches(directory, monkeypatch):
    arrays = []
    sizes = [None, None]
    for index in (0, 1):  # first the sizes that each process reads, then the batches
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr("mmjax.distributed.any_process", bool)
        images = make(directory, batch_size=4)._images
        monkeypatch.setattr(
            "mmjax.distributed.sum_of_processes",
            lambda array, index=index: sizes.__setitem__(index, array) or array,
        )
        _ = images.batches
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        monkeypatch.setattr("mmjax.distributed.sum_of_processes", lambda array: sum(sizes))
        arrays.append(list(make(directory, batch_size=4)._images.iterate()))
    assert [b for b, _ in arrays[0]] == [b for b, _ in arrays[1]]
    monkeypatch.undo()
    whole = make(directory, batch_size=4)._images
    for (first, second), (batch, expected) in zip(
        zip(*arrays, strict=True), whole.iterate(), strict=True
    ):
        assert first[0] == batch
        for name, value in expected.items():
            assert np.array_equal(np.concatenate([first[1][name], second[1][name]]), value), name


@pytest.mark.parametrize("mode", ["whole", "crop"])
def test_a_figure_shows_evenly_spaced_examples(directory, tmp_path, monkeypatch, mode):
    drawn = []
    draw = segmentation_figure.draw

    def spy(path, examples, **options):
        drawn.append((path, examples, options))
        draw(path, examples, **options)

    monkeypatch.setattr(segmentation_figure, "draw", spy)
    evaluator = make(directory, mode=mode, num_examples=3, path=str(tmp_path), batch_size=2)
    evaluator.run(STATE, 7)
    ((path, examples, options),) = drawn
    assert path == tmp_path / "seg-00000007.png" and path.exists()
    assert options["names"] == quarters.CLASSES
    records = [int(example.title.split()[0]) for example in examples]
    assert records == [0, 5, 10]
    for record, example in zip(records, examples, strict=True):
        shape = (24, 24) if mode == "crop" else quarters.classes_of(record).shape
        assert example.truth.shape == example.prediction.shape == shape
        assert example.image.shape == (*shape, 3) and f"image {record}" in example.title
        assert np.array_equal(example.prediction, nearest(example.image.astype(float)))
        assert "mIoU 0." in example.title
