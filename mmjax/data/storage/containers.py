"""Opens media files with PyAV (FFmpeg), and repairs their timestamps.

Only formats that contain video or audio themselves are opened. FFmpeg also reads playlists, which
name other files and addresses, and draws text files as films: `FORMATS` leaves them out.
"""

from __future__ import annotations

import errno
import mmap
import re
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

import av
from av.format import Flags
from av.stream import Disposition

from mmjax import limits
from mmjax.errors import UserError

# Names of FFmpeg's demuxers.
FORMATS = (
    # Containers.
    *"mov mp4 m4a 3gp 3g2 mj2 matroska webm avi mpegts mpeg ogg flv live_flv asf asf_o wtv".split(),
    *"rm nut nuv mxf gxf dv ivf dhav ty swf smjpeg mpjpeg flic bink smk roq viv cine r3d".split(),
    # Video without a container.
    *"h261 h263 h264 hevc vvc evc av1 obu m4v mpegvideo vc1 vc1test dirac dnxhd cavsvideo".split(),
    *"avs avs2 avs3 mjpeg mjpeg_2000 yuv4mpegpipe gif apng jpegxl_anim".split(),
    # Audio.
    *"wav w64 aiff caf au flac mp3 aac ac3 eac3 ac4 dts dtshd truehd mlp amr amrnb amrwb".split(),
    *"ape tta wv mpc mpc8 shn tak voc gsm ircam sox loas dsf iff sbc g722 xwma oma qcp".split(),
    *"rso sds".split(),
    # Single images, also of formats that Pillow does not read.
    *"jpeg_pipe png_pipe webp_pipe bmp_pipe tiff_pipe j2k_pipe jpegls_pipe jpegxl_pipe".split(),
    *"exr_pipe dpx_pipe hdr_pipe psd_pipe qoi_pipe sgi_pipe pgm_pipe ppm_pipe pbm_pipe".split(),
    *"pam_pipe pfm_pipe".split(),
)

_FLV_HEADER = re.compile(rb"FLV\x01[\x00-\x05]\x00\x00\x00\x09\x00\x00\x00\x00")
_RESTART = 0.5  # seconds that timestamps go back where a recording restarts
_JUMP = 10.0  # seconds of a gap that FFmpeg removes where timestamps may be discontinuous
_LEAD = 0.2  # seconds that audio may start before the video, and which are cut off


def open_container(path: str) -> av.container.InputContainer:
    """Opens a media file.

    Raises:
      UserError: The file does not exist, FFmpeg cannot open it, or its format is not in `FORMATS`.
    """
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    try:
        return av.open(f"file:{path}", metadata_errors="replace", container_options=options)
    except FileNotFoundError as error:
        raise UserError(f"Media file {path} does not exist.") from error
    except (av.FFmpegError, OSError) as error:
        if error.errno == errno.EINVAL:  # the format is not in the list
            raise UserError(
                f"{path} is not a video or audio file of a known format. FFmpeg recognizes a "
                "playlist, text or another format that mmjax does not read. Convert it to MP4, MKV "
                "or WAV, or list the files of a playlist in the table."
            ) from error
        raise UserError(f"FFmpeg cannot open {path}: {error.strerror or error}.") from error


def check_single(path: str) -> None:
    """Checks that a file is not several files of one format, of which FFmpeg reads only the first.

    FFmpeg itself continues with the next recording in MPEG-TS, and its timestamps show where MKV
    and FLAC files were joined. FLV files are searched to their end.

    Raises:
      UserError: It consists of several files.
    """
    if _is_joined(path):
        raise UserError(
            f"{path} consists of several files that were appended to each other. FFmpeg reads only "
            "the first. Join the originals with `ffmpeg -f concat`, or list them one by one."
        )


def _is_joined(path: str) -> bool:
    with open(path, "rb") as file:
        start = file.read(12)
        if start[4:8] == b"ftyp":
            return [header[4:8] for header in _headers(file, _box_size)].count(b"moov") > 1
        if start[:4] in (b"RIFF", b"FORM"):
            order = "<I" if start[:4] == b"RIFF" else ">I"
            forms = [
                header[8:12]
                for header in _headers(file, lambda header: _chunk_size(header, order))
                if header[:4] == start[:4]
            ]
            return forms.count(start[8:]) > 1
        if start[:3] == b"FLV":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _FLV_HEADER.search(content, 1) is not None
    return False


def _headers(file: BinaryIO, size_of: Callable[[bytes], int]) -> Iterator[bytes]:
    """Yields the first 16 bytes of the parts of a file, fewer at its end.

    Args:
      file: The file.
      size_of: Returns the size of a part with its header; less than 8 if it has no end.
    """
    position, size = 0, 8
    while size >= 8:
        file.seek(position)
        header = file.read(16)
        if len(header) < 8:
            return
        yield header
        size = size_of(header)
        position += size


def _box_size(header: bytes) -> int:
    """Returns the size of a box of an MP4 or MOV file; 0 up to the end of the file."""
    (size,) = struct.unpack(">I", header[:4])
    return struct.unpack(">Q", header[8:])[0] if size == 1 and len(header) == 16 else size


def _chunk_size(header: bytes, order: str) -> int:
    """Returns the size of a chunk of a RIFF or AIFF file; 0 if it is unknown, as in streams."""
    (size,) = struct.unpack(order, header[4:8])
    return 0 if size in (0, 0xFFFFFFFF) else 8 + size + size % 2


def main_stream(container: av.container.InputContainer, stream_type: str):
    """Returns the main stream of a type, or None. Cover art does not count.

    Raises:
      UserError: Its frames are larger than the limit IMAGE_PIXELS, or are tiles of an image.
    """
    streams = [
        stream
        for stream in getattr(container.streams, stream_type)
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None
    ]
    best = container.streams.best(stream_type) if streams else None
    stream = best if best in streams or not streams else streams[0]
    if stream is not None and stream_type == "video":
        path = container.name.removeprefix("file:")
        codec = stream.codec_context
        what = f"{path}: its frames of {codec.width}×{codec.height} are"
        limits.check("IMAGE_PIXELS", codec.width * codec.height, what)
        codec.options = {"max_pixels": str(limits.limit("IMAGE_PIXELS"))}
        if stream.disposition & Disposition.dependent:
            raise UserError(
                f"{path} consists of {len(streams)} tiles, as HEIC photos of phones do, and FFmpeg "
                "reads only single tiles. Convert it to JPEG."
            )
    return stream


def stream_names(path: str) -> list[str]:
    """Returns the types and codecs of a file's streams, for example ['video (h264)']."""
    names = []
    with open_container(path) as container:
        for stream in container.streams:
            codec = stream.codec_context.name if stream.codec_context is not None else "unknown"
            cover = ", cover art" if stream.disposition & Disposition.attached_pic else ""
            names.append(f"{stream.type} ({codec}{cover})")
    return names


def has_timestamps(container: av.container.InputContainer) -> bool:
    """Returns whether the format has timestamps; without them, frames are counted."""
    return not container.format.flags & Flags.no_timestamps.value


def origin(container: av.container.InputContainer) -> float:
    """Returns the timestamp of time 0 in seconds.

    Time 0 is the start of the earliest stream. If audio starts shortly before the video, as usual
    in MKV, WebM and TS, time 0 is the first frame, so that frames sampled at the frame rate of the
    file are each sampled once.
    """
    start = (container.start_time or 0) / av.time_base
    video = main_stream(container, "video")
    if video is not None and video.start_time is not None:
        first = float(video.start_time * video.time_base)
        if start < first <= start + _LEAD:
            return first
    return start


class Timestamps:
    """Makes the timestamps of a joined file continuous, as FFmpeg does.

    Where a recording restarts, or skips more than `_JUMP` seconds, the timestamps that follow are
    shifted. All streams are shifted equally, so they stay synchronized.

    Attributes:
      num_jumps: Number of jumps so far.
    """

    def __init__(self):
        self._shifts = [0.0]  # of each recording
        self._starts = [-1]  # byte position of the first packet of each recording
        self._recording: dict[int, int] = {}  # by stream
        self._last: dict[int, tuple[float, float]] = {}  # time of the last packet, and its end

    @property
    def num_jumps(self) -> int:
        return len(self._shifts) - 1

    def correct(self, packet: av.packet.Packet) -> None:
        """Shifts the timestamps of a packet. Call it with all packets in order of the file."""
        if packet.dts is None or packet.time_base is None:
            return
        stream, base = packet.stream_index, packet.time_base
        index = self._recording.get(stream, 0)
        time = float(packet.dts * base)
        if stream in self._last:
            last, expected = self._last[stream]
            shifted = time + self._shifts[index]
            follows = index + 1 < len(self._shifts)
            jumps = shifted < last - _RESTART or shifted > expected + _JUMP
            if jumps or (follows and (packet.pos or -1) > self._starts[index + 1]):
                index += 1
                if not follows:  # the first stream that restarts
                    self._shifts.append(expected - time)
                    self._starts.append(packet.pos or 0)
        self._recording[stream] = index
        time += self._shifts[index]
        self._last[stream] = time, time + float((packet.duration or 0) * base)
        if index:
            ticks = round(self._shifts[index] / base)
            packet.dts += ticks
            if packet.pts is not None:
                packet.pts += ticks


def scan(path: str, *, always: bool = False) -> tuple[int, float] | None:
    """Returns (number of jumps, last timestamp in seconds) of a file. Reads all its packets.

    Args:
      path: The file.
      always: Whether to scan every format; otherwise None is returned for formats in which
        timestamps must be continuous.
    """
    with open_container(path) as container:
        flags = container.format.flags
        if not always and not (flags & Flags.ts_discont.value and has_timestamps(container)):
            return None
        streams = [main_stream(container, name) for name in ("video", "audio")]
        timestamps, end = Timestamps(), 0.0
        try:
            for packet in container.demux(*[s for s in streams if s is not None]):
                if flags & Flags.ts_discont.value:
                    timestamps.correct(packet)
                if packet.pts is not None:
                    stop = (packet.pts + (packet.duration or 0)) * packet.time_base
                    end = max(end, float(stop))
        except av.FFmpegError:
            pass  # a truncated file: reading its last segment reports the error
    return timestamps.num_jumps, end
