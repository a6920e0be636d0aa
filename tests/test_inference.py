"""`mmjax.load`: embeddings of images and texts in memory match those of evaluation."""

import contextlib

import jax
import numpy as np
import pytest
from PIL import Image

import mmjax
from mmjax import config, session, tasks
from mmjax.checkpoints.manager import Checkpoints
from mmjax.data.pipeline import image_modality, loader
from mmjax.data.pipeline.config import parse_config
from mmjax.data.pipeline.tokenizer import open_tokenizer
from mmjax.errors import UserError
from tests.messages import assert_mentions, raises
from tests.saved_runs import STEP, save_run


@pytest.fixture(scope="module")
def cfg():
    layers = [f"--config.model.{tower}.num_layers=1" for tower in ("touch", "image", "text")]
    return config.load("touch", "demo:smoke", layers)  # compiles faster


@pytest.fixture(scope="module")
def run(cfg, tmp_path_factory):
    """A run directory with random parameters, scaled so that embeddings differ clearly."""
    path = tmp_path_factory.mktemp("run")
    save_run(cfg, path)
    return path


@pytest.fixture(scope="module")
def model(run):
    return mmjax.load(run)


@pytest.fixture(scope="module")
def batch(cfg):
    """The first examples of the test split, loaded as for an evaluator."""
    section = config.plain(cfg.data)
    return next(loader.make_eval_data(section, split="test", batch_size=8).iterate())


TEXTS = [
    "a red circle is bouncing",
    "look at this small striped moon",
    *[f"a {color} star" for color in ("red", "blue", "green", "yellow", "white", "gray")],
]


def test_embeddings_equal_those_of_evaluation(cfg, run, model, batch):
    _, data_spec = session.open_train_data(cfg)
    task = tasks.make_task(cfg, data_spec)
    with contextlib.closing(Checkpoints(run, read_only=True)) as saved:
        state = saved.read(STEP, ["params"])
    tokenizer = open_tokenizer(parse_config(config.plain(cfg.data)))
    ids = tokenizer.encode(TEXTS).reshape(batch["text"].shape)
    outputs = jax.jit(task.predict["features"])(state["params"], {}, batch | {"text": ids})
    np.testing.assert_allclose(model.embed_text(TEXTS), outputs["text/touch"][:, 0], atol=1e-5)
    for modality, embed in (("touch", model.embed_touch), ("image", model.embed_image)):
        result = embed(list(batch[modality][:, 0]), batch_size=3)
        assert result.shape == (8, 128) and result.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, rtol=1e-5)
        other = "text" if modality == "touch" else "touch"
        np.testing.assert_allclose(result, outputs[f"{modality}/{other}"][:, 0], atol=1e-5)


def test_text_embeddings_do_not_depend_on_the_batch(model):
    texts = TEXTS[:2]
    result = model.embed_text(texts)
    np.testing.assert_allclose(model.embed_text(texts[1]), result[1], atol=1e-5)
    assert result.shape == (2, 128) and abs(result[0] @ result[1]) < 0.999


def test_files_pillow_images_and_arrays_are_valid_images(model, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "touch.png")
    expected = model.embed_touch(array)
    assert expected.shape == (128,)
    for image in (tmp_path / "touch.png", str(tmp_path / "touch.png"), Image.fromarray(array)):
        np.testing.assert_array_equal(model.embed_touch(image), expected)
    np.testing.assert_allclose(model.embed_touch([array, array[::-1]])[0], expected, atol=1e-5)
    small = image_modality.prepare(array, parse_config(config.plain(model.cfg.data)).touch)
    np.testing.assert_allclose(model.embed_touch(small), expected, atol=1e-5)  # already resized


def test_zero_shot_probabilities_are_a_softmax_over_mean_prompt_embeddings(model, batch):
    images = list(batch["touch"][:, 0])
    classes, templates = ("red circle", "blue moon"), ("a {}", "look at this {}")
    classifier = model.zero_shot(classes, templates=templates)
    prompts = model.embed_text([t.format(c) for c in classes for t in templates])
    weights = prompts.reshape(2, 2, -1).mean(axis=1)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    scores = np.exp(model.logit_scale * model.embed_touch(images) @ weights.T)
    expected = scores / scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classifier.probabilities(images), expected, rtol=1e-3)
    best = [classes[i] for i in expected.argmax(axis=1)]
    assert classifier.classify(images) == best and classifier.classify(images[0]) == best[0]
    of_image = classifier.probabilities(list(batch["image"][:, 0]), modality="image")
    assert not np.allclose(of_image, expected, atol=1e-3)


def test_the_background_is_subtracted(cfg, tmp_path):
    cfg = cfg.copy_and_resolve_references()
    untouched = np.full((32, 32, 3), 90, np.uint8)
    Image.fromarray(untouched).save(tmp_path / "untouched.png")
    cfg.data.touch.background = str(tmp_path / "untouched.png")
    cfg.augment.touch = dict(subtract_background=True, mean=(0.0, 0.0, 0.0), std=(0.1, 0.1, 0.1))
    (tmp_path / "run").mkdir()
    save_run(cfg, tmp_path / "run")
    model = mmjax.load(tmp_path / "run")
    touch = np.random.default_rng(0).integers(0, 200, (32, 32, 3), np.uint8)
    result = model.embed_touch(touch)
    np.testing.assert_array_equal(model.embed_touch(touch, background=untouched), result)
    shifted = model.embed_touch(touch + 50, background=untouched + 50)
    np.testing.assert_allclose(shifted, result, atol=1e-4)  # only the difference matters
    other = model.embed_touch(touch, background=untouched + 50)
    assert not np.allclose(other, result, atol=1e-2)


def test_invalid_arguments_are_an_error(run, model, tmp_path):
    with raises(UserError, tmp_path, "<run>/checkpoints/<step>"):
        mmjax.load(tmp_path)
    with raises(UserError, "background"):
        model.embed_touch(np.zeros((8, 8, 3), np.uint8), background=np.zeros((8, 8, 3), np.uint8))
    with raises(UserError, "uint8 [height, width, 3]", "float64 [8, 8, 3]"):
        model.embed_touch(np.zeros((8, 8, 3)))
    with raises(UserError, tmp_path / "nothing.png"):
        model.embed_image(tmp_path / "nothing.png")
    with raises(UserError, "embed_touch"):
        model.embed_touch([])
    for texts in ([], ["a circle", 3]):
        with raises(UserError, "embed_text", texts):
            model.embed_text(texts)
    with raises(UserError, "zero_shot", "'rough'"):
        model.zero_shot("rough")
    with raises(UserError, "modality", "'text'", "image, touch"):
        model.zero_shot(["rough"]).classify("a circle", modality="text")
    with raises(UserError, run, f"step {STEP}", "/bias (1, 128) ≠ (3, 128)"):
        mmjax.load(run, overrides=["--config.model.touch.num_layers=3"])
    without = mmjax.load(run, overrides=["--config.model.text=None", "--config.data.text=None"])
    assert without.modalities == ("touch", "image")
    with raises(UserError, "text", "touch, image"):
        without.embed_text("a circle")


def test_words_outside_the_vocabulary_are_named(model, caplog):
    model.embed_text("a red circle")
    assert not caplog.messages
    dog, cat = model.embed_text(["a red dog", "a red cat"])
    assert_mentions(caplog.messages, "embed_text", "2 words: dog, cat")
    np.testing.assert_array_equal(dog, cat)
