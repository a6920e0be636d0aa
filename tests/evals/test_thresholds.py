"""`mmjax thresholds`: similarity thresholds from pairs of synonyms."""

import itertools
import json
import types

import numpy as np
import pytest

import mmjax
from mmjax.errors import UserError
from mmjax.evals import thresholds
from mmjax.evals.semantic_retrieval import THRESHOLDS
from mmjax.tools import cli
from tests.messages import assert_mentions, raises

SYNONYMS = {
    "soft": ["soft", "fluffy", "plush"],
    "fluffy": ["fluffy", "soft", "soft"],
    "hard": ["hard", "rigid"],
    "wet": ["wet"],
}


class Embedder:
    """Embeds a text as a random vector seeded by its characters, and records all texts."""

    def __init__(self):
        self.texts = []

    def __call__(self, texts):
        self.texts += texts
        vectors = [np.random.default_rng(list(text.encode())).normal(size=16) for text in texts]
        return 3 * np.array(vectors)

    def cosine(self, first, second):
        a, b = self([first, second])
        return a @ b / np.sqrt(a @ a * (b @ b))


def test_each_word_is_paired_with_its_synonyms_once():
    embed = Embedder()
    result = thresholds.similarities(SYNONYMS, embed, prompt="It is ")
    assert list(result) == [("soft", "fluffy"), ("soft", "plush"), ("hard", "rigid")]
    assert sorted(embed.texts) == sorted(
        f"It is {word}." for word in ("soft", "fluffy", "plush", "hard", "rigid")
    )
    for (first, second), value in result.items():
        expected = embed.cosine(f"It is {first}.", f"It is {second}.")
        assert value == pytest.approx(expected, abs=1e-6)


def test_pairs_all_combines_every_two_words_of_a_group():
    result = thresholds.similarities(SYNONYMS, Embedder(), pairs="all")
    expected = [*itertools.combinations(("soft", "fluffy", "plush"), 2), ("hard", "rigid")]
    assert sorted(map(sorted, result)) == sorted(map(sorted, expected))
    with raises(UserError, "synonym"):
        thresholds.similarities({"wet": ["wet"]}, Embedder())
    with raises(UserError, "--pairs", "'some'"):
        thresholds.similarities(SYNONYMS, Embedder(), pairs="some")


def test_report_compares_with_the_published_thresholds():
    values = np.interp(np.linspace(0, 75, 31), (0, 25, 50, 75), THRESHOLDS)
    cosines = {(f"a{i}", "b"): v for i, v in enumerate([*values, *[0.99] * 10])}
    report = thresholds.report(cosines)
    assert report["distance_to_published"] == pytest.approx(0, abs=1e-12)
    assert report["pairs"] == 41 and report["least_similar"][0] == ["a0", "b"]
    assert report["option"] == (
        "'--config.evals.NAME.thresholds=(0.6356450319,0.8591097295,0.8927201033,0.9208499491,)'"
    )
    cosines = {key: value - 0.01 for key, value in cosines.items()}
    assert thresholds.report(cosines)["minus_published"] == pytest.approx([-0.01] * 4)
    assert "distance_to_published" not in thresholds.report(cosines, (10, 50))
    for wrong in ((), (101,), (-1,)):
        with raises(UserError, "--percentiles", list(wrong), 0, 100):
            thresholds.report(cosines, wrong)


def test_command_prints_percentiles_of_the_cosines(tmp_path, monkeypatch, capsys):
    table = tmp_path / "synonyms.json"
    table.write_text(json.dumps({"soft": ["fluffy"], "hard": ["rigid", "firm"]}))
    embed, loaded = Embedder(), []

    def load(run, *, overrides):
        loaded.append((run, *overrides))
        return types.SimpleNamespace(embed_text=embed)

    monkeypatch.setattr(mmjax, "load", load, raising=False)
    command = ["thresholds", "runs/touch", "--synonyms", str(table), "--percentiles", "0", "50"]
    assert cli.main([*command, "--pairs", "all"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert loaded == [("runs/touch", "--config.model.dtype=float32")] and printed["pairs"] == 4
    pairs = [("soft", "fluffy"), *itertools.combinations(("hard", "rigid", "firm"), 2)]
    cosines = [embed.cosine(f"{a}.", f"{b}.") for a, b in pairs]
    assert printed["percentiles"]["0"] == pytest.approx(min(cosines), abs=1e-6)
    assert printed["percentiles"]["50"] == pytest.approx(np.median(cosines), abs=1e-6)
    missing = tmp_path / "no.json"
    assert cli.main(["thresholds", "runs/touch", "--synonyms", str(missing)]) == 2
    assert_mentions(capsys.readouterr().err, missing)
