"""Captions: candidates, empty captions and random sampling."""

import pytest

from tests.data import toy_clips as toy
from tests.data.pipeline.one_record import run, train


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return toy.build(tmp_path_factory.mktemp("toy"), 12)


def test_text_candidates_skip_empty_captions(directory):
    data = train(directory)
    words = data.tokenizer.words
    out = run(data, toy.example(0, captions=["Red, circle!", "", "blue", "up up"]))
    assert out["text"].tolist() == [[words["red"], words["circle"], 0, 0], [words["blue"], 0, 0, 0]]
    assert out["text_mask"].tolist() == [1, 1]
    one = run(data, toy.example(0, captions=["up"]))
    assert one["text_mask"].tolist() == [1, 0] and not one["text"][1].any()


def test_random_sampling_uses_all_captions(directory):
    data = train(directory, text=dict(max_tokens=1, candidates=1, sample="random"))
    captions = ["red", "blue", "circle"]
    tokens = {int(run(data, toy.example(0, captions=captions), p)["text"][0, 0]) for p in range(30)}
    assert tokens == {data.tokenizer.words[c] for c in captions}
    first = train(directory, text=dict(max_tokens=1, candidates=1))
    tokens = {int(run(first, toy.example(0, captions=captions), p)["text"][0, 0]) for p in range(9)}
    assert tokens == {data.tokenizer.words["red"]}
