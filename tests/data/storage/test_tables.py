"""Reading rows of tables: all formats give the same rows, and errors name file and line."""

import json

import pytest

from mmjax.data.storage import tables
from mmjax.errors import UserError
from tests.messages import raises

ROWS = [{"path": "a,1.jpg", "text": "Größe 漢"}, {"path": "b", "text": "x\ty"}]


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
        delimiter = "\t" if suffix == "TSV" else ","
        lines = [ROWS[0].keys(), *(row.values() for row in ROWS)]
        text = "\n".join(delimiter.join(f'"{cell}"' for cell in line) for line in lines)
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
