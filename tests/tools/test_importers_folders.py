"""`mmjax import captions`: folders of pictures with captions, tables, LGSSL's dictionaries."""

import json
import re
import shlex

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mmjax.data import captions, sources
from mmjax.tools import cli, manifest


class Folder:
    """Pictures and captions of one test, and what the command makes of them."""

    def __init__(self, root):
        self.root, self.media, self.out = root, root / "media", root / "made" / "table.jsonl"
        self.media.mkdir()

    def picture(self, name, size=(20, 10)):
        path = self.media / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size[1], size[0], 3), 99, np.uint8)).save(path)

    def write(self, name, content):
        path = self.media / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        path.write_text(text, encoding="utf-8")

    def pair(self, name, caption, **more):
        self.picture(f"{name}.jpg")
        self.write(f"{name}.json", {"caption": caption, **more})

    def run(self, *options, media="", out=None):
        places = ["--media", self.media / media, "--out", out or self.out, "--quiet"]
        return cli.main(["import", "captions", *map(str, [*places, *options])])

    def rows(self, *options, **places):
        assert self.run("--max-missing-fraction", 1, *options, **places) == 0
        return [json.loads(line) for line in self.out.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_order_splits_and_text(folder):
    folder.pair("b_2017_000001/2", "Größe  of a\ncat")
    folder.pair("b_2017_000001/10", ["first | one", "second"])
    folder.pair("a_2018_000001/x.y", "dotted")
    folder.picture("a_2018_000001/0.png")
    folder.write("a_2018_000001/0.txt", "\ufeffline one\n\nline two\n")
    assert folder.rows("--split", "dev") == [
        {"path": "a_2018_000001/0.png", "caption": ["line one", "line two"], "split": "dev"},
        {"path": "a_2018_000001/x.y.jpg", "caption": ["dotted"], "split": "dev"},
        {"path": "b_2017_000001/10.jpg", "caption": ["first | one", "second"], "split": "dev"},
        {"path": "b_2017_000001/2.jpg", "caption": ["Größe of a cat"], "split": "dev"},
    ]
    assert len(manifest.read_table(str(folder.out))[2].captions) == 2


def test_split_folders(folder):
    folder.pair("train/d/1", "a")
    folder.pair("val/d/2", "b")
    folder.write("stats.json", {"count": 2})  # beside the directories, no caption
    found = folder.rows()
    assert [(row["path"], row["split"]) for row in found] == [
        ("train/d/1.jpg", "train"),
        ("val/d/2.jpg", "val"),
    ]
    folder.pair("other/d/3", "c")  # then train and val are directories like others
    assert {row["split"] for row in folder.rows()} == {"train"}


def test_what_is_left_out_is_reported(folder, capsys):
    folder.pair("d/good", "a cat")
    folder.pair("d/empty", "  ")
    folder.pair("d/other", 7)
    folder.picture("d/alone.jpg")
    folder.picture("d/good.png")
    folder.write("d/lost.json", {"caption": "no picture of it"})
    folder.picture("d/broken.jpg")
    folder.write("d/broken.json", '{"caption": "cut o')
    folder.picture("d/keyless.jpg")
    folder.write("d/keyless.json", {"title": "a"})
    assert [row["path"] for row in folder.rows()] == ["d/good.jpg"]
    said = capsys.readouterr().out
    for line in (
        "2 left out, the caption is empty: d/empty.jpg, d/other.jpg.",
        "1 left out, no file with a caption: d/alone.jpg.",
        "1 left out, another picture of the same name is taken: d/good.png.",
        "1 left out, .json cannot be read: d/broken.jpg.",
        "1 left out, no 'caption' in .json: d/keyless.jpg.",
        "1 of 2 clips left out: 1 files are missing (missing.txt), first d/lost.json.",
    ):
        assert line in said
    assert folder.run() == 1  # half of the captions have no picture
    assert len(folder.rows("--caption-column", "title")) == 1


def test_limits_read_headers_alone(folder, capsys):
    for name, size in (("wide", (210, 10)), ("edge", (200, 10)), ("tall", (10, 300))):
        folder.picture(f"d/{name}.png", size)
        folder.write(f"d/{name}.txt", name)
    folder.pair("d/large", "large")
    with open(folder.media / "d/large.jpg", "ab") as file:
        file.write(bytes(1024 * 1024))
    folder.write("d/zero.txt", "no picture in it")
    folder.write("d/zero.jpg", "text")
    assert len(folder.rows()) == 5  # no limit, nothing is opened
    found = folder.rows("--max-kib", 1024, "--max-aspect", 20)
    assert [row["path"] for row in found] == ["d/edge.png"]
    said = capsys.readouterr().out
    assert "1 left out, more than 1024 KiB: d/large.jpg." in said
    assert "2 left out, one side is more than 20 times the other: d/tall.png, d/wide.png." in said
    assert "1 left out, cannot be read as a picture: d/zero.jpg." in said


def test_year_and_directories(folder, capsys):
    names = ("crochet_2017_000001", "crochet_2016_020171", "mac_and_cheese_2017_000004")
    for name in names:
        folder.pair(f"{name}/1", name)
    year = {row["caption"][0] for row in folder.rows("--year", 2017)}
    assert year == {names[0], names[2]}
    assert [r["caption"] for r in folder.rows("--directories", "mac_*")] == [[names[2]]]
    assert folder.run("--year", 2019) == 2
    assert "leave no directory; there is, for example," in capsys.readouterr().err


def test_the_dictionary_is_lgssls_and_is_read_back(folder):
    folder.pair("train/b_2017_1/2", "two")
    folder.pair("train/b_2017_1/1", "Größe")
    folder.pair("train/a_2017_1/1", "three")
    made = folder.root / "lists" / "redcaps.json"
    rows = folder.rows("--dictionary", made)
    text = made.read_text(encoding="utf-8")
    assert list(json.loads(text).items()) == [
        ("a_2017_1", {"1": ["train/a_2017_1/1.jpg", "three"]}),
        (
            "b_2017_1",
            {"1": ["train/b_2017_1/1.jpg", "Größe"], "2": ["train/b_2017_1/2.jpg", "two"]},
        ),
    ]
    for directory in json.loads(text).values():  # a loader finds them below the media
        assert all((folder.media / path).exists() for path, _ in directory.values())
    assert folder.rows("--table", made) == rows
    assert len(folder.rows("--table", made, "--directories", "b_*")) == 2


def test_two_splits_in_one_dictionary_are_refused(folder, capsys):
    folder.pair("train/d/1", "a")
    folder.pair("test/d/1", "b")
    made = folder.root / "redcaps.json"
    assert folder.run("--dictionary", made) == 2
    assert "test/d/1.jpg and train/d/1.jpg would be d/1" in capsys.readouterr().err
    assert not made.exists() and not folder.out.exists()
    assert len(folder.rows("--dictionary", made, media="test")) == 1


ROWS = [
    dict(id=5, IMAGE="d/1.jpg", text="a cat, red", subreddit="cats", label="x", split="train"),
    dict(id=6, IMAGE="d/2.jpg", text="a | b", subreddit=None, label="y", split="test+val"),
    dict(id=7, IMAGE="d/3.jpg", text="", subreddit="dogs", label="z", split="train"),
    dict(id=8, IMAGE="d/4.jpg", text="gone", subreddit="dogs", label="z", split="train"),
]


def write_table(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        tab = "\t" if path.suffix == ".tsv" else ","
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        cell = lambda value: "" if value is None else f'"{value}"'  # noqa: E731
        path.write_text("\n".join(tab.join(map(cell, line)) for line in lines))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_tables(folder, suffix, capsys):
    for number in (1, 2, 3):
        folder.picture(f"d/{number}.jpg")
    table = folder.root / f"table.{suffix}"
    write_table(table, ROWS)
    first, second = folder.rows("--table", table)
    number = str if suffix in ("csv", "tsv") else int
    assert first == {
        **{"path": "d/1.jpg", "caption": ["a cat, red"], "split": "train"},
        **{"id": number(5), "subreddit": "cats", "kept_label": "x"},
    }
    assert (second["caption"], second["split"]) == (["a | b"], "test+val")
    assert second.get("subreddit", "") == ""
    said = capsys.readouterr().out
    assert "1 left out, the caption is empty: d/3.jpg." in said and "first d/4.jpg" in said
    clips = manifest.read_table(str(folder.out))
    assert [(clip.labels, clip.captions) for clip in clips] == [
        ((), (row["caption"][0],)) for row in (first, second)
    ]
    chosen = folder.rows("--table", table, "--keep", "subreddit", "--caption-column", "label")
    assert [row["caption"] for row in chosen] == [["x"], ["y"], ["z"]]
    assert set(chosen[0]) == {"path", "caption", "split", "subreddit"}


def test_columns_of_its_own_need_jsonl(folder, capsys):
    folder.pair("d/1", "a", subreddit="cats", score=7, tags=["x"])
    assert folder.run("--keep", "subreddit", out=folder.root / "t.csv") == 2
    assert "(subreddit) are kept in a table that ends in .jsonl" in capsys.readouterr().err
    assert folder.run(out=folder.root / "t.csv") == 0
    (row,) = folder.rows("--keep", "subreddit", "score", "tags", "absent")
    assert row == dict(path="d/1.jpg", caption=["a"], split="train", subreddit="cats", score=7)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("t.csv", "where,caption\na,b\n", [], "the usual name of a path.*--path-column"),
        ("t.csv", "path,words\na,b\n", [], "name of a caption.*it has words.*--caption-column"),
        ("t.csv", "path,text\na,b\n", ["--caption-column", "x"], "--caption-column x: .* has text"),
        ("t.csv", "path,text\na,b\n", ["--keep", "x"], "--keep x: .* has path, text"),
        ("t.csv", "path,text\na,b,c\n", [], "line 2: 3 cells for 2 columns"),
        ("t.csv", "path,text,split\na,b,c/d\n", [], "line 2: the split 'c/d'"),
        ("t.jsonl", '{"path": "a", "text": "b"}\n{"path', [], "line 2: not JSON"),
        ("t.jsonl", "[1]\n", [], "line 1: not a JSON object"),
        ("t.jsonl", '{"image": {"bytes": "x"}, "text": "b"}', [], "image is dict, not the path"),
        ("t.parquet", "PAR", [], "cannot be read as Parquet"),
        ("t.json", '{"d": {"1": ["a.jpg"]}}', [], r"d/1: not \[path, caption\]"),
        ("t.json", '{"d": [1]}', [], "'d' holds no object"),
        ("t.xlsx", "", [], "ends in .csv, .tsv"),
    ],
)  # fmt: skip
def test_bad_tables(folder, capsys, name, content, options, message):
    (folder.root / name).write_text(content)
    assert folder.run("--table", folder.root / name, *options) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said


@pytest.mark.parametrize("option", ["--threads", "--max-kib", "--max-aspect"])
def test_numbers_below_one(folder, capsys, option):
    assert folder.run(option, 0) == 2
    assert f"{option} 0 must be at least 1" in capsys.readouterr().err


def test_nothing_at_all(folder, capsys):
    assert folder.run() == 2
    assert "Nothing below" in capsys.readouterr().err
    folder.picture("train/a_2020_000001/only.jpg")
    assert folder.run() == 2
    told = capsys.readouterr().err
    assert "1 left out, no file with a caption" in told and "a_2020_000001/only.jpg" in told
    assert folder.run("--table", folder.root / "none.csv") == 2
    assert "There is no --table" in capsys.readouterr().err


def test_the_command_that_comes_next_works_as_printed(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.root)
    for number in range(5):
        folder.pair(f"with blank/{number}", f"caption {number}")
    assert folder.run() == 0
    last = capsys.readouterr().out.splitlines()[-1]
    program, *command = shlex.split(last.removeprefix("Next: "))
    assert last.startswith("Next: ") and program == "mmjax"
    assert cli.main([*command, "--quiet", "--workers", "1"]) == 0
    source = sources.open_source("data/table", split="train")
    assert captions.read_captions(source, range(5)) == [[f"caption {n}"] for n in range(5)]


def test_links_to_other_folders_but_not_around(folder):
    folder.pair("cats/1", "a cat")
    (folder.root / "more").mkdir()
    (folder.media / "cats" / "1.jpg").rename(folder.root / "more" / "2.jpg")
    folder.picture("cats/1.jpg")
    (folder.root / "more" / "2.txt").write_text("a dog")
    (folder.media / "dogs").symlink_to(folder.root / "more")
    (folder.media / "cats" / "all").symlink_to(folder.media)
    (folder.media / "cats" / "self").symlink_to(folder.media / "cats")
    assert [row["path"] for row in folder.rows()] == ["cats/1.jpg", "dogs/2.jpg"]
