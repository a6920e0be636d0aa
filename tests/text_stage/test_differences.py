"""The commands `mmjax differences` and `mmjax prefill` on the world of scenes."""

import copy
import csv
import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from mmjax import config
from mmjax.data.storage import dataset, schema
from mmjax.diagnostic_text.describer import describe
from mmjax.diagnostic_text.mask_cache import MaskCache
from mmjax.diagnostic_text.pairs import resize_mask
from mmjax.diagnostic_text.writer import Failure, FailureLimitError, Text, Writer
from mmjax.errors import UserError
from mmjax.text_stage.differences import write_differences
from mmjax.text_stage.predicted_pairs import PredictedPairs
from mmjax.text_stage.prefill import prefill
from mmjax.tools import cli
from tests.messages import assert_mentions, raises
from tests.saved_runs import save_run

WORLD = "world:scenes_tiny,train=10"
SIZE, CROP = 40, 64
NAME = f"{__name__}:Scripted"


class Scripted(Writer):
    """Fails as the class attributes say, and remembers the keys that it got.

    Args:
      prefix: Start of each text.
      url: Not part of the text.
    """

    asked: list[str] = []
    fails: set[str] = set()
    limit = 10**6

    def __init__(self, *, prefix: str = "A|B", url: str = ""):
        self._prefix = prefix

    def write(self, pairs):
        if len(self.asked) >= self.limit:
            raise FailureLimitError("too many")
        self.asked.extend(pair.key for pair in pairs)
        return [
            Failure(pair.key, "timeout", "slow")
            if pair.key in self.fails
            else Text(pair.key, f"{self._prefix} {pair.key} {pair.class_name}")
            for pair in pairs
        ]


@pytest.fixture
def script(monkeypatch):
    """Sets the behavior of `Scripted`, which has got no pairs yet."""

    def change(*, fails=(), limit=10**6):
        values = dict(asked=[], fails=set(fails), limit=limit)
        for name, value in values.items():
            monkeypatch.setattr(Scripted, name, value)

    change()
    return change


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """`(run, task, state)` of a model with random parameters."""
    path = tmp_path_factory.mktemp("run")
    cfg = config.load("segment", "demo:smoke", [f"--config.data.train={WORLD}"])
    task, state, _ = save_run(config.resolve(cfg), path)
    return str(path), task, state


@pytest.fixture(scope="module")
def opened(model):
    """The model and its data, which describe all classes. It is compiled once."""
    return open_pairs(model)


@pytest.fixture(scope="module")
def batches(opened):
    return list(opened.batches(progress=False))


def open_pairs(model, *overrides, **options):
    options = dict(size=SIZE, predicted_limit=None, batch_size=8) | options
    return PredictedPairs(model[0], overrides=overrides, **options)


def with_options(opened, **changes):
    """Returns the same pairs with other options of texts."""
    result = copy.copy(opened)
    result.options = dataclasses.replace(opened.options, **changes)
    return result


def write_scripted(opened, out, changes=None, **options):
    writer = {"name": NAME} | options
    pairs = with_options(opened, writer=writer, **changes or {})
    return write_differences(pairs, str(out), progress=False)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def content_of(directory):
    """{relative path: bytes} of a directory, with sorted captions."""
    files = {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    return {k: sorted(v.splitlines()) if k.suffix == ".jsonl" else v for k, v in files.items()}


def test_pairs_have_the_masks_of_evaluation(model, opened, batches):
    _, task, state = model
    data = next(opened._data.iterate())
    predict = jax.jit(task.predict["logits"])
    logits = predict(state["params"], state["extra"], {"image": data["image"]})
    predicted = np.asarray(logits["logits"]).argmax(-1)
    expected = set()
    for index, (prediction, truth) in enumerate(zip(predicted, data["segmentation"], strict=True)):
        prediction, truth = resize_mask(prediction, SIZE), resize_mask(truth, SIZE)
        classes = {*np.unique(prediction).tolist(), *np.unique(truth).tolist()} - {0, 255}
        expected |= {f"{index}-{value}" for value in classes}
    first = {pair.key: pair for pair in batches[0]}
    assert first.keys() == expected and len(expected) > 16
    wrong = sum(
        (
            pair.prediction != (resize_mask(predicted[pair.image_index], SIZE) == pair.class_index)
        ).sum()
        for pair in batches[0]
    )
    assert wrong <= 3  # rounding of a compiled model


def test_predictions_do_not_depend_on_the_batch(model, batches):
    """BatchNorm uses running averages."""
    small = [pair for batch in batches for pair in batch]
    (large,) = open_pairs(model, batch_size=16).batches(progress=False)
    assert [pair.key for pair in small] == [pair.key for pair in large]
    both = zip(small, large, strict=True)
    assert sum((one.prediction != other.prediction).sum() for one, other in both) <= 3


def test_images_and_captions_describe_the_differences(opened, batches, tmp_path):
    write_differences(opened, str(tmp_path), progress=False)
    differences, overlays = rows_of(tmp_path / "differences.csv"), rows_of(tmp_path / "pairs.csv")
    pairs = [pair for batch in batches for pair in batch]
    assert len(differences) == len(overlays) == len(pairs)
    for pair, row, overlay in zip(pairs, differences, overlays, strict=True):
        assert row == {
            "path": f"images/{pair.key}.png",
            "caption": describe(pair, max_sentences=3, seed=0),
            "split": "train",
        }
        assert overlay == row | {"path": f"pairs/{pair.key}"}
        differs = (pair.truth & ~pair.void) != pair.prediction
        for path, mask in (
            (row["path"], differs),
            (f"pairs/{pair.key}/0.png", pair.truth),
            (f"pairs/{pair.key}/1.png", pair.prediction),
        ):
            image = np.asarray(Image.open(tmp_path / path)).astype(float)
            white = 255 * mask[..., None]
            np.testing.assert_allclose(image, 0.45 * pair.scene + 0.55 * white, atol=1.001)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["complete"] and manifest["num_images"] == 10 and not manifest["failures"]
    assert manifest["num_pairs"] == manifest["num_captions"] == len(pairs)
    assert manifest["made"]["writer"] == {"name": "describer"}


def test_interrupted_directories_are_completed(opened, batches, script, tmp_path):
    keys = [pair.key for batch in batches for pair in batch]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    write_scripted(opened, whole)
    script(fails=keys[1:3], limit=1)
    with pytest.raises(FailureLimitError):
        write_scripted(opened, parts)
    assert Scripted.asked == [pair.key for pair in batches[0]]
    assert not (parts / "differences.csv").exists()
    assert not json.loads((parts / "manifest.json").read_text())["complete"]
    with open(parts / "captions.jsonl", "a") as file:
        file.write('{"key": "9-')  # a crash while a line was written
    script(fails=keys[2:3])
    message = write_scripted(opened, parts)
    assert Scripted.asked == [*keys[1:3], *(pair.key for pair in batches[1])]
    assert_mentions(message, "timeout 1", f"{len(keys) - 1} of {len(keys)}")
    assert json.loads((parts / "manifest.json").read_text())["failures"] == {"timeout": 1}
    script()
    write_scripted(opened, parts)
    assert Scripted.asked == keys[2:3]
    assert content_of(parts) == content_of(whole)


def test_another_way_is_refused_but_another_server_is_not(opened, script, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    write_scripted(opened, out)
    count = len(Scripted.asked)
    write_scripted(opened, out, url="http://other")
    assert len(Scripted.asked) == count
    with raises(UserError, str(out), "prefix"):
        write_scripted(opened, out, prefix="C")
    with raises(UserError, str(out), "alpha", "0.55", "0.6"):
        write_scripted(opened, out, changes={"alpha": 0.6})
    other.mkdir()
    (other / "file").touch()
    with raises(UserError, str(other), "manifest.json"):
        write_scripted(opened, other)
    with raises(UserError, "text.writer.prefixes"):
        write_scripted(opened, tmp_path / "new", prefixes="C")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("table", "frames"), [("differences", 1), ("pairs", 2)])
def test_build_reads_the_tables(opened, script, tmp_path, table, frames):
    path, built = tmp_path / "made" / f"{table}.csv", tmp_path / "built"
    write_scripted(opened, path.parent)
    options = ["--size=0", "--quality=100", "--workers=1", "--quiet"]
    assert cli.main(["build", f"--csv={path}", f"--out={built}", *options]) == 0
    rows, split = rows_of(path), dataset.DatasetDir(built).split("train")
    records = [schema.decode(split.read(index)) for index in range(len(rows))]
    by_caption = {record.captions[0]: record for record in records}
    assert len(by_caption) == len(rows) and {len(record.captions) for record in records} == {1}
    for row in rows:
        assert row["caption"].startswith("A/B ")  # `|` separates captions
        images = sorted((path.parent / row["path"]).glob("*.png")) or [path.parent / row["path"]]
        stored = by_caption[row["caption"]].frames
        assert len(images) == len(stored) == frames
        for image, jpeg in zip(images, stored, strict=True):
            both = (
                np.asarray(Image.open(file)).astype(float) for file in (image, io.BytesIO(jpeg))
            )
            assert abs(np.subtract(*both)).mean() < 4


def test_prefill_fills_the_cache_of_training(opened, batches, tmp_path):
    out = tmp_path / "cache"
    message = prefill(with_options(opened, predicted_limit=0), str(out), progress=False)
    cache = MaskCache.load(out)
    assert_mentions(message, str(len(cache)), f"--config.text.cache.path={out}", str(SIZE))
    expected = {pair.key: pair for batch in batches for pair in batch if pair.truth.any()}
    assert set(cache) == expected.keys() and len(expected) > 10
    for key, pair in expected.items():
        assert np.array_equal(cache.mask(key), pair.prediction) and cache.text(key) == ""


def test_the_commands_pass_their_arguments_on(model, tmp_path):
    out = tmp_path / "differences"
    options = [f"--data={WORLD},test=3", "--split=test", f"--out={out}", "--quiet"]
    options += ["--config.text.writer.name=templates", f"--size={SIZE}", "--batch-size=16"]
    assert cli.main(["differences", model[0], *options]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["num_images"] == 3 and manifest["made"]["size"] == SIZE
    assert manifest["made"]["writer"] == {"name": "templates"}
    assert manifest["made"]["predicted_limit"] is None
    assert {row["split"] for row in rows_of(out / "differences.csv")} == {"test"}
    out = tmp_path / "cache"
    assert cli.main(["prefill", model[0], f"--out={out}", "--quiet"]) == 0
    assert MaskCache.load(out).size == 224


def test_options_are_those_of_the_run(model):
    overrides = ["--config.text.size=48", "--config.text.predicted_limit=1"]
    options = open_pairs(model, *overrides, size=None).options
    assert (options.size, options.predicted_limit) == (48, 1)


def test_a_published_file_predicts_as_its_run(model, tmp_path):
    path, section = str(tmp_path / "model.safetensors"), f"--config.data.segmentation.size={CROP}"
    assert cli.main(["convert", model[0], "--to=segmentation", f"--out={path}"]) == 0
    crops = f"--config.data.segmentation.shorter_side={CROP}"
    nearest = "--config.data.segmentation.nearest=floor"
    both = (
        open_pairs((path,), section, crops, data=WORLD, split="test"),
        open_pairs(model, nearest, crops, split="test"),
    )
    first, second = (next(pairs.batches(progress=False)) for pairs in both)
    assert [pair.key for pair in first] == [pair.key for pair in second]
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.truth, other.truth)
        assert (one.prediction != other.prediction).sum() <= 3


def test_other_models_and_data_are_refused(model, tmp_path):
    run = shutil.copytree(model[0], tmp_path / "run")
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"task": "segment"', '"task": "flair"'))
    with raises(UserError, str(run), "--task=flair", "--task=segment"):
        PredictedPairs(str(run))
    with raises(UserError, "--batch-size", "3"):
        open_pairs(model, batch_size=3)
    with raises(UserError, model[0], "5", "9", "--data"):
        open_pairs(model, "--config.model.num_classes=5")
    with raises(UserError, "--data", WORLD):
        open_pairs(model, f"--config.data.train=({WORLD!r}, {WORLD!r})")
