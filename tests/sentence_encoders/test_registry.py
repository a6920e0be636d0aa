"""Sentence encoders from files outside the package: `--encoder package.module:Name`."""

import textwrap

import numpy as np
import pytest

from mmjax.data.pipeline import precomputed_features
from mmjax.errors import UserError
from mmjax.sentence_encoders.registry import make_encoder
from mmjax.tools import cli
from tests.messages import assert_mentions, raises
from tests.sentence_encoders.test_embed_captions import COUNT, TEXTS, build

MODULE = """
import numpy as np
from mmjax.sentence_encoders.base import Encoder

class Lengths(Encoder):
    normalized = False

    def __init__(self, *, width: int = 2):
        self.width = width

    def describe(self):
        return {"version": 1, "width": self.width}

    def embed(self, texts):
        return np.array([[len(text)] * self.width for text in texts], np.float32)

class WrongShape(Lengths):
    def embed(self, texts):
        return np.zeros((len(texts), 9), np.float32)

class Incomplete:
    width = 2
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build(tmp_path_factory.mktemp("data"), TEXTS)


@pytest.fixture(autouse=True)
def module(tmp_path_factory, monkeypatch):
    """A package `my_encoders` outside of mmjax, with the module `lengths`."""
    directory = tmp_path_factory.mktemp("outside")
    package = directory / "my_encoders"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "lengths.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(directory)


def test_an_encoder_outside_the_package_embeds_captions(data, tmp_path):
    reference = "my_encoders.lengths:Lengths"
    command = ["sentences", data, "--out", str(tmp_path), "--quiet", "--encoder", reference]
    assert cli.main([*command, "--width", "3"]) == 0
    vectors = np.load(tmp_path / "train" / "text.npy")
    assert vectors.shape == (COUNT, 3)
    np.testing.assert_array_equal(vectors[0], [len(TEXTS[0][0])] * 3)
    made = precomputed_features.read_description(tmp_path)["made"]["train/text"]
    assert made == {"encoder": reference, "captions": "first", "version": 1, "width": 3}


def test_options_that_the_constructor_does_not_take_are_an_error():
    reference = "my_encoders.lengths:Lengths"
    assert make_encoder(reference, width=None, vocab=None).width == 2
    with raises(UserError, "--vocab", f"--encoder {reference}", "--width"):
        make_encoder(reference, width=3, vocab="words.txt")
    with raises(UserError, "--width", 0, 1):
        make_encoder(reference, width=0)


def test_a_class_without_the_interface_is_an_error():
    reference = "my_encoders.lengths:Incomplete"
    with raises(UserError, reference, "describe", "embed", "mmjax.sentence_encoders.base.Encoder"):
        make_encoder(reference)


def test_an_array_of_another_shape_is_an_error(data, tmp_path, capsys):
    reference = "my_encoders.lengths:WrongShape"
    command = ["sentences", data, "--out", str(tmp_path), "--quiet", "--encoder", reference]
    assert cli.main(command) == 2
    assert_mentions(capsys.readouterr().err, f"--encoder {reference}", (6, 9), (6, 2))
