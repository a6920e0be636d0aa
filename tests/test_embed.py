"""`mmjax embed`: stored features equal the frozen towers' outputs, and training reads them."""

import json

import jax
import numpy as np
import pytest

from mmjax import config, embed, init_from, session, tasks
from mmjax.checkpoints import run_dir
from mmjax.checkpoints.manager import Checkpoints, fingerprint
from mmjax.data.pipeline import loader
from mmjax.errors import UserError
from mmjax.tools import cli
from tests.messages import assert_mentions, raises

RECIPE = ("touch", "demo:frozen,smoke")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A run directory with an image tower and a text tower."""
    path = tmp_path_factory.mktemp("clip")
    cfg = config.load("touch", "demo:clip,smoke")
    _, data_spec = session.open_train_data(cfg)
    params, extra = jax.jit(tasks.make_task(cfg, data_spec).init)(jax.random.key(5))
    saved = Checkpoints(path)
    saved.save(1, {"params": params, "extra": extra}, {"step": 1})
    saved.close()
    (path / run_dir.CONFIG).write_text(config.to_json(cfg))
    return path


@pytest.fixture(scope="module")
def features(weights, tmp_path_factory):
    """A directory of features, written by the command."""
    out = tmp_path_factory.mktemp("features")
    arguments = ["--config", RECIPE[1], "--weights", str(weights), "--out", str(out), "--quiet"]
    assert cli.main(["embed", "image", "text", *arguments]) == 0
    return out


def start_training(weights, *overrides):
    """Returns `(task, data, params, extra)` of a training run that starts from the weights."""
    cfg = config.load(*RECIPE, overrides)
    data, data_spec = session.open_train_data(cfg)
    task = tasks.make_task(cfg, data_spec)
    params, extra = jax.jit(task.init)(jax.random.key(0))
    state = init_from.from_source(
        {"params": params, "extra": extra}, str(weights), allow=config.plain(cfg.init_allow)
    )
    return task, data, state["params"], state["extra"]


def use_features(directory):
    return [f"--config.data.{modality}.features={directory}" for modality in ("image", "text")]


def test_each_feature_equals_the_tower_output_in_evaluation(features, weights):
    task, _, params, extra = start_training(weights)
    section = config.plain(config.load(*RECIPE).data)
    batch = next(loader.make_eval_data(section, split="train", batch_size=16).iterate())
    outputs = jax.jit(task.predict["features"])(params, extra, batch)
    for modality in ("image", "text"):
        rows = np.load(features / "train" / f"{modality}.npy")
        assert rows.shape == (64, 128) and rows.dtype == np.float32
        expected = np.asarray(outputs[modality])[:, 0]
        np.testing.assert_allclose(rows[batch["example_id"]], expected, atol=1e-4)
        assert np.abs(rows[1:] - rows[:-1]).max(axis=1).min() > 1e-3  # every row is filled


def test_training_reads_features_and_does_not_run_the_towers(features, weights):
    task, data, params, extra = start_training(weights, *use_features(features))
    task.check(params)
    batch = next(iter(data.iterate(3)))
    assert batch["image"].shape == (8, 128) and batch["text"].shape == (8, 1, 128)
    outputs, _ = jax.jit(task.encode)(params, extra, batch, jax.random.key(0))
    for modality in ("image", "text"):
        rows = np.load(features / "train" / f"{modality}.npy")
        np.testing.assert_array_equal(outputs[modality], rows[batch["example_id"]])
    with_towers, images, _, _ = start_training(weights)
    assert task.flops(data.spec) < 0.8 * with_towers.flops(images.spec)


def test_variants_are_samples_of_the_training_augmentation(weights, tmp_path):
    cfg = config.load(*RECIPE)
    cfg.augment.image = dict(mean=(0.5,) * 3, std=(0.5,) * 3, horizontal_flip=0.5)
    embed.embed(
        cfg, ["image"], weights=[str(weights)], out=str(tmp_path), variants=2, progress=False
    )
    rows = np.load(tmp_path / "train" / "image.npy")
    assert rows.shape == (64, 2, 128)
    assert np.abs(rows[:, 0] - rows[:, 1]).max(axis=1).mean() > 1e-2
    description = json.loads((tmp_path / "features.json").read_text())
    assert description["num_examples"] == {"train": 64}
    assert description["made"]["variants"] == 2


def test_features_of_other_inputs_are_refused(features, weights):
    overrides = [*use_features(features), "--config.data.image.square=pad"]
    task, _, params, _ = start_training(weights, *overrides)
    stored = "{'size': 32}"
    with raises(UserError, f"data.image.features={features}", stored, "'pad'", "mmjax embed"):
        task.check(params)


def test_features_of_another_tower_are_refused(features, weights):
    task, _, params, _ = start_training(weights, *use_features(features))
    description = json.loads((features / "features.json").read_text())
    params["text"]["positions"] = params["text"]["positions"].at[0, 0].add(1e-3)
    fingerprints = description["towers"]["text"], fingerprint(params["text"])
    assert fingerprints[0] != fingerprints[1]
    with raises(UserError, f"data.text.features={features}", *fingerprints, "mmjax embed"):
        task.check(params)


@pytest.mark.parametrize(
    "modalities, options, facts",
    [
        (["touch"], (), ("touch", "image, text", "config.optimizer.frozen=('^touch/',)")),
        (["image"], ("--config.data.train=('a', 'b')",), ("--config.data.train", "'a'", "'b'")),
        (["image"], ("--config.model.image.num_layers=3",), ("WEIGHTS", "image/", "layers")),
        (["image"], ("--config.data.train=nowhere",), ("nowhere", "mmjax build")),
    ],
)
def test_wrong_recipes_are_refused(modalities, options, facts, weights, tmp_path):
    cfg = config.load(*RECIPE, options)
    facts = [str(weights) if fact == "WEIGHTS" else fact for fact in facts]
    with raises(UserError, *facts):
        embed.embed(cfg, modalities, weights=[str(weights)], out=str(tmp_path), progress=False)


def test_unsupported_modality_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["embed", "video", "--weights", "run", "--out", "features"])
    assert_mentions(capsys.readouterr().err, "'video'", "image", "text", "touch")


def test_features_of_a_trained_tower_are_refused(features):
    cfg = config.load("touch", "demo:smoke", use_features(features))
    _, data_spec = session.open_train_data(cfg)
    with raises(UserError, "data.image.features", "config.optimizer.frozen=('^image/',)"):
        tasks.make_task(cfg, data_spec)
