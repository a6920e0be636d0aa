"""`mmjax embed`: what training reads is what the frozen towers make of each record."""

import json

import jax
import numpy as np
import pytest

from mmjax import checkpoint, config, initialize, rundir, train
from mmjax.data import loader
from mmjax.errors import UserError
from mmjax.tools import cli, embed

RECIPE = ("touch", "demo:frozen,smoke")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A run directory with towers of pictures and words."""
    path = tmp_path_factory.mktemp("clip")
    cfg = config.load("touch", "demo:clip,smoke")
    _, facts = train.open_train_data(cfg)
    params, extra = jax.jit(train.make_task(cfg, facts).init)(jax.random.key(5))
    saved = checkpoint.Checkpoints(path)
    saved.save(1, {"params": params, "extra": extra}, {"step": 1})
    saved.close()
    (path / rundir.CONFIG).write_text(config.to_json(cfg))
    return path


@pytest.fixture(scope="module")
def features(weights, tmp_path_factory):
    """A folder of features, made by the command."""
    out = tmp_path_factory.mktemp("features")
    arguments = ["--config", RECIPE[1], "--weights", str(weights), "--out", str(out), "--quiet"]
    assert cli.main(["embed", "image", "text", *arguments]) == 0
    return out


def started(weights, *overrides):
    """`(task, data, params, extra)` of a training that starts from the weights."""
    cfg = config.load(*RECIPE, overrides)
    data, facts = train.open_train_data(cfg)
    task = train.make_task(cfg, facts)
    params, extra = jax.jit(task.init)(jax.random.key(0))
    state = initialize.from_source(
        {"params": params, "extra": extra}, str(weights), allow=config.plain(cfg.init_allow)
    )
    return task, data, state["params"], state["extra"]


def given(folder):
    return [f"--config.data.{modality}.features={folder}" for modality in ("image", "text")]


def test_a_row_is_what_evaluation_makes_of_the_record(features, weights):
    task, _, params, extra = started(weights)
    section = config.plain(config.load(*RECIPE).data)
    batch = next(loader.make_eval_data(section, split="train", batch_size=16).iterate())
    outputs = jax.jit(task.predict["features"])(params, extra, batch)
    for modality in ("image", "text"):
        rows = np.load(features / "train" / f"{modality}.npy")
        assert rows.shape == (64, 128) and rows.dtype == np.float32
        expected = np.asarray(outputs[modality])[:, 0]
        np.testing.assert_allclose(rows[batch["example_id"]], expected, atol=1e-4)
        assert np.abs(rows[1:] - rows[:-1]).max(axis=1).min() > 1e-3  # every row is filled


def test_training_reads_the_rows_and_not_the_towers(features, weights):
    task, data, params, extra = started(weights, *given(features))
    task.check(params)
    batch = next(iter(data.iterate(3)))
    assert batch["image"].shape == (8, 128) and batch["text"].shape == (8, 1, 128)
    found, _ = jax.jit(task.encode)(params, extra, batch, jax.random.key(0))
    for modality in ("image", "text"):
        rows = np.load(features / "train" / f"{modality}.npy")
        np.testing.assert_array_equal(found[modality], rows[batch["example_id"]])
    with_towers, pictures, _, _ = started(weights)
    assert task.flops(data.spec) < 0.8 * with_towers.flops(pictures.spec)


def test_variants_are_draws_of_the_training(weights, tmp_path):
    cfg = config.load(*RECIPE)
    cfg.augment.image = dict(mean=(0.5,) * 3, std=(0.5,) * 3, horizontal_flip=0.5)
    embed.embed(
        cfg, ["image"], weights=[str(weights)], out=str(tmp_path), variants=2, progress=False
    )
    rows = np.load(tmp_path / "train" / "image.npy")
    assert rows.shape == (64, 2, 128)
    assert np.abs(rows[:, 0] - rows[:, 1]).max(axis=1).mean() > 1e-2
    made = json.loads((tmp_path / "features.json").read_text())
    assert made["num_examples"] == {"train": 64} and made["made"]["variants"] == 2


def test_features_of_other_inputs_are_refused(features, weights):
    task, _, params, _ = started(weights, *given(features), "--config.data.image.square=pad")
    with pytest.raises(UserError, match="data.image={'size': 32}, which is here {.*'pad'"):
        task.check(params)


def test_features_of_another_tower_are_refused(features, weights):
    task, _, params, _ = started(weights, *given(features))
    params["text"]["positions"] = params["text"]["positions"].at[0, 0].add(1e-3)
    with pytest.raises(UserError, match="data.text.features=.* were computed by another tower"):
        task.check(params)


@pytest.mark.parametrize(
    "modalities, options, message",
    [
        (["touch"], (), "tower of touch is not frozen.*Frozen: image, text"),
        (["image"], ("--config.data.train=('a', 'b')",), "one dataset at a time"),
        (["image"], ("--config.model.image.num_layers=3",), "does not hold the towers of image"),
        (["image"], ("--config.data.train=nowhere",), "nowhere"),
    ],
)
def test_mistakes_are_named(modalities, options, message, weights, tmp_path):
    cfg = config.load(*RECIPE, options)
    with pytest.raises(UserError, match=message):
        embed.embed(cfg, modalities, weights=[str(weights)], out=str(tmp_path), progress=False)


def test_a_modality_without_pictures_or_words_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["embed", "video", "--weights", "run", "--out", "features"])
    assert "invalid choice: 'video'" in capsys.readouterr().err


def test_features_of_a_trained_tower_are_refused(features):
    cfg = config.load("touch", "demo:smoke", given(features))
    _, facts = train.open_train_data(cfg)
    with pytest.raises(UserError, match="take the place of a tower that is trained. Freeze it"):
        train.make_task(cfg, facts)
