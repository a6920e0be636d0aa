"""Evaluation batches from files and arrays; tests/test_inference_tasks.py compares them with those
of a dataset."""

import numpy as np
from PIL import Image

from mmjax.data.build.in_memory import ClipBatches, StoredFormat, is_single, training_info
from mmjax.data.pipeline.config import parse_config
from mmjax.errors import UserError
from mmjax.tools import cli
from tests.data import films
from tests.messages import raises

SECTION = dict(train="nowhere", video=dict(num_frames=4, size=16))


def test_the_format_is_that_of_the_training_data(tmp_path):
    film = films.write_film(tmp_path / "a.mp4", frames=[films.coded_frame(k) for k in range(20)])
    (tmp_path / "clips.csv").write_text(f"path\n{film}\n")
    arguments = ["--csv", str(tmp_path / "clips.csv"), "--out", str(tmp_path / "data")]
    arguments += ["--fps", "5", "--size", "24", "--quality", "80", "--workers", "1", "--quiet"]
    assert cli.main(["build", *arguments]) == 0
    data = parse_config(SECTION | dict(train=str(tmp_path / "data")))
    stored = StoredFormat.of(data, training_info(data))
    assert (stored.fps, stored.size, stored.quality) == (5, 24, 80)


def test_without_the_training_data_the_config_gives_the_rates():
    section = SECTION | dict(audio=dict(num_samples=100, sample_rate=8000.0))
    data = parse_config(section)
    assert training_info(data) is None
    assert StoredFormat.of(data, None) == StoredFormat(fps=None, sample_rate=8000)
    section["video"] = section["video"] | dict(fps=12.5)
    assert StoredFormat.of(parse_config(section), None).fps == 12.5


def test_images_and_directories_of_frames_are_videos(tmp_path):
    frames = [films.coded_frame(k) for k in range(6)]
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    batches = ClipBatches(parse_config(SECTION), "video", StoredFormat(fps=10.0), num_clips=1)
    batch = batches([str(tmp_path), np.stack(frames), tmp_path / "0.png"])
    assert batch["video"].shape == (3, 1, 4, 16, 16, 3) and batch["video"].dtype == np.uint8
    np.testing.assert_array_equal(batch["video"][0], batch["video"][1])
    np.testing.assert_array_equal(batch["video"][2, 0, 0], batch["video"][2, 0, 3])
    unknown = ClipBatches(parse_config(SECTION), "video", StoredFormat(), num_clips=1)
    with raises(UserError, tmp_path, "--config.data.video.fps="):
        unknown([str(tmp_path)])


def test_paths_images_and_arrays_of_one_input_are_single(tmp_path):
    assert is_single("text", "a text") and not is_single("text", ["a text"])
    assert is_single("video", tmp_path) and is_single("image", Image.new("RGB", (4, 4)))
    for modality, ndim in (("video", 4), ("audio", 1), ("image", 3), ("touch", 3)):
        assert is_single(modality, np.zeros((2,) * ndim))
        assert not is_single(modality, np.zeros((2,) * (ndim + 1)))
