"""`mmjax preview`: contact sheets of datasets."""

import numpy as np
import pytest
from PIL import Image

from mmjax.data.storage import dataset, image_files, schema, tfrecord
from mmjax.tools import cli
from tests.data import films
from tests.data.importers.importing import assert_line_mentions
from tests.messages import assert_mentions


def write(directory, count=6, **changes):
    """Writes a dataset of frames of one color per record, with a tone; returns its path."""
    examples = []
    for k in range(count):
        fields = dict(
            frames=[image_files.encode_jpeg(np.full((48, 64, 3), (200, 30 * k, 20), np.uint8))] * 8,
            waveform=films.tone(300, seconds=1, sample_rate=8000),
            captions=[f"caption {k} costs $5 or $6_000", "日本語"],
            labels=[k],
            filename="directory/" * 20 + f"{k}.mp4",
            end_us=1_000_000,
            frame_rate=8.0,
            sample_rate=8000.0,
        )
        examples.append(schema.Example(**fields | changes))
    tfrecord.write_shard(
        directory / dataset.shard_name("train", 0, 1), map(schema.encode, examples)
    )
    return str(directory)


def count_pixels(image, color):
    return int((np.abs(image.astype(int) - color).max(-1) < 12).sum())


def test_sheet_shows_the_frames_of_evenly_spread_clips(tmp_path, capsys):
    path, out = write(tmp_path), tmp_path / "sheets" / "p.png"
    assert cli.main(["preview", path, "--out", str(out), "--clips", "3", "--frames", "4"]) == 0
    assert_line_mentions(capsys.readouterr().out, out, 3, path, "train")
    image = np.asarray(Image.open(out).convert("RGB"))
    for record in range(6):
        is_shown = count_pixels(image, (200, 30 * record, 20)) > 10_000
        assert is_shown == (record in (0, 2, 5))
    assert count_pixels(image, (43, 108, 176)) > 1000  # waveforms


def test_sheet_of_only_audio_only_images_and_broken_frames(tmp_path):
    frame = image_files.encode_jpeg(np.full((48, 64, 3), (10, 200, 10), np.uint8))
    for name, changes in {
        "audio": {"frames": []},
        "images": {"frames": [frame], "waveform": None},
        "broken": {"frames": [frame, frame[:50]]},
    }.items():
        (tmp_path / name).mkdir()
        out = str(tmp_path / f"{name}.png")
        assert cli.main(["preview", write(tmp_path / name, 2, **changes), "--out", out]) == 0
        image = np.asarray(Image.open(out).convert("RGB"))
        assert (count_pixels(image, (10, 200, 10)) > 10_000) == (name != "audio")
        # A waveform has thousands of pixels of its color, and none without audio.
        waveform = count_pixels(image, (43, 108, 176))
        assert waveform == 0 if name == "images" else waveform > 1000


def test_sheet_shows_touch_its_background_and_the_crop(tmp_path):
    def flat(color, height=48, width=64):
        return image_files.encode_jpeg(np.full((height, width, 3), color, np.uint8))

    fields = dict(
        frames=[flat((200, 200, 20))],
        waveform=None,
        roi=(8, 16, 32, 32),
        touch=[flat((10, 200, 10), 64, 48)],
        touch_background=[flat((20, 60, 220), 64, 48)],
    )
    sizes = {}
    for name, changes in {
        "all": {},
        "whole": {"roi": (0, 0, 48, 64)},
        "alone": {"frames": [], "roi": None},
        "film": {"frames": fields["frames"] * 3},
    }.items():
        (tmp_path / name).mkdir()
        path, out = write(tmp_path / name, 3, **fields | changes), tmp_path / f"{name}.png"
        assert cli.main(["preview", path, "--out", str(out)]) == 0
        image = np.asarray(Image.open(out).convert("RGB"))
        assert (count_pixels(image, (200, 200, 20)) > 5000) == (name != "alone")
        assert count_pixels(image, (10, 200, 10)) > 5000
        assert count_pixels(image, (20, 60, 220)) > 5000
        pink = (image[..., 0] > 180) & (image[..., 1] < 130) & (image[..., 2] > 80)
        assert (pink.sum() > 300) == pink.any() == (name in ("all", "film"))
        sizes[name] = image.shape
    assert sizes["alone"][0] < sizes["all"][0] < sizes["film"][0]  # no empty rows; a block per film


def test_unknown_split_and_unwritable_file_are_named(tmp_path, capsys):
    path = write(tmp_path)
    assert cli.main(["preview", path, "--split", "test"]) == 2
    assert_mentions(capsys.readouterr().err, path, "'test'", "train")
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "p.png"
    assert cli.main(["preview", path, "--out", str(out)]) == 2
    assert_mentions(capsys.readouterr().err, f"{out} ", "Errno")


@pytest.mark.parametrize("command", ["index", "preview", "validate", "vocab"])
def test_missing_directory_is_named(command, tmp_path, capsys):
    assert cli.main([command, str(tmp_path / "nowhere")]) == 2
    assert_mentions(capsys.readouterr().err, f"mmjax {command}", tmp_path / "nowhere")


def test_masks_are_drawn_in_the_colors_of_their_classes(tmp_path):
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :20], mask[:, 40:] = 2, 255
    frame = image_files.encode_jpeg(np.full((48, 64, 3), 100, np.uint8))
    fields = dict(waveform=None, masks=[schema.encode_mask(mask)])
    path, out = write(tmp_path, 3, frames=[frame], **fields), tmp_path / "p.png"
    dataset.DatasetInfo(
        name="m",
        splits={
            "train": dataset.SplitInfo(num_examples=3, shards=["train-00000-of-00001.tfrecord"])
        },
        mask_classes=["wall", "door", "lamp"],
    ).save(path)
    assert cli.main(["preview", path, "--out", str(out)]) == 0
    image = np.asarray(Image.open(out).convert("RGB"))
    for color in ((0, 128, 0), (224, 224, 192), (0, 0, 0)):
        blended = 0.3 * 100 + 0.7 * np.array(color)
        assert count_pixels(image, blended) > 3000, color
    # The legend has swatches of the classes that occur, so not of door, (128, 0, 0).
    assert count_pixels(image, (0, 128, 0)) > 50 and count_pixels(image, (128, 0, 0)) == 0


def test_damaged_masks_and_masks_of_another_size_do_not_stop_the_sheet(tmp_path):
    frame = image_files.encode_jpeg(np.full((48, 64, 3), 100, np.uint8))
    whole = schema.encode_mask(np.full((30, 30), 7, np.uint8))
    for name, mask in {"damaged": whole[:60], "size": whole}.items():
        (tmp_path / name).mkdir()
        path = write(tmp_path / name, 2, frames=[frame] * 2, masks=[mask] * 2)
        assert cli.main(["preview", path, "--out", str(tmp_path / f"{name}.png")]) == 0
