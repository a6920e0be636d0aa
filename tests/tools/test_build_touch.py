"""`mmjax build` with touch pictures, their backgrounds, and crops of pictures."""

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmjax.data import dataset, schema
from mmjax.data.synonyms import load_synonyms
from mmjax.tools import build, cli, manifest


def run(*arguments):
    return cli.main(["build", *map(str, arguments), "--workers", "1", "--quiet"])


def read(path, split="train"):
    records = dataset.DatasetFolder(path).split(split)
    return [schema.decode(records.read(k)) for k in range(len(records))]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture
def folder(tmp_path):
    """A smooth picture of 160×120, three touch pictures of 24×32, a background."""
    rows, columns = np.mgrid[:120, :160]
    picture = np.stack([rows * 2, columns, 255 - rows - columns // 2], -1).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "see.png")
    for number, suffix in enumerate(("jpg", "png", "bmp")):
        touch = np.full((32, 24, 3), 50 * (number + 1), np.uint8)
        Image.fromarray(touch).save(tmp_path / f"touch{number}.{suffix}")
    Image.new("RGB", (24, 32), "gray").save(tmp_path / "none.jpg")
    return tmp_path


def write(folder, rows, name="t.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def test_touch_its_background_and_the_crop_reach_the_records(folder):
    rows = [
        {
            "path": "see.png",
            "touch": ["touch0.jpg", "touch1.png"],
            "background": "none.jpg",
            "crop": [10, 20, 40, 60],
            "caption": "rough",
        },
        {"touch": "touch2.bmp", "label": "a", "split": "train"},
        {"path": "see.png"},
    ]
    table = write(folder, rows)
    assert run("--csv", table, "--out", folder / "ds", "--size", 0) == 0
    first, second, third = read(folder / "ds")
    # JPEG and PNG are the bytes of their files.
    assert first.touch == [(folder / f"touch{k}").read_bytes() for k in ("0.jpg", "1.png")]
    assert first.touch_background == [(folder / "none.jpg").read_bytes()]
    assert first.roi == (0, 0, 40, 60) and first.filename == "see.png"
    wanted = pixels((folder / "see.png").read_bytes())[10:50, 20:80]
    assert np.abs(pixels(first.frames[0]) - wanted.astype(int)).mean() < 2  # a JPEG
    assert second.modalities == ("label", "touch") and second.filename == "touch2.bmp"
    assert second.touch[0].startswith(b"\x89PNG") and (pixels(second.touch[0]) == 150).all()
    assert third.roi is None and third.touch == [] and third.touch_background == []
    info = dataset.DatasetFolder(folder / "ds").info
    assert info.modalities == ("video", "text", "label", "touch")
    assert info.statistics["examples_with"]["touch"] == 2
    assert info.statistics["touch_backgrounds"] == 1
    # The plan, as other jobs of an array read it, is the table.
    assert build.load_plan(folder / "ds").clips == manifest.read_table(str(table))


def test_a_margin_is_stored_and_reduced_with_the_crop(folder):
    table = write(folder, [{"path": "see.png", "crop": "20, 30, 80, 80"}])
    options = ["--size", 40, "--crop-margin", 0.1]
    assert run("--csv", table, "--out", folder / "ds", *options) == 0
    (example,) = read(folder / "ds")
    assert example.roi == (4, 4, 40, 40)
    assert pixels(example.frames[0]).shape == (48, 48, 3)
    picture = pixels((folder / "see.png").read_bytes()).astype(float)
    wanted = picture[12:108, 22:118].reshape(48, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(pixels(example.frames[0]) - wanted).mean() < 2


def test_csv_says_the_same_as_jsonl(folder):
    row = {"path": "see.png", "touch": ["touch0.jpg", "touch1.png"], "background": "none.jpg"}
    jsonl = write(folder, [row | {"crop": [1, 2, 3, 4]}, {"touch": ["touch0.jpg"]}])
    csv = 'path,touch,background,crop\nsee.png,touch0.jpg|touch1.png,none.jpg,"1,2,3,4"\n'
    (folder / "t.csv").write_text(csv + ",touch0.jpg,,\n")
    (folder / "t.tsv").write_text(
        "path\ttouch\ttouch2\tbackground\tcrop\n"
        "see.png\ttouch0.jpg\ttouch1.png\tnone.jpg\t1 2 3 4\n"
        "\ttouch0.jpg\t\t\t\n"
    )
    tables = [manifest.read_table(str(folder / name)) for name in ("t.csv", "t.tsv")]
    wanted = manifest.read_table(str(jsonl))
    assert [[vars(clip) | {"row": 0} for clip in table] for table in tables] == [
        [vars(clip) | {"row": 0} for clip in wanted]
    ] * 2
    assert wanted[0].crop == (1, 2, 3, 4) and wanted[1].file == "touch0.jpg"


def test_touch_alone_is_split_by_its_file(folder):
    rows = [{"touch": f"touch{k % 3}.{('jpg', 'png', 'bmp')[k % 3]}"} for k in range(9)]
    table = write(folder, rows)
    assert run("--csv", table, "--out", folder / "ds", "--split-by-file", "a:0.5,b:0.5") == 0
    info = dataset.DatasetFolder(folder / "ds").info
    found = {s: {e.filename for e in read(folder / "ds", s)} for s in info.splits}
    assert set.union(*found.values()) == {"touch0.jpg", "touch1.png", "touch2.bmp"}
    assert sum(map(len, found.values())) == 3


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"path": "", "touch": ""}, "line 1: the path is empty, and so is touch"),
        ({"path": "see.png", "background": "none.jpg"}, "none.jpg is the background of no touch"),
        ({"touch": "touch0.jpg", "crop": [0, 0, 4, 4]}, "a crop but no path"),
        ({"path": "see.png", "crop": [0, 0, 4]}, "the crop '0, 0, 4' is not top, left, height"),
        ({"path": "see.png", "crop": "0,0,4,-4"}, "is not top, left, height"),
        ({"path": "see.png", "crop": "0,0,4,4.5"}, "is not top, left, height"),
        ({"path": "see.png", "backgroud": "x"}, "Did you mean 'background'?"),
        ({"caption": "x"}, "has no column 'path'"),
    ],
)
def test_bad_rows_of_tables(folder, capsys, row, problem):
    assert run("--csv", write(folder, [row]), "--out", folder / "ds") == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"path": "see.png", "touch": "nothing.jpg"}, "There is no file nothing.jpg"),
        ({"path": "see.png", "touch": "t.txt"}, "t.txt cannot be read as a picture"),
        ({"path": "see.png", "crop": [120, 0, 4, 4]}, "see.png is 160×120; the crop"),
        ({"path": "sound.wav", "crop": [0, 0, 4, 4]}, "sound.wav is no picture"),
    ],
)
def test_rows_that_cannot_be_built_are_named(folder, capsys, row, problem):
    (folder / "t.txt").write_text("no picture")
    (folder / "sound.wav").write_text("no sound")
    table = write(folder, [{"touch": "touch0.jpg"}, row])
    assert run("--csv", table, "--out", folder / "ds") == 1
    assert problem in capsys.readouterr().out
    assert len(read(folder / "ds")) == 1


def test_a_bad_margin_is_refused(folder, capsys):
    table = write(folder, [{"path": "see.png"}])
    assert run("--csv", table, "--out", folder / "ds", "--crop-margin", -1) == 2
    assert "--crop-margin must be 0 or more" in capsys.readouterr().err


def test_the_commands_of_the_guide(tmp_path, monkeypatch):
    """docs/your_data.md, section Touch: its table and its commands, as they stand there."""
    monkeypatch.chdir(tmp_path)
    guide = Path(__file__).parents[2] / "docs" / "your_data.md"
    section = re.search(r"^## Touch\n(.*?)^## ", guide.read_text(), re.DOTALL | re.MULTILINE)[1]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    table, *commands = (text for language, text in blocks if not language)
    Path("touches.csv").write_text(table)
    rng = np.random.default_rng(0)
    for folder, size, names in (
        ("see", (480, 640), ("cloth", "stone", "table")),
        ("feel", (32, 24), ("cloth", "stone", "table1", "table2")),
    ):
        Path(folder).mkdir()
        for name in names:
            image = np.kron(
                rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3)), np.ones((8, 8, 1))
            )
            Image.fromarray(image.astype(np.uint8)).save(f"{folder}/{name}.jpg")
    lines = "".join(commands).splitlines()
    assert len(lines) == 4
    for line in lines:
        quiet = ["--quiet"] * ("preview" not in line)
        assert cli.main([*shlex.split(line)[1:], *quiet]) == 0, line
    train, test = (read(tmp_path / "data" / "touches", split) for split in ("train", "test"))
    assert (len(train), len(test), len(test[0].touch)) == (2, 1, 2)
    assert train[0].roi == (12, 12, 128, 128)  # 24 of 240 pixels around it, reduced to 128
    assert train[0].touch_background == [Path("feel/none.png").read_bytes()]
    Path("synonyms.json").write_text(dict(blocks)["json"])
    assert load_synonyms("synonyms.json")["rough"] == ["rough", "coarse", "uneven", "bumpy"]
    assert Path("touches.png").exists()
