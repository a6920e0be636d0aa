"""One example as a dataclass, and its conversion to and from a serialized record.

Records are `tf.train.SequenceExample` messages in the layout of DMVR (github.com/google-deepmind/
dmvr, `examples/generate_from_file.py`), so existing DMVR shards can be read, and DMVR can read
ours. Fields that DMVR does not define use the keys of MediaPipe.

Reading accepts more than writing produces: alternative keys of the waveform and the labels, and
plain `tf.train.Example` records. The latter need no separate code: `Example.features` and
`SequenceExample.context` are the same protobuf field, so an Example parses as a SequenceExample
with all features in the context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mmjax.errors import UserError
from mmjax.modalities import MODALITIES, STORED

# Keys of each field: the first one is written, all are read.
FRAMES = ("image/encoded",)  # feature list: one JPEG per frame
WAVEFORM = ("WAVEFORM/feature/floats", "waveform/floats")  # feature list: one feature, all samples
CAPTIONS = ("caption/string",)  # context: bytes, one per caption
LABELS = ("clip/label/index", "label/index")  # context: int64
LABEL_TEXTS = ("clip/label/text", "label/text", "clip/label/string")  # context: bytes
START = ("clip/start/timestamp",)  # context: int64, microseconds
END = ("clip/end/timestamp",)  # context: int64, microseconds
FILENAME = ("video/filename",)  # context: bytes
FRAME_RATE = ("image/frame_rate",)  # context: float, Hz
SAMPLE_RATE = ("WAVEFORM/feature/sample_rate",)  # context: float, Hz
ROI = ("image/roi",)  # context: int64 [4] = (top, left, height, width), pixels of the frames
TOUCH = ("touch/encoded",)  # feature list: one JPEG or PNG per touch image
TOUCH_BACKGROUND = ("touch/background/encoded",)  # feature list: one JPEG or PNG
MASKS = ("image/mask/encoded",)  # feature list: PNG uint8 [H, W, 1], classes; 255 = no class
DEPTH = ("image/depth/encoded",)  # feature list: PNG uint16 [H, W, 1], see `encode_depth`
FLOW = ("image/flow/encoded",)  # feature list: PNG uint16 [H, W, 3], see `encode_flow`
# Feature list: one file of any format that Pillow reads, for the maps that an end task predicts.
# See `mmjax.data.end_tasks`.
TARGET = ("target/encoded",)

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"


@dataclasses.dataclass(kw_only=True)
class Example:
    """One clip. Every field is optional: absent fields are empty, or None for the waveform.

    Attributes:
      frames: One JPEG per video frame.
      waveform: float32 [S], mono, in [-1, 1].
      captions: Sentences that describe the clip, the best one first.
      labels: Class indices.
      label_texts: Class names, aligned with `labels` if both are present.
      start_us: Start of the clip in its source, in microseconds.
      end_us: End of the clip in its source, in microseconds.
      filename: Name of the source file.
      frame_rate: Frames per second of `frames`; 0 if not recorded.
      sample_rate: Samples per second of `waveform`; 0 if not recorded.
      roi: Region of interest (top, left, height, width) in pixels of the frames.
      touch: One JPEG or PNG per touch image.
      touch_background: One JPEG or PNG of the same touch sensor without contact.
      masks: One PNG per frame, uint8 [H, W, 1], class of each pixel, 255 for pixels without a
        class; see `mmjax.data.storage.mask_files`.
      depth: One PNG per frame, uint16; see `encode_depth`.
      flow: One PNG per frame, uint16, motion to the next frame; see `encode_flow`.
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
        """Stored modalities that this example has, in the order of `mmjax.modalities`."""
        values = {name: getattr(self, MODALITIES[name].field) for name in STORED}
        return tuple(name for name, value in values.items() if value is not None and len(value))


def encode(example: Example) -> bytes:
    """Returns the example as a serialized SequenceExample in DMVR's layout.

    Raises:
      UserError: A frame is not a JPEG, another image is neither JPEG nor PNG, the region of
        interest is not a rectangle, or the waveform is not a one-dimensional array of finite
        floating-point samples.
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
    # Without `deterministic`, the order of the keys, and so the bytes, differs between processes.
    return proto.SerializeToString(deterministic=True)


def decode(serialized: bytes, *, waveform_format: str = "float32", where: str = "") -> Example:
    """Returns the example in a serialized SequenceExample or tf.train.Example.

    Args:
      serialized: One record.
      waveform_format: 'float32'; 'int32' to repair a waveform written by DMVR's example script (see
        `is_int32_waveform`); 'unchecked' to return the floats unchanged.
      where: Location of the record, for error messages: shard and record index.

    Raises:
      UserError: The bytes are not such a message, the region of interest is not a rectangle, or
        `waveform_format` is 'float32' and the waveform is int32 PCM.
    """
    try:
        proto = tf.train.SequenceExample.FromString(serialized)
    except Exception as error:  # protobuf's DecodeError, whose module differs between versions
        raise UserError(
            f"{where or 'A record'} ({len(serialized)} bytes) is neither a "
            f"tf.train.SequenceExample nor a tf.train.Example: {error}. Run `mmjax validate "
            "DIRECTORY` to check the whole dataset for damage."
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
        roi=_checked_roi(_get(proto, ROI, "int64_list"), where),
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
        source = where or example.filename or "A record"
        if where and example.filename:
            source = f"{where} ({example.filename})"
        lost = describe_int32_loss(example.waveform)
        parts = (f"{source}: {INT32_DEFECT}", _INT32_REPAIR, lost)
        raise UserError(" ".join(filter(None, parts)))
    return example


INT32_DEFECT = (
    "the waveform consists of 32-bit integer PCM whose bytes are read as floats (tiny values, huge "
    "values and NaN instead of audio). DMVR's generate_from_file.py writes such waveforms."
)
_INT32_REPAIR = (
    'To repair them while reading, set "waveform_format": "int32" in the dataset\'s dataset.json '
    "(`mmjax index DIRECTORY` creates it). Or build the dataset again with `mmjax build`, which "
    "loses nothing."
)


def is_int32_waveform(waveform: np.ndarray) -> bool:
    """Returns whether a float32 waveform is really int32 PCM, as DMVR's example script writes it.

    The script asks FFmpeg for `s32le` and reads the bytes as float32. A quiet positive sample
    becomes a float below 1e-18 and a quiet negative one a NaN or a huge value, while true nonzero
    samples are within a few orders of magnitude of 1. A waveform counts as int32 if most of its
    nonzero samples are outside [1e-12, 1e3].
    """
    waveform = np.asarray(waveform)
    nonzero = waveform[waveform != 0]  # keeps NaN and denormals
    if nonzero.size == 0:
        return False
    with np.errstate(invalid="ignore"):
        magnitude = np.abs(nonzero)
        plausible = (magnitude >= 1e-12) & (magnitude <= 1e3)
    return bool(plausible.mean() < 0.5)


def describe_int32_loss(waveform: np.ndarray) -> str:
    """Returns how much of int32 PCM read as floats `repair_int32_waveform` cannot repair.

    Samples in (-0.0039, -0.00195) and (0.996, 0.998) have the bits of signaling NaNs. Writing them
    as floats made them quiet, which set the bit worth 2^-9 = 0.00195 of the full scale. Every NaN
    may be such a sample, or an intact one that is 0.00195 higher.

    Returns:
      One sentence, or '' if no sample is lost.
    """
    waveform = np.ascontiguousarray(waveform, np.float32)
    quiet = np.isnan(waveform) & (waveform.view(np.int32) & 0x00400000 != 0)
    count = int(quiet.sum())
    if not count:
        return ""
    return (
        f"Up to {count} of {waveform.size} samples ({count / waveform.size:.1%}) cannot be "
        "repaired and are too high by 0.00195: those in (-0.0039, -0.00195) and (0.996, 0.998), "
        "because their bits are signaling NaNs."
    )


def repair_int32_waveform(waveform: np.ndarray) -> np.ndarray:
    """Returns float32 [S] in [-1, 1] from int32 PCM that was read as floats.

    It is exact except for the samples of `describe_int32_loss`.
    """
    return (np.ascontiguousarray(waveform, np.float32).view(np.int32) / 2.0**31).astype(np.float32)


def encode_mask(mask: np.ndarray) -> bytes:
    """Returns classes, uint8 [H, W], as PNG."""
    return tf.io.encode_png(np.asarray(mask, np.uint8)[..., None]).numpy()


def decode_mask(png: bytes) -> np.ndarray:
    """Returns uint8 [H, W]; the inverse of `encode_mask`."""
    return tf.io.decode_png(png, 1).numpy()[..., 0]


def encode_depth(depth: np.ndarray) -> bytes:
    """Returns depth in meters, float [H, W] in [0, 65.535], as 16-bit PNG in millimeters."""
    return tf.io.encode_png(np.round(depth * 1000).astype(np.uint16)[..., None]).numpy()


def decode_depth(png: bytes) -> np.ndarray:
    """Returns float32 [H, W] in meters; the inverse of `encode_depth`."""
    return tf.io.decode_png(png, 1, tf.uint16).numpy()[..., 0].astype(np.float32) / 1000


def encode_flow(flow: np.ndarray, *, valid: np.ndarray | None = None) -> bytes:
    """Returns optical flow as 16-bit PNG in the format of KITTI.

    The channels are (64 · x + 2^15, 64 · y + 2^15, valid), so the range of the flow is ±512 pixels.

    Args:
      flow: float [H, W, 2], (x, y) in pixels.
      valid: bool [H, W], whether the flow is known; None if it is known everywhere.
    """
    coded = np.round(flow * 64 + 2**15).clip(0, 2**16 - 1).astype(np.uint16)
    known = np.ones_like(coded[..., :1]) if valid is None else valid[..., None].astype(np.uint16)
    return tf.io.encode_png(np.concatenate([coded, known], -1)).numpy()


def decode_flow(png: bytes) -> np.ndarray:
    """Returns float32 [H, W, 2] in pixels; the inverse of `encode_flow`."""
    coded = tf.io.decode_png(png, 3, tf.uint16).numpy()
    return (coded[..., :2].astype(np.float32) - 2**15) / 64


def _checked_waveform(waveform: np.ndarray, filename: str) -> np.ndarray:
    """Returns the waveform as little-endian float32."""
    waveform = np.asarray(waveform)
    of = f" of {filename}" if filename else ""
    if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating):
        raise UserError(
            f"The waveform{of} is {waveform.dtype} {list(waveform.shape)}; expected floating-point "
            "[samples], mono, in [-1, 1]. Divide integer PCM by its full scale and average the "
            "channels."
        )
    invalid = np.flatnonzero(~np.isfinite(waveform))
    if invalid.size:
        raise UserError(
            f"The waveform{of} has {invalid.size} NaN or infinite values among {waveform.size} "
            f"samples, the first at index {invalid[0]}. Replace or remove the audio."
        )
    return np.ascontiguousarray(waveform, "<f4")


def _checked_roi(values: Sequence[int] | None, source: str = "") -> tuple[int, ...] | None:
    """Returns the region of interest as integers, or None without one."""
    if values is None or len(values) == 0:
        return None
    roi = tuple(int(value) for value in values)
    if len(roi) != 4 or min(roi) < 0 or 0 in roi[2:]:
        raise UserError(
            f"{ROI[0]}{f' of {source}' if source else ''} is {list(roi)}; expected top, left, "
            "height and width in pixels, inside the frame and not empty."
        )
    return roi


def _put_images(lists, key: str, images: Sequence[bytes], magic: tuple[bytes, ...], filename: str):
    for index, image in enumerate(images):
        if not image.startswith(magic):
            formats = " or ".join({_JPEG: "JPEG", _PNG: "PNG"}[m] for m in magic)
            raise UserError(
                f"{key}: image {index}{f' of {filename}' if filename else ''} is not {formats} "
                f"(its first bytes are {image[:4]!r})."
            )
        lists[key].feature.add().bytes_list.value.append(image)


def _put_bytes(context, key: str, values: Sequence[bytes]) -> None:
    if values:
        context[key].bytes_list.value.extend(values)


def _get(proto: tf.train.SequenceExample, keys: Sequence[str], list_type: str) -> list:
    """Returns the values of the first of `keys` that has any, in feature lists or the context."""
    for key in keys:
        if key in proto.feature_lists.feature_list:
            features = proto.feature_lists.feature_list[key].feature
            values = [value for feature in features for value in getattr(feature, list_type).value]
        elif key in proto.context.feature:
            values = list(getattr(proto.context.feature[key], list_type).value)
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


# Packed floats are copied as bytes: element by element, protobuf needs 0.5 ms per second of audio.
# On the wire, a FloatList is the tag 0x0a, the number of bytes as a varint, and the floats in
# little-endian order.


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
    data = values.SerializeToString()  # always packed, even if the input was not
    return np.frombuffer(data, "<f4", count, len(data) - 4 * count).astype(np.float32)
