"""Checks of one record for problems that would disturb training."""

from __future__ import annotations

import hashlib

import numpy as np

from mmjax.data.storage import dataset, mask_files, record_images, schema
from mmjax.errors import UserError

ERRORS = {
    "index": "the index does not belong to the shard",
    "damaged": "the record is truncated, or its CRC is wrong",
    "layout": "the record is not a SequenceExample, or has none of the known keys",
    "jpeg": "an image cannot be decoded, or the frames differ in size",
    "label": "a class index is out of range",
    "int32": "the waveform is integer PCM whose bytes are read as floats",
    "waveform": "the waveform is empty, not finite or outside [-1, 1]",
    "length": "video and audio differ in length",
    "mask": "a segmentation mask differs from its image in size, or has an unknown value",
    "roi": "the region of interest extends beyond the image",
    "background": "a touch image and its background differ in size",
    "classes": "a class name has different numbers in two splits, or in dataset.json",
    "leak": "the same content occurs in two splits that should not share examples",
}
WARNINGS = {
    "lossy": "the integer PCM read as floats cannot be repaired completely",
    "silence": "the audio is below -60 dB",
    "constant": "the frames of a video do not change",
    "blank": "the images have a single color",
    "repeated": "more than half of the frames repeat the previous frame",
    "duplicate": "the same content occurs in two records",
    "caption": "the record has no caption, but others have",
    "unlabeled": "the record has no label, but others have",
    "unmasked": "the record has no segmentation mask, or no pixel with a class, but others have",
    "missing": "the record has no image, audio, touch or background, but others have",
}

Problem = tuple[str, str]  # key of ERRORS or WARNINGS, details

_MEDIA = {"video", "audio", "touch"}  # modalities whose absence is 'missing'


def check_record(
    payload: bytes, info: dataset.DatasetInfo
) -> tuple[schema.Example | None, list[Problem]]:
    """Returns the example of a record, or None if it cannot be decoded, and its problems.

    Args:
      payload: The serialized example.
      info: Description of the dataset, with what its examples should have.
    """
    try:
        example = schema.decode(payload, waveform_format="unchecked")
    except UserError as error:
        return None, [("layout", str(error))]
    problems = []
    if info.waveform_format == "int32" and example.waveform is not None:
        if lost := schema.describe_int32_loss(example.waveform):
            problems.append(("lossy", lost))
        example.waveform = schema.repair_int32_waveform(example.waveform)
    if not example.modalities:
        return example, [("layout", f"no data under known keys; the record has {_keys(payload)}")]
    problems += _check_presence(example, info)
    for label in example.labels:
        if label < 0 or (info.num_classes and label >= info.num_classes):
            problems.append(
                ("label", f"class index {label}; {info.num_classes or 'unknown number of'} classes")
            )
    problems += _check_images(example) + _check_touch(example) + _check_maps(example)
    if not any(name == "jpeg" for name, _ in problems):
        problems += _check_masks(example, info)
    if example.waveform is not None:
        audio = _check_audio(example.waveform, info)
        problems += audio
        if not any(name in ERRORS for name, _ in audio):
            problems += _check_lengths(example, info)
    return example, problems


def _check_presence(example: schema.Example, info: dataset.DatasetInfo) -> list[Problem]:
    """Returns problems about modalities that other records of the dataset have."""
    problems = []
    for name in sorted((set(info.modalities) & _MEDIA) - set(example.modalities)):
        if not (name == "audio" and example.waveform is not None):
            problems.append(("missing", f"no {name}; the dataset has {', '.join(info.modalities)}"))
    if info.statistics.get("touch_backgrounds") and example.touch and not example.touch_background:
        problems.append(("missing", f"no background for {len(example.touch)} touch images"))
    if "text" in info.modalities and not any(caption.strip() for caption in example.captions):
        problems.append(("caption", "no caption"))
    if "label" in info.modalities and not example.labels:
        problems.append(("unlabeled", "no label"))
    return problems


def _check_images(example: schema.Example) -> list[Problem]:
    problems, sizes, thumbnails, previous = [], [], [], None
    for index, frame in enumerate(example.frames):
        if frame == previous:  # `mmjax build` stores a repeated frame as the same bytes
            thumbnails.append(thumbnails[-1])
            continue
        previous = frame
        where = f"frame {index} of {len(example.frames)}"
        try:
            sizes.append(record_images.size(frame, where))
            thumbnails.append(record_images.gray(frame, where, reduced=True))
        except UserError as error:
            return [("jpeg", str(error))]
    if not thumbnails:
        return problems
    if len(set(sizes)) > 1:
        names = [f"{width}×{height}" for width, height in dict.fromkeys(sizes)]
        return [("jpeg", f"frames of {len(names)} different sizes: {', '.join(names[:4])}")]
    if example.roi is not None:
        top, left, height, width = example.roi
        full_width, full_height = sizes[0]
        if top + height > full_height or left + width > full_width:
            region = f"{width}×{height} at left {left}, top {top}"
            problems.append(("roi", f"{region}, in an image of {full_width}×{full_height}"))
    frames = np.stack(thumbnails)
    if frames.std(axis=(1, 2)).max() < 2:
        problems.append(("blank", f"all {len(frames)} frames"))
    elif len(frames) > 1 and np.abs(frames - frames[0]).mean(axis=(1, 2)).max() < 0.5:
        problems.append(("constant", f"all {len(frames)} frames"))
    else:
        pairs = zip(example.frames[1:], example.frames, strict=False)
        repeats = sum(frame == previous for frame, previous in pairs)
        if repeats > len(frames) / 2:
            problems.append(("repeated", f"{repeats} of {len(frames)} frames"))
    return problems


def _check_touch(example: schema.Example) -> list[Problem]:
    images = []
    for name, data in (
        *(("touch image", data) for data in example.touch),
        *(("background", data) for data in example.touch_background),
    ):
        try:
            images.append(record_images.gray(data, name))
        except UserError as error:
            return [("jpeg", str(error))]
    problems = []
    touch = images[: len(example.touch)]
    if touch and max(image.std() for image in touch) < 1:
        problems.append(("blank", f"all {len(touch)} touch images"))
    sizes = {f"{width}×{height}" for height, width in (image.shape for image in images)}
    if touch and len(sizes) > 1:
        problems.append(("background", f"sizes {', '.join(sorted(sizes))}"))
    return problems


def _check_maps(example: schema.Example) -> list[Problem]:
    """Returns problems of masks, depth and optical flow, which must be readable PNGs."""
    for name in ("masks", "depth", "flow"):
        for index, data in enumerate(getattr(example, name)):
            try:
                record_images.decode(data, f"{name}, image {index}")
            except UserError as error:
                return [("jpeg", str(error))]
    return []


def _check_masks(example: schema.Example, info: dataset.DatasetInfo) -> list[Problem]:
    """Returns problems of segmentation masks, which can be decoded."""
    if not example.masks:
        return [("unmasked", "no mask")] if "mask" in info.modalities else []
    if example.frames and len(example.masks) != len(example.frames):
        return [("mask", f"{len(example.masks)} masks for {len(example.frames)} images")]
    count, any_class = len(info.mask_classes) or mask_files.MAX_CLASSES, False
    for index, data in enumerate(example.masks):
        if example.frames:
            sizes = [record_images.size(image) for image in (data, example.frames[index])]
            if sizes[0] != sizes[1]:
                names = [f"{width}×{height}" for width, height in sizes]
                return [("mask", f"the mask is {names[0]}, the image {names[1]}")]
        pixels = np.bincount(schema.decode_mask(data).ravel(), minlength=256)
        if unknown := [v for v in range(count, mask_files.IGNORE) if pixels[v]]:
            shown = ", ".join(f"{value} ({pixels[value]} pixels)" for value in unknown[:4])
            return [("mask", f"value {shown}; {count} classes")]
        any_class |= bool(pixels[:count].any())
    return [] if any_class else [("unmasked", "all pixels are ignored")]


def _check_audio(waveform: np.ndarray, info: dataset.DatasetInfo) -> list[Problem]:
    if not waveform.size:
        expected = f"{info.num_samples} expected" if info.num_samples else "at least 1 expected"
        return [("waveform", f"0 samples; {expected}")]
    if schema.is_int32_waveform(waveform):
        lost = schema.describe_int32_loss(waveform)
        return [("int32", f"{schema.INT32_DEFECT} {lost}".strip())]
    if not np.isfinite(waveform).all():
        count = int((~np.isfinite(waveform)).sum())
        return [("waveform", f"{count} of {waveform.size} samples are NaN or infinite")]
    peak = float(np.abs(waveform).max())
    if peak > 1.01:
        return [("waveform", f"peak {peak:.4g}; scale it to [-1, 1]")]
    return [("silence", f"peak {peak:.2g}")] if peak < 1e-3 else []


def _check_lengths(example: schema.Example, info: dataset.DatasetInfo) -> list[Problem]:
    fps = example.frame_rate or info.fps
    rate = example.sample_rate or info.sample_rate
    if len(example.frames) < 2 or not fps or not rate:
        return []
    video, audio = len(example.frames) / fps, len(example.waveform) / rate
    if abs(video - audio) <= max(1.5 / fps, 0.1):
        return []
    return [("length", f"{video:.2f} s of video, {audio:.2f} s of audio")]


def content_digest(example: schema.Example) -> bytes | None:
    """Returns a hash of the media of an example; None for an example without media."""
    if not example.frames and not example.touch and example.waveform is None:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for image in (*example.frames, *example.touch):
        digest.update(image)
    if example.waveform is not None:
        digest.update(example.waveform.tobytes())
    return digest.digest()


def _keys(payload: bytes) -> str:
    import tensorflow as tf

    proto = tf.train.SequenceExample.FromString(payload)
    keys = sorted([*proto.context.feature, *proto.feature_lists.feature_list])
    return ", ".join(keys[:12]) or "no keys"
