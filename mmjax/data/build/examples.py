"""One row of a table as one example. Knows nothing of shards, processes or runners."""

from __future__ import annotations

import dataclasses
import math
import os

from mmjax.data.build.manifest import Clip
from mmjax.data.storage import image_files, media, schema
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What decides the bytes of a dataset, beside the table and the files.

    Attributes:
      fps: frames per second to store.
      size: shorter side of the frames, or of their crop, in pixels; None = as in the file.
      sample_rate: of the waveforms, in Hz.
      quality: of the JPEGs. Touch images are stored as they are.
      crop_margin: what to keep around the crop of an image, as a fraction of its sides.
      video, audio: whether to store them.
      folder_fps: frames per second of folders of images; None = `fps`.
      clip_seconds: cut rows into clips of this length.
      by_time, by_file: fractions, see `manifest.cut` and `manifest.split_by_file`.
      clips_per_shard: examples in each shard but the last of a split.
      vocab_size: words in `vocab.txt`.
    """

    fps: float = 10.0
    size: int | None = 256
    sample_rate: int = 48_000
    quality: int = 90
    crop_margin: float = 0.0
    video: bool = True
    audio: bool = True
    frame_dir_fps: float | None = None
    clip_seconds: float | None = None
    by_time: tuple[tuple[str, float], ...] = ()
    by_file: tuple[tuple[str, float], ...] = ()
    clips_per_shard: int = 64
    vocab_size: int = 65_536

    def __post_init__(self):
        for name in ("fps", "size", "sample_rate", "frame_dir_fps", "clip_seconds", "clips_per_shard"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be positive, not {value}.")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality is between 1 and 100, not {self.quality}.")
        if not 0 <= self.crop_margin < math.inf:
            raise UserError(f"--crop-margin must be 0 or more, not {self.crop_margin}.")
        if self.by_time and self.by_file:
            raise UserError("Give --split-by-time or --split-by-file, not both.")
        if not (self.video or self.audio):
            raise UserError("Nothing to store: both image and sound are switched off.")


class Reader:
    """Reads segments of media files, keeping the last file open: its next segment is near."""

    def __init__(self, options: Options, media_root: str):
        self.options, self.media_root = options, media_root
        self._path, self._media = None, None

    def read(self, clip: Clip) -> media.Segment:
        """The segment; errors as in `media`, and a crop of what is no image."""
        options, path = self.options, self.locate(clip.path)
        stored = {"size": options.size, "quality": options.quality}
        if clip.crop and (os.path.isdir(path) or not image_files.is_image(path)):
            raise UserError(f"{path} is no image: it cannot have a crop.")
        if os.path.isdir(path):
            return media.read_frame_directory(
                path,
                clip.start or 0.0,
                clip.end,
                fps=options.fps,
                frame_dir_fps=options.frame_dir_fps,
                **stored,
            )
        if image_files.is_image(path):
            roi = None
            if clip.crop:
                image, roi = image_files.read_crop(
                    path, clip.crop, margin=options.crop_margin, size=options.size
                )
            else:
                image = image_files.read_image(path, size=options.size)
            frame = image_files.encode_jpeg(image, quality=options.quality)
            return media.Segment(frames=[frame], waveform=None, start=0.0, end=0.0, roi=roi)
        if path != self._path:
            self.close()
            self._media = media.Media(path, video=options.video, audio=options.audio)
            self._path = path
        try:
            return self._media.read(
                clip.start or 0.0,
                clip.end,
                fps=options.fps,
                sample_rate=options.sample_rate,
                **stored,
            )
        except BaseException:
            self.close()  # the next clip of this file starts afresh
            raise

    def locate(self, path: str) -> str:
        """Where a file of the table is."""
        return os.path.join(self.media_root, path)

    def close(self) -> None:
        """Closes the file."""
        if self._media is not None:
            self._media.close()
        self._path = self._media = None


def make_example(clip: Clip, reader: Reader, classes: dict[str, int]) -> schema.Example:
    """One row as an example: the whole of what a runner has to run.

    Args:
      clip: the row.
      reader: for the files.
      classes: see `manifest.class_numbers`.

    Raises:
      UserError: the file cannot be read.
    """
    if clip.path:
        segment = reader.read(clip)
    else:
        segment = media.Segment(frames=[], waveform=None, start=0.0, end=0.0)
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
        touch_background=[image_files.read_encoded(reader.locate(path)) for path in background],
    )


def duration(path: str, *, media_root: str, options: Options) -> float | None:
    """Seconds of a file; None for images and for what cannot be read, which is reported later."""
    path = os.path.join(media_root, path)
    try:
        if os.path.isdir(path):
            fps = options.frame_dir_fps or options.fps
            return sum(image_files.is_image(name) for name in os.listdir(path)) / fps
        if image_files.is_image(path):
            return None
        with media.Media(path, video=options.video, audio=options.audio) as file:
            return file.duration()
    except UserError:
        return None  # reported when the shard is built
