"""One example as a dataclass, and its translation to and from a `tf.train.SequenceExample`.

The layout is DMVR's (github.com/google-deepmind/dmvr, `examples/generate_from_file.py`), so that
shards people already have are read as they are and ours are read by DMVR; fields DMVR has no name
for follow MediaPipe's sequence keys.

Reading accepts more than writing produces: both names of the waveform and of the labels, and plain
`tf.train.Example` records. The latter need no code of their own: `Example.features` and
`SequenceExample.context` are the same protobuf field, so an Example parses as a SequenceExample
whose every feature is in the context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mmjax.errors import UserError
from mmjax.modalities import MODALITIES, STORED

# Where each field is written, first, and the other names under which it is found.
FRAMES = ("image/encoded",)  # feature list: one JPEG per frame
WAVEFORM = ("WAVEFORM/feature/floats", "waveform/floats")  # feature list: one feature, all samples
CAPTIONS = ("caption/string",)  # context: bytes, one per caption
LABELS = ("clip/label/index", "label/index")  # context: int64
LABEL_TEXTS = ("clip/label/text", "label/text", "clip/label/string")  # context: bytes
START = ("clip/start/timestamp",)  # context: int64, microseconds
END = ("clip/end/timestamp",)
FILENAME = ("video/filename",)  # context: bytes
FRAME_RATE = ("image/frame_rate",)  # context: float, Hz
SAMPLE_RATE = ("WAVEFORM/feature/sample_rate",)  # context: float, Hz
ROI = ("image/roi",)  # context: int64 [4] = (top, left, height, width), pixels of the frames
TOUCH = ("touch/encoded",)  # feature list: one JPEG or PNG per touch image
TOUCH_BACKGROUND = ("touch/background/encoded",)  # feature list: one JPEG or PNG, sensor untouched
MASKS = ("image/mask/encoded",)  # feature list: PNG uint8 [H, W, 1], 0 = background
DEPTH = ("image/depth/encoded",)  # feature list: PNG uint16 [H, W, 1], see `encode_depth`
FLOW = ("image/flow/encoded",)  # feature list: PNG uint16 [H, W, 3], see `encode_flow`

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"


@dataclasses.dataclass(kw_only=True)
class Example:
    """One clip. Every field may be absent: an empty list, or None for the waveform.

    Attributes:
      frames: one JPEG per video frame.
      waveform: float32 [S], mono, in [-1, 1].
      captions: sentences that describe the clip, the best first.
      labels: class numbers.
      label_texts: class names, aligned with `labels` where both exist.
      start_us, end_us: where the clip lies in its source, in microseconds.
      filename: the source.
      frame_rate: frames per second of `frames`; 0 = not recorded.
      sample_rate: samples per second of `waveform`; 0 = not recorded.
      roi: (top, left, height, width) in pixels of the frames: the part that matters, within them.
      touch: one JPEG or PNG per touch image.
      touch_background: one JPEG or PNG of the same sensor when nothing touches it.
      masks: PNG uint8 [H, W, 1] per frame, object numbers, 0 = background.
      depth: PNG uint16 per frame (`encode_depth`).
      flow: PNG uint16 per frame (`encode_flow`), motion from this frame to the next.
    """

    frames: list[bytes] = dataclasses.field(default_factory=list)
    waveform: np.ndarray | None = None
    captions: list[str] = dataclasses.field(default_factory=list)
    labels: list[int] = dataclasses.field(default_factory=list)
    label_texts: list[str] = dataclasses.field(default_factory=list)
    start_us: int = 0
    end_us: int = 0
    filename: str = ""
    frame_rate: float = 0.0
    sample_rate: float = 0.0
    roi: tuple[int, int, int, int] | None = None
    touch: list[bytes] = dataclasses.field(default_factory=list)
    touch_background: list[bytes] = dataclasses.field(default_factory=list)
    masks: list[bytes] = dataclasses.field(default_factory=list)
    depth: list[bytes] = dataclasses.field(default_factory=list)
    flow: list[bytes] = dataclasses.field(default_factory=list)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The stored modalities that this example has, in the order of `mmjax.modalities`."""
        values = {name: getattr(self, MODALITIES[name].field) for name in STORED}
        return tuple(name for name, value in values.items() if value is not None and len(value))


def encode(example: Example) -> bytes:
    """The example as a serialized SequenceExample in DMVR's layout.

    Raises:
      UserError: a frame that is not a JPEG, another image that is neither JPEG nor PNG, a roi
        that is no rectangle, or a waveform that is not a finite one-dimensional floating-point
        array.
    """
    proto = tf.train.SequenceExample()
    context = proto.context.feature
    lists = proto.feature_lists.feature_list

    _put_images(lists, FRAMES[0], example.frames, (_JPEG,), example.filename)
    for (key, *_), images in (
        (TOUCH, example.touch),
        (TOUCH_BACKGROUND, example.touch_background),
        (MASKS, example.masks),
        (DEPTH, example.depth),
        (FLOW, example.flow),
    ):
        _put_images(lists, key, images, (_JPEG, _PNG), example.filename)
    if example.waveform is not None:
        waveform = _checked_waveform(example.waveform, example.filename)
        lists[WAVEFORM[0]].feature.add().float_list.CopyFrom(_float_list(waveform))

    _put_bytes(context, CAPTIONS[0], [text.encode() for text in example.captions])
    _put_bytes(context, LABEL_TEXTS[0], [text.encode() for text in example.label_texts])
    if example.labels:
        context[LABELS[0]].int64_list.value.extend(int(label) for label in example.labels)
    if roi := _checked_roi(example.roi, example.filename):
        context[ROI[0]].int64_list.value.extend(roi)
    if example.filename:
        _put_bytes(context, FILENAME[0], [example.filename.encode()])
    context[START[0]].int64_list.value.append(int(example.start_us))
    context[END[0]].int64_list.value.append(int(example.end_us))
    if example.frame_rate:
        context[FRAME_RATE[0]].float_list.value.append(example.frame_rate)
    if example.sample_rate:
        context[SAMPLE_RATE[0]].float_list.value.append(example.sample_rate)
    # Otherwise the order of the keys differs between processes, and so do the bytes.
    return proto.SerializeToString(deterministic=True)


def decode(serialized: bytes, *, waveform_format: str = "float32") -> Example:
    """The example in a serialized SequenceExample or tf.train.Example.

    Args:
      serialized: one record.
      waveform_format: 'float32'; 'int32' to repair a waveform that DMVR's example writer has stored
        (see `is_int32_waveform`); 'unchecked' for the floats as they are.

    Raises:
      UserError: bytes that are no such message, a roi that is no rectangle, or with 'float32' a
        waveform of that defective kind.
    """
    try:
        proto = tf.train.SequenceExample.FromString(serialized)
    except Exception as error:  # protobuf's DecodeError, whose module differs between versions
        raise UserError(
            f"A record of {len(serialized)} bytes is neither a tf.train.SequenceExample nor a "
            f"tf.train.Example ({error}). Its CRC may tell more: `mmjax validate FOLDER`."
        ) from error
    example = Example(
        frames=_get(proto, FRAMES, "bytes_list"),
        waveform=_get_waveform(proto),
        captions=[text.decode(errors="replace") for text in _get(proto, CAPTIONS, "bytes_list")],
        labels=_get(proto, LABELS, "int64_list"),
        label_texts=[t.decode(errors="replace") for t in _get(proto, LABEL_TEXTS, "bytes_list")],
        start_us=next(iter(_get(proto, START, "int64_list")), 0),
        end_us=next(iter(_get(proto, END, "int64_list")), 0),
        filename=next(iter(_get(proto, FILENAME, "bytes_list")), b"").decode(errors="replace"),
        frame_rate=next(iter(_get(proto, FRAME_RATE, "float_list")), 0.0),
        sample_rate=next(iter(_get(proto, SAMPLE_RATE, "float_list")), 0.0),
        roi=_checked_roi(_get(proto, ROI, "int64_list")),
        touch=_get(proto, TOUCH, "bytes_list"),
        touch_background=_get(proto, TOUCH_BACKGROUND, "bytes_list"),
        masks=_get(proto, MASKS, "bytes_list"),
        depth=_get(proto, DEPTH, "bytes_list"),
        flow=_get(proto, FLOW, "bytes_list"),
    )
    if example.waveform is None or waveform_format == "unchecked":
        return example
    if waveform_format == "int32":
        example.waveform = repair_int32_waveform(example.waveform)
    elif is_int32_waveform(example.waveform):
        raise UserError(f"{example.filename or 'A record'}: {INT32_DEFECT} {_INT32_WAY_OUT}")
    return example


INT32_DEFECT = (
    "the waveform holds 32-bit integer PCM whose bytes are read as floats, as DMVR's "
    "generate_from_file.py stores it (next to nothing, enormous values and NaN instead of sound)."
)
_INT32_WAY_OUT = (
    'It can be repaired on reading: say "waveform_format": "int32" in the dataset\'s dataset.json '
    "(`mmjax index DIRECTORY` writes one), or build the dataset again with `mmjax build`."
)


def is_int32_waveform(waveform: np.ndarray) -> bool:
    """Whether a float32 waveform is int32 PCM in disguise: the defect of DMVR's example writer.

    That writer asks FFmpeg for `s32le` and reads the bytes as float32. A quiet positive sample
    becomes a float below 1e-18, a quiet negative one a NaN or an enormous value, where true samples
    other than 0 lie within a few orders of magnitude of 1. The test is that most samples other than
    0 are outside [1e-12, 1e3].
    """
    waveform = np.asarray(waveform)
    sound = waveform[waveform != 0]  # NaN != 0 is True, and denormals are kept
    if sound.size == 0:
        return False
    with np.errstate(invalid="ignore"):
        magnitude = np.abs(sound)
        plausible = (magnitude >= 1e-12) & (magnitude <= 1e3)
    return bool(plausible.mean() < 0.5)


def repair_int32_waveform(waveform: np.ndarray) -> np.ndarray:
    """Sound in [-1, 1] from int32 PCM in disguise (see `is_int32_waveform`); float32 [S]."""
    return (np.ascontiguousarray(waveform, np.float32).view(np.int32) / 2.0**31).astype(np.float32)


def encode_mask(mask: np.ndarray) -> bytes:
    """Object numbers, uint8 [H, W], as PNG."""
    return tf.io.encode_png(np.asarray(mask, np.uint8)[..., None]).numpy()


def encode_depth(depth: np.ndarray) -> bytes:
    """Metres, float [H, W] in [0, 65.535], as 16-bit PNG in millimetres."""
    return tf.io.encode_png(np.round(depth * 1000).astype(np.uint16)[..., None]).numpy()


def decode_depth(png: bytes) -> np.ndarray:
    """Inverse of `encode_depth`: float32 [H, W] in metres."""
    return tf.io.decode_png(png, 1, tf.uint16).numpy()[..., 0].astype(np.float32) / 1000


def encode_flow(flow: np.ndarray) -> bytes:
    """Optical flow, float [H, W, 2] = (x, y) in pixels, as PNG in KITTI's form.

    That is uint16 (64 · x + 2^15, 64 · y + 2^15, 1), so |flow| < 512 pixels.
    """
    coded = np.round(flow * 64 + 2**15).clip(0, 2**16 - 1).astype(np.uint16)
    return tf.io.encode_png(np.concatenate([coded, np.ones_like(coded[..., :1])], -1)).numpy()


def decode_flow(png: bytes) -> np.ndarray:
    """Inverse of `encode_flow`: float32 [H, W, 2] in pixels."""
    coded = tf.io.decode_png(png, 3, tf.uint16).numpy()
    return (coded[..., :2].astype(np.float32) - 2**15) / 64


def _checked_waveform(waveform: np.ndarray, filename: str) -> np.ndarray:
    waveform = np.asarray(waveform)
    of = f" of {filename}" if filename else ""
    if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating):
        raise UserError(
            f"The waveform{of} is {waveform.dtype} {list(waveform.shape)}; expected "
            "floating-point [samples], "
            "mono, in [-1, 1]. Divide integer PCM by its full scale, average channels."
        )
    if not np.isfinite(waveform).all():
        raise UserError(f"The waveform{of} has samples that are NaN or infinite.")
    return np.ascontiguousarray(waveform, "<f4")


def _checked_roi(values: Sequence[int] | None, filename: str = "") -> tuple[int, ...] | None:
    """The roi as whole numbers; None without one."""
    if values is None or len(values) == 0:
        return None
    roi = tuple(int(value) for value in values)
    if len(roi) != 4 or min(roi) < 0 or 0 in roi[2:]:
        raise UserError(
            f"{ROI[0]}{' of ' + filename if filename else ''} is {list(roi)}; expected top, left, "
            "height and width in pixels, within the image and not empty."
        )
    return roi


def _put_images(lists, key: str, images: Sequence[bytes], magic: tuple[bytes, ...], filename: str):
    for number, image in enumerate(images):
        if not image.startswith(magic):
            kinds = " or ".join({_JPEG: "JPEG", _PNG: "PNG"}[m] for m in magic)
            raise UserError(
                f"{key}: image {number}{' of ' + filename if filename else ''} is not {kinds} "
                f"(it begins with {image[:4]!r})."
            )
        lists[key].feature.add().bytes_list.value.append(image)


def _put_bytes(context, key: str, values: Sequence[bytes]) -> None:
    if values:
        context[key].bytes_list.value.extend(values)


def _get(proto: tf.train.SequenceExample, keys: Sequence[str], kind: str) -> list:
    """The values under the first of `keys` that has any, wherever they are."""
    for key in keys:
        if key in proto.feature_lists.feature_list:
            features = proto.feature_lists.feature_list[key].feature
            values = [value for feature in features for value in getattr(feature, kind).value]
        elif key in proto.context.feature:
            values = list(getattr(proto.context.feature[key], kind).value)
        else:
            continue
        if values:
            return values
    return []


def _get_waveform(proto: tf.train.SequenceExample) -> np.ndarray | None:
    for key in WAVEFORM:
        if key in proto.feature_lists.feature_list:
            features = proto.feature_lists.feature_list[key].feature
            parts = [_floats(feature.float_list) for feature in features]
            return np.concatenate(parts) if parts else np.zeros(0, np.float32)
        if key in proto.context.feature:
            return _floats(proto.context.feature[key].float_list)
    return None


# Packed floats travel as bytes: element by element, protobuf needs 0.5 ms for a second of sound.
# On the wire a FloatList is the tag 0x0a, the number of bytes as a varint, the little-endian
# floats.


def _float_list(values: np.ndarray) -> tf.train.FloatList:
    if not values.size:
        return tf.train.FloatList()
    data, size, varint = values.tobytes(), values.nbytes, bytearray()
    while size > 127:
        varint.append(size & 127 | 128)
        size >>= 7
    varint.append(size)
    return tf.train.FloatList.FromString(b"\x0a" + bytes(varint) + data)


def _floats(values: tf.train.FloatList) -> np.ndarray:
    count = len(values.value)
    data = values.SerializeToString()  # always packed, however it was stored
    return np.frombuffer(data, "<f4", count, len(data) - 4 * count).astype(np.float32)
