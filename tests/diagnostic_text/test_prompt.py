"""Prompts from JSON modules, worked examples, and the form that Ollama's text has."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from mmjax.diagnostic_text.examples import load_examples
from mmjax.diagnostic_text.prompt import IMAGE, MODULES, Prompt, WorkedExample
from mmjax.diagnostic_text.templates import asset
from mmjax.diagnostic_text.vlm.apis import flatten
from mmjax.errors import UserError
from tests.messages import raises


def modules(**changes):
    with open(asset("comparison.json")) as file:
        return json.load(file) | changes


def write(tmp_path, table):
    path = tmp_path / "prompt.json"
    path.write_text(json.dumps(table))
    return path


def test_images_and_class_are_in_order():
    example = WorkedExample(b"T1", b"P1", "The {pos_class} [img] answer.")
    parts = Prompt(examples=[example]).build("TVMONITOR", b"T", b"P")
    assert [part for part in parts if isinstance(part, bytes)] == [b"T1", b"P1", b"T", b"P"]
    text, images = flatten(parts)
    assert text.count(IMAGE) == len(images) == 4
    assert text.count("TVMONITOR") == 2 and "Example 1" in text
    assert "{pos_class} [ img ] answer" in text  # answers are not substituted
    assert not any(isinstance(a, str) and isinstance(b, str) for a, b in itertools.pairwise(parts))
    without, images = flatten(Prompt().build("CAT", b"T", b"P"))
    assert len(images) == 2 and "Example 1" not in without


def test_variations_replace_the_default():
    default, _ = flatten(Prompt().build("CAT", b"T", b"P"))
    other, _ = flatten(Prompt(variations={"output_format": "no_example"}).build("CAT", b"T", b"P"))
    assert "MOUNTAIN" in default and "MOUNTAIN" not in other
    with raises(UserError, "output_format", "no_exampel", "no_example"):
        Prompt(variations={"output_format": "no_exampel"})
    with raises(UserError, "format", "output_format"):
        Prompt(variations={"format": "default"})


@pytest.mark.parametrize(
    ("module", "value", "facts"),
    [
        ("context", "for {class}", ["{class}", "{pos_class}"]),
        ("task", "see [img]", ["[img]"]),
        ("query", ["[img]", "[image]"], ["[image]", "[img]"]),
        ("query", ["[img] {pos_class}"], ["[img]", 1, 2]),
        ("support_set_item", "[img][img]", ["[answer_gt]"]),
        ("color_map", 5, ["5"]),
    ],
)
def test_bad_modules_are_reported(tmp_path, module, value, facts):
    path = write(tmp_path, modules(**{module: {"default": value}}))
    with raises(UserError, path, f"'{module}'", "'default'", *facts):
        Prompt(path, examples=[WorkedExample(b"", b"", "")])


def test_missing_and_unknown_modules_are_reported(tmp_path):
    with raises(UserError, "contxt", "context"):
        Prompt(write(tmp_path, modules(contxt={})))
    table = modules()
    del table["query"]
    path = write(tmp_path, table)
    with raises(UserError, path, "query"):
        Prompt(path)
    path.write_text("[]")
    with raises(UserError, path, *MODULES):
        Prompt(path)
    with raises(UserError, "none.json"):
        Prompt(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("a", b"1", "b", b"2", "c"), "a[img]\nb[img]\nc"),
        ((b"1", b"2", "b"), "[img][img]\nb"),
        (("a", b"1"), "a[img]"),
        (("a", b"1", "\n"), "a[img]\n"),
    ],
)
def test_newlines_follow_markers(parts, text):
    assert flatten(parts)[0] == text


def test_own_examples(tmp_path):
    Image.new("RGB", (20, 20), (10, 10, 10)).save(tmp_path / "scene.png")
    labels = np.zeros((20, 20), np.uint8)
    labels[:10] = 7
    Image.fromarray(labels).save(tmp_path / "truth.png")
    Image.fromarray(labels.T.copy()).save(tmp_path / "prediction.png")
    row = {name: f"{name}.png" for name in ("scene", "truth", "prediction")}
    row |= dict(class_name="CAT", label=7, answer="The CAT is rotated.")
    path = tmp_path / "examples.json"
    path.write_text(json.dumps([row]))
    (example,) = load_examples(str(path), size=10)
    assert example.answer == "The CAT is rotated." and example.truth[1:4] == b"PNG"
    assert example.truth != example.prediction
    for change, facts in (
        ({"truth": "none.png"}, ["truth", "none.png"]),
        ({"truth": "scene.png"}, ["truth", "scene.png", "RGB"]),
        ({"lable": 1}, ["lable", "label"]),
    ):
        path.write_text(json.dumps([row | change]))
        with raises(UserError, f"{path}, example 1", *facts):
            load_examples(str(path))
    assert load_examples("") == () and len(load_examples("drawn")) == 1
