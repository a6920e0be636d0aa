"""The quality of diagnostic texts: a judge model compares them with references (TTDL, section 16).

Texts are files of JSON lines with the keys `key`, `class` and `caption`, as `mmjax differences`
writes them (captions.jsonl).
"""

from __future__ import annotations

import ast
import collections
import csv
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy import stats

from mmjax import files
from mmjax.diagnostic_text.templates import asset
from mmjax.diagnostic_text.validation import clean, names_class
from mmjax.errors import UserError

BUILT_IN = "judge.txt"
_PLACEHOLDERS = ("{pos_class}", "{reference}", "{answer}")
SCHEMA = {
    "type": "object",
    "properties": {
        "correct": {"type": "boolean"},
        "score": {"type": "integer", "minimum": 0, "maximum": 5},
        "reason": {"type": "string"},
    },
    "required": ["correct", "score", "reason"],
}
ALL = "all"  # the row of all classes together


@dataclasses.dataclass(frozen=True)
class Caption:
    """A text about a pair of an image and a class.

    Attributes:
      key: Key of the pair.
      class_name: Name of the class.
      text: The text.
    """

    key: str
    class_name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Judgment:
    """What the judge says about a text.

    Attributes:
      correct: Whether it agrees with the reference.
      score: From 0 to 5.
      reason: Why.
    """

    correct: bool
    score: float
    reason: str


@dataclasses.dataclass(frozen=True)
class Row:
    """Results of the texts about a class, or about all.

    Attributes:
      texts: Name of the file of texts.
      class_name: The class, or `ALL`.
      num_references: References.
      num_missing: References without a text.
      num_failed: Texts that the judge has not judged.
      correct: Fraction of judged texts that are correct; None if there are none.
      interval: Its 95 % Wilson interval.
      score: Mean score.
      pertinent: Fraction of texts that name no other class in capitals.
    """

    texts: str
    class_name: str
    num_references: int
    num_missing: int
    num_failed: int
    correct: float | None
    interval: tuple[float, float] | None
    score: float | None
    pertinent: float | None


def read_captions(path: str | os.PathLike) -> dict[str, Caption]:
    """Returns {key: caption} of a file.

    Raises:
      UserError: The file is missing, a line is not valid, or a key occurs twice.
    """
    result: dict[str, Caption] = {}
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path}: {error}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = files.parse_json(line, f"{path}, line {number}")
        keys = ("key", "class", "caption")
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
            raise UserError(
                f"{path}, line {number}: expected an object with the texts {', '.join(keys)}."
            )
        if row["key"] in result:
            raise UserError(f"{path}, line {number}: the key {row['key']!r} occurs twice.")
        result[row["key"]] = Caption(row["key"], row["class"], row["caption"])
    if not result:
        raise UserError(f"{path} contains no texts.")
    return result


def read_prompt(path: str | os.PathLike = BUILT_IN) -> str:
    """Returns the text of a prompt with the placeholders for class, reference and answer.

    Raises:
      UserError: The file is missing, or lacks a placeholder.
    """
    path = asset(path)
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the prompt {path}: {error}.") from error
    if missing := [name for name in _PLACEHOLDERS if name not in text]:
        raise UserError(f"The prompt {path} lacks {', '.join(missing)}. Add them.")
    return text


def question(prompt: str, reference: Caption, answer: Caption) -> str:
    """Returns what the judge is asked about an answer."""
    values = dict(
        zip(_PLACEHOLDERS, (reference.class_name, reference.text, answer.text), strict=True)
    )
    pattern = "|".join(map(re.escape, _PLACEHOLDERS))
    return re.sub(pattern, lambda match: values[match[0]], prompt)


def parse_judgment(text: str) -> Judgment | None:
    """Returns the judgment in the outermost braces of a text, JSON or a Python literal; or None.

    TTDL's keys `pred` ('correct' or 'incorrect') and `score` are read too.
    """
    text = clean(text)
    start, end = text.find("{"), text.rfind("}")
    if not 0 <= start < end:
        return None
    value: Any = None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text[start : end + 1])
            break
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    if not isinstance(value, Mapping):
        return None
    correct = value.get("correct")
    if correct is None and value.get("pred") in ("correct", "incorrect"):
        correct = value["pred"] == "correct"
    score = value.get("score")
    if not isinstance(correct, bool) or isinstance(score, bool):
        return None
    if not isinstance(score, int | float) or not 0 <= score <= 5:
        return None
    return Judgment(correct, float(score), str(value.get("reason", "")))


def is_pertinent(caption: Caption, class_names: Sequence[str]) -> bool:
    """Returns whether a text names no other class in capitals."""
    capitals = " ".join(re.findall(r"[A-Z][A-Z_-]+", caption.text))
    own = caption.class_name.casefold()
    return not any(names_class(capitals, name) for name in class_names if name.casefold() != own)


def judge(
    texts: Mapping[str, Mapping[str, Caption]],
    references: Mapping[str, Caption],
    ask: Callable[[Sequence[str]], Sequence[str | None]],
    prompt: str,
) -> tuple[list[dict[str, Any]], list[Row]]:
    """Judges texts.

    Args:
      texts: {name: {key: caption}}, one entry per file to compare.
      references: {key: reference}. Texts about other pairs are not judged.
      ask: Returns the judge's answer to each question; None if there is none.
      prompt: See `read_prompt`.

    Returns:
      One JSON object per judged text, and the results per file and class.

    Raises:
      UserError: A file has no text about a pair of the references.
    """
    class_names = sorted({caption.class_name for caption in references.values()})
    details, rows = [], []
    for name, captions in texts.items():
        pairs = [(references[key], captions[key]) for key in references if key in captions]
        if not pairs:
            raise UserError(
                f"{name} has no text about a pair of the references, such as "
                f"{next(iter(references))!r}. Both must come from the same pairs."
            )
        answers = ask([question(prompt, *pair) for pair in pairs])
        of_file = []
        for (reference, caption), answer in zip(pairs, answers, strict=True):
            judgment = parse_judgment(answer or "")
            entry = {
                "texts": name,
                "key": reference.key,
                "class": reference.class_name,
                "pertinent": is_pertinent(caption, class_names),
                "failed": judgment is None,
            }
            of_file.append(entry | (dataclasses.asdict(judgment) if judgment else {}))
        details += of_file
        rows += _rows(name, of_file, references.values())
    return details, rows


def _rows(name: str, entries: Sequence[Mapping], references: Sequence[Caption]) -> list[Row]:
    """Returns the row of all classes, then those of each class."""
    counts = collections.Counter(reference.class_name for reference in references)
    result = []
    for class_name, count in [(ALL, counts.total()), *sorted(counts.items())]:
        own = [one for one in entries if class_name in (ALL, one["class"])]
        judged = [one for one in own if not one["failed"]]
        hits = sum(one["correct"] for one in judged)
        interval = None
        if judged:
            bounds = stats.binomtest(hits, len(judged)).proportion_ci(method="wilson")
            interval = (float(bounds.low), float(bounds.high))
        result.append(
            Row(
                texts=name,
                class_name=class_name,
                num_references=count,
                num_missing=count - len(own),
                num_failed=len(own) - len(judged),
                correct=hits / len(judged) if judged else None,
                interval=interval,
                score=sum(one["score"] for one in judged) / len(judged) if judged else None,
                pertinent=sum(one["pertinent"] for one in own) / len(own) if own else None,
            )
        )
    return result


def write_results(
    directory: str | os.PathLike, details: Sequence[Mapping[str, Any]], rows: Sequence[Row]
) -> None:
    """Writes judgments.jsonl and study.csv."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with files.atomic_open(directory / "judgments.jsonl") as file:
        file.writelines(json.dumps(one) + "\n" for one in details)
    with files.atomic_open(directory / "study.csv") as file:
        table = csv.writer(file, lineterminator="\n")
        names = [field.name for field in dataclasses.fields(Row) if field.name != "interval"]
        table.writerow([*names, "correct_low", "correct_high"])
        for row in rows:
            values = [getattr(row, name) for name in names]
            table.writerow([*values, *(row.interval or (None, None))])
