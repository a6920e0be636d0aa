"""Decoders of the video and audio streams of a file, through PyAV (FFmpeg).

This module finds the frames and samples of a time range. Files are opened by
`mmjax.data.storage.containers`; segments of files are read by `mmjax.data.storage.media`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from PIL import Image

from mmjax import limits
from mmjax.data.storage import containers
from mmjax.data.storage.image_decoding import to_rgb
from mmjax.data.storage.image_files import fit
from mmjax.errors import UserError

_ROUNDING = 0.002  # seconds: containers round presentation times, most of them to 1 ms
_PREROLL = 0.5  # seconds of audio decoded before a segment: decoders need a run-up after a seek
_CONTINUE = 15.0  # seconds: up to this distance, decoding on is cheaper than seeking
_GAP = 0.02  # seconds by which timestamps of audio may deviate from the count of samples
_RESTART = 0.5  # seconds that the time of a frame may be before that of the previous frame
_MAX_STILL = 3600.0  # seconds that a frame may be displayed
_LOUD = 1.01  # floating-point samples above this are clipped
_MAX_LOUD = 0.05  # fraction of such samples; decoders of loud music exceed 1 a little
_MAX_PEAK = 4.0
_EXIF = 31  # AV_FRAME_DATA_EXIF


@classmethod
def _unknown_side_data(cls, value: object) -> SideData | None:
    """Returns a member for a type of side data that FFmpeg knows and PyAV does not.

    PyAV could otherwise not access the side data of a frame that has such a type.
    """
    if not isinstance(value, int):
        return None
    member = object.__new__(cls)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member


SideData._missing_ = _unknown_side_data


class _Stream:
    """One stream of a file with its own demuxer, so that video and audio seek independently.

    Args:
      path: Any file that FFmpeg reads in a format of `containers.FORMATS`.
      scan: Result of `containers.scan`.

    Raises:
      UserError: FFmpeg cannot open the file.
    """

    stream_type: str

    @classmethod
    def open(cls, path: str, scan: tuple[int, float] | None):
        """Returns the file's main stream of this type, or None."""
        result = cls(path, scan)
        if result.stream is None:
            result.close()
            return None
        return result

    def __init__(self, path: str, scan: tuple[int, float] | None):
        self.path = path
        self._container = None
        self._scan = scan if scan and scan[0] else None
        self._rewind()

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def _rewind(self) -> None:
        """Reopens the file. Unlike seeking, this is exact and works for every format."""
        if self._container is not None:
            self._container.close()
        self._container = containers.open_container(self.path)
        self.stream = containers.main_stream(self._container, self.stream_type)
        self.origin = containers.origin(self._container)
        # One thread, because files are processed in parallel.
        if self.stream is not None:
            self.stream.codec_context.thread_count = 1
        # Formats without timestamps cannot seek: their frames are counted from the first.
        self._is_counted = not containers.has_timestamps(self._container)
        self._can_seek = not self._is_counted and self._scan is None
        self.errors: list[tuple[float, Exception]] = []

    def _frames(self, time: float) -> Iterator[tuple[float, av.frame.Frame]]:
        """Yields (presentation time, frame) in order, if possible from `time` or earlier."""
        for back in (0.0, 3.0, 20.0):  # indexes may be coarse or point past the requested time
            if not self._can_seek or time - back <= 0:
                break
            try:
                self._container.seek(int((time - back + self.origin) * av.time_base))
                frames = self._decode()
                first = next(frames, None)
            except av.FFmpegError:
                break
            if first is not None and first[0] <= time + _ROUNDING:
                return itertools.chain([first], frames)
        self._rewind()
        return self._decode()

    def _decode(self) -> Iterator[tuple[float, av.frame.Frame]]:
        """Yields all frames from the current position.

        Errors before the first frame are ignored: after a seek, decoders need a run-up.
        """
        self.errors.clear()
        time, step, started = 0.0, 0.0, False
        for packet in self._packets():
            if not packet.size and packet.pts is not None:
                continue  # in Theora, a repetition of the last frame; FFmpeg rejects it
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                if started:
                    self.errors.append((time + step, error))
                continue
            for frame in frames:
                stamp, last = None if self._is_counted else frame.pts, time
                time = (
                    time + step if stamp is None else float(stamp * frame.time_base) - self.origin
                )
                if started:
                    self._check_time(last, time)
                step, started = self._length(frame), True
                yield time, frame

    def _packets(self) -> Iterator[av.packet.Packet]:
        """Yields the packets of the stream. Truncation of the file is recorded as an error."""
        try:
            if self._scan is None:
                yield from self._container.demux(self.stream)
                return
            names = ("video", "audio")  # jumps are found in both
            streams = [containers.main_stream(self._container, name) for name in names]
            timestamps = containers.Timestamps()
            for packet in self._container.demux(*[s for s in streams if s is not None]):
                timestamps.correct(packet)
                if packet.stream_index == self.stream.index:
                    yield packet
        except av.FFmpegError as error:
            self.errors.append((math.inf, error))

    def _check_time(self, last: float, time: float) -> None:
        """Raises UserError if the timestamps of two consecutive frames jump."""
        if last - _RESTART <= time <= last + _MAX_STILL:
            return
        raise UserError(
            f"{self.path}: the timestamps of the {self.stream_type} jump from {last:.2f} s to "
            f"{time:.2f} s; the file is damaged, or several recordings were joined. Write it again "
            "with continuous timestamps, for example with `ffmpeg -fflags +genpts -i IN OUT`, or "
            "use only segments before the jump."
        )

    def _check(self, start: float, end: float) -> None:
        for time, error in self.errors:
            if start <= time < end:
                where = "because it is truncated" if time == math.inf else f"near {time:.2f} s"
                raise UserError(
                    f"{self.path}: the {self.stream_type} stream cannot be decoded {where} "
                    f"(FFmpeg: {error.strerror or error}). Replace the damaged file, or use only "
                    "segments before the damage."
                )

    def duration(self) -> float:
        """Returns the end of the file's longest stream in seconds."""
        if self._scan is not None:
            return self._scan[1] - self.origin
        container = self._container
        is_estimate = self._is_counted or container.format.name in ("mp3", "aac")
        if container.duration and container.start_time is not None and not is_estimate:
            start = container.start_time / av.time_base
            seconds = start + container.duration / av.time_base - self.origin
            if seconds <= limits.limit("MEDIA_SECONDS"):
                return seconds
        return self.actual_end()

    def actual_end(self) -> float:
        """Returns the end of the data in seconds, which a truncated file reaches too early.

        Raises:
          UserError: It is later than the limit MEDIA_SECONDS.
        """
        if self._is_counted:
            end, stream = 0.0, type(self)(self.path, None)
            for time, frame in stream._decode():
                end = time + self._length(frame)
            stream.close()
        else:
            end = containers.scan(self.path, always=True)[1] - self.origin
        limits.check("MEDIA_SECONDS", math.ceil(end), f"{self.path} lasts")
        return end

    def _length(self, frame) -> float:
        """Returns the duration of a frame in seconds."""
        raise NotImplementedError


class VideoStream(_Stream):
    """The video of a file."""

    stream_type = "video"

    def __init__(self, path: str, scan: tuple[int, float] | None):
        super().__init__(path, scan)
        self._reformatter = VideoReformatter()
        self._source: Iterator = iter(())
        self._shown = self._next = None  # (time, frame) that is displayed, and the one after it

    def _length(self, frame: av.VideoFrame) -> float:
        if frame.duration:
            return float(frame.duration * frame.time_base)
        return float(1 / (self.stream.average_rate or 25))

    def sample(self, times: Iterable[float], *, start: float) -> Iterator[av.VideoFrame]:
        """Yields the frame displayed at each time, up to the end of the stream.

        Args:
          times: Ascending times in seconds, from `start`.
          start: First time in seconds.

        Raises:
          UserError: The stream is damaged in this range.
        """
        shown = self._shown
        if shown is None or not shown[0] <= start <= shown[0] + _CONTINUE:
            self._source = self._frames(start)
            self._shown = self._next = next(self._source, None)
        time = start
        for time in times:
            while self._next is not None and self._next[0] <= time + _ROUNDING:
                self._shown, self._next = self._next, next(self._source, None)
            if self._shown is None:
                break
            if (
                self._next is None
                and time > self._shown[0] + self._length(self._shown[1]) - _ROUNDING
            ):
                break
            yield self._shown[1]
        self._check(start, math.inf if self._next is None else time)

    def to_rgb(self, frame: av.VideoFrame, size: int | None) -> np.ndarray:
        """Returns uint8 [H, W, 3], upright, with square pixels, the shorter side at most `size`."""
        aspect = float(self.stream.sample_aspect_ratio or 1)
        width, height = fit(frame.width * aspect, frame.height, size)
        # FFmpeg assumes BT.601 if the color space is unspecified (2), but HD video is BT.709.
        is_bt709 = frame.colorspace == 2 and frame.height >= 720
        rgb = self._reformatter.reformat(
            frame,
            width,
            height,
            "rgb24",
            src_colorspace=Colorspace.ITU709 if is_bt709 else None,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            threads=1,
        ).to_ndarray()
        return _upright(rgb, frame)


class AudioStream(_Stream):
    """The audio of a file."""

    stream_type = "audio"

    def _length(self, frame: av.AudioFrame) -> float:
        return frame.samples / frame.sample_rate

    def read(
        self, start: float, end: float | None, sample_rate: int
    ) -> tuple[np.ndarray | None, float]:
        """Returns the waveform of [start, end) and its end in seconds.

        Args:
          start: Start in seconds.
          end: End in seconds; None for the end of the stream.
          sample_rate: Samples per second of the result.

        Returns:
          `(waveform, end)`. The waveform is float32 [samples], up to the end of the audio, or None
          if there is no audio in the segment.

        Raises:
          UserError: The stream is damaged in this range.
        """
        stop = math.inf if end is None else end
        runs: list[tuple[float, _MonoRun]] = []
        expected, levels = -math.inf, _Levels()
        for time, frame in self._frames(max(start - _PREROLL, 0.0)):
            if time >= stop:
                break
            if abs(time - expected) > _GAP or not runs[-1][1].accepts(frame):
                runs.append((time, _MonoRun(frame, sample_rate)))
                expected = time
            runs[-1][1].add(frame)
            expected += self._length(frame)
            if expected > start:
                levels.add(frame)
        self._check(start, stop)
        levels.check(f"{self.path}: the audio from {start:g} s to {min(stop, expected):g} s")
        if not runs or expected <= start:
            return None, start
        waveform = np.zeros(num_samples(start, min(stop, expected), sample_rate), np.float32)
        for time, run in runs:
            first, samples = round((time - start) * sample_rate), run.finish()
            samples = samples[max(-first, 0) :][: max(len(waveform) - max(first, 0), 0)]
            waveform[max(first, 0) :][: len(samples)] = samples
        return waveform, min(stop, expected)


class _MonoRun:
    """Audio without gaps, converted to mono and another sample rate.

    With 32-bit integers as intermediate format, FFmpeg scales its downmix so that it cannot exceed
    1. With floats, the center of a stereo recording would be amplified to 1.41.
    """

    def __init__(self, frame: av.AudioFrame, sample_rate: int):
        self._format = frame.format.name, frame.layout.name, frame.sample_rate
        self._resampler = av.AudioResampler(format="s32", layout="mono", rate=sample_rate)
        self._samples: list[np.ndarray] = []

    def accepts(self, frame: av.AudioFrame) -> bool:
        """Returns whether a frame has the format of this run."""
        return self._format == (frame.format.name, frame.layout.name, frame.sample_rate)

    def add(self, frame: av.AudioFrame | None) -> None:
        """Appends a frame; None flushes the resampler."""
        if frame is not None:
            frame.pts = None  # the resampler counts samples; there are no gaps in a run
        for out in self._resampler.resample(frame):
            self._samples.append((out.to_ndarray()[0] / 2.0**31).astype(np.float32))

    def finish(self) -> np.ndarray:
        """Returns all samples, float32."""
        self.add(None)
        return np.concatenate(self._samples) if self._samples else np.zeros(0, np.float32)


class _Levels:
    """Checks floating-point samples before `_MonoRun` converts them to integers.

    The conversion would turn NaN and samples beyond [-1, 1] to full scale.
    """

    def __init__(self):
        self._count = self._invalid = self._loud = 0
        self._peak = 0.0

    def add(self, frame: av.AudioFrame) -> None:
        """Counts the samples of a frame."""
        if not frame.format.name.startswith(("flt", "dbl")):
            return
        samples = np.abs(frame.to_ndarray())
        peak = float(samples.max(initial=0.0))
        self._count += samples.size
        if not math.isfinite(peak):
            self._invalid += int((~np.isfinite(samples)).sum())
        elif peak > _LOUD:
            self._peak = max(self._peak, peak)
            self._loud += int((samples > _LOUD).sum())

    def check(self, what: str) -> None:
        """Raises UserError if samples are not finite or too many would be clipped.

        Args:
          what: Start of the message: the file and its segment.
        """
        if self._invalid:
            raise UserError(
                f"{what} has {self._invalid} NaN or infinite values among {self._count} samples. "
                "Repair or remove the audio."
            )
        if self._peak > _MAX_PEAK or self._loud > _MAX_LOUD * self._count:
            raise UserError(
                f"{what} has {self._loud} of {self._count} samples outside [-1, 1], up to "
                f"{self._peak:.4g}, which would be clipped. Scale the audio to [-1, 1]."
            )


def num_samples(start: float, end: float, rate: float) -> int:
    """Returns the number of samples in [start, end), at least one."""
    return max(round((end - start) * rate), 1)


def _upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Returns the image with the display matrix applied, rounded to one of eight orientations."""
    side_data = frame.side_data
    items = {side_data[k].type.value: side_data[k] for k in range(len(side_data))}
    matrix = items.get(SideData.DISPLAYMATRIX.value)
    if matrix is None:
        # FFmpeg makes a matrix of the EXIF orientation in JPEG, but not in HEIC.
        return _turned(image, bytes(items[_EXIF])) if _EXIF in items else image
    # libavutil/display.h: the matrix maps pixel (p, q) to (a p + c q, b p + d q).
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).astype(float)
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _turned(image: np.ndarray, exif: bytes) -> np.ndarray:
    """Returns the image with the orientation in EXIF data applied."""
    pil_image = Image.fromarray(image)
    pil_image.info["exif"] = exif
    return np.asarray(to_rgb(pil_image))
