"""Media files with jumping timestamps, changing frames, invalid samples, or other content."""

import io
import pathlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from mmjax import limits
from mmjax.data.storage import media
from mmjax.errors import UserError
from tests.data import films
from tests.messages import raises

RATES = {"fps": 10, "sample_rate": 16_000}


def read(path, start: float = 0.0, end: float | None = None, **options) -> media.Segment:
    with media.Media(path) as file:
        return file.read(start, end, **(RATES | options))


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def codes(segment: media.Segment) -> list[int]:
    return [films.read_code(pixels(frame)) for frame in segment.frames]


def write_part(path, first: int, count: int, *, frequency: float = 0.0, **size) -> bytes:
    """Writes numbered frames at 10 fps, with a tone if `frequency` is given; returns the bytes."""
    frames = [films.coded_frame(first + k, **size) for k in range(count)]
    waveform = None
    if frequency:
        waveform = films.tone(frequency, seconds=count / 10, sample_rate=16_000)[None]
    films.write_film(path, frames=frames, fps=10, waveform=waveform)
    return path.read_bytes()


def frequency_of(samples: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples)))) * 16_000 / len(samples)


def joined(tmp_path, *, frequency: float = 1000.0) -> str:
    parts = [
        write_part(tmp_path / "1.ts", 0, 30, frequency=frequency),
        write_part(tmp_path / "2.ts", 30, 30, frequency=3 * frequency),
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    return str(path)


def test_joined_recordings_are_read_in_order_with_their_own_audio(tmp_path):
    path = joined(tmp_path)
    segment = read(path)
    assert codes(segment) == list(range(60))
    assert frequency_of(segment.waveform[16_000:32_000]) == pytest.approx(1000, abs=5)
    assert frequency_of(segment.waveform[64_000:80_000]) == pytest.approx(3000, abs=5)


def test_clips_of_joined_recordings_are_those_of_the_whole(tmp_path):
    path = joined(tmp_path, frequency=0.0)
    with media.Media(path) as file:
        assert file.duration() == pytest.approx(6.0, abs=0.2)
        for first in (40, 5, 28):  # back and forth, and across the border
            assert codes(file.read(first / 10, first / 10 + 0.5, **RATES)) == [
                first + k for k in range(5)
            ]


def test_timestamps_that_jump_within_a_file_are_reported(tmp_path):
    frames = [films.coded_frame(k) for k in range(10)]
    times = [*np.arange(9) / 10, 90_000.0]
    path = films.write_film(tmp_path / "jump.mkv", frames=frames, times=times)
    with raises(UserError, "jump.mkv", "timestamps", "0.80 s", "90000.00 s"):
        read(path)


def test_a_declared_duration_beyond_the_limit_is_not_believed(tmp_path, monkeypatch):
    path = tmp_path / "long.mp4"
    write_part(path, 0, 10)
    monkeypatch.setitem(limits.DEFAULTS, "MEDIA_SECONDS", 0)
    with media.Media(path) as file, raises(UserError, "long.mp4", "MMJAX_MAX_MEDIA_SECONDS"):
        file.duration()


def test_frames_of_another_size_are_resized_to_the_first(tmp_path):
    parts = [
        write_part(tmp_path / "1.ts", 0, 10),
        write_part(tmp_path / "2.ts", 10, 10, height=24, width=32),
    ]
    path = tmp_path / "adaptive.ts"
    path.write_bytes(b"".join(parts))
    segment = read(path)
    assert {pixels(frame).shape for frame in segment.frames} == {(48, 64, 3)}
    assert codes(segment) == list(range(20))


def test_frames_of_another_shape_are_reported_with_their_time(tmp_path):
    parts = [
        write_part(tmp_path / "1.ts", 0, 10),
        write_part(tmp_path / "2.ts", 10, 10, height=64, width=48),
    ]
    path = tmp_path / "turned.ts"
    path.write_bytes(b"".join(parts))
    with raises(UserError, "turned.ts", "64×48", "48×64", "start and end"):
        read(path)
    assert codes(read(path, 0.0, 0.8)) == list(range(8))


def test_a_directory_of_frames_follows_the_same_rule(tmp_path):
    for number, (height, width) in enumerate([(48, 64), (24, 32)]):
        image = Image.fromarray(films.coded_frame(number, height=height, width=width))
        image.save(tmp_path / f"{number}.png")
    segment = media.read_frame_directory(tmp_path, fps=10)
    assert {pixels(frame).shape for frame in segment.frames} == {(48, 64, 3)}
    Image.new("RGB", (48, 64)).save(tmp_path / "2.png")
    with raises(UserError, "2.png", "64×48", "48×64"):
        media.read_frame_directory(tmp_path, fps=10)


def test_frames_with_exif_are_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image = Image.new("RGB", (64, 48), "white")
    image.paste("black", (0, 0, 32, 48))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", exif=exif)
    path = tmp_path / "timelapse.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for k in range(5):
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, 10)
            packet.pts = packet.dts = k
            container.mux(packet)
    segment = read(path)
    assert len(segment.frames) == 5
    turned = pixels(segment.frames[0])
    assert turned.shape == (64, 48, 3)
    assert turned[:24].mean() < 10 and turned[-24:].mean() > 245


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_audio_that_starts_shortly_before_the_video_repeats_no_frame(tmp_path, suffix):
    frames = [films.coded_frame(k) for k in range(30)]
    path = films.write_film(
        tmp_path / f"lead.{suffix}",
        frames=frames,
        fps=10,
        times=0.023 + np.arange(30) / 10,
        waveform=films.tone(440, seconds=3, sample_rate=16_000)[None],
    )
    with media.Media(path) as file:
        segment = file.read(0.0, 3.0, **RATES)
    assert codes(segment) == list(range(30))


def test_streams_without_timestamps_have_a_duration(tmp_path):
    path = tmp_path / "raw.h264"
    frames = [films.coded_frame(k) for k in range(75)]
    films.write_film(path, frames=frames, fps=25)
    with media.Media(path) as file:
        assert file.duration() == pytest.approx(3.0)
        assert codes(file.read(1.0, 1.2, fps=25, sample_rate=16_000)) == list(range(25, 30))


def test_the_end_of_a_truncated_file_is_that_of_its_data(tmp_path):
    path = tmp_path / "half.flv"
    write_part(path, 0, 30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with raises(UserError, "half.flv", "segment starts at 2.8 s", "truncated", "duration of 3.2"):
        read(path, 2.8, 3.0)


def write_floats(path, samples) -> str:
    """Writes a WAV file with 32-bit floating-point samples."""
    return films.write_film(
        path, waveform=np.asarray(samples, np.float32)[None], audio_codec="pcm_f32le"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_reported(tmp_path, value):
    samples = np.zeros(16_000)
    samples[[9000, 9001]] = value
    path = write_floats(tmp_path / "bad.wav", samples)
    with raises(UserError, "bad.wav", "2 NaN or infinite values"):
        read(path)
    assert not read(path, 0.0, 0.5).waveform.any()  # the segment before them


def test_samples_beyond_full_scale_are_reported_unless_they_are_peaks(tmp_path):
    tone = films.tone(440, seconds=1, sample_rate=16_000)
    with raises(UserError, "loud.wav", "outside [-1, 1]", "1.6e+04"):
        read(write_floats(tmp_path / "loud.wav", tone * 32_000))
    tone[100] = 1.2
    assert np.abs(read(write_floats(tmp_path / "peak.wav", tone)).waveform).max() <= 1.0


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4"])
@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {}\n",
    ],
)
def test_playlists_are_not_read(tmp_path, name, text):
    film = pathlib.Path(tmp_path, "private.ts")
    write_part(film, 0, 10)
    path = tmp_path / name
    path.write_text(text.format(film.name))
    with raises(UserError, name):
        read(path)


@pytest.mark.parametrize("name", ["notes.txt", "notes.ans", "notes.nfo", "notes.mp4"])
def test_text_is_not_read_as_a_film(tmp_path, name):
    path = tmp_path / name
    path.write_text("\x1b[31mThese are notes.\n" * 100)
    with raises(UserError, name):
        read(path)
