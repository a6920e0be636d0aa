"""`mmjax import captions`: directories of captioned images, tables, LGSSL's dictionaries."""

import json
import shlex

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mmjax.data.build import manifest
from mmjax.data.sources import captions
from mmjax.data.sources import registry as sources
from mmjax.tools import cli
from tests.data.importers.importing import assert_line_mentions
from tests.messages import assert_mentions


class Workspace:
    """The images and captions of one test, and the table that the command writes."""

    def __init__(self, root):
        self.root, self.media, self.out = root, root / "media", root / "made" / "table.jsonl"
        self.media.mkdir()

    def image(self, name, size=(20, 10)):
        path = self.media / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size[1], size[0], 3), 99, np.uint8)).save(path)

    def write(self, name, content):
        path = self.media / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        path.write_text(text, encoding="utf-8")

    def pair(self, name, caption, **more):
        self.image(f"{name}.jpg")
        self.write(f"{name}.json", {"caption": caption, **more})

    def run(self, *options, media="", out=None):
        paths = ["--media", self.media / media, "--out", out or self.out, "--quiet"]
        return cli.main(["import", "captions", *map(str, [*paths, *options])])

    def rows(self, *options, **paths):
        assert self.run("--max-missing-fraction", 1, *options, **paths) == 0
        return [json.loads(line) for line in self.out.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def test_rows_are_sorted_and_captions_are_normalized(workspace):
    workspace.pair("b_2017_000001/2", "Größe  of a\ncat")
    workspace.pair("b_2017_000001/10", ["first | one", "second"])
    workspace.pair("a_2018_000001/x.y", "dotted")
    workspace.image("a_2018_000001/0.png")
    workspace.write("a_2018_000001/0.txt", "\ufeffline one\n\nline two\n")
    assert workspace.rows("--split", "dev") == [
        {"path": "a_2018_000001/0.png", "caption": ["line one", "line two"], "split": "dev"},
        {"path": "a_2018_000001/x.y.jpg", "caption": ["dotted"], "split": "dev"},
        {"path": "b_2017_000001/10.jpg", "caption": ["first | one", "second"], "split": "dev"},
        {"path": "b_2017_000001/2.jpg", "caption": ["Größe of a cat"], "split": "dev"},
    ]
    assert len(manifest.read_table(str(workspace.out))[2].captions) == 2


def test_split_directories_name_the_splits(workspace):
    workspace.pair("train/d/1", "a")
    workspace.pair("val/d/2", "b")
    workspace.write("stats.json", {"count": 2})  # next to the directories, not a caption
    rows = workspace.rows()
    assert [(row["path"], row["split"]) for row in rows] == [
        ("train/d/1.jpg", "train"),
        ("val/d/2.jpg", "val"),
    ]
    workspace.pair("other/d/3", "c")  # train and val are then ordinary directories
    assert {row["split"] for row in workspace.rows()} == {"train"}


def test_skipped_files_are_counted_and_named(workspace, capsys):
    workspace.pair("d/good", "a cat")
    workspace.pair("d/empty", "  ")
    workspace.pair("d/other", 7)
    workspace.image("d/alone.jpg")
    workspace.image("d/good.png")
    workspace.write("d/lost.json", {"caption": "no image of it"})
    workspace.image("d/broken.jpg")
    workspace.write("d/broken.json", '{"caption": "cut o')
    workspace.image("d/keyless.jpg")
    workspace.write("d/keyless.json", {"title": "a"})
    assert [row["path"] for row in workspace.rows()] == ["d/good.jpg"]
    output = capsys.readouterr().out
    for facts in (
        (2, "caption", "d/empty.jpg, d/other.jpg"),
        (1, "caption", "d/alone.jpg"),
        (1, "d/good.png"),
        (1, ".json", "d/broken.jpg"),
        (1, ".json", "'caption'", "d/keyless.jpg"),
        (1, 2, "missing.txt", "d/lost.json"),
    ):
        assert_line_mentions(output, *facts)
    assert workspace.run() == 1  # half of the captions have no image
    assert len(workspace.rows("--caption-column", "title")) == 1


def test_size_limits_read_only_image_headers(workspace, capsys):
    for name, size in (("wide", (210, 10)), ("edge", (200, 10)), ("tall", (10, 300))):
        workspace.image(f"d/{name}.png", size)
        workspace.write(f"d/{name}.txt", name)
    workspace.pair("d/large", "large")
    with open(workspace.media / "d/large.jpg", "ab") as file:
        file.write(bytes(1024 * 1024))
    workspace.write("d/zero.txt", "not an image")
    workspace.write("d/zero.jpg", "text")
    assert len(workspace.rows()) == 5  # without a limit, no image is opened
    rows = workspace.rows("--max-kib", 1024, "--max-aspect", 20)
    assert [row["path"] for row in rows] == ["d/edge.png"]
    output = capsys.readouterr().out
    assert_line_mentions(output, 1, "1024 KiB", "d/large.jpg")
    assert_line_mentions(output, 2, 20, "d/tall.png, d/wide.png")
    assert_line_mentions(output, 1, "d/zero.jpg")


def test_year_and_directories_select_by_name(workspace, capsys):
    names = ("crochet_2017_000001", "crochet_2016_020171", "mac_and_cheese_2017_000004")
    for name in names:
        workspace.pair(f"{name}/1", name)
    year = {row["caption"][0] for row in workspace.rows("--year", 2017)}
    assert year == {names[0], names[2]}
    assert [r["caption"] for r in workspace.rows("--directories", "mac_*")] == [[names[2]]]
    assert workspace.run("--year", 2019) == 2
    assert_mentions(capsys.readouterr().err, "--year", "--directories", repr(names[2]))


def test_dictionary_has_the_lgssl_format_and_is_read_back(workspace):
    workspace.pair("train/b_2017_1/2", "two")
    workspace.pair("train/b_2017_1/1", "Größe")
    workspace.pair("train/a_2017_1/1", "three")
    made = workspace.root / "lists" / "redcaps.json"
    rows = workspace.rows("--dictionary", made)
    text = made.read_text(encoding="utf-8")
    assert list(json.loads(text).items()) == [
        ("a_2017_1", {"1": ["train/a_2017_1/1.jpg", "three"]}),
        (
            "b_2017_1",
            {"1": ["train/b_2017_1/1.jpg", "Größe"], "2": ["train/b_2017_1/2.jpg", "two"]},
        ),
    ]
    for directory in json.loads(text).values():  # paths are relative to --media
        assert all((workspace.media / path).exists() for path, _ in directory.values())
    assert workspace.rows("--table", made) == rows
    assert len(workspace.rows("--table", made, "--directories", "b_*")) == 2


def test_two_splits_in_one_dictionary_are_refused(workspace, capsys):
    workspace.pair("train/d/1", "a")
    workspace.pair("test/d/1", "b")
    made = workspace.root / "redcaps.json"
    assert workspace.run("--dictionary", made) == 2
    facts = ("--dictionary", "test/d/1.jpg", "train/d/1.jpg", " d/1", "--media")
    assert_mentions(capsys.readouterr().err, *facts)
    assert not made.exists() and not workspace.out.exists()
    assert len(workspace.rows("--dictionary", made, media="test")) == 1


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
        delimiter = "\t" if path.suffix == ".tsv" else ","
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        quote = '"' if path.suffix == ".csv" else ""
        cell = lambda value: "" if value is None else f"{quote}{value}{quote}"  # noqa: E731
        path.write_text("\n".join(delimiter.join(map(cell, line)) for line in lines))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_of_all_formats_are_imported(workspace, suffix, capsys):
    for index in (1, 2, 3):
        workspace.image(f"d/{index}.jpg")
    table = workspace.root / f"table.{suffix}"
    write_table(table, ROWS)
    first, second = workspace.rows("--table", table)
    number_type = str if suffix in ("csv", "tsv") else int
    assert first == {
        **{"path": "d/1.jpg", "caption": ["a cat, red"], "split": "train"},
        **{"id": number_type(5), "subreddit": "cats", "kept_label": "x"},
    }
    assert (second["caption"], second["split"]) == (["a | b"], "test+val")
    assert second.get("subreddit", "") == ""
    output = capsys.readouterr().out
    assert_line_mentions(output, 1, "caption", "d/3.jpg")
    assert_line_mentions(output, 1, "missing.txt", "d/4.jpg")
    ignored = "id,subreddit,kept_label"
    assert_mentions(output, f"--ignore-columns {ignored}")
    clips = manifest.read_table(str(workspace.out), ignore_columns=ignored.split(","))
    assert [(clip.labels, clip.captions) for clip in clips] == [
        ((), (row["caption"][0],)) for row in (first, second)
    ]
    rows = workspace.rows("--table", table, "--keep", "subreddit", "--caption-column", "label")
    assert [row["caption"] for row in rows] == [["x"], ["y"], ["z"]]
    assert set(rows[0]) == {"path", "caption", "split", "subreddit"}


def test_kept_columns_need_a_jsonl_table(workspace, capsys):
    workspace.pair("d/1", "a", subreddit="cats", score=7, tags=["x"])
    assert workspace.run("--keep", "subreddit", out=workspace.root / "t.csv") == 2
    assert_mentions(capsys.readouterr().err, f"--out {workspace.root}/t.csv", "subreddit", ".jsonl")
    assert workspace.run(out=workspace.root / "t.csv") == 0
    (row,) = workspace.rows("--keep", "subreddit", "score", "tags", "absent")
    assert row == dict(path="d/1.jpg", caption=["a"], split="train", subreddit="cats", score=7)


@pytest.mark.parametrize(
    ("name", "content", "options", "facts"),
    [
        ("t.csv", "where,caption\na,b\n", [], ("t.csv", "where, caption", "--path-column")),
        ("t.csv", "path,words\na,b\n", [], ("t.csv", "words", "--caption-column")),
        ("t.csv", "path,text\na,b\n", ["--caption-column", "x"], ("--caption-column x", "text")),
        ("t.csv", "path,text\na,b\n", ["--keep", "x"], ("--keep x", "path, text")),
        ("t.csv", "path,text\na,b,c\n", [], ("t.csv", "line 2", " 3 ", " 2 ")),
        ("t.csv", "path,text,split\na,b,c/d\n", [], ("t.csv", "line 2", "'c/d'")),
        ("t.jsonl", '{"path": "a", "text": "b"}\n{"path', [], ("t.jsonl", "line 2", "JSON")),
        ("t.jsonl", "[1]\n", [], ("t.jsonl", "line 1", "JSON object")),
        (
            "t.jsonl",
            '{"image": {"bytes": "x"}, "text": "b"}',
            [],
            ("t.jsonl", "line 1", "image", "dict", "--path-column"),
        ),
        ("t.parquet", "PAR", [], ("t.parquet", "Parquet")),
        ("t.json", '{"d": {"1": ["a.jpg"]}}', [], ("t.json", "d/1", "[path, caption]")),
        ("t.json", '{"d": [1]}', [], ("t.json", "'d'", "[path, caption]")),
        ("t.xlsx", "", [], ("--table", "t.xlsx", ".csv, .tsv", ".json")),
    ],
)
def test_malformed_tables_are_named(workspace, capsys, name, content, options, facts):
    (workspace.root / name).write_text(content)
    assert workspace.run("--table", workspace.root / name, *options) == 2
    assert_mentions(capsys.readouterr().err, *facts)


@pytest.mark.parametrize("option", ["--threads", "--max-kib", "--max-aspect"])
def test_numbers_below_one_are_refused(workspace, capsys, option):
    assert workspace.run(option, 0) == 2
    assert_line_mentions(capsys.readouterr().err, option, 0, 1)


def test_media_without_captioned_images_are_refused(workspace, capsys):
    assert workspace.run() == 2
    assert_mentions(capsys.readouterr().err, workspace.media, "mmjax import captions --help")
    workspace.image("train/a_2020_000001/only.jpg")
    assert workspace.run() == 2
    facts = (workspace.media, 1, "train/a_2020_000001/only.jpg", "mmjax import captions --help")
    assert_line_mentions(capsys.readouterr().err, *facts)
    assert workspace.run("--table", workspace.root / "none.csv") == 2
    assert_mentions(capsys.readouterr().err, f"--table {workspace.root}/none.csv")


def test_printed_next_command_builds_the_dataset(workspace, capsys, monkeypatch):
    monkeypatch.chdir(workspace.root)
    for index in range(5):
        workspace.pair(f"with blank/{index}", f"caption {index}")
    assert workspace.run() == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert_mentions(last, "mmjax build ")
    command = shlex.split(last[last.index("mmjax build ") :])[1:]
    assert cli.main([*command, "--quiet", "--workers", "1"]) == 0
    source = sources.open_source("datasets/table", split="train")
    assert captions.read_captions(source, range(5)) == [[f"caption {n}"] for n in range(5)]


def test_links_are_followed_but_not_cycles(workspace):
    workspace.pair("cats/1", "a cat")
    (workspace.root / "more").mkdir()
    (workspace.media / "cats" / "1.jpg").rename(workspace.root / "more" / "2.jpg")
    workspace.image("cats/1.jpg")
    (workspace.root / "more" / "2.txt").write_text("a dog")
    (workspace.media / "dogs").symlink_to(workspace.root / "more")
    (workspace.media / "cats" / "all").symlink_to(workspace.media)
    (workspace.media / "cats" / "self").symlink_to(workspace.media / "cats")
    assert [row["path"] for row in workspace.rows()] == ["cats/1.jpg", "dogs/2.jpg"]
