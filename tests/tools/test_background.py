"""`mmjax background` against NumPy's median and mean of all pictures at once."""

import numpy as np
import pytest
from PIL import Image

from mmjax.data import dataset, records, schema
from mmjax.tools import background, cli


def made(count, size=(12, 9), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


def save(folder, images, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.{suffix}")
    return folder


def run(*arguments):
    return cli.main(["background", *map(str, arguments), "--quiet"])


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_median_and_the_mean_of_a_folder(tmp_path, capsys, count):
    images = made(count)
    folder, out = save(tmp_path / "empty" / "deep", images).parent, tmp_path / "new" / "b.png"
    assert run(folder, "--out", out) == 0
    assert f"9×12, the median of {count} pictures" in capsys.readouterr().out
    np.testing.assert_array_equal(pixels(out), np.rint(np.median(images, axis=0)))
    assert run(*(folder / "deep").iterdir(), "--out", folder / "b.png", "--mean") == 0
    assert run(folder, "--out", folder / "b.png", "--mean") == 0  # b.png is not one of them
    out = folder / "b.png"
    np.testing.assert_array_equal(pixels(out), np.rint(images.mean(axis=0)))


@pytest.mark.parametrize("mean", [False, True])
def test_blocks_of_rows_give_the_same_and_bound_the_memory(mean):
    images, passes = made(7, (13, 5)), []

    def source():
        passes.append(None)
        return (("name", image) for image in images)

    found, count = background.background(source, mean=mean, progress=False, block=1)
    assert count == 7 and len(passes) == 1 + 13  # a look at the first, then row by row
    wanted = images.mean(axis=0) if mean else np.median(images, axis=0)
    np.testing.assert_array_equal(found, np.rint(wanted))


def test_contact_in_some_pictures_leaves_no_trace():
    empty = made(1)[0]
    images = [empty.copy() for _ in range(9)]
    for number, image in enumerate(images):
        image[number : number + 3] = 255
    found, _ = background.background(lambda: (("", i) for i in images), progress=False)
    np.testing.assert_array_equal(found, empty)


def test_touch_of_a_dataset_by_class_and_caption(tmp_path, capsys):
    images = made(6)
    folder = save(tmp_path / "files", images)
    examples = [
        schema.Example(
            touch=[(folder / f"{k}.png").read_bytes()],
            labels=[k % 2],
            label_texts=[("left", "right")[k % 2]],
            captions=["background" if k < 3 else "rough"],
            filename=f"{k}.png",
        )
        for k in range(6)
    ]
    path = tmp_path / "ds"
    path.mkdir()
    records.write_shard(path / dataset.shard_name("train", 0, 1), map(schema.encode, examples))
    out = tmp_path / "b.png"
    for options, chosen in (
        ([], range(6)),
        (["--label", "right"], [1, 3, 5]),
        (["--label", "0"], [0, 2, 4]),
        (["--caption", "background"], range(3)),
        (["--caption", "rough", "--label", "left"], [4]),
    ):
        assert run("--dataset", path, "--out", out, *options) == 0
        wanted = np.rint(np.median(images[list(chosen)], axis=0))
        np.testing.assert_array_equal(pixels(out), wanted)
    assert run("--dataset", path, "--out", out, "--caption", "wet") == 2
    assert "no touch pictures of this kind" in capsys.readouterr().err
    assert run("--dataset", path, "--out", out, "--split", "test") == 2
    assert "no shards for the split 'test'" in capsys.readouterr().err
    info = dataset.DatasetFolder(path).info
    info.class_names = ["left", "right"]
    info.save(path)
    assert run("--dataset", path, "--out", out, "--label", "rihgt") == 2
    assert "no class 'rihgt'. It has: left, right" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["a", "b", "--out", "b.png"], "a/0.png is 9×12, b/0.png is 12×9"),
        (["nowhere", "--out", "b.png"], "There is no file or folder nowhere"),
        (["none", "--out", "b.png"], "There are no pictures in none"),
        (["a", "none/x.txt", "--out", "b.png"], "x.txt cannot be read as a picture"),
        (["a", "--out", "b.jpg"], "a background is a .png"),
        (["--out", "b.png"], "Give pictures or folders"),
        (["a", "--dataset", "b", "--out", "b.png"], "Give pictures or folders"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, monkeypatch, capsys, arguments, problem):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a", made(2))
    save(tmp_path / "b", made(1, (9, 12)))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.txt").write_text("no picture")
    assert run(*arguments) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()
