"""`mmjax build` with touch images, their backgrounds, and cropped images."""

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmjax.data.build import manifest, plan
from mmjax.data.storage import dataset, schema
from mmjax.data.text.synonyms import load_synonyms
from mmjax.tools import cli
from tests.messages import assert_mentions


def run(*arguments):
    return cli.main(["build", *map(str, arguments), "--workers", "1", "--quiet"])


def read(path, split="train"):
    records = dataset.DatasetDir(path).split(split)
    return [schema.decode(records.read(k)) for k in range(len(records))]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture
def directory(tmp_path):
    """A smooth image of 160×120, three touch images of 24×32, and a background."""
    y, x = np.mgrid[:120, :160]
    image = np.stack([y * 2, x, 255 - y - x // 2], -1).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "see.png")
    for index, suffix in enumerate(("jpg", "png", "bmp")):
        touch = np.full((32, 24, 3), 50 * (index + 1), np.uint8)
        Image.fromarray(touch).save(tmp_path / f"touch{index}.{suffix}")
    Image.new("RGB", (24, 32), "gray").save(tmp_path / "none.jpg")
    return tmp_path


def write(directory, rows, name="t.jsonl"):
    (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory / name


def test_touch_images_that_training_could_not_decode_are_rejected(directory):
    data = bytearray((directory / "touch1.png").read_bytes())
    data[data.index(b"IEND") - 5] ^= 1  # the checksum of the pixels
    (directory / "damaged.png").write_bytes(data)
    table = write(directory, [{"touch": "damaged.png"}, {"touch": "touch0.jpg"}])
    assert run("--csv", table, "--out", directory / "ds", "--max-bad-fraction", "1") == 0
    assert_mentions((directory / "ds" / "bad_rows.csv").read_text(), "damaged.png", "IDAT")
    assert len(read(directory / "ds")) == 1


def test_touch_background_and_crop_are_stored_in_the_records(directory):
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
    table = write(directory, rows)
    assert run("--csv", table, "--out", directory / "ds", "--size", 0) == 0
    first, second, third = read(directory / "ds")
    # JPEG and PNG files are stored byte for byte.
    assert first.touch == [(directory / f"touch{k}").read_bytes() for k in ("0.jpg", "1.png")]
    assert first.touch_background == [(directory / "none.jpg").read_bytes()]
    assert first.roi == (0, 0, 40, 60) and first.filename == "see.png"
    expected = pixels((directory / "see.png").read_bytes())[10:50, 20:80]
    assert np.abs(pixels(first.frames[0]) - expected.astype(int)).mean() < 2  # JPEG is lossy
    assert second.modalities == ("label", "touch") and second.filename == "touch2.bmp"
    assert second.touch[0].startswith(b"\x89PNG") and (pixels(second.touch[0]) == 150).all()
    assert third.roi is None and third.touch == [] and third.touch_background == []
    info = dataset.DatasetDir(directory / "ds").info
    assert info.modalities == ("video", "text", "label", "touch")
    assert info.statistics["examples_with"]["touch"] == 2
    assert info.statistics["touch_backgrounds"] == 1
    # The plan that other jobs of a job array read has the same clips as the table.
    assert plan.load_plan(directory / "ds").clips == manifest.read_table(str(table))


def test_crop_margin_is_stored_and_resized_with_the_crop(directory):
    table = write(directory, [{"path": "see.png", "crop": "20, 30, 80, 80"}])
    options = ["--size", 40, "--crop-margin", 0.1]
    assert run("--csv", table, "--out", directory / "ds", *options) == 0
    (example,) = read(directory / "ds")
    assert example.roi == (4, 4, 40, 40)
    assert pixels(example.frames[0]).shape == (48, 48, 3)
    image = pixels((directory / "see.png").read_bytes()).astype(float)
    expected = image[12:108, 22:118].reshape(48, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(pixels(example.frames[0]) - expected).mean() < 2


def test_csv_and_tsv_give_the_same_clips_as_jsonl(directory):
    row = {"path": "see.png", "touch": ["touch0.jpg", "touch1.png"], "background": "none.jpg"}
    jsonl = write(directory, [row | {"crop": [1, 2, 3, 4]}, {"touch": ["touch0.jpg"]}])
    csv = 'path,touch,background,crop\nsee.png,touch0.jpg|touch1.png,none.jpg,"1,2,3,4"\n'
    (directory / "t.csv").write_text(csv + ",touch0.jpg,,\n")
    (directory / "t.tsv").write_text(
        "path\ttouch\ttouch2\tbackground\tcrop\n"
        "see.png\ttouch0.jpg\ttouch1.png\tnone.jpg\t1 2 3 4\n"
        "\ttouch0.jpg\t\t\t\n"
    )
    tables = [manifest.read_table(str(directory / name)) for name in ("t.csv", "t.tsv")]
    expected = manifest.read_table(str(jsonl))
    assert [[vars(clip) | {"line": 0} for clip in table] for table in tables] == [
        [vars(clip) | {"line": 0} for clip in expected]
    ] * 2
    assert expected[0].crop == (1, 2, 3, 4) and expected[1].file == "touch0.jpg"


def test_clips_with_only_touch_are_split_by_the_touch_file(directory):
    rows = [{"touch": f"touch{k % 3}.{('jpg', 'png', 'bmp')[k % 3]}"} for k in range(9)]
    table = write(directory, rows)
    assert run("--csv", table, "--out", directory / "ds", "--split-by-file", "a:0.5,b:0.5") == 0
    info = dataset.DatasetDir(directory / "ds").info
    result = {s: {e.filename for e in read(directory / "ds", s)} for s in info.splits}
    assert set.union(*result.values()) == {"touch0.jpg", "touch1.png", "touch2.bmp"}
    assert sum(map(len, result.values())) == 3


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ({"path": "", "touch": ""}, ("line 1", "path", "touch")),
        ({"path": "see.png", "background": "none.jpg"}, ("line 1", "none.jpg", "background")),
        ({"touch": "touch0.jpg", "crop": [0, 0, 4, 4]}, ("line 1", "crop", "path")),
        ({"path": "see.png", "crop": [0, 0, 4]}, ("line 1", "'0, 0, 4'", "top, left, height")),
        ({"path": "see.png", "crop": "0,0,4,-4"}, ("line 1", "-4", "top, left, height")),
        ({"path": "see.png", "crop": "0,0,4,4.5"}, ("line 1", "4.5", "top, left, height")),
        ({"path": "see.png", "backgroud": "x"}, ("'backgroud'", "'background'")),
        ({"caption": "x"}, ("'path'", "caption")),
    ],
)
def test_malformed_rows_of_tables_are_named(directory, capsys, row, facts):
    table = write(directory, [row])
    assert run("--csv", table, "--out", directory / "ds") == 2
    assert_mentions(capsys.readouterr().err, table, *facts)


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ({"path": "see.png", "touch": "nothing.jpg"}, ("nothing.jpg",)),
        ({"path": "see.png", "touch": "t.txt"}, ("t.txt",)),
        (
            {"path": "see.png", "crop": [120, 0, 4, 4]},
            ("see.png", "160×120", "4×4", "top 120", "left 0"),
        ),
        ({"path": "tone.wav", "crop": [0, 0, 4, 4]}, ("tone.wav", "crop", "not an image")),
    ],
)
def test_clips_that_cannot_be_built_are_named_and_skipped(directory, capsys, row, facts):
    (directory / "t.txt").write_text("not an image")
    (directory / "tone.wav").write_text("not audio")
    table = write(directory, [{"touch": "touch0.jpg"}, row])
    assert run("--csv", table, "--out", directory / "ds") == 1
    assert_mentions(capsys.readouterr().out, *facts, "bad_rows.csv", "--retry-bad")
    assert len(read(directory / "ds")) == 1


def test_negative_crop_margin_is_refused(directory, capsys):
    table = write(directory, [{"path": "see.png"}])
    assert run("--csv", table, "--out", directory / "ds", "--crop-margin", -1) == 2
    assert_mentions(capsys.readouterr().err, "--crop-margin", "-1", "0")


def test_commands_of_the_touch_section_run_as_printed(tmp_path, monkeypatch):
    """Runs the table and the commands of docs/your_data.md, section Touch."""
    monkeypatch.chdir(tmp_path)
    guide = Path(__file__).parents[3] / "docs" / "your_data.md"
    section = re.search(r"^## Touch\n(.*?)^## ", guide.read_text(), re.DOTALL | re.MULTILINE)[1]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    Path("touches.csv").write_text(dict(blocks)["csv"])
    rng = np.random.default_rng(0)
    for directory, size, names in (
        ("see", (480, 640), ("cloth", "stone", "table")),
        ("feel", (32, 24), ("cloth", "stone", "table1", "table2")),
    ):
        Path(directory).mkdir()
        for name in names:
            image = np.kron(
                rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3)), np.ones((8, 8, 1))
            )
            Image.fromarray(image.astype(np.uint8)).save(f"{directory}/{name}.jpg")
    commands = "".join(text for language, text in blocks if language == "bash")
    lines = [line for line in commands.splitlines() if line.startswith("mmjax ")]
    assert len(lines) == 4  # tests/test_docs.py checks the others
    for line in lines:
        quiet = ["--quiet"] * ("preview" not in line)
        assert cli.main([*shlex.split(line)[1:], *quiet]) == 0, line
    train, test = (read(tmp_path / "datasets" / "touches", split) for split in ("train", "test"))
    assert (len(train), len(test), len(test[0].touch)) == (2, 1, 2)
    assert train[0].roi == (12, 12, 128, 128)  # a margin of 24 of 240 pixels, resized to 128
    assert train[0].touch_background == [Path("feel/none.png").read_bytes()]
    Path("synonyms.json").write_text(dict(blocks)["json"])
    assert load_synonyms("synonyms.json")["rough"] == ["rough", "coarse", "uneven", "bumpy"]
    assert Path("touches.png").exists()
