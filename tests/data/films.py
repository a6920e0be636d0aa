"""Write small video files with known contents (via PyAV), for tests of decoding and building."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

CODE_BITS = 8


def coded_frame(number: int, *, height: int = 48, width: int = 64) -> np.ndarray:
    """Returns an image that encodes `number` as eight black or white columns.

    The code survives lossy compression.
    """
    bits = [(number >> bit) & 1 for bit in range(CODE_BITS)]
    columns = np.repeat(np.array(bits, np.uint8) * 255, width // CODE_BITS)
    return np.broadcast_to(columns[None, :, None], (height, width, 3)).copy()


def read_code(image: np.ndarray) -> int:
    """Returns the number that an image made by `coded_frame` encodes."""
    columns = image.mean(axis=(0, 2)).reshape(CODE_BITS, -1).mean(axis=1)
    return sum(int(value > 127) << bit for bit, value in enumerate(columns))


def write_film(
    path,
    *,
    frames=(),
    times=None,
    fps: int = 20,
    waveform: np.ndarray | None = None,
    sample_rate: int = 16_000,
    layout: str = "mono",
    audio_delay: float = 0.0,
    video_codec: str = "libx264",
    audio_codec: str = "aac",
    gop: int = 12,
    rotation: int | None = None,
    aspect: str | None = None,
) -> str:
    """Writes a video or audio file and returns its path.

    Args:
      path: Output file; its suffix selects the container format.
      frames: Images, uint8 [H, W, 3] each.
      times: Presentation times in seconds; None for a constant `fps`.
      fps: Frames per second of the video stream.
      waveform: float32 [channels, samples] in [-1, 1].
      sample_rate: Samples per second of the waveform.
      layout: FFmpeg's channel layout of the waveform.
      audio_delay: Seconds between the start of the file and the first audio sample.
      video_codec: FFmpeg's name of the video codec.
      audio_codec: FFmpeg's name of the audio codec.
      gop: Distance between key frames, in frames.
      rotation: Counterclockwise rotation that a player applies, in degrees.
      aspect: Pixel aspect ratio, 'width/height'.
    """
    with av.open(str(path), "w") as container:
        video = audio = None
        if len(frames):
            video = container.add_stream(video_codec, rate=fps)
            video.height, video.width = frames[0].shape[:2]
            video.pix_fmt = "yuv420p" if video_codec != "ffv1" else "bgr0"
            video.codec_context.gop_size = gop
            video.codec_context.time_base = Fraction(1, 1000 if times is not None else fps)
            if rotation is not None:
                video.set_display_rotation(rotation)
            if aspect is not None:
                video.codec_context.sample_aspect_ratio = Fraction(aspect)
        if waveform is not None:
            audio = container.add_stream(audio_codec, rate=sample_rate, layout=layout)
        if video is not None:
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
                else:
                    frame.pts, frame.time_base = number, Fraction(1, fps)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        if audio is not None:
            size = audio.codec_context.frame_size or 1024
            for first in range(0, waveform.shape[1], size):
                part = waveform[:, first : first + size].T.reshape(1, -1).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(part, format="flt", layout=layout)
                frame.sample_rate = sample_rate
                frame.pts = first + round(audio_delay * sample_rate)
                frame.time_base = Fraction(1, sample_rate)
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return str(path)


def flash_and_beep(
    *, seconds: float, instant: float, fps: int = 20, sample_rate: int = 16_000, channels: int = 1
):
    """Returns (frames, waveform) with one white frame and one 50 ms beep at the same instant.

    All other frames are black and the rest of the waveform is silent.
    """
    frames = [np.zeros((48, 64, 3), np.uint8) for _ in range(round(seconds * fps))]
    frames[round(instant * fps)][:] = 255
    waveform = np.zeros((channels, round(seconds * sample_rate)), np.float32)
    first, length = round(instant * sample_rate), sample_rate // 20
    waveform[:, first : first + length] = 0.8 * np.sin(
        2 * np.pi * 1000 * np.arange(length) / sample_rate
    )
    return frames, waveform


def tone(frequency: float, *, seconds: float, sample_rate: int) -> np.ndarray:
    """Returns a sine wave with amplitude 0.5, float32 [samples]."""
    times = np.arange(round(seconds * sample_rate)) / sample_rate
    return (0.5 * np.sin(2 * np.pi * frequency * times)).astype(np.float32)
