"""Builds one example from one clip, independently of shards and processes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

import numpy as np

from mmjax.data.build import masks
from mmjax.data.build.manifest import Clip
from mmjax.data.build.options import BuildOptions
from mmjax.data.storage import directories, image_files, media, record_images, schema, streams
from mmjax.errors import UserError

_NOTHING = media.Segment(frames=[], waveform=None, start=0.0, end=0.0)


class Reader:
    """Reads clips of media files. The last files stay open: the next clip is often in them.

    Args:
      options: Options of the build.
      media_root: Directory that paths are relative to.
    """

    def __init__(self, options: BuildOptions, media_root: str):
        self.options, self.media_root = options, media_root
        # The open files and their arguments, by whether only the audio is read.
        self._open: dict[bool, media.Media] = {}
        self._keys: dict[bool, tuple[str, bool, bool]] = {}

    def read(self, clip: Clip) -> media.Segment:
        """Returns the frames and the waveform of a clip.

        Audio of a separate file is cut, or extended by silence, to the length of a video.

        Raises:
          UserError: A file cannot be read, or the clip has a crop but the file is not an image.
        """
        segment = self._read_frames(clip) if clip.path else None
        if not clip.audio or not self.options.audio:
            return segment or _NOTHING
        if segment and segment.frames and (clip.start or 0.0) >= self._duration_of_audio(clip):
            return segment  # the video is longer
        audio = self._read_media(clip.audio, clip, only_audio=True)
        if segment is None or segment.end <= segment.start:  # an image has no length
            frames, roi = (segment.frames, segment.roi) if segment else ([], None)
            return dataclasses.replace(audio, frames=frames, roi=roi)
        count = streams.num_samples(segment.start, segment.end, self.options.sample_rate)
        waveform = np.pad(audio.waveform, (0, max(count - len(audio.waveform), 0)))[:count]
        return dataclasses.replace(segment, waveform=waveform)

    def _read_frames(self, clip: Clip) -> media.Segment:
        """Returns the part of a clip that is in `clip.path`, with audio if it is not separate."""
        path = self.locate(clip.path)
        encoding = {"size": self.options.size, "quality": self.options.quality}
        is_directory = os.path.isdir(path)
        is_image = not is_directory and image_files.has_image(path)
        if clip.crop and not is_image:
            actual = "a directory" if is_directory else "not an image file"
            raise UserError(
                f"{path} is {actual}, but only image files can have a crop. Remove the crop."
            )
        if clip.mask and not is_image:
            actual = "a directory" if is_directory else "not an image file"
            raise UserError(
                f"{path} is {actual}, but only image files can have a mask. Remove the mask."
            )
        if not self.options.video and (is_directory or is_image):
            return _NOTHING
        if is_directory:
            return media.read_frame_directory(
                path,
                clip.start or 0.0,
                clip.end,
                fps=self.options.fps,
                frame_dir_fps=self.options.frame_dir_fps,
                **encoding,
            )
        if is_image:
            return self._read_image(path, clip)
        return self._read_media(clip.path, clip, only_audio=False)

    def _read_media(self, path: str, clip: Clip, *, only_audio: bool) -> media.Segment:
        """Returns the clip's time span of a media file."""
        options = self.options
        audio = options.audio and (only_audio or not clip.audio)
        opened = self._open_media(path, only_audio=only_audio, video=options.video, audio=audio)
        try:
            return opened.read(
                clip.start or 0.0,
                clip.end,
                fps=options.fps,
                sample_rate=options.sample_rate,
                size=options.size,
                quality=options.quality,
            )
        except BaseException:
            self._close(only_audio)  # the state of the decoder is unknown
            raise

    def _duration_of_audio(self, clip: Clip) -> float:
        return self._open_media(clip.audio, only_audio=True, video=False, audio=True).duration()

    def _open_media(self, path: str, *, only_audio: bool, video: bool, audio: bool) -> media.Media:
        """Returns the file, which is opened unless it is the last one."""
        key = (self.locate(path), video and not only_audio, audio)
        if only_audio not in self._open or self._keys[only_audio] != key:
            self._close(only_audio)
            self._open[only_audio] = media.Media(key[0], video=key[1], audio=key[2])
            self._keys[only_audio] = key
        return self._open[only_audio]

    def _read_image(self, path: str, clip: Clip) -> media.Segment:
        options, roi = self.options, None
        if clip.crop:
            image, roi = image_files.read_crop(
                path, clip.crop, margin=options.crop_margin, size=options.size
            )
        else:
            image = image_files.read_image(path, size=options.size)
        frame = image_files.encode_jpeg(image, quality=options.quality)
        return media.Segment(frames=[frame], waveform=None, start=0.0, end=0.0, roi=roi)

    def read_mask(self, clip: Clip, frame: bytes) -> bytes:
        """Returns the mask of a clip in the size of its frame, as PNG; see `masks.read_mask`."""
        width, height = record_images.size(frame)
        paths = self.locate(clip.mask), self.locate(clip.path)
        return schema.encode_mask(masks.read_mask(*paths, (height, width), self.options))

    def locate(self, path: str) -> str:
        """Returns the full path of a file of the table; see `locate`."""
        return locate(path, self.media_root)

    def close(self) -> None:
        """Closes the open files, if any."""
        for only_audio in tuple(self._open):
            self._close(only_audio)

    def _close(self, only_audio: bool) -> None:
        if opened := self._open.pop(only_audio, None):
            opened.close()


def locate(path: str, media_root: str) -> str:
    """Returns the full path of a file of the table.

    Args:
      path: An absolute path, or one that is relative to `media_root`.
      media_root: Directory that paths are relative to; '' for paths that no table contains.

    Raises:
      UserError: A relative path leads out of `media_root`. A table from others could otherwise
        read any file. Symbolic links below it are followed.
    """
    if media_root and os.path.normpath(path).split(os.sep)[0] == os.pardir:
        raise UserError(
            f"The path {path} leads out of the media root {media_root}. Relative paths of a table "
            "must stay below it: pass a directory that contains all files as --media-root, or use "
            "absolute paths."
        )
    return directories.existing_path(os.path.join(media_root, path))


def make_example(clip: Clip, reader: Reader, classes: Mapping[str, int]) -> schema.Example:
    """Returns the example of a clip.

    Args:
      clip: The clip.
      reader: Reads its files.
      classes: Class indices, see `manifest.number_labels`.

    Raises:
      UserError: A file cannot be read.
    """
    segment = reader.read(clip)
    if not segment.frames and segment.waveform is None and not clip.touch:
        raise UserError(
            f"{clip.file} has nothing to store, because of --no-video or --no-audio. Remove the "
            "option or the row."
        )
    background = [clip.background] if clip.background else []
    options = reader.options
    return schema.Example(
        frames=segment.frames,
        waveform=segment.waveform,
        captions=list(clip.captions),
        labels=[classes[label] if classes else int(label) for label in clip.labels],
        label_texts=list(clip.labels) if classes else [],
        start_us=round(segment.start * 1e6),
        end_us=round(segment.end * 1e6),
        filename=clip.file,
        frame_rate=options.fps if len(segment.frames) > 1 else 0.0,
        sample_rate=options.sample_rate if segment.waveform is not None else 0.0,
        roi=segment.roi,
        touch=[image_files.read_encoded(reader.locate(path)) for path in clip.touch],
        masks=[reader.read_mask(clip, segment.frames[0])] if clip.mask and segment.frames else [],
        touch_background=[image_files.read_encoded(reader.locate(path)) for path in background],
    )


def measure_duration(path: str, *, media_root: str, options: BuildOptions) -> float | None:
    """Returns the seconds of a file; None for images and unreadable files.

    Unreadable files are reported when their shard is built.

    Args:
      path: File or directory of frames, relative to `media_root`.
      media_root: Directory that paths are relative to.
      options: Options of the build.
    """
    try:
        path = locate(path, media_root)
        if os.path.isdir(path):
            return len(media.frame_files(path)) / (options.frame_dir_fps or options.fps)
        if image_files.has_image(path):
            return None
        with media.Media(path, video=options.video, audio=options.audio) as file:
            return file.duration()
    except UserError:
        return None
