"""The flair task as a user runs it: train a model, then an adapter of two images on it."""

import contextlib

import numpy as np
import pytest

import mmjax
from mmjax import tree
from mmjax.checkpoints.manager import Checkpoints
from mmjax.convert.load import load_params
from mmjax.tools import cli
from tests.e2e import program

SMALL = (
    "--task=flair",
    "--config.tensorboard=False",
    "--config.model.image.num_layers=1",
    "--config.model.text.num_layers=1",
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(command, directory):
    """A run that trains all parts on images and captions."""
    options = ("--config=demo:smoke", "--config.data.text.candidates=2", "--model_dir=run")
    done = command(directory, *SMALL, *options).check()
    assert "text_to_image/R@1" in done.stdout and "image/top1" in done.stdout
    return directory / "run"


def test_an_adapter_is_trained_on_a_frozen_model(trained, command, directory):
    options = ("--config=demo:reference,smoke", "--model_dir=pairs")
    done = command(directory, *SMALL, *options, f"--override_checkpoint={trained}").check()
    assert "text_to_image/R@1" in done.stdout
    states = []
    for run in (trained, directory / "pairs"):
        with contextlib.closing(Checkpoints(run, read_only=True)) as saved:
            states.append(tree.flatten(saved.read(2, ["params"])))
    before, after = states
    params = [path for path in before if path.startswith("params/")]
    assert len(params) > 30 and all(np.array_equal(before[p], after[p]) for p in params)
    assert {p for p in after if p.startswith("params/")} - set(params) == {
        "params/concat_adapter/kernel"
    }
    assert program.curve(directory / "pairs")


def test_a_run_embeds_files_and_can_be_exported(trained, directory):
    model = mmjax.load(trained)
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 32, 3), np.uint8)
    image, text = model.embed_image(images), model.embed_text(["a red star", "a ring"])
    assert model.spaces == {"image": ("text",), "text": ("image",)}
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, rtol=1e-5)
    assert (image @ text.T).shape == (3, 2)
    out = directory / "flair.pth"
    assert cli.main(["convert", str(trained), "--to", "flair", "--out", str(out)]) == 0
    exported, (own, _) = load_params(str(out))[0], load_params(str(trained))
    assert set(exported) == set(own)
    assert all(np.array_equal(exported[path], own[path]) for path in own)
