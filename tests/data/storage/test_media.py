"""Decoding of video and audio files whose every frame and sample is known."""

import io
import pathlib

import av
import numpy as np
import pytest
from PIL import Image

from mmjax.data.storage import containers, media
from mmjax.errors import UserError
from tests.data import films
from tests.messages import raises

AUDIO = {"fps": 10, "sample_rate": 16_000}


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def codes(segment: media.Segment) -> list[int]:
    return [films.read_code(pixels(frame)) for frame in segment.frames]


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """Writes 100 numbered frames at 20 fps with B-frames and a key frame every 12 frames."""
    frames = [films.coded_frame(k) for k in range(100)]
    return films.write_film(tmp_path_factory.mktemp("films") / "counting.mp4", frames=frames)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("avi", "mpeg4"),
        ("mpg", "mpeg2video"),
        ("ts", "libx264"),
    ],
)
def test_seeking_is_frame_exact_in_every_container(tmp_path, suffix, codec):
    frames = [films.coded_frame(k) for k in range(80)]
    fps = 25 if suffix == "mpg" else 20
    path = films.write_film(tmp_path / f"f.{suffix}", frames=frames, video_codec=codec, fps=fps)
    for first in (61, 12, 11, 0, 37, 23):  # seeks back and forth
        with media.Media(path) as file:
            segment = file.read(first / fps, (first + 6) / fps, fps=fps, sample_rate=16_000)
        assert codes(segment) == list(range(first, first + 6))


def test_consecutive_reads_equal_reads_from_a_reopened_file(counting):
    with media.Media(counting) as file:
        together = [file.read(k * 0.7, (k + 1) * 0.7, **AUDIO).frames for k in range(6)]
    for k, frames in enumerate(together):
        with media.Media(counting) as file:
            assert file.read(k * 0.7, (k + 1) * 0.7, **AUDIO).frames == frames


@pytest.mark.parametrize("fps", [5, 10, 20, 40, 7.3])
def test_resampling_takes_the_frame_displayed_at_each_time(counting, fps):
    with media.Media(counting) as file:
        segment = file.read(1.0, 3.0, fps=fps, sample_rate=16_000)
    assert codes(segment) == [int((1.0 + k / fps) * 20 + 1e-6) for k in range(round(2 * fps))]


def test_variable_frame_rate_is_sampled_by_presentation_time(tmp_path):
    times = np.cumsum([0.0, 0.03, 0.5, 0.04, 1.3, 0.2, 0.02, 0.02, 0.6, 0.3])
    frames = [films.coded_frame(k) for k in range(len(times))]
    path = films.write_film(tmp_path / "vfr.mkv", frames=frames, times=times)
    with media.Media(path) as file:
        for start in (0.0, 0.6, 1.9, 2.2):
            segment = file.read(start, start + 0.8, fps=25, sample_rate=16_000)
            sampled = start + np.arange(20) / 25
            shown = np.searchsorted(times, sampled + 0.0021, side="right") - 1
            assert codes(segment) == shown.tolist()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("start", [0.0, 1.3, 1.95])
def test_video_and_audio_stay_synchronized(tmp_path, suffix, start):
    frames, waveform = films.flash_and_beep(seconds=4, instant=2.0)
    path = films.write_film(
        tmp_path / f"sync.{suffix}",
        frames=frames,
        waveform=waveform,
        audio_codec="pcm_s16le" if suffix != "mp4" else "aac",
        video_codec="mpeg4" if suffix == "avi" else "libx264",
    )
    with media.Media(path) as file:
        segment = file.read(start, 3.0, fps=20, sample_rate=16_000)
    flash = int(np.argmax([pixels(frame).mean() for frame in segment.frames])) / 20
    beep = int(np.argmax(np.abs(segment.waveform) > 0.3)) / 16_000
    assert flash == pytest.approx(2.0 - start, abs=1e-9)
    assert beep == pytest.approx(2.0 - start, abs=0.003)


def test_delayed_audio_is_aligned_by_its_timestamps(tmp_path):
    frames, waveform = films.flash_and_beep(seconds=3, instant=1.0)
    path = films.write_film(
        tmp_path / "late.mkv", frames=frames, waveform=waveform, audio_delay=0.5, audio_codec="flac"
    )
    with media.Media(path) as file:
        segment = file.read(0.0, 2.0, fps=20, sample_rate=16_000)
    assert not segment.waveform[: int(0.49 * 16_000)].any()
    assert int(np.argmax(np.abs(segment.waveform) > 0.3)) / 16_000 == pytest.approx(1.5, abs=0.003)


@pytest.mark.parametrize("source_rate", [8_000, 22_050, 44_100, 48_000])
def test_resampled_audio_is_the_same_tone(tmp_path, source_rate):
    audio = films.tone(440, seconds=2, sample_rate=source_rate)[None]
    path = films.write_film(
        tmp_path / "tone.wav", waveform=audio, sample_rate=source_rate, audio_codec="pcm_s16le"
    )
    with media.Media(path) as file:
        segment = file.read(0.5, 1.5, **AUDIO)
    expected = films.tone(440, seconds=2, sample_rate=16_000)[8_000:24_000]
    assert segment.frames == [] and segment.waveform.dtype == np.float32
    assert segment.waveform.shape == expected.shape
    assert np.abs(segment.waveform - expected).max() < 0.005


@pytest.mark.parametrize(
    ("layout", "channels"), [("mono", 1), ("stereo", 2), ("5.1", 6), ("7.1", 8)]
)
def test_any_channel_layout_becomes_mono_without_clipping(tmp_path, layout, channels):
    full_scale = 2 * films.tone(300, seconds=1, sample_rate=16_000)
    audio = full_scale[None].repeat(channels, 0)
    path = films.write_film(
        tmp_path / "loud.wav", waveform=audio, layout=layout, audio_codec="pcm_s16le"
    )
    with media.Media(path) as file:
        waveform = file.read(0, 1, **AUDIO).waveform
    assert np.abs(waveform).max() <= 1.0
    # All channels are equal, so their mix is the tone; the low-frequency channel is dropped.
    assert np.corrcoef(waveform, audio[0])[0, 1] > 0.999 and np.abs(waveform).max() > 0.6


def test_stereo_channels_are_averaged(tmp_path):
    left = films.tone(300, seconds=1, sample_rate=16_000)
    path = films.write_film(
        tmp_path / "left.wav",
        waveform=np.stack([left, 0 * left]),
        layout="stereo",
        audio_codec="pcm_s16le",
    )
    with media.Media(path) as file:
        waveform = file.read(0, 1, **AUDIO).waveform
    assert np.abs(waveform - left / 2).max() < 1e-3


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_rotation_is_applied(tmp_path, degrees):
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:16, :16] = (255, 0, 0)  # red at the top left
    path = films.write_film(tmp_path / "r.mp4", frames=[frame] * 5, rotation=degrees or None)
    with media.Media(path) as file:
        image = pixels(file.read(0, 0.1, **AUDIO).frames[0])
    expected = np.rot90(frame, degrees // 90)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 12


def test_pixels_become_square_and_size_limits_the_shorter_side(tmp_path):
    frames = [films.coded_frame(1, height=40, width=80)] * 4
    path = films.write_film(tmp_path / "wide.mkv", frames=frames, aspect="2/1")
    with media.Media(path) as file:
        assert pixels(file.read(0, 0.1, **AUDIO).frames[0]).shape == (40, 160, 3)
        assert pixels(file.read(0, 0.1, size=20, **AUDIO).frames[0]).shape == (20, 80, 3)
        assert pixels(file.read(0, 0.1, size=500, **AUDIO).frames[0]).shape == (40, 160, 3)


def test_downscaling_agrees_with_pillow(tmp_path):
    ramp = np.add.outer(np.arange(96), np.arange(128)) * 255 // 222
    frame = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], -1).astype(np.uint8)
    path = films.write_film(tmp_path / "ramp.mkv", frames=[frame] * 2, video_codec="ffv1")
    with media.Media(path) as file:
        image = pixels(file.read(0, 0.1, size=24, **AUDIO).frames[0])
    expected = np.asarray(Image.fromarray(frame).resize((32, 24), Image.Resampling.BICUBIC))
    assert np.abs(image.astype(int) - expected).max() <= 6


def test_segments_beyond_the_end_are_padded_cut_or_rejected(counting):
    with media.Media(counting) as file:
        whole = file.read(**AUDIO)
        assert len(whole.frames) == 50 and whole.end == pytest.approx(5.0)
        padded = file.read(4.0, 5.2, **AUDIO)  # slightly too long: repeats the last frame
        assert len(padded.frames) == 12 and padded.end == 5.2 and codes(padded)[-2:] == [98, 98]
        short = file.read(4.0, 8.0, **AUDIO)  # much too long: is cut
        assert len(short.frames) == 10 and short.end == pytest.approx(5.0)
        with raises(UserError, counting, "9 s", "5.00 s"):
            file.read(9.0, 10.0, **AUDIO)
        with raises(UserError, counting, "from 2.5 s to 2.0 s"):
            file.read(2.5, 2.0, **AUDIO)
        assert codes(file.read(1.0, 1.2, **AUDIO)) == [20, 22]  # usable after an error


def test_audio_that_ends_early_is_padded_to_the_video(tmp_path):
    frames, waveform = films.flash_and_beep(seconds=3, instant=1.0)
    path = films.write_film(
        tmp_path / "short.mkv", frames=frames, waveform=waveform[:, :24_000], audio_codec="flac"
    )
    with media.Media(path) as file:
        segment = file.read(1.0, 3.0, **AUDIO)
        assert segment.waveform.shape == (32_000,) and not segment.waveform[8_100:].any()
        assert file.read(2.0, 3.0, **AUDIO).waveform is None


def test_frames_without_timestamps_are_timed_by_their_index(tmp_path):
    frames = [films.coded_frame(k) for k in range(60)]
    path = films.write_film(tmp_path / "raw.m1v", frames=frames, video_codec="mpeg1video", fps=25)
    with media.Media(path) as file:
        assert file.duration() == pytest.approx(2.4, abs=0.1)
        assert codes(file.read(1.0, 1.4, fps=25, sample_rate=16_000)) == list(range(25, 35))


def test_error_reports_the_unreadable_file(tmp_path, counting):
    with raises(UserError, tmp_path / "nowhere.mp4") as info:
        media.Media(tmp_path / "nowhere.mp4")
    assert "FFmpeg" not in str(info.value)  # a missing file, not an undecodable one
    (tmp_path / "text.mp4").write_text("not a video")
    with raises(UserError, tmp_path / "text.mp4", "FFmpeg"):
        media.Media(tmp_path / "text.mp4")
    with raises(UserError, counting, "audio", "video (h264)") as info:
        media.Media(counting, video=False)
    assert "FFmpeg" not in str(info.value)  # decodable, but without an audio stream
    path = films.write_film(
        tmp_path / "whole.mkv", frames=[films.coded_frame(k) for k in range(100)], gop=100
    )
    with av.open(path) as container:
        packets = [bytes(packet) for packet in container.demux()]
    data = pathlib.Path(path).read_bytes()
    for packet in packets[40:]:
        data = data.replace(packet, bytes(len(packet)))
    (tmp_path / "damaged.mkv").write_bytes(data)
    with (
        media.Media(tmp_path / "damaged.mkv") as file,
        raises(UserError, tmp_path / "damaged.mkv", "FFmpeg"),
    ):
        file.read(**AUDIO)


@pytest.mark.parametrize(
    ("suffix", "codecs"),
    [
        ("mp4", {}),
        ("mov", {}),
        ("flv", {"video_codec": "flv"}),
        ("avi", {"video_codec": "mpeg4"}),
        ("wav", {"audio_codec": "pcm_s16le"}),
        ("aif", {"audio_codec": "pcm_s16be"}),
    ],
)
def test_appended_files_of_which_only_the_first_would_be_read_are_refused(tmp_path, suffix, codecs):
    frames, waveform = films.flash_and_beep(seconds=1, instant=0.5)
    streams = {"waveform": waveform} if suffix in ("wav", "aif") else {"frames": frames}
    path = films.write_film(tmp_path / f"one.{suffix}", **streams, **codecs)
    media.Media(path).close()
    content = pathlib.Path(path).read_bytes()
    (tmp_path / f"two.{suffix}").write_bytes(content * 2)
    with raises(UserError, tmp_path / f"two.{suffix}", "ffmpeg -f concat"):
        media.Media(tmp_path / f"two.{suffix}")


def test_streams_are_listed_with_their_codecs(tmp_path):
    frames, waveform = films.flash_and_beep(seconds=1, instant=0.5)
    path = films.write_film(
        tmp_path / "both.mkv", frames=frames, waveform=waveform, audio_codec="flac"
    )
    assert containers.stream_names(path) == ["video (h264)", "audio (flac)"]


def test_a_directory_of_frames_is_read_in_numeric_order(tmp_path):
    for k in range(12):  # frame10 sorts after frame9
        Image.fromarray(films.coded_frame(k)).save(tmp_path / f"frame{k}.png")
    segment = media.read_frame_directory(tmp_path, fps=5, frame_dir_fps=10)
    assert codes(segment) == [0, 2, 4, 6, 8, 10] and segment.end == pytest.approx(1.2)
    assert codes(media.read_frame_directory(tmp_path, 0.5, 0.8, fps=10)) == [5, 6, 7]
    with raises(UserError, tmp_path, "2 s", "12 ", "10 ", "1.2 s"):
        media.read_frame_directory(tmp_path, 2.0, 3.0, fps=10)
