"""Crops of video frames and images: which part of a stored image, decoding it, and resizing it.

In training the crop is computed first, in the coordinates of the stored frames, so that only its
pixels are decoded. In evaluation whole frames are resized and cropped step by step, as in VATT's
published code.

Frames are uint8 [T, H, W, 3]. A window is int32 [4]: top, left, height, width. Seeds are int64 [2].
"""

from __future__ import annotations

from typing import Literal

import tensorflow as tf

_DCT = {"fast": "INTEGER_FAST", "accurate": "INTEGER_ACCURATE"}
_MAX_UNROLLED = 64  # Up to this many images, one graph node per image is faster than a loop.


def encoded_size(image: tf.Tensor) -> tf.Tensor:
    """Returns height and width of an encoded JPEG or PNG, int32 [2], from its header."""

    def png_size():  # The first chunk of a PNG has width and height, big-endian, at byte 16.
        size = tf.io.decode_raw(tf.strings.substr(image, 16, 8), tf.int32, little_endian=False)
        return tf.reverse(size, [0])

    size = tf.cond(_is_png(image), png_size, lambda: tf.io.extract_jpeg_shape(image)[:2])
    return tf.ensure_shape(size, [2])


def decode(
    images: tf.Tensor,
    window: tf.Tensor | None = None,
    *,
    count: int | None = None,
    dct: Literal["fast", "accurate"] = "fast",
) -> tf.Tensor:
    """Decodes images of one size and format, or a window of them.

    Args:
      images: string [T], JPEG or PNG.
      window: Part to decode; None for whole images.
      count: T if it is known; short clips are then decoded without a loop.
      dct: Arithmetic of JPEG decoding.

    Returns:
      uint8 [T, height, width, 3].
    """
    method = _DCT[dct]

    def jpeg(image):
        if window is None:
            return tf.io.decode_jpeg(image, channels=3, dct_method=method)
        return tf.io.decode_and_crop_jpeg(image, window, channels=3, dct_method=method)

    def png(image):
        pixels = tf.io.decode_png(image, channels=3)
        if window is None:
            return pixels
        return tf.image.crop_to_bounding_box(pixels, *tf.unstack(window))

    def each(function):
        if count is not None and count <= _MAX_UNROLLED:
            return tf.stack([function(image) for image in tf.unstack(images, count)])
        # Clips are decoded in parallel. More threads within a clip would only slow them down.
        return tf.map_fn(
            function,
            images,
            parallel_iterations=1,
            fn_output_signature=tf.TensorSpec([None, None, 3], tf.uint8),
        )

    frames = tf.cond(_is_png(images[0]), lambda: each(png), lambda: each(jpeg))
    return tf.ensure_shape(frames, [count, None, None, 3])


def _is_png(image: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(image, 0, 4) == b"\x89PNG"


def resize(
    frames: tf.Tensor,
    size: tf.Tensor | tuple[int, int],
    *,
    rounded: bool = False,
    antialias: bool = False,
    method: Literal["bilinear", "bicubic"] = "bilinear",
) -> tf.Tensor:
    """Resizes frames, with half-pixel centers.

    Args:
      frames: uint8 [T, H, W, 3].
      size: Height and width.
      rounded: Whether to round to uint8; otherwise values are truncated, as in VATT.
      antialias: Whether a smaller image averages the pixels of a larger one. The result then
        equals PIL's within one gray level (bilinear) or two (bicubic).
      method: Interpolation.

    Returns:
      uint8 [T, *size, 3].
    """

    def resized():
        pixels = tf.image.resize(frames, size, method, antialias=antialias)
        # Bicubic interpolation overshoots.
        return tf.saturate_cast(tf.round(pixels) if rounded else pixels, tf.uint8)

    same = tf.reduce_all(tf.shape(frames)[1:3] == tf.convert_to_tensor(size))
    return tf.cond(same, lambda: frames, resized)


def shortest_side(shape: tf.Tensor, size: int) -> tf.Tensor:
    """Returns `shape` scaled so that the shorter side is `size`, int32 [2], rounded down."""
    return shape * size // tf.reduce_min(shape)


def resize_shortest(frames: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes whole frames so that the shorter side is `size`."""
    return resize(frames, shortest_side(tf.shape(frames)[1:3], size))


def central_crop(frames: tf.Tensor, size: int) -> tf.Tensor:
    """Returns the central `size` × `size`; smaller frames get a black margin."""
    return tf.image.resize_with_crop_or_pad(frames, size, size)


def multi_crop(frames: tf.Tensor, size: int) -> tf.Tensor:
    """Returns three crops along the longer side: start, middle, end.

    Args:
      frames: uint8 [T, H, W, 3]. The shorter side should be `size`; any excess is cut off at its
        end.
      size: Height and width of the crops.

    Returns:
      uint8 [3, T, size, size, 3].
    """
    shape = tf.shape(frames)[1:3]
    length = tf.reduce_max(shape)
    middle = tf.cast(tf.round(tf.cast(length, tf.float32) / 2), tf.int32) - size // 2
    is_portrait = shape[0] >= shape[1]
    crops = []
    for offset in (0, middle, length - size):
        start = tf.where(is_portrait, tf.stack([0, offset, 0, 0]), tf.stack([0, 0, offset, 0]))
        crops.append(tf.slice(frames, start, [-1, size, size, -1]))
    return tf.stack(crops)


def jittered_size(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Scales height and width by U(0.8, 1.2) each, with probability 0.8; int32 [2]."""
    values = tf.random.stateless_uniform([3], seed)
    scaled = tf.cast(tf.cast(shape, tf.float32) * (0.8 + 0.4 * values[1:]), tf.int32)
    return tf.where(values[0] < 0.8, tf.maximum(scaled, 1), shape)


def random_offset(shape: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns top and left of a uniformly placed `size` × `size` crop, int32 [2]."""
    room = tf.cast(shape - size + 1, tf.float32)
    # A float32 below 1 times the room can round up to the room.
    return tf.minimum(
        tf.cast(tf.random.stateless_uniform([2], seed) * room, tf.int32), shape - size
    )


def vgg_window(
    shape: tf.Tensor, seed: tf.Tensor, *, size: int, min_resize: int, scale_jitter: bool
) -> tf.Tensor:
    """Returns the part of a stored frame that VATT's VGG-style crop shows.

    VATT jitters height and width, resizes the shorter side to `min_resize`, and crops `size` ×
    `size`. The same random numbers give the window of the stored frame with these pixels, to the
    nearest pixel, so that it needs to be resized only once.

    Args:
      shape: Height and width of the stored frames, int32 [2].
      seed: Seed of this clip. `vgg_exact` with the same seed shows the same part.
      size: Height and width of the crop.
      min_resize: Length of the shorter side before the crop, at least `size`.
      scale_jitter: Whether to apply `jittered_size`.
    """
    resized = _vgg_resized(shape, seed, min_resize=min_resize, scale_jitter=scale_jitter)
    offset = random_offset(resized, size, seed + 1)
    scale = tf.cast(shape, tf.float32) / tf.cast(resized, tf.float32)
    length = tf.clip_by_value(tf.cast(tf.round(size * scale), tf.int32), 1, shape)
    start = tf.cast(tf.round(tf.cast(offset, tf.float32) * scale), tf.int32)
    return tf.concat([tf.minimum(start, shape - length), length], 0)


def vgg_exact(
    frames: tf.Tensor, seed: tf.Tensor, *, size: int, min_resize: int, scale_jitter: bool
) -> tf.Tensor:
    """Returns VATT's VGG-style crop of whole frames in its own order, uint8 after each step.

    Args:
      frames: uint8 [T, H, W, 3].
      seed, size, min_resize, scale_jitter: As for `vgg_window`.
    """
    shape = tf.shape(frames)[1:3]
    if scale_jitter:
        frames = resize(frames, jittered_size(shape, seed))
    resized = _vgg_resized(shape, seed, min_resize=min_resize, scale_jitter=scale_jitter)
    frames = resize(frames, resized)
    top, left = tf.unstack(random_offset(resized, size, seed + 1))
    return frames[:, top : top + size, left : left + size]


def _vgg_resized(
    shape: tf.Tensor, seed: tf.Tensor, *, min_resize: int, scale_jitter: bool
) -> tf.Tensor:
    return shortest_side(jittered_size(shape, seed) if scale_jitter else shape, min_resize)


def inception_window(
    shape: tf.Tensor, seed: tf.Tensor, *, area: tuple[float, ...], aspect: tuple[float, ...]
) -> tf.Tensor:
    """Returns a window of random area and aspect ratio (Szegedy et al. 2014).

    TensorFlow's own op samples it.

    Args:
      shape: Height and width of the stored frames, int32 [2].
      seed: Seed of this clip.
      area: Range of the window's fraction of the frame.
      aspect: Range of width / height.
    """
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([shape, [3]], 0),
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed,
        min_object_covered=0.1,
        area_range=area,
        aspect_ratio_range=aspect,
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], extent[:2]], 0)


def resized_crop_window(
    shape: tf.Tensor,
    seed: tf.Tensor,
    *,
    area: tuple[float, ...],
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tf.Tensor:
    """Returns a window of random area and aspect ratio, as torchvision's RandomResizedCrop.

    The first of ten windows of random shape that fits is placed at random. If none fits, the
    window is the largest central one with a valid aspect ratio.

    Args:
      shape: Height and width of the stored image, int32 [2].
      seed: Seed of this crop.
      area: Range of the window's fraction of the image.
      aspect: Range of width / height, whose logarithm is uniform.
    """
    values = tf.random.stateless_uniform([22], seed, dtype=tf.float64)
    height, width = tf.unstack(tf.cast(shape, tf.float64))
    low, high = (tf.constant(bound, tf.float64) for bound in aspect)
    areas = height * width * (area[0] + (area[1] - area[0]) * values[:10])
    ratios = tf.exp(tf.math.log(low) + (tf.math.log(high) - tf.math.log(low)) * values[10:20])
    tried = tf.cast(tf.round(tf.sqrt(tf.stack([areas / ratios, areas * ratios], 1))), tf.int32)
    fits = tf.reduce_all((tried > 0) & (tried <= shape), 1)  # [10]
    extent = tried[tf.argmax(fits)]
    room = shape - extent + 1
    start = tf.cast(values[20:] * tf.cast(room, tf.float64), tf.int32)
    largest = tf.stack([tf.minimum(height, width / low), tf.minimum(width, height * high)])
    largest = tf.cast(tf.round(largest), tf.int32)
    any_fits = tf.reduce_any(fits)
    start = tf.where(any_fits, tf.minimum(start, room - 1), (shape - largest) // 2)
    return tf.concat([start, tf.where(any_fits, extent, largest)], 0)


def random_flip(seed: tf.Tensor) -> tf.Tensor:
    """Returns True with probability 0.5, bool []."""
    return tf.random.stateless_uniform([], seed) < 0.5


def flip(frames: tf.Tensor, mirror: tf.Tensor) -> tf.Tensor:
    """Mirrors the whole clip left to right if `mirror`, bool [], is True."""

    def mirrored():  # TensorFlow reverses pixels four times faster in three dimensions.
        shape = tf.shape(frames)
        lines = tf.reshape(frames, [-1, shape[2], 3])
        return tf.reshape(tf.reverse(lines, [1]), shape)

    return tf.ensure_shape(tf.cond(mirror, mirrored, lambda: frames), frames.shape)


def window_starts(length: tf.Tensor, span: int, count: int) -> tf.Tensor:
    """Returns the starts of the windows of an evaluation example.

    One window is central; several are spread evenly from start to end, as in VATT and DMVR.

    Args:
      length: Number of samples or frames, int32 [].
      span: Length of a window in samples or frames.
      count: Number of windows.

    Returns:
      int32 [count].
    """
    room = tf.maximum(0, length - span)
    if count == 1:
        return room[None] // 2
    starts = tf.range(count, dtype=tf.int64) * tf.cast(room, tf.int64) // (count - 1)
    return tf.cast(starts, tf.int32)


def looped(start: tf.Tensor, count: int, stride: tf.Tensor | int, length: tf.Tensor) -> tf.Tensor:
    """Returns the indices of a window that wraps around at the end of the sequence.

    Args:
      start: First index, int32 [...].
      count: Number of indices.
      stride: Distance between indices.
      length: Length of the sequence.

    Returns:
      int32 [..., count].
    """
    return (start[..., None] + tf.range(count) * stride) % length


def black_jpeg() -> bytes:
    """Returns the placeholder of a missing image: every crop and size of it is zeros."""
    return tf.io.encode_jpeg(tf.zeros([16, 16, 3], tf.uint8)).numpy()
