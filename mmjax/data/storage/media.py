"""Segments of media files as JPEG frames and mono sound, decoded by FFmpeg through PyAV.

Times are seconds from the start of the file as a player counts them: the earliest stream starts at
0. Frames are sampled by their presentation times, so a variable frame rate needs no special care;
sound is placed by its own timestamps, so it stays aligned with the image when the streams start
at different times or sound is missing in between.

`Media` reads films and sound, `read_frame_directory` a film stored as numbered images. For images
alone see `mmjax.data.storage.image_files`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.format import Flags
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from mmjax.data.storage.image_files import encode_jpeg, fit, is_image, read_image
from mmjax.errors import UserError

_ROUNDING = 0.002  # seconds: containers round presentation times, most to 1 ms
_PREROLL = 0.5  # seconds of sound decoded before a segment: decoders need a run-up after a seek
_CONTINUE = 15.0  # seconds: up to this distance, decoding on is cheaper than seeking
_SHORTFALL = 0.25  # seconds by which a file may end before a segment that is still taken as whole
_GAP = 0.02  # seconds by which timestamps of sound may deviate from the count of samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """A decoded segment.

    Attributes:
      frames: one JPEG per frame, the k-th as displayed at `start + k / fps`; empty without image.
      waveform: float32 [round((end - start) * sample_rate)] in [-1, 1]; None without sound.
      start, end: seconds; `end` is earlier than asked for if the file is.
      roi: (top, left, height, width) of the part of the frames that matters; None = all.
    """

    frames: list[bytes]
    waveform: np.ndarray | None
    start: float
    end: float
    roi: tuple[int, int, int, int] | None = None


class Media:
    """A media file, for reading segments; a context manager.

    Segments in order of time are decoded without seeking back, so that a film cut into clips is
    decoded once.

    Args:
      path: any file FFmpeg reads.
      video, audio: False leaves out the image, or the sound.

    Raises:
      UserError: no such file, or nothing in it that FFmpeg can decode.
    """

    def __init__(self, path: str | os.PathLike, *, video: bool = True, audio: bool = True):
        self.path = os.fspath(path)
        self._video = _Video.open(self.path) if video else None
        self._audio = _Audio.open(self.path) if audio else None
        if self._video is None and self._audio is None:
            wanted = [kind for kind, want in (("image", video), ("sound", audio)) if want]
            raise UserError(f"{self.path} has no {' and no '.join(wanted)}.")

    def __enter__(self) -> Media:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        for track in (self._video, self._audio):
            if track is not None:
                track.close()

    @property
    def has_video(self) -> bool:
        """Whether there is an image that is not just cover art."""
        return self._video is not None

    @property
    def has_audio(self) -> bool:
        """Whether there is sound."""
        return self._audio is not None

    def duration(self) -> float:
        """Seconds to the end of the longest stream; scans the file if its header does not say."""
        return (self._video or self._audio).duration()

    def read(
        self,
        start: float = 0.0,
        end: float | None = None,
        *,
        fps: float,
        sample_rate: int,
        size: int | None = None,
        quality: int = 95,
    ) -> Segment:
        """The segment [start, end).

        Args:
          start: seconds.
          end: seconds; None = the end of the file.
          fps: frames per second to sample.
          sample_rate: samples per second of the waveform, in Hz.
          size: the shorter side of the frames in pixels; smaller films are not enlarged.
          quality: of the JPEGs, 1 to 100.

        Raises:
          UserError: an empty segment, one outside the file, or data that cannot be decoded.
        """
        if start < 0 or (end is not None and end <= start):
            raise UserError(
                f"{self.path}: the segment from {start} s to {end} s is empty or begins before 0."
            )
        frames, waveform, ends = [], None, []
        if self._video is not None:
            count = None if end is None else _count(start, end, fps)
            times = (
                start + k / fps for k in (itertools.count() if count is None else range(count))
            )
            last = None, b""
            for frame in self._video.sample(times, start=start):
                if frame is not last[0]:  # a repeated frame is encoded once
                    last = frame, encode_jpeg(self._video.to_rgb(frame, size), quality=quality)
                frames.append(last[1])
            ends.append(start + len(frames) / fps)
        if self._audio is not None:
            waveform, audio_end = self._audio.read(start, end, sample_rate)
            ends.append(audio_end)
        if not frames and waveform is None:
            raise UserError(
                f"{self.path}: the segment begins at {start:g} s, after the end of the file "
                f"({self.duration():.2f} s)."
            )
        if end is None or max(ends) < end - _SHORTFALL:
            end = max(ends)
        if frames:
            frames = frames[: _count(start, end, fps)]
            frames += frames[-1:] * (_count(start, end, fps) - len(frames))
        if waveform is not None:
            count = _count(start, end, sample_rate)
            waveform = np.pad(waveform, (0, max(count - len(waveform), 0)))[:count]
        return Segment(frames=frames, waveform=waveform, start=start, end=end)


def read_frame_directory(
    directory: str | os.PathLike,
    start: float = 0.0,
    end: float | None = None,
    *,
    fps: float,
    frame_dir_fps: float | None = None,
    size: int | None = None,
    quality: int = 95,
) -> Segment:
    """A segment of a film stored as images in a folder, in natural order of their names (2, 10).

    Args:
      folder: holds one image per frame.
      start, end, fps, size, quality: as in `Media.read`.
      folder_fps: frames per second of the images; None = `fps`.

    Raises:
      UserError: no images, a segment outside of them, or an image that cannot be read.
    """
    names = [name for name in os.listdir(directory) if is_image(name)]
    if not names:
        raise UserError(f"The folder {os.fspath(directory)} holds no images.")
    names.sort(key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
    frame_dir_fps = frame_dir_fps or fps
    end = min(end or math.inf, len(names) / frame_dir_fps)
    if end <= start:
        raise UserError(
            f"{os.fspath(directory)}: the segment begins at {start:g} s, after the last of "
            f"{len(names)} images at {frame_dir_fps:g} per second."
        )
    frames, last = [], (-1, b"")
    for k in range(_count(start, end, fps)):
        number = min(math.floor((start + k / fps) * frame_dir_fps + 1e-6), len(names) - 1)
        if number != last[0]:
            image = read_image(os.path.join(directory, names[number]), size=size)
            last = number, encode_jpeg(image, quality=quality)
        frames.append(last[1])
    return Segment(frames=frames, waveform=None, start=start, end=end)


class _Track:
    """One stream of a file with its own demuxer, so that image and sound seek independently."""

    kind: str

    @classmethod
    def open(cls, path: str):
        """The file's main stream of this kind, or None."""
        track = cls(path)
        if track.stream is None:
            track.close()
            return None
        return track

    def __init__(self, path: str):
        self.path = path
        self._container = None
        self._rewind()

    def close(self) -> None:
        self._container.close()

    def _rewind(self) -> None:
        """Opens the file, again if it was open: every format can do this, and it is exact."""
        if self._container is not None:
            self._container.close()
        self._container = _open(self.path)
        self.stream = _main_stream(self._container, self.kind)
        self.origin = (self._container.start_time or 0) / av.time_base
        # One thread: parallelism is over files, and more would oversubscribe the machine.
        if self.stream is not None:
            self.stream.codec_context.thread_count = 1
        # Formats without timestamps cannot seek: their frames have to be counted from the first.
        self._can_seek = not self._container.format.flags & Flags.no_timestamps.value
        self.errors: list[tuple[float, Exception]] = []

    def _frames(self, time: float) -> Iterator[tuple[float, av.frame.Frame]]:
        """(presentation time, frame) in order, the first no later than `time` if there is one."""
        for back in (0.0, 3.0, 20.0):  # indexes may be coarse or point behind what was asked for
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
        """All frames from here on. Errors before the first one belong to the run-up: forgotten."""
        self.errors.clear()
        time, step, begun = 0.0, 0.0, False
        for packet in self._packets():
            if not packet.size and packet.pts is not None:
                continue  # Theora's way to say that the last frame stays; FFmpeg rejects it
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                if begun:
                    self.errors.append((time + step, error))
                continue
            for frame in frames:
                stamp = frame.pts if self._can_seek else None
                time = (
                    time + step if stamp is None else float(stamp * frame.time_base) - self.origin
                )
                step, begun = self._length(frame), True
                yield time, frame

    def _packets(self) -> Iterator[av.packet.Packet]:
        """Packets of the stream; a file that breaks off is an error at the time where it does."""
        try:
            yield from self._container.demux(self.stream)
        except av.FFmpegError as error:
            self.errors.append((math.inf, error))

    def _check(self, start: float, end: float) -> None:
        for time, error in self.errors:
            if start <= time < end:
                where = "where it breaks off" if time == math.inf else f"near {time:.2f} s"
                raise UserError(
                    f"{self.path}: the {self.kind} cannot be decoded {where}; the file is damaged "
                    f"(FFmpeg: {error.strerror or error})."
                )

    def duration(self) -> float:
        """Seconds to the end of the longest stream of the file."""
        container = self._container
        rough = not self._can_seek or container.format.name in ("mp3", "aac")
        if container.duration and container.start_time is not None and not rough:
            return container.duration / av.time_base
        with _open(self.path) as container:  # the header does not say, or guesses from the bit rate
            end = 0.0
            try:
                for packet in container.demux():
                    if packet.pts is not None:
                        stop = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                        end = max(end, stop - self.origin)
            except av.FFmpegError:
                pass  # as far as the file goes; reading its last segment reports it
        return end

    def _length(self, frame) -> float:
        raise NotImplementedError


class _Video(_Track):
    kind = "video"

    def __init__(self, path: str):
        super().__init__(path)
        self._reformatter = VideoReformatter()
        self._source: Iterator = iter(())
        self._shown = self._ahead = None  # (time, frame) on display, and the one after it

    def _length(self, frame: av.VideoFrame) -> float:
        if frame.duration:
            return float(frame.duration * frame.time_base)
        return float(1 / (self.stream.average_rate or 25))

    def sample(self, times: Iterable[float], *, start: float) -> Iterator[av.VideoFrame]:
        """The frame on display at each of `times`, from `start` upwards, up to the stream's end."""
        shown = self._shown
        if shown is None or not shown[0] <= start <= shown[0] + _CONTINUE:
            self._source = self._frames(start)
            self._shown = self._ahead = next(self._source, None)
        time = start
        for time in times:
            while self._ahead is not None and self._ahead[0] <= time + _ROUNDING:
                self._shown, self._ahead = self._ahead, next(self._source, None)
            if self._shown is None:
                break
            if (
                self._ahead is None
                and time > self._shown[0] + self._length(self._shown[1]) - _ROUNDING
            ):
                break
            yield self._shown[1]
        self._check(start, math.inf if self._ahead is None else time)

    def to_rgb(self, frame: av.VideoFrame, size: int | None) -> np.ndarray:
        """uint8 [H, W, 3], upright, with square pixels, the shorter side at most `size`."""
        aspect = float(self.stream.sample_aspect_ratio or 1)
        width, height = fit(frame.width * aspect, frame.height, size)
        # High definition is BT.709, older video BT.601, which FFmpeg assumes where nothing is said.
        unsaid = frame.colorspace == 2 and frame.height >= 720
        rgb = self._reformatter.reformat(
            frame,
            width,
            height,
            "rgb24",
            src_colorspace=Colorspace.ITU709 if unsaid else None,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            threads=1,
        ).to_ndarray()
        return _upright(rgb, frame)


class _Audio(_Track):
    kind = "audio"

    def _length(self, frame: av.AudioFrame) -> float:
        return frame.samples / frame.sample_rate

    def read(
        self, start: float, end: float | None, sample_rate: int
    ) -> tuple[np.ndarray | None, float]:
        """(float32 [samples from start to where sound ends], that end); None without sound."""
        stop = math.inf if end is None else end
        runs: list[tuple[float, _Mono]] = []
        expected = -math.inf
        for time, frame in self._frames(max(start - _PREROLL, 0.0)):
            if time >= stop:
                break
            if abs(time - expected) > _GAP or not runs[-1][1].accepts(frame):
                runs.append((time, _Mono(frame, sample_rate)))
                expected = time
            runs[-1][1].add(frame)
            expected += self._length(frame)
        self._check(start, stop)
        if not runs or expected <= start:
            return None, start
        waveform = np.zeros(_count(start, min(stop, expected), sample_rate), np.float32)
        for time, run in runs:
            first, samples = round((time - start) * sample_rate), run.finish()
            samples = samples[max(-first, 0) :][: max(len(waveform) - max(first, 0), 0)]
            waveform[max(first, 0) :][: len(samples)] = samples
        return waveform, min(stop, expected)


class _Mono:
    """An uninterrupted run of sound, made mono at another rate.

    The detour over 32-bit integers makes FFmpeg scale its downmix so that it cannot exceed 1; as
    floats, the center of a stereo recording would come out at 1.41.
    """

    def __init__(self, frame: av.AudioFrame, sample_rate: int):
        self._format = frame.format.name, frame.layout.name, frame.sample_rate
        self._resampler = av.AudioResampler(format="s32", layout="mono", rate=sample_rate)
        self._samples: list[np.ndarray] = []

    def accepts(self, frame: av.AudioFrame) -> bool:
        return self._format == (frame.format.name, frame.layout.name, frame.sample_rate)

    def add(self, frame: av.AudioFrame | None) -> None:
        if frame is not None:
            frame.pts = None  # the resampler counts samples; gaps have been dealt with
        for out in self._resampler.resample(frame):
            self._samples.append((out.to_ndarray()[0] / 2.0**31).astype(np.float32))

    def finish(self) -> np.ndarray:
        self.add(None)
        return np.concatenate(self._samples) if self._samples else np.zeros(0, np.float32)


def _open(path: str) -> av.container.InputContainer:
    try:
        return av.open(path, metadata_errors="replace")
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}.") from error
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"FFmpeg cannot open {path}: {error.strerror or error}.") from error


def _main_stream(container, kind: str):
    streams = [
        stream
        for stream in getattr(container.streams, kind)
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None
    ]
    best = container.streams.best(kind) if streams else None
    return best if best in streams or not streams else streams[0]


def _count(start: float, end: float, rate: float) -> int:
    """Samples in [start, end), at least one."""
    return max(round((end - start) * rate), 1)


def _upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Applies the frame's display matrix, rounded to one of the eight orientations."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return image
    # libavutil/display.h: the pixel (p, q) goes to (a p + c q, b p + d q).
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).astype(float)
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
