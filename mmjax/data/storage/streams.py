"""Decoders of the video and audio streams of a file, through PyAV (FFmpeg).

This module finds the frames and samples of a time range. Segments of files are read by
`mmjax.data.storage.media`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.format import Flags
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from mmjax.data.storage.image_files import fit
from mmjax.errors import UserError

_ROUNDING = 0.002  # seconds: containers round presentation times, most of them to 1 ms
_PREROLL = 0.5  # seconds of audio decoded before a segment: decoders need a run-up after a seek
_CONTINUE = 15.0  # seconds: up to this distance, decoding on is cheaper than seeking
_GAP = 0.02  # seconds by which timestamps of audio may deviate from the count of samples


class _Stream:
    """One stream of a file with its own demuxer, so that video and audio seek independently.

    Args:
      path: Any file that FFmpeg reads.

    Raises:
      UserError: FFmpeg cannot open the file.
    """

    stream_type: str

    @classmethod
    def open(cls, path: str):
        """Returns the file's main stream of this type, or None."""
        result = cls(path)
        if result.stream is None:
            result.close()
            return None
        return result

    def __init__(self, path: str):
        self.path = path
        self._container = None
        self._rewind()

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def _rewind(self) -> None:
        """Reopens the file. Unlike seeking, this is exact and works for every format."""
        if self._container is not None:
            self._container.close()
        self._container = _open(self.path)
        self.stream = _main_stream(self._container, self.stream_type)
        self.origin = (self._container.start_time or 0) / av.time_base
        # One thread, because files are processed in parallel.
        if self.stream is not None:
            self.stream.codec_context.thread_count = 1
        # Formats without timestamps cannot seek: their frames are counted from the first.
        self._can_seek = not self._container.format.flags & Flags.no_timestamps.value
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
                stamp = frame.pts if self._can_seek else None
                time = (
                    time + step if stamp is None else float(stamp * frame.time_base) - self.origin
                )
                step, started = self._length(frame), True
                yield time, frame

    def _packets(self) -> Iterator[av.packet.Packet]:
        """Yields the packets of the stream. Truncation of the file is recorded as an error."""
        try:
            yield from self._container.demux(self.stream)
        except av.FFmpegError as error:
            self.errors.append((math.inf, error))

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
        container = self._container
        is_estimate = not self._can_seek or container.format.name in ("mp3", "aac")
        if container.duration and container.start_time is not None and not is_estimate:
            return container.duration / av.time_base
        with _open(self.path) as container:  # the header has no or an estimated duration
            end = 0.0
            try:
                for packet in container.demux():
                    if packet.pts is not None:
                        stop = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                        end = max(end, stop - self.origin)
            except av.FFmpegError:
                pass  # a truncated file: reading its last segment reports the error
        return end

    def _length(self, frame) -> float:
        """Returns the duration of a frame in seconds."""
        raise NotImplementedError


class VideoStream(_Stream):
    """The video of a file."""

    stream_type = "video"

    def __init__(self, path: str):
        super().__init__(path)
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
        expected = -math.inf
        for time, frame in self._frames(max(start - _PREROLL, 0.0)):
            if time >= stop:
                break
            if abs(time - expected) > _GAP or not runs[-1][1].accepts(frame):
                runs.append((time, _MonoRun(frame, sample_rate)))
                expected = time
            runs[-1][1].add(frame)
            expected += self._length(frame)
        self._check(start, stop)
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


def _open(path: str) -> av.container.InputContainer:
    try:
        return av.open(path, metadata_errors="replace")
    except FileNotFoundError as error:
        raise UserError(f"Media file {path} does not exist.") from error
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"FFmpeg cannot open {path}: {error.strerror or error}.") from error


def _main_stream(container, stream_type: str):
    streams = [
        stream
        for stream in getattr(container.streams, stream_type)
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None
    ]
    best = container.streams.best(stream_type) if streams else None
    return best if best in streams or not streams else streams[0]


def stream_names(path: str) -> list[str]:
    """Returns the types and codecs of a file's streams, for example ['video (h264)']."""
    names = []
    with _open(path) as container:
        for stream in container.streams:
            codec = stream.codec_context.name if stream.codec_context is not None else "unknown"
            cover = ", cover art" if stream.disposition & Disposition.attached_pic else ""
            names.append(f"{stream.type} ({codec}{cover})")
    return names


def num_samples(start: float, end: float, rate: float) -> int:
    """Returns the number of samples in [start, end), at least one."""
    return max(round((end - start) * rate), 1)


def _upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Returns the image with the display matrix applied, rounded to one of eight orientations."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return image
    # libavutil/display.h: the matrix maps pixel (p, q) to (a p + c q, b p + d q).
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).astype(float)
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
