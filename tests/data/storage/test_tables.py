"""Reading rows of tables: all formats give the same rows, and errors name file and line."""

import json

import pytest

from mmjax.data.storage import tables
from mmjax.errors import UserError
from tests.messages import assert_mentions, raises

ROWS = [{"path": "a,1.jpg", "text": "Größe 漢"}, {"path": "b", "text": 'x "y" 5"'}]


@pytest.mark.parametrize("suffix", ["csv", "TSV", "jsonl", "ndjson", "parquet"])
def test_all_formats_give_the_same_rows(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pyarrow, parquet = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif suffix in ("jsonl", "ndjson"):
        text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
        path.write_text("\ufeff" + text, encoding="utf-8")
    else:
        lines = [ROWS[0].keys(), *(row.values() for row in ROWS)]
        if suffix == "csv":  # quotes have no meaning in TSV
            lines = [['"{}"'.format(cell.replace('"', '""')) for cell in line] for line in lines]
        text = "\n".join(("," if suffix == "csv" else "\t").join(line) for line in lines)
        path.write_text("\ufeff" + text + "\n\n", encoding="utf-8")
    line_numbers, rows = zip(*tables.rows(str(path)), strict=True)
    assert list(rows) == ROWS
    assert line_numbers == {"parquet": (1, 2), "csv": (2, 3), "TSV": (2, 3)}.get(suffix, (1, 3))


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("t.csv", b"a,b\n1,2,3\n", ("line 2", " 3 ", " 2 ")),
        ("t.csv", b"a,b\n\xff,2\n", ("UTF-8", "0xff")),
        ("t.csv", b"a,b\n1\n\n1,2,3\n", ("line 4", " 3 ", " 2 ")),
        ("t.jsonl", b'{"a": 1}\n[1]\n', ("line 2", "JSON object")),
        ("t.jsonl", b'{"a": 1}\n{"a"', ("line 2", "JSON", "delimiter")),
        ("t.jsonl", b'{"a": 1}\n{"a": "\xff"}', ("line 2", "JSON", "0xff")),
        ("t.parquet", b"PAR", ("Parquet",)),
        ("t.xlsx", b"", (".csv", ".tsv", ".jsonl", ".parquet")),
    ],
)
def test_malformed_tables_are_named_with_the_line(tmp_path, name, content, facts):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with raises(UserError, tmp_path / name, *facts):
        list(tables.rows(str(tmp_path / name)))


def test_short_lines_are_padded_and_columns_may_repeat(tmp_path):
    (tmp_path / "t.tsv").write_text("a\tb\tb\n1\n2\t3\t4\n")
    expected = [(2, [("a", "1"), ("b", ""), ("b", "")]), (3, [("a", "2"), ("b", "3"), ("b", "4")])]
    assert list(tables.cells(f"{tmp_path}/t.tsv")) == expected


def test_missing_and_unreadable_files_are_named(tmp_path):
    with raises(UserError, f"{tmp_path}/no.csv"):
        list(tables.rows(f"{tmp_path}/no.csv"))
    (tmp_path / "directory.csv").mkdir()
    with raises(UserError, tmp_path / "directory.csv", "Is a directory"):
        list(tables.rows(str(tmp_path / "directory.csv")))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_spreadsheets_are_read(tmp_path, encoding):
    (tmp_path / "t.csv").write_text('Path, text\r\na.jpg, "x, é"\r\n', encoding=encoding)
    assert list(tables.rows(f"{tmp_path}/t.csv")) == [(2, {"Path": "a.jpg", "text": "x, é"})]


@pytest.mark.parametrize(
    "lines, facts",
    [
        (['a.jpg,"Best day', "b.jpg,a dog", 'c.jpg,a cat "'], ("line 2", "line 4")),
        (["a.jpg,x", 'b.jpg,"Best day', "c.jpg,a dog"], ("line 3", "not closed")),
        (["a.jpg,x", 'b.jpg,x,"Best day'], ("line 3", "not closed")),
        (['"a.jpg,x', 'b.jpg,y"'], ("line 2",)),
    ],
)
def test_an_unclosed_quote_is_an_error_that_names_its_line(tmp_path, lines, facts):
    (tmp_path / "t.csv").write_text("\n".join(["path,caption", *lines]))
    with raises(UserError, tmp_path / "t.csv", *facts):
        list(tables.rows(f"{tmp_path}/t.csv"))


def test_cells_with_several_lines_and_single_quotes_are_read(tmp_path):
    text = 'path,caption\na.jpg,"two\nlines, of text. ""x"""\nb.jpg,5" wide\n'
    (tmp_path / "t.csv").write_text(text)
    expected = [(3, 'two\nlines, of text. "x"'), (4, '5" wide')]
    assert [(n, row["caption"]) for n, row in tables.rows(f"{tmp_path}/t.csv")] == expected


def test_quotes_are_text_in_tsv(tmp_path):
    (tmp_path / "t.tsv").write_text('path\tcaption\na\t"Best day\nb\t a ""cat"" "\n')
    captions = [row["caption"] for _, row in tables.rows(f"{tmp_path}/t.tsv")]
    assert captions == ['"Best day', ' a ""cat"" "']


@pytest.mark.parametrize(
    "name, header, facts",
    [
        ("t.csv", "path;caption", ("commas", "semicolons", "path, caption")),
        ("t.csv", "path\tcaption", ("commas", "tabs", ".tsv")),
        ("t.tsv", "path,caption", ("tabs", "commas", ".csv")),
    ],
)
def test_another_delimiter_is_recognized(tmp_path, name, header, facts):
    (tmp_path / name).write_text(f"{header}\na.jpg;ein Hund\n")
    with raises(UserError, tmp_path / name, "line 1", *facts):
        list(tables.rows(f"{tmp_path}/{name}"))


def test_cells_of_json_are_missing_if_nan_and_lose_halves_of_surrogates(tmp_path, caplog):
    (tmp_path / "t.jsonl").write_text(
        '{"a": NaN, "b": "x \\ud83d", "c": ["\\ud83d\\ude00", NaN, 1.5]}\n{"a": "\\udc00"}\n'
    )
    rows = [row for _, row in tables.rows(f"{tmp_path}/t.jsonl")]
    assert rows == [{"a": None, "b": "x \ufffd", "c": ["\U0001f600", 1.5]}, {"a": "\ufffd"}]
    assert_mentions(caplog.text, tmp_path / "t.jsonl", "replaced 2")


def test_deep_json_binary_cells_and_repeated_columns_are_errors(tmp_path):
    (tmp_path / "t.jsonl").write_text("[" * 100_000)
    with raises(UserError, tmp_path / "t.jsonl", "line 1", "nested too deeply"):
        list(tables.rows(f"{tmp_path}/t.jsonl"))
    (tmp_path / "t.csv").write_text("a,b,a\n1,2,3\n")
    with raises(UserError, tmp_path / "t.csv", "'a'"):
        list(tables.rows(f"{tmp_path}/t.csv"))
    pyarrow, parquet = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))
    parquet.write_table(pyarrow.Table.from_pylist([{"a": b"\xff\xd8"}]), tmp_path / "t.parquet")
    with raises(UserError, tmp_path / "t.parquet", "line 1", "'a'"):
        list(tables.rows(f"{tmp_path}/t.parquet"))
    parquet.write_table(pyarrow.Table.from_pylist([{"a": b"x.jpg"}]), tmp_path / "t.parquet")
    assert [row for _, row in tables.rows(f"{tmp_path}/t.parquet")] == [{"a": "x.jpg"}]
