"""Rows of tables: all kinds give the same, errors name file and line."""

import json
import re

import pytest

from mmjax.errors import UserError
from mmjax.tools import neighbour_scopes, tables

ROWS = [{"path": "a,1.jpg", "text": "Größe 漢"}, {"path": "b", "text": "x\ty"}]


@pytest.mark.parametrize("suffix", ["csv", "TSV", "jsonl", "ndjson", "parquet"])
def test_all_kinds_give_the_same(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pyarrow, parquet = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif suffix in ("jsonl", "ndjson"):
        text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
        path.write_text("\ufeff" + text, encoding="utf-8")
    else:
        tab = "\t" if suffix == "TSV" else ","
        lines = [ROWS[0].keys(), *(row.values() for row in ROWS)]
        text = "\n".join(tab.join(f'"{cell}"' for cell in line) for line in lines)
        path.write_text("\ufeff" + text + "\n\n", encoding="utf-8")
    numbers, found = zip(*tables.rows(str(path)), strict=True)
    assert list(found) == ROWS
    assert numbers == {"parquet": (1, 2), "csv": (2, 3), "TSV": (2, 3)}.get(suffix, (1, 3))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"a,b\n1,2,3\n", "line 2: 3 cells for 2 columns"),
        ("t.csv", b"a,b\n\xff,2\n", "t.csv is not text in UTF-8"),
        ("t.csv", b"a,b\n1\n\n1,2,3\n", "line 4: 3 cells"),
        ("t.jsonl", b'{"a": 1}\n[1]\n', "line 2: not a JSON object.$"),
        ("t.jsonl", b'{"a": 1}\n{"a"', "line 2: not JSON"),
        ("t.jsonl", b'{"a": 1}\n{"a": "\xff"}', "line 2: not JSON"),
        ("t.parquet", b"PAR", "cannot be read as Parquet"),
        ("t.xlsx", b"", "no table: its name must end in .csv, .tsv"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(tables.rows(str(tmp_path / name)))


def test_short_lines_and_columns_that_come_twice(tmp_path):
    (tmp_path / "t.tsv").write_text("a\tb\tb\n1\n2\t3\t4\n")
    want = [(2, [("a", "1"), ("b", ""), ("b", "")]), (3, [("a", "2"), ("b", "3"), ("b", "4")])]
    assert list(tables.cells(f"{tmp_path}/t.tsv")) == want


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=f"There is no table {re.escape(str(tmp_path))}/no.csv"):
        list(tables.rows(f"{tmp_path}/no.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        list(tables.rows(str(tmp_path / "folder.csv")))


def test_groups_of_lines_that_lack_the_column(tmp_path):
    table = tmp_path / "t.jsonl"
    lines = [{"path": "a"}, {"path": "b", "by": 1}, {"path": "c", "by": 1}, {"path": "d", "by": ""}]
    table.write_text("\n".join(map(json.dumps, lines)))
    groups = neighbour_scopes.groups_of(f"{table}:by", None, ["a", "b", "c", "d", "e"])
    assert groups[1] == groups[2] and len(set(groups.tolist())) == 4
    with pytest.raises(UserError, match="there is no column author; columns are path, by"):
        neighbour_scopes.groups_of(f"{table}:author", None, ["a"])
