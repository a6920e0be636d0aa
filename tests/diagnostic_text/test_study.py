"""Texts judged by a model: parsing, pertinence, statistics, and the command against a server."""

import csv
import json
import math

import pytest

from mmjax.diagnostic_text import study
from mmjax.diagnostic_text.study import Caption, Judgment, parse_judgment
from mmjax.errors import UserError
from mmjax.tools import cli
from tests.messages import assert_mentions, raises
from tests.vlm_server import VlmServer

MODEL = "gemma3:4b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"correct": true, "score": 4, "reason": "yes"}', Judgment(True, 4.0, "yes")),
        ("Sure: {'correct': False, 'score': 1.5} Done.", Judgment(False, 1.5, "")),
        ("<think>{}</think> {'pred': 'correct', 'score': 0}", Judgment(True, 0.0, "")),
        ("```json\n{\"pred\": \"incorrect\", \"score\": 5, \"reason\": \"{}\"}\n```",
         Judgment(False, 5.0, "{}")),
        ('{"correct": true, "score": 6}', None),
        ('{"correct": "yes", "score": 3}', None),
        ('{"correct": true, "score": true}', None),
        ('{"correct": true, "score": NaN}', None),
        ('{"pred": "maybe", "score": 3}', None),
        ("{'correct': __import__('os'), 'score': 3}", None),
        ("} {", None),
        ("[1]", None),
        ("{1, 2}", None),
        ("", None),
    ],
)  # fmt: skip
def test_judgments_are_the_outermost_braces(text, expected):
    assert parse_judgment(text) == expected


def test_a_pertinent_text_names_no_other_class():
    names = ["CAT", "TVMONITOR", "DOG"]
    for text, expected in (
        ("The CAT region is missed.", True),
        ("The CAT region covers the DOG.", False),
        ("The CAT region covers the dog.", True),  # a remark, not a class
        ("The CAT is confused with the TV MONITOR.", False),
    ):
        assert study.is_pertinent(Caption("1-8", "CAT", text), names) is expected, text


def captions(texts, classes=("CAT", "DOG")):
    keys = [f"{index}-{index % 2}" for index in range(len(texts))]
    return {
        key: Caption(key, classes[index % 2], text)
        for index, (key, text) in enumerate(zip(keys, texts, strict=True))
        if text is not None
    }


def test_rows_count_every_reference_once():
    references = captions(["a", "b", "c", "d", "e"])
    texts = {"mine": captions(["a", "x", None, "DOG CAT", "fails"])}

    def ask(questions):
        assert len(questions) == 4
        return [None if "fails" in q else _same(q) for q in questions]

    details, rows = study.judge(texts, references, ask, "{reference}={answer} {pos_class}")
    everything, cats, dogs = rows
    assert [row.class_name for row in rows] == ["all", "CAT", "DOG"]
    assert (everything.num_references, everything.num_missing, everything.num_failed) == (5, 1, 1)
    assert (cats.num_references, cats.num_missing, cats.num_failed) == (3, 1, 1)
    assert everything.correct == pytest.approx(1 / 3) and everything.score == pytest.approx(5 / 3)
    assert (cats.correct, dogs.correct) == (1.0, 0.0)
    assert everything.pertinent == 0.75 and dogs.pertinent == 0.5
    # Wilson interval of 1 of 3, by its formula.
    z, n, p = 1.959964, 3, 1 / 3
    center, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    bounds = [(center + sign * width) / (1 + z * z / n) for sign in (-1, 1)]
    assert everything.interval == pytest.approx(bounds, abs=1e-5)
    assert [one["failed"] for one in details] == [False, False, False, True]


def _same(question):
    reference, answer = question.rsplit(" ", 1)[0].split("=")
    return json.dumps({"correct": reference == answer, "score": 5 * (reference == answer)})


def test_a_question_keeps_braces_of_texts():
    reference, answer = Caption("1", "CAT", "{answer}"), Caption("1", "CAT", "{pos_class} {x}")
    text = study.question("{pos_class}|{reference}|{answer}|{}", reference, answer)
    assert text == "CAT|{answer}|{pos_class} {x}|{}"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(key, text, name="CAT"):
    return {"key": key, "class": name, "caption": text}


def test_the_command_compares_files_and_asks_no_question_twice(tmp_path, capsys):
    references = [row("1-8", "The CAT region is missed."), row("2-8", "The CAT region is good.")]
    files = [
        write(tmp_path / "same.jsonl", references),
        write(tmp_path / "other.jsonl", [references[0], row("2-8", "A DOG.")]),
    ]
    arguments = [*files, f"--references={write(tmp_path / 'truth.jsonl', references)}"]
    with VlmServer() as server:
        arguments += [f"--url={server.url}", f"--model={MODEL}", f"--out={tmp_path / 'out'}"]
        assert cli.main(["judge", *arguments]) == 0
        asked = len(server.bodies)
        first = capsys.readouterr().out
        assert cli.main(["judge", *arguments]) == 0
        assert capsys.readouterr().out == first and len(server.bodies) == asked == 3
        assert server.bodies[0]["format"]["required"] == ["correct", "score", "reason"]
        server.inject("empty", times=-1)
        arguments[-1] = f"--out={tmp_path / 'failed'}"
        assert cli.main(["judge", *arguments]) == 1
    with open(tmp_path / "out" / "study.csv", newline="") as file:
        table = {(one["texts"], one["class_name"]): one for one in csv.DictReader(file)}
    assert float(table[files[0], "all"]["correct"]) == 1
    assert float(table[files[1], "CAT"]["correct"]) == 0.5
    lines = (tmp_path / "out" / "judgments.jsonl").read_text().splitlines()
    assert len(lines) == 4 and json.loads(lines[0])["score"] == 5


def test_mistakes(tmp_path):
    good = write(tmp_path / "good.jsonl", [row("1-8", "a")])
    for name, content, facts in (
        ("twice", [row("1-8", "a"), row("1-8", "b")], ("twice", "line 2", "1-8")),
        ("keys", [{"key": "1-8", "text": "a"}], ("keys", "line 1", "caption")),
        ("empty", [], ("empty",)),
    ):
        with raises(UserError, *facts):
            study.read_captions(write(tmp_path / name, content))
    with raises(UserError, "missing.jsonl"):
        study.read_captions(tmp_path / "missing.jsonl")
    (tmp_path / "prompt.txt").write_text("Compare {answer} with {reference}.")
    with raises(UserError, "prompt.txt", "{pos_class}"):
        study.read_prompt(tmp_path / "prompt.txt")
    with raises(UserError, "2-8"):
        study.judge(
            {"mine": study.read_captions(good)}, {"2-8": Caption("2-8", "CAT", "a")}, list, ""
        )


def test_the_built_in_prompt_has_all_placeholders():
    assert_mentions(study.read_prompt(), "{pos_class}", "{reference}", "{answer}", "JSON")
