"""`mmjax embed`: stored features equal the frozen towers' outputs, and training reads them."""

import json

import jax
import numpy as np
import pytest

from mmjax import config, embed, init_from, session, tasks
from mmjax.checkpoints.checksums import fingerprint
from mmjax.data.pipeline import loader
from mmjax.errors import UserError
from mmjax.tools import cli
from tests.messages import assert_mentions, raises
from tests.random_arrays import random_arrays
from tests.saved_runs import ONE_LAYER, save_run

# Towers of one layer compile faster.
SMALL = ("--config.model.image.num_layers=1", "--config.model.text.num_layers=1")
RECIPE = ("touch", "demo:frozen,smoke")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A run directory with an image tower and a text tower."""
    path = tmp_path_factory.mktemp("clip")
    save_run(config.load("touch", "demo:clip,smoke", SMALL), path, seed=5, scale=1.0)
    return path


@pytest.fixture(scope="module")
def features(weights, tmp_path_factory):
    """A directory of features, written by the command."""
    out = tmp_path_factory.mktemp("features")
    arguments = ["--config", RECIPE[1], "--weights", str(weights), "--out", str(out), "--quiet"]
    assert cli.main(["embed", "image", "text", *arguments, *SMALL]) == 0
    return out


def start_training(weights, *overrides):
    """Returns `(task, data, params, extra)` of a training run that starts from the weights."""
    small = (*SMALL, "--config.model.touch.num_layers=1")
    cfg = config.load(*RECIPE, [*small, *overrides])
    data, data_spec = session.open_train_data(cfg)
    task = tasks.make_task(cfg, data_spec)
    params, extra = random_arrays(task.model)
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
    cfg = config.load(*RECIPE, SMALL)
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
    cfg = config.load(*RECIPE, [*SMALL, *options])
    facts = [str(weights) if fact == "WEIGHTS" else fact for fact in facts]
    with raises(UserError, *facts):
        embed.embed(cfg, modalities, weights=[str(weights)], out=str(tmp_path), progress=False)


def test_an_unknown_modality_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["embed", "smell", "--weights", "run", "--out", "features"])
    assert_mentions(capsys.readouterr().err, "'smell'", "video", "image", "text", "touch")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run of the pretraining demo: `(run directory, task, state, training data)`."""
    path = tmp_path_factory.mktemp("pretrained")
    return path, *save_run(config.load("pretrain", "demo:smoke", ONE_LAYER), path)


@pytest.fixture(scope="module")
def expected(pretrained):
    """The outputs for all training examples in evaluation: {name: array}, by example."""
    _, task, state, _ = pretrained
    section = config.plain(config.load("pretrain", "demo:smoke").data)
    predict = jax.jit(task.predict["features"])
    ids, outputs = [], []
    for batch in loader.make_eval_data(section, split="train", batch_size=16).iterate():
        ids.append(batch["example_id"])
        outputs.append(jax.device_get(predict(state["params"], state["extra"], batch)))
    order = np.argsort(np.concatenate(ids))
    return {name: np.concatenate([o[name][:, 0] for o in outputs])[order] for name in outputs[0]}


def test_features_of_a_pretraining_run_equal_those_of_evaluation(
    pretrained, expected, tmp_path, capsys
):
    run, modalities = str(pretrained[0]), ("video", "audio", "text")
    assert cli.main(["embed", *modalities, "--run", run, "--out", str(tmp_path), "--quiet"]) == 0
    printed = capsys.readouterr().out
    for modality in modalities:
        assert_mentions(printed, tmp_path / "train" / f"{modality}.npy", "mmjax neighbors")
    for modality in modalities:
        array = np.load(tmp_path / "train" / f"{modality}.npy")
        assert array.shape == (pretrained[3].num_examples, expected[modality].shape[1])
        np.testing.assert_allclose(array, expected[modality], rtol=1e-3, atol=1e-3)
    assert {path.name for path in (tmp_path / "train").iterdir()} == {
        f"{modality}.npy" for modality in modalities
    }


def test_target_selects_the_space_in_which_modalities_are_compared(pretrained, expected, tmp_path):
    run = str(pretrained[0])
    arguments = ["embed", "video", "--run", run, "--out", str(tmp_path), "--quiet"]
    assert cli.main([*arguments, "--target", "audio"]) == 0
    array = np.load(tmp_path / "train" / "video.npy")
    np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, rtol=1e-5)
    target = expected["video/audio"]
    target = target / np.linalg.norm(target, axis=1, keepdims=True)
    np.testing.assert_allclose(array, target, atol=1e-4)
    description = json.loads((tmp_path / "features.json").read_text())
    assert description["towers"]["video"] == "" and description["made"]["target"] == "audio"


@pytest.mark.parametrize(
    "arguments, facts",
    [
        (("video", "--target", "image"), ("--target", "'image'", "audio, text")),
        (("touch",), ("MODALITY", "'touch'", "audio, text, video")),
        (("video", "--variants", "2"), ("--variants", "--task=pretrain")),
    ],
)
def test_wrong_arguments_for_a_pretraining_run(arguments, facts, pretrained, tmp_path, capsys):
    run = str(pretrained[0])
    arguments = ["embed", *arguments, "--run", run, "--out", str(tmp_path), "--quiet"]
    assert cli.main(arguments) == 2
    assert_mentions(capsys.readouterr().err, *facts)
    assert not list(tmp_path.rglob("*.npy")) and not list(tmp_path.rglob(".*"))


def test_features_of_a_trained_tower_are_refused(features):
    cfg = config.load("touch", "demo:smoke", use_features(features))
    _, data_spec = session.open_train_data(cfg)
    with raises(UserError, "data.image.features", "config.optimizer.frozen=('^image/',)"):
        tasks.make_task(cfg, data_spec)
