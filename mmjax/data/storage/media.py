"""Reads segments of media files as JPEG frames and mono audio.

Times are seconds from the start of the file as a player counts them: the earliest stream starts at
0, or the video if audio starts up to 0.2 s before it. Frames are sampled by their presentation
times, so a variable frame rate needs no special care. Audio is placed by its own timestamps, so it
stays synchronized with the video if the streams start at different times or audio is missing in
between.

`Media` reads video and audio files, `read_frame_directory` videos stored as numbered images. For
single images see `mmjax.data.storage.image_files`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re

import numpy as np
from PIL import Image

from mmjax.data.storage import containers, directories
from mmjax.data.storage.image_files import encode_jpeg, is_image, read_image
from mmjax.data.storage.streams import AudioStream, VideoStream, num_samples
from mmjax.errors import UserError

_MAX_DISTORTION = 0.05  # of the aspect ratio, by resizing a frame to the size of the first one
_SHORTFALL = 0.25  # seconds that a file may end before the requested end without shortening it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """A decoded segment.

    Attributes:
      frames: One JPEG per frame, frame k as displayed at `start + k / fps`; empty without video.
      waveform: float32 [round((end - start) * sample_rate)] in [-1, 1]; None without audio.
      start: Start in seconds.
      end: End in seconds; earlier than requested if the file ends earlier.
      roi: Region of interest (top, left, height, width) of the frames; None for the whole frame.
    """

    frames: list[bytes]
    waveform: np.ndarray | None
    start: float
    end: float
    roi: tuple[int, int, int, int] | None = None


class Media:
    """A media file from which segments are read; a context manager.

    Segments in order of time are decoded without seeking back, so a video that is cut into clips is
    decoded once.

    Args:
      path: Any file that FFmpeg reads in a format of `containers.FORMATS`.
      video: Whether to read the video stream.
      audio: Whether to read the audio stream.

    Raises:
      UserError: The file does not exist, consists of several files, or has none of these streams in
        a format that FFmpeg can decode.
    """

    def __init__(self, path: str | os.PathLike, *, video: bool = True, audio: bool = True):
        self.path = os.fspath(path)
        scan = containers.scan(self.path)
        containers.check_single(self.path)
        self._video = VideoStream.open(self.path, scan) if video else None
        self._audio = AudioStream.open(self.path, scan) if audio else None
        if self._video is None and self._audio is None:
            requested = [name for name, read in (("video", video), ("audio", audio)) if read]
            raise UserError(
                f"{self.path} has no {' and no '.join(requested)} stream that can be decoded. "
                f"Streams in the file: {', '.join(containers.stream_names(self.path)) or 'none'}."
            )

    def __enter__(self) -> Media:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        for stream in (self._video, self._audio):
            if stream is not None:
                stream.close()

    @property
    def has_video(self) -> bool:
        """Whether the file has video. Cover art does not count."""
        return self._video is not None

    @property
    def has_audio(self) -> bool:
        """Whether the file has audio."""
        return self._audio is not None

    def duration(self) -> float:
        """Returns the end of the longest stream in seconds.

        The whole file is scanned if its header does not contain the duration.
        """
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
        """Returns the segment [start, end).

        Args:
          start: Start in seconds.
          end: End in seconds; None for the end of the file.
          fps: Frames per second to sample.
          sample_rate: Samples per second of the waveform.
          size: Maximum length of the frames' shorter side in pixels; smaller frames are not
            enlarged.
          quality: JPEG quality from 1 to 100.

        Raises:
          UserError: The segment is empty or outside the file, or the data cannot be decoded.
        """
        if start < 0 or (end is not None and end <= start):
            raise UserError(
                f"{self.path}: the segment from {start} s to {end} s is not valid: start must be "
                "at least 0, and end must be greater than start."
            )
        frames, waveform, ends = [], None, []
        if self._video is not None:
            frames = self._read_frames(start, end, fps=fps, size=size, quality=quality)
            ends.append(start + len(frames) / fps)
        if self._audio is not None:
            waveform, audio_end = self._audio.read(start, end, sample_rate)
            ends.append(audio_end)
        if not frames and waveform is None:
            raise UserError(f"{self.path}: the segment starts at {start:g} s, {self._end()}.")
        if end is None or max(ends) < end - _SHORTFALL:
            end = max(ends)
        if frames:
            count = num_samples(start, end, fps)
            frames = frames[:count] + frames[-1:] * (count - len(frames))
        if waveform is not None:
            count = num_samples(start, end, sample_rate)
            waveform = np.pad(waveform, (0, max(count - len(waveform), 0)))[:count]
        return Segment(frames=frames, waveform=waveform, start=start, end=end)

    def _end(self) -> str:
        """Returns a description of the end of the file for messages."""
        declared = self.duration()
        actual = (self._video or self._audio).actual_end()
        if actual > declared - _SHORTFALL:
            return f"after the end of the file ({actual:.2f} s)"
        return (
            f"but the data end at {actual:.2f} s, before the duration of {declared:.2f} s that the "
            "header of the file declares: the file is truncated"
        )

    def _read_frames(
        self, start: float, end: float | None, *, fps: float, size: int | None, quality: int
    ) -> list[bytes]:
        indexes = itertools.count() if end is None else range(num_samples(start, end, fps))
        frames, last_frame, jpeg, shape = [], None, b"", None
        for frame in self._video.sample((start + k / fps for k in indexes), start=start):
            if frame is not last_frame:  # a repeated frame is encoded once
                last_frame = frame
                image = self._video.to_rgb(frame, size)
                shape = shape or image.shape
                where = f"{self.path} at {start + len(frames) / fps:.2f} s"
                jpeg = encode_jpeg(_resized(image, shape, where), quality=quality)
            frames.append(jpeg)
        return frames


def _resized(image: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Returns a frame in the size of the first frame of its clip.

    Args:
      image: uint8 [H, W, 3].
      shape: Shape of the first frame.
      where: File and time, for messages.

    Raises:
      UserError: The frames differ in shape, not only in size: resizing would distort them.
    """
    if image.shape == shape:
        return image
    (height, width), (first_height, first_width) = image.shape[:2], shape[:2]
    if abs(math.log(width / height * first_height / first_width)) > _MAX_DISTORTION:
        raise UserError(
            f"{where}: the frames change from {first_width}×{first_height} to {width}×{height}, "
            "but all frames of a clip must have one shape. Cut clips before and after the change "
            "(columns start and end), or write the video again."
        )
    resized = Image.fromarray(image).resize((first_width, first_height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def frame_files(directory: str | os.PathLike) -> list[str]:
    """Returns the names of the images in a directory in natural order (2, 10)."""
    names = [
        name
        for name in directories.list_files(directory)
        if is_image(os.path.join(directory, name))
    ]
    return sorted(
        names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]
    )


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
    """Returns a segment of a video stored as images, in natural order of their names (2, 10).

    Args:
      directory: Directory with one image per frame.
      start: Start in seconds.
      end: End in seconds; None for the last image.
      fps: Frames per second to sample.
      frame_dir_fps: Frames per second of the images; None for `fps`.
      size: Maximum length of the frames' shorter side in pixels; smaller images are not enlarged.
      quality: JPEG quality from 1 to 100.

    Raises:
      UserError: There are no images, the segment starts after the last one, or an image cannot be
        read.
    """
    names = frame_files(directory)
    if not names:
        raise UserError(f"The directory {os.fspath(directory)} contains no images.")
    frame_dir_fps = frame_dir_fps or fps
    end = min(end or math.inf, len(names) / frame_dir_fps)
    if end <= start:
        raise UserError(
            f"{os.fspath(directory)}: the segment starts at {start:g} s, but its {len(names)} "
            f"images at {frame_dir_fps:g} per second end at {len(names) / frame_dir_fps:g} s."
        )
    frames, last_index, jpeg, shape = [], -1, b"", None
    for k in range(num_samples(start, end, fps)):
        index = min(math.floor((start + k / fps) * frame_dir_fps + 1e-6), len(names) - 1)
        if index != last_index:
            last_index = index
            path = os.path.join(directory, names[index])
            image = read_image(path, size=size)
            shape = shape or image.shape
            jpeg = encode_jpeg(_resized(image, shape, path), quality=quality)
        frames.append(jpeg)
    return Segment(frames=frames, waveform=None, start=start, end=end)
