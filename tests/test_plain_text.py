"""Captions, class names and file names are data: no output executes them."""

import csv
import io
import json
import logging as std_logging
import os
import sys
import types

import numpy as np
import pytest

from mmjax import files, plain_text
from mmjax.data.build import finalize, manifest
from mmjax.data.importers import table_writer
from mmjax.data.importers.base import AnnotatedExample
from mmjax.data.storage import tables
from mmjax.errors import UserError
from mmjax.evals import suite_table
from mmjax.monitor import log, report
from mmjax.sentence_encoders.text_features import TextFeatures
from mmjax.tools import cli

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\r\u202eevil"
FORMULAS = ["=cmd|' /C calc'!A0", "+1+2", "-2+3", "@SUM(1)", "\t=1", "\r=1", "=HYPERLINK(1)"]


def controls(text, allowed="\n"):
    """Control and direction characters in a text."""
    return [
        c
        for c in text
        if (ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e") and c not in allowed
    ]


def test_control_characters_become_visible():
    shown = plain_text.plain(ESCAPES)
    assert not controls(shown) and "\\x1b[2J" in shown and "\\u202e" in shown
    assert plain_text.plain("Käse – 猫 🐈\n", keep="\n") == "Käse – 猫 🐈\n"
    plain_text.plain("a\udcff").encode()  # a file name that is not UTF-8


def test_output_of_commands_has_no_escape_codes(tmp_path, capsys):
    path = tmp_path / f"{ESCAPES}.npz"
    assert cli.main(["convert", str(path), "--inspect"]) == 2
    captured = capsys.readouterr()
    assert not controls(captured.err) and "\\x1b[2J" in captured.err
    np.savez(path, word_embeddings=np.ones((3, 2), np.float32))
    assert cli.main(["convert", str(path), "--inspect"]) == 0
    captured = capsys.readouterr()
    assert not controls(captured.out) and "\\x1b[2J" in captured.out
    print("\x1b", end="")  # the streams are as before
    assert capsys.readouterr().out == "\x1b"


def test_the_streams_keep_what_progress_bars_need(capsys):
    with plain_text.plain_output():
        print("a\tb\r", file=sys.stderr)
        print("a\tb\r")
        sys.stdout.writelines(["\x07", "\n"])
        assert not sys.stdout.isatty()
    captured = capsys.readouterr()
    assert captured.err == "a\tb\r\n" and captured.out == "a\tb\\x0d\n\\x07\n"


def test_log_and_tables_have_no_escape_codes():
    formatter = log._Formatter("%(message)s")
    record = std_logging.LogRecord("x", std_logging.INFO, "f", 1, "class %s\n", (ESCAPES,), None)
    assert not controls(formatter.format(record))
    lines = report.format_table(("class",), [(ESCAPES + "\nfake row",)], title="t").splitlines()
    assert len(lines) == 4 and not controls("".join(lines))


@pytest.mark.parametrize("text", FORMULAS)
def test_csv_cells_are_no_formulas(text):
    assert plain_text.csv_cell(text) == "'" + text
    assert plain_text.csv_cell(text, guard=" ") == " " + text


@pytest.mark.parametrize("text", ["-1.5", "+2", "1e-3", "a=b", "", "50%", "a cat", "-3.2%"])
def test_numbers_and_text_are_unchanged(text):
    assert plain_text.csv_cell(text) == text


def test_tex_has_no_commands():
    text = plain_text.tex("\\input{/etc/passwd} $x^2$ ~ a_b & c # % \x1b")
    assert "\\input" not in text and "\\textbackslash{}input\\{" in text
    assert "\\$x\\textasciicircum{}2\\$" in text and not controls(text)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_imported_tables_are_no_formulas_and_are_read_unchanged(tmp_path, name):
    path = tmp_path / name
    captions = [text for text in FORMULAS if text == text.strip() and "|" not in text]
    with open(path, "w", newline="") as file:
        write = table_writer.make_writer(file, name, ["caption"])
        for caption in captions:
            write(
                AnnotatedExample(location="a", split="train", captions=(caption,)),
                "=a.jpg",
                0.5,
                2.0,
            )
    if name != "t.jsonl":
        rows = [row for _, row in tables.rows(str(path))]
        content = list(csv.reader(open(path), delimiter="\t" if name == "t.tsv" else ","))
        assert all(not cell.startswith(("=", "+", "-", "@")) for row in content for cell in row)
        assert len(rows) == len(captions)
    clips = manifest.read_table(str(path), separator="")
    assert [(clip.path, clip.captions) for clip in clips] == [("=a.jpg", (c,)) for c in captions]


def test_rejected_rows_are_no_formulas(tmp_path):
    path = tmp_path / "bad_rows.csv"
    row = {"line": 3, "path": "=cmd|x", "start": None, "end": 2.5, "error": "@SUM(1) is missing"}
    finalize._write_bad_rows(str(path), [row])
    (content,) = csv.DictReader(open(path))
    assert content == {
        **{"line": "3", "path": "'=cmd|x", "start": "", "end": "2.5"},
        "error": "'@SUM(1) is missing",
    }


def test_the_tables_of_a_suite_escape_names():
    metrics = {"=cmd|x": "accuracy", "a\\input{b}_$": "accuracy", "\x1b[2J": "accuracy"}
    results = {f"{name}/linear": 0.5 for name in metrics}
    names = [row[0] for row in csv.reader(io.StringIO(suite_table.as_csv(results, metrics)))]
    assert "'=cmd|x" in names and "=cmd|x" not in names
    tex = suite_table.as_tex(results, metrics)
    assert "\\input" not in tex and "a\\textbackslash{}input\\{b\\}\\_\\$" in tex
    assert not controls(suite_table.as_text(results, metrics, title="t") + tex)


def test_orphans_of_killed_processes_are_removed(tmp_path):
    process = os.fork()
    if not process:
        os._exit(0)
    os.waitpid(process, 0)
    for name in (f".a.partial-{process}", f".b.partial-{os.getpid()}", ".c.partial-x", "d"):
        (tmp_path / name).write_text("x")
    (tmp_path / f".e.partial-{process}").mkdir()
    files.remove_orphans(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted([f".b.partial-{os.getpid()}", ".c.partial-x", "d"])


def text_features(directory):
    source = types.SimpleNamespace(num_examples=3, info=types.SimpleNamespace(name="toy"))
    return TextFeatures(source=source, split="train", out=str(directory), progress=False)


def test_two_processes_do_not_write_the_same_sentences(tmp_path):
    features = text_features(tmp_path)
    with features.locked():
        with pytest.raises(UserError, match="text.npy"):
            with features.locked():
                pass
    with features.locked():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
    assert not list((tmp_path / "train").iterdir())


def test_a_damaged_partial_file_of_sentences_is_replaced(tmp_path):
    features = text_features(tmp_path)
    job = {"shape": [3, 2]}
    vectors, state = features.open_partial(job, ())
    features.save_state(state | {"done": 2})
    assert features.open_partial(job, ())[1]["done"] == 2
    with open(features.partial_path, "ab") as file:
        file.write(b"\0")
    assert features.open_partial(job, ())[1]["done"] == 0
    (tmp_path / "train" / "text.npy.partial.json").write_text("[" * 100_000)
    assert json.dumps(features.open_partial(job, ())[1]["done"]) == "0"
