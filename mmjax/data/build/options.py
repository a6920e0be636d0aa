"""Options of `mmjax build` that determine the contents of a dataset."""

from __future__ import annotations

import dataclasses
import math

from mmjax.errors import UserError

_POSITIVE = ("fps", "size", "sample_rate", "frame_dir_fps", "clip_seconds", "clips_per_shard")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Everything that determines the bytes of a dataset, besides the table and the files.

    Attributes:
      fps: Frames per second to store.
      size: Shorter side in pixels of the frames, or of their crop; None for the size of the file.
      sample_rate: Sample rate of the waveforms in Hz.
      quality: JPEG quality, 1 to 100. JPEG and PNG files of touch images are stored unchanged.
      crop_margin: Margin to keep around the crop of an image, as a fraction of its sides.
      video: Whether to store video and images.
      audio: Whether to store audio.
      frame_dir_fps: Frames per second of directories of frames; None for `fps`.
      clip_seconds: Length in seconds of the clips to cut from each row; None to keep the rows.
      by_time: Splits by time and their fractions; see `cutting.cut`.
      by_file: Splits by file and their fractions; see `cutting.split_by_file`.
      clips_per_shard: Number of examples per shard; the last shard of a split may have fewer.
      vocab_size: Maximum number of words in `vocab.txt`.
      mask_classes: Class names of masks by index; () if they are unknown.
      mask_values: Value of each class in mask files; () if it is the class index.
      mask_ignore: Values of pixels without a class; None for 255, unless it is a class.

    Raises:
      UserError: A value is out of range, or two options contradict each other.
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
    mask_classes: tuple[str, ...] = ()
    mask_values: tuple[int, ...] = ()
    mask_ignore: tuple[int, ...] | None = None

    def __post_init__(self):
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be positive; got {value}.")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality must be 1..100; got {self.quality}.")
        if not 0 <= self.crop_margin < math.inf:
            raise UserError(f"--crop-margin must be at least 0; got {self.crop_margin}.")
        if self.by_time and self.by_file:
            raise UserError("--split-by-time and --split-by-file exclude each other. Remove one.")
        if not (self.video or self.audio):
            raise UserError("--no-video and --no-audio leave nothing to store. Remove one.")


def parse_mask_values(text: str | None, *, option: str) -> tuple[int, ...] | None:
    """Returns the values of an option such as '0,128,255'; None without the option.

    Args:
      text: Whole numbers separated by commas; '' for none.
      option: The option, for messages.

    Raises:
      UserError: The text is malformed.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"{option} {text!r} must be whole numbers separated by commas, as 0,255.")
    return tuple(map(int, parts))
