"""Crops of video frames: where they lie in the stored images, decoding them, and resizing to what
a model sees.

In training the place of a crop is worked out first, in the coordinates of the stored frames, so
that only these pixels are decoded. For tests the whole frame is resized and cropped step by step,
as VATT's published code does.

Frames are uint8 `[T, H, W, 3]`. A window is int32 `[4]`: top, left, height, width. Seeds are int64
`[2]`.
"""

from __future__ import annotations

import tensorflow as tf

_DCT = {"fast": "INTEGER_FAST", "accurate": "INTEGER_ACCURATE"}
_UNROLLED = 64  # up to this many images, one graph node each beats a loop


def encoded_size(picture: tf.Tensor) -> tf.Tensor:
    """int32 [2], height and width of an encoded JPEG or PNG, from its header."""

    def png_size():  # the first chunk of a PNG: width and height as big-endian words at byte 16
        words = tf.io.decode_raw(tf.strings.substr(picture, 16, 8), tf.int32, little_endian=False)
        return tf.reverse(words, [0])

    size = tf.cond(_is_png(picture), png_size, lambda: tf.io.extract_jpeg_shape(picture)[:2])
    return tf.ensure_shape(size, [2])


def decode(
    images: tf.Tensor,
    window: tf.Tensor | None = None,
    *,
    number: int | None = None,
    dct: str = "fast",
) -> tf.Tensor:
    """Decodes images of one size and kind, or a window of them.

    Args:
      images: string [T], JPEG or PNG.
      window: what to decode; None is all.
      number: T where it is known; short clips then need no loop.
      dct: 'fast' or 'accurate', the arithmetic of JPEG's transform.

    Returns:
      uint8 [T, height, width, 3].
    """
    method = _DCT[dct]

    def jpeg(picture):
        if window is None:
            return tf.io.decode_jpeg(picture, channels=3, dct_method=method)
        return tf.io.decode_and_crop_jpeg(picture, window, channels=3, dct_method=method)

    def png(picture):
        image = tf.io.decode_png(picture, channels=3)
        return (
            image if window is None else tf.image.crop_to_bounding_box(image, *tf.unstack(window))
        )

    def each(function):
        if number is not None and number <= _UNROLLED:
            return tf.stack([function(picture) for picture in tf.unstack(images, number)])
        # Clips are decoded side by side; within one, more threads only get in each other's way.
        return tf.map_fn(
            function,
            images,
            parallel_iterations=1,
            fn_output_signature=tf.TensorSpec([None, None, 3], tf.uint8),
        )

    frames = tf.cond(_is_png(images[0]), lambda: each(png), lambda: each(jpeg))
    return tf.ensure_shape(frames, [number, None, None, 3])


def _is_png(picture: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(picture, 0, 4) == b"\x89PNG"


def resize(
    frames: tf.Tensor,
    size: tf.Tensor | tuple[int, int],
    *,
    rounded: bool = False,
    antialias: bool = False,
    method: str = "bilinear",
) -> tf.Tensor:
    """'bilinear' or 'bicubic', half-pixel centers; uint8 by truncation (as VATT) or rounding.

    With `antialias`, smaller images are averages of larger ones: as PIL does, bilinear within one
    gray level, bicubic within two.
    """

    def resized():
        image = tf.image.resize(frames, size, method, antialias=antialias)
        # Bicubic curves overshoot.
        return tf.saturate_cast(tf.round(image) if rounded else image, tf.uint8)

    same = tf.reduce_all(tf.shape(frames)[1:3] == tf.convert_to_tensor(size))
    return tf.cond(same, lambda: frames, resized)


def shortest_side(shape: tf.Tensor, size: int) -> tf.Tensor:
    """int32 [2]: `shape` scaled so that the shorter side is `size`, the other rounded down."""
    return shape * size // tf.reduce_min(shape)


def resize_shortest(frames: tf.Tensor, size: int) -> tf.Tensor:
    """The whole frames, resized so that the shorter side is `size`."""
    return resize(frames, shortest_side(tf.shape(frames)[1:3], size))


def central_crop(frames: tf.Tensor, size: int) -> tf.Tensor:
    """The middle `size` × `size`; frames that are smaller get a black margin."""
    return tf.image.resize_with_crop_or_pad(frames, size, size)


def multi_crop(frames: tf.Tensor, size: int) -> tf.Tensor:
    """Three crops along the longer side: start, middle, end. uint8 [3, T, size, size, 3].

    The shorter side is expected to be `size`; what it has beyond is cut off at its end.
    """
    shape = tf.shape(frames)[1:3]
    length = tf.reduce_max(shape)
    middle = tf.cast(tf.round(tf.cast(length, tf.float32) / 2), tf.int32) - size // 2
    upright = shape[0] >= shape[1]
    crops = []
    for at in (0, middle, length - size):
        start = tf.where(upright, tf.stack([0, at, 0, 0]), tf.stack([0, 0, at, 0]))
        crops.append(tf.slice(frames, start, [-1, size, size, -1]))
    return tf.stack(crops)


def jittered_size(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """int32 [2]: with probability 0.8, height and width each scaled by U(0.8, 1.2)."""
    draw = tf.random.stateless_uniform([3], seed)
    scaled = tf.cast(tf.cast(shape, tf.float32) * (0.8 + 0.4 * draw[1:]), tf.int32)
    return tf.where(draw[0] < 0.8, tf.maximum(scaled, 1), shape)


def random_offset(shape: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """int32 [2]: top and left of a uniformly placed `size` × `size` crop."""
    room = tf.cast(shape - size + 1, tf.float32)
    # A float32 draw below 1 times the room can round up to it.
    return tf.minimum(
        tf.cast(tf.random.stateless_uniform([2], seed) * room, tf.int32), shape - size
    )


def vgg_window(
    shape: tf.Tensor, seed: tf.Tensor, *, size: int, min_resize: int, scale_jitter: bool
) -> tf.Tensor:
    """The part of a stored frame that VATT's VGG-style crop shows.

    VATT jitters height and width, resizes the shorter side to `min_resize`, and crops `size` ×
    `size`. The same draws give the window of the stored frame that holds these pixels, to the
    nearest pixel: it remains to resize it once.

    Args:
      shape: int32 [2], of the stored frames.
      seed: of this clip; `vgg_exact` with the same seed shows the same part.
      size: of the crop.
      min_resize: at least `size`.
      scale_jitter: see `jittered_size`.
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
    """VATT's VGG-style crop of whole frames in its own order, uint8 after each step."""
    shape = tf.shape(frames)[1:3]
    if scale_jitter:
        frames = resize(frames, jittered_size(shape, seed))
    resized = _vgg_resized(shape, seed, min_resize=min_resize, scale_jitter=scale_jitter)
    frames = resize(frames, resized)
    top, left = tf.unstack(random_offset(resized, size, seed + 1))
    return frames[:, top : top + size, left : left + size]


def _vgg_resized(shape, seed, *, min_resize, scale_jitter):
    return shortest_side(jittered_size(shape, seed) if scale_jitter else shape, min_resize)


def inception_window(
    shape: tf.Tensor, seed: tf.Tensor, *, area: tuple[float, float], aspect: tuple[float, float]
) -> tf.Tensor:
    """A window of random area and aspect ratio (Szegedy et al. 2014), by TensorFlow's own sampler.

    Args:
      shape: int32 [2], of the stored frames.
      seed: of this clip.
      area: range of the window's share of the frame.
      aspect: range of width / height.
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
    """A window of random area and aspect ratio as torchvision's RandomResizedCrop draws it.

    Of ten windows of random shape the first that fits is taken, anywhere in the image; if none
    does, the largest one in the middle whose aspect ratio is allowed.

    Args:
      shape: int32 [2], of the stored image.
      seed: of this crop.
      area: range of the window's share of the image.
      aspect: range of width / height, of which the logarithm is uniform.
    """
    draws = tf.random.stateless_uniform([22], seed, dtype=tf.float64)
    height, width = tf.unstack(tf.cast(shape, tf.float64))
    low, high = (tf.constant(bound, tf.float64) for bound in aspect)
    areas = height * width * (area[0] + (area[1] - area[0]) * draws[:10])
    ratios = tf.exp(tf.math.log(low) + (tf.math.log(high) - tf.math.log(low)) * draws[10:20])
    tried = tf.cast(tf.round(tf.sqrt(tf.stack([areas / ratios, areas * ratios], 1))), tf.int32)
    fits = tf.reduce_all((tried > 0) & (tried <= shape), 1)  # [10]
    extent = tried[tf.argmax(fits)]
    room = shape - extent + 1
    start = tf.cast(draws[20:] * tf.cast(room, tf.float64), tf.int32)
    largest = tf.stack([tf.minimum(height, width / low), tf.minimum(width, height * high)])
    largest = tf.cast(tf.round(largest), tf.int32)
    found = tf.reduce_any(fits)
    start = tf.where(found, tf.minimum(start, room - 1), (shape - largest) // 2)
    return tf.concat([start, tf.where(found, extent, largest)], 0)


def drawn_flip(seed: tf.Tensor) -> tf.Tensor:
    """bool []: True with probability one half."""
    return tf.random.stateless_uniform([], seed) < 0.5


def flip(frames: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
    """Mirrors left and right, the whole clip, if `wanted`."""

    def mirrored():  # TensorFlow reverses rows of pixels four times faster in three dimensions
        shape = tf.shape(frames)
        rows = tf.reshape(frames, [-1, shape[2], 3])
        return tf.reshape(tf.reverse(rows, [1]), shape)

    return tf.ensure_shape(tf.cond(wanted, mirrored, lambda: frames), frames.shape)


def window_starts(length: tf.Tensor, span: int, number: int) -> tf.Tensor:
    """int32 [number]: starts of test windows over `length` samples, each `span` = samples · stride
    long.

    One window is the middle one; several are spread evenly from start to end (VATT and DMVR).
    """
    room = tf.maximum(0, length - span)
    if number == 1:
        return room[None] // 2
    starts = tf.range(number, dtype=tf.int64) * tf.cast(room, tf.int64) // (number - 1)
    return tf.cast(starts, tf.int32)


def looped(start: tf.Tensor, number: int, stride: tf.Tensor | int, length: tf.Tensor) -> tf.Tensor:
    """int32 [..., number]: indices from `start` on, beginning again where the sequence ends."""
    return (start[..., None] + tf.range(number) * stride) % length


def black_jpeg() -> bytes:
    """An image that stands for a missing one: every crop and size of it is zeros."""
    return tf.io.encode_jpeg(tf.zeros([16, 16, 3], tf.uint8)).numpy()
