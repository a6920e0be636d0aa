"""`mmjax.load`: the embeddings of evaluation, from pictures and words at hand."""

import contextlib

import jax
import numpy as np
import pytest
from PIL import Image

import mmjax
from mmjax import checkpoint, config, rundir, train
from mmjax.data import loader, stills
from mmjax.data.config import parse_config
from mmjax.errors import UserError


@pytest.fixture(scope="module")
def cfg():
    return config.load("touch", "demo:smoke")


@pytest.fixture(scope="module")
def run(cfg, tmp_path_factory):
    """A run directory of random parameters, far from one another."""
    return save(cfg, tmp_path_factory.mktemp("run"))


def save(cfg, path):
    data, facts = train.open_train_data(cfg)
    task = train.make_task(cfg, facts)
    params, extra = jax.jit(task.init)(jax.random.key(0))
    params = jax.tree.map(lambda x: x * (2.0 if x.ndim > 1 else 1.0), params)
    saved = checkpoint.Checkpoints(path)
    saved.save(7, {"params": params, "extra": extra}, {"step": 7})
    saved.close()
    (path / rundir.CONFIG).write_text(config.to_json(cfg))
    return path


@pytest.fixture(scope="module")
def model(run):
    return mmjax.load(run)


@pytest.fixture(scope="module")
def batch(cfg):
    """The first examples of the test split as an evaluator gets them."""
    section = config.plain(cfg.data)
    return next(loader.make_eval_data(section, split="test", batch_size=8).iterate())


def test_it_gives_what_evaluators_get(cfg, run, model, batch):
    _, facts = train.open_train_data(cfg)
    task = train.make_task(cfg, facts)
    with contextlib.closing(checkpoint.Checkpoints(run, read_only=True)) as saved:
        state = saved.read(7, ["params"])
    outputs = jax.jit(task.predict["features"])(state["params"], {}, batch)
    for modality, embed in (("touch", model.embed_touch), ("image", model.embed_image)):
        found = embed(list(batch[modality][:, 0]), batch_size=3)
        assert found.shape == (8, 128) and found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
        other = "text" if modality == "touch" else "touch"
        np.testing.assert_allclose(found, outputs[f"{modality}/{other}"][:, 0], atol=1e-5)


def test_texts_go_through_the_runs_own_tokenizer(cfg, model):
    texts = ["a red circle is bouncing", "look at this small striped moon"]
    found = model.embed_text(texts)
    tokenizer = loader.open_tokenizer(parse_config(config.plain(cfg.data)))
    assert tokenizer.encode(texts).any()
    np.testing.assert_allclose(model.embed_text(texts[1]), found[1], atol=1e-5)
    assert found.shape == (2, 128) and abs(found[0] @ found[1]) < 0.999


def test_files_pillow_and_arrays_are_pictures(model, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "touch.png")
    found = model.embed_touch(array)
    assert found.shape == (128,)
    for picture in (tmp_path / "touch.png", str(tmp_path / "touch.png"), Image.fromarray(array)):
        np.testing.assert_array_equal(model.embed_touch(picture), found)
    np.testing.assert_allclose(model.embed_touch([array, array[::-1]])[0], found, atol=1e-5)
    small = stills.prepare(array, parse_config(config.plain(model.cfg.data)).touch)
    np.testing.assert_allclose(model.embed_touch(small), found, atol=1e-5)  # nothing left to do


def test_words_classify(model, batch):
    pictures = list(batch["touch"][:, 0])
    classes, templates = ("red circle", "blue moon"), ("a {}", "look at this {}")
    classifier = model.zero_shot(classes, templates=templates)
    sentences = model.embed_text([t.format(c) for c in classes for t in templates])
    weights = sentences.reshape(2, 2, -1).mean(axis=1)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    scores = np.exp(model.logit_scale * model.embed_touch(pictures) @ weights.T)
    expected = scores / scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classifier.probabilities(pictures), expected, rtol=1e-3)
    best = [classes[i] for i in expected.argmax(axis=1)]
    assert classifier.classify(pictures) == best and classifier.classify(pictures[0]) == best[0]
    seen = classifier.probabilities(list(batch["image"][:, 0]), modality="image")
    assert not np.allclose(seen, expected, atol=1e-3)


def test_a_background_is_subtracted(cfg, tmp_path):
    cfg = cfg.copy_and_resolve_references()
    untouched = np.full((32, 32, 3), 90, np.uint8)
    Image.fromarray(untouched).save(tmp_path / "untouched.png")
    cfg.data.touch.background = str(tmp_path / "untouched.png")
    cfg.augment.touch = dict(subtract_background=True, mean=(0.0, 0.0, 0.0), std=(0.1, 0.1, 0.1))
    (tmp_path / "run").mkdir()
    model = mmjax.load(save(cfg, tmp_path / "run"))
    touch = np.random.default_rng(0).integers(0, 200, (32, 32, 3), np.uint8)
    found = model.embed_touch(touch)
    np.testing.assert_array_equal(model.embed_touch(touch, background=untouched), found)
    shifted = model.embed_touch(touch + 50, background=untouched + 50)
    np.testing.assert_allclose(shifted, found, atol=1e-4)  # only the difference matters
    other = model.embed_touch(touch, background=untouched + 50)
    assert not np.allclose(other, found, atol=1e-2)


def test_mistakes_are_named(run, model, tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        mmjax.load(tmp_path)
    with pytest.raises(UserError, match="without a background"):
        model.embed_touch(np.zeros((8, 8, 3), np.uint8), background=np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"uint8 \[height, width, 3\], not float64"):
        model.embed_touch(np.zeros((8, 8, 3)))
    with pytest.raises(UserError, match="nothing.png"):
        model.embed_image(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="embed_touch: there is no picture"):
        model.embed_touch([])
    for texts in ([], ["a circle", 3]):
        with pytest.raises(UserError, match="takes a text or a list of them"):
            model.embed_text(texts)
    with pytest.raises(UserError, match="names of several classes, not 'rough'"):
        model.zero_shot("rough")
    with pytest.raises(UserError, match="modality 'text'.*image, touch"):
        model.zero_shot(["rough"]).classify("a circle", modality="text")
    with pytest.raises(UserError, match="does not hold the whole model(.|\n)*num_layers|missing"):
        mmjax.load(run, overrides=["--config.model.touch.num_layers=3"])
    without = mmjax.load(run, overrides=["--config.model.text=None", "--config.data.text=None"])
    assert without.modalities == ("touch", "image")
    with pytest.raises(UserError, match="This model has no text; it has touch, image"):
        without.embed_text("a circle")
