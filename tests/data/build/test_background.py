"""`mmjax background` against NumPy's median and mean over all images at once."""

import numpy as np
import pytest
from PIL import Image

from mmjax.data.build import background
from mmjax.data.storage import dataset, schema, tfrecord
from mmjax.tools import cli
from tests.data.importers.importing import assert_line_mentions
from tests.messages import assert_mentions


def random_images(count, size=(12, 9), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


def save(directory, images, suffix="png"):
    directory.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(directory / f"{index}.{suffix}")
    return directory


def run(*arguments):
    return cli.main(["background", *map(str, arguments), "--quiet"])


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_median_and_mean_of_a_directory_match_numpy(tmp_path, capsys, count):
    images = random_images(count)
    directory = save(tmp_path / "empty" / "deep", images).parent
    out = tmp_path / "new" / "b.png"
    assert run(directory, "--out", out) == 0
    assert_line_mentions(capsys.readouterr().out, out, "9×12", "median", count)
    np.testing.assert_array_equal(pixels(out), np.rint(np.median(images, axis=0)))
    assert run(*(directory / "deep").iterdir(), "--out", directory / "b.png", "--mean") == 0
    # The second run must not read its own earlier output, b.png, as an input.
    assert run(directory, "--out", directory / "b.png", "--mean") == 0
    out = directory / "b.png"
    np.testing.assert_array_equal(pixels(out), np.rint(images.mean(axis=0)))


@pytest.mark.parametrize("mean", [False, True])
def test_small_blocks_give_the_same_result_in_more_passes(mean):
    images, passes = random_images(7, (13, 5)), []

    def source():
        passes.append(None)
        return (("name", image) for image in images)

    result, count = background.compute_background(
        background.ImageSource(images=source), mean=mean, progress=False, block=1
    )
    assert count == 7 and len(passes) == 1 + 13  # one for the shape, then one per pixel row
    expected = images.mean(axis=0) if mean else np.median(images, axis=0)
    np.testing.assert_array_equal(result, np.rint(expected))


def test_median_removes_contact_that_few_images_show():
    empty = random_images(1)[0]
    images = [empty.copy() for _ in range(9)]
    for index, image in enumerate(images):
        image[index : index + 3] = 255
    source = background.ImageSource(images=lambda: (("", image) for image in images))
    result, _ = background.compute_background(source, progress=False)
    np.testing.assert_array_equal(result, empty)


def test_dataset_records_are_selected_by_class_and_caption(tmp_path, capsys):
    images = random_images(6)
    directory = save(tmp_path / "files", images)
    examples = [
        schema.Example(
            touch=[(directory / f"{k}.png").read_bytes()],
            labels=[k % 2],
            label_texts=[("left", "right")[k % 2]],
            captions=["background" if k < 3 else "rough"],
            filename=f"{k}.png",
        )
        for k in range(6)
    ]
    path = tmp_path / "ds"
    path.mkdir()
    tfrecord.write_shard(path / dataset.shard_name("train", 0, 1), map(schema.encode, examples))
    out = tmp_path / "b.png"
    for options, selected in (
        ([], range(6)),
        (["--label", "right"], [1, 3, 5]),
        (["--label", "0"], [0, 2, 4]),
        (["--caption", "background"], range(3)),
        (["--caption", "rough", "--label", "left"], [4]),
    ):
        assert run("--dataset", path, "--out", out, *options) == 0
        expected = np.rint(np.median(images[list(selected)], axis=0))
        np.testing.assert_array_equal(pixels(out), expected)
    assert run("--dataset", path, "--out", out, "--caption", "wet", "--label", "left") == 2
    facts = ("touch", "'train'", path, "--caption 'wet'", "--label 'left'")
    assert_mentions(capsys.readouterr().err, *facts)
    assert run("--dataset", path, "--out", out, "--split", "test") == 2
    assert_mentions(capsys.readouterr().err, path, "'test'", "train")
    info = dataset.DatasetDir(path).info
    info.class_names = ["left", "right"]
    info.save(path)
    assert run("--dataset", path, "--out", out, "--label", "rihgt") == 2
    assert_mentions(capsys.readouterr().err, path, "--label", "'rihgt'", "left, right")


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["a", "b", "--out", "b.png"], ("a/0.png", "9×12", "b/0.png", "12×9")),
        (["nowhere", "--out", "b.png"], ("nowhere",)),
        (["text_only", "--out", "b.png"], ("text_only",)),
        (["a", "text_only/x.txt", "--out", "b.png"], ("text_only/x.txt",)),
        (["a", "--out", "b.jpg"], ("--out", "b.jpg", ".png")),
        (["--out", "b.png"], ("PATH", "--dataset")),
        (["a", "--dataset", "b", "--out", "b.png"], ("PATH (a)", "--dataset b")),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, arguments, facts
):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a", random_images(2))
    save(tmp_path / "b", random_images(1, (9, 12)))
    (tmp_path / "text_only").mkdir()
    (tmp_path / "text_only" / "x.txt").write_text("not an image")
    assert run(*arguments) == 2
    assert_mentions(capsys.readouterr().err, *facts)
    assert not (tmp_path / "b.png").exists()
