"""What fills the phases of a pipeline: one function per modality, each with the options of a
recipe's section.

A modality that a record lacks becomes zeros with mask 0. Audio and video of an example begin at the
same instant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from mmjax.data.pipeline import crops
from mmjax.data.pipeline.keywords import Keywords, keywords_of, sentence_maker
from mmjax.data.pipeline.phases import Features, Pipeline, seed_of
from mmjax.data.pipeline.precomputed_features import add_precomputed
from mmjax.data.storage import schema
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.data.text.tokenizers import Tokenizer
from mmjax.errors import UserError, unknown


def _positive(section: str, options, *names: str) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise UserError(
                f"data.{section}.{name} must be at least 1, not {getattr(options, name)}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """The section `data.video`.

    Attributes:
      num_frames: frames of a clip.
      stride: take every stride-th frame.
      fps: a reference rate; `stride` is multiplied by int(frame rate of the dataset / fps), as VATT
        does with 10. 0 leaves it alone.
      size: height and width of a crop.
      crop: 'vgg' or 'inception' (training; tests take the middle).
      min_resize: the length to which the shorter side is resized before a VGG crop; 0 is `size`.
      scale_jitter: of VGG crops: change height and width by up to 20 % each, in 4 of 5 clips.
      exact: of VGG crops: VATT's order of operations on whole frames, instead of decoding the
        window alone.
      area, aspect: of Inception crops: ranges of the share of the frame and of width / height.
      flip: mirror every other clip (training).
      flip_on: 'device', where it costs nothing: the batch says in `video_flip` which clips, and
        `mmjax.preprocess.inputs` mirrors them; or 'host'.
      dct: 'fast' or 'accurate' decoding.
      num_clips: clips of a test example, spread over its length.
      multi_crop: three crops of each test clip along the longer side instead of one in the middle.
    """

    num_frames: int = 32
    stride: int = 1
    fps: float = 0.0
    size: int = 224
    crop: str = "vgg"
    min_resize: int = 0
    scale_jitter: bool = True
    exact: bool = False
    area: tuple[float, ...] = (0.08, 1.0)
    aspect: tuple[float, ...] = (0.5, 2.0)
    flip: bool = True
    flip_on: str = "device"
    dct: str = "fast"
    num_clips: int = 1
    multi_crop: bool = False

    def __post_init__(self):
        _positive("video", self, "num_frames", "stride", "size", "num_clips")
        if self.crop not in ("vgg", "inception"):
            raise unknown("data.video.crop", self.crop, ("vgg", "inception"))
        if self.flip_on not in ("device", "host"):
            raise unknown("data.video.flip_on", self.flip_on, ("device", "host"))
        if self.dct not in ("fast", "accurate"):
            raise unknown("data.video.dct", self.dct, ("fast", "accurate"))
        if self.min_resize and self.min_resize < self.size:
            raise UserError(
                f"data.video.min_resize={self.min_resize} is smaller than "
                f"data.video.size={self.size}: "
                "a crop would not fit. Use 0 (the same) or more than the size."
            )
        for name in ("area", "aspect"):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1]:
                raise UserError(
                    f"data.video.{name} must be (low, high) with 0 < low <= high, not {value}."
                )

    @property
    def views(self) -> int:
        """Views of a test example."""
        return self.num_clips * (3 if self.multi_crop else 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audio:
    """The section `data.audio`.

    Attributes:
      num_samples: samples of a window.
      stride: take every stride-th sample (without a low-pass filter, as VATT does).
      sample_rate: what the dataset must have, in Hz; 0 takes what comes.
      num_clips: windows of a test example, spread over its length.
    """

    num_samples: int = 153_600
    stride: int = 1
    sample_rate: float = 0.0
    num_clips: int = 1

    def __post_init__(self):
        _positive("audio", self, "num_samples", "stride", "num_clips")

    def rate(self, stored: float) -> float:
        """Samples a second of the windows, from that of the dataset (0: not known)."""
        return (stored or self.sample_rate) / self.stride


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """The section `data.text`.

    Attributes:
      tokenizer: 'word', 'bert', 'sentencepiece' or 'clip'.
      vocab: its file; '' takes the one that the dataset brings.
      merges: the second file of 'clip', if its vocabulary has one.
      max_tokens: length of a row of token numbers.
      candidates: captions per example; missing ones are zeros with mask 0.
      sample: which captions of more: 'first', or 'random' ones in training.
      require_text: an example without a caption is an error (or skipped, see `data.corrupt`).
      features: folders of `mmjax.data.pipeline.precomputed_features`, one for each source: in training, these features of
        the frozen tower come in place of words. They are of one caption: `candidates` must be 1.
      keywords: captions are lists of keywords, of which sentences are made; None takes them as they
        are.
    """

    tokenizer: str = "word"
    vocab: str = ""
    merges: str = ""
    max_tokens: int = 16
    candidates: int = 5
    sample: str = "first"
    require_text: bool = False
    features: str | tuple[str, ...] = ""
    keywords: Keywords | None = None

    def __post_init__(self):
        _positive("text", self, "max_tokens", "candidates")
        if self.features and self.candidates != 1:
            raise UserError(
                "data.text.features are of one caption of each example: set "
                f"data.text.candidates=1, not {self.candidates}."
            )
        if self.sample not in ("first", "random"):
            raise unknown("data.text.sample", self.sample, ("first", "random"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """The section `data.label`.

    Attributes:
      multi_label: a row of zeros and ones instead of one class number.
      num_classes: 0 takes the dataset's.
    """

    multi_label: bool = False
    num_classes: int = 0


def add_video(
    pipeline: Pipeline, options: Video, *, infos: Sequence[DatasetInfo], train: bool
) -> None:
    """Adds `video` uint8 [T, H, W, 3] ([V, T, H, W, 3] for tests), `video_mask` [], and in training
    with `flip` on the device `video_flip` bool [].

    Functions: parse 'video'; sample 'video' and in training 'crop'; decode 'video'; preprocess
    'resize' and 'flip', for tests 'views'. Between them: `_frames` (encoded), `_first_frame`,
    `_num_frames`, `_window`.
    """
    parse = encoded_parser(pipeline, schema.FRAMES[0], "_frames", "video_mask")
    strides = [
        options.stride * max(1, int(info.fps // options.fps) if options.fps and info.fps else 1)
        for info in infos
    ]
    stride_of = tf.constant(strides, tf.int32)
    number = options.num_frames if train else options.num_clips * options.num_frames
    min_resize = options.min_resize or options.size

    def sample(features: Features) -> Features:
        frames, stride = features["_frames"], stride_of[features["_source"]]
        length = tf.size(frames)
        if train:
            # The span that must fit ends with the last frame: (n - 1) strides after the first.
            room = tf.maximum(length - (options.num_frames - 1) * stride, 1)
            start = random_below(room, seed_of(features, "instant"))
        else:
            start = crops.window_starts(length, options.num_frames * stride, options.num_clips)
        index = tf.reshape(crops.looped(start, options.num_frames, stride, length), [number])
        return features | {
            "_frames": pipeline.resolve(features["_source"], tf.gather(frames, index)),
            "_first_frame": start,
            "_num_frames": length,
        }

    def crop(features: Features) -> Features:
        shape, seed = crops.encoded_size(features["_frames"][0]), seed_of(features, "crop")
        if options.crop == "inception":
            window = crops.inception_window(shape, seed, area=options.area, aspect=options.aspect)
        else:
            window = crops.vgg_window(
                shape,
                seed,
                size=options.size,
                min_resize=min_resize,
                scale_jitter=options.scale_jitter,
            )
        return features | {"_window": window}

    def decode(features: Features) -> Features:
        video = crops.decode(
            features["_frames"], features.get("_window"), number=number, dct=options.dct
        )
        return features | {"video": video}

    def resize(features: Features) -> Features:
        if options.exact and options.crop == "vgg":
            video = crops.vgg_exact(
                features["video"],
                seed_of(features, "crop"),
                size=options.size,
                min_resize=min_resize,
                scale_jitter=options.scale_jitter,
            )
        else:
            rounded = options.crop == "inception"  # VATT resizes these as floats
            video = crops.resize(features["video"], (options.size,) * 2, rounded=rounded)
        return features | {"video": tf.ensure_shape(video, [number, options.size, options.size, 3])}

    def flip(features: Features) -> Features:
        drawn = crops.drawn_flip(seed_of(features, "flip"))
        if options.flip_on == "device":
            return features | {"video_flip": drawn}
        return features | {"video": crops.flip(features["video"], drawn)}

    def views(features: Features) -> Features:
        video = crops.resize_shortest(features["video"], options.size)
        crop = crops.multi_crop if options.multi_crop else crops.central_crop
        shape = [options.views, options.num_frames, options.size, options.size, 3]
        return features | {"video": tf.reshape(crop(video, options.size), shape)}

    pipeline.add("parse", "video", parse)
    pipeline.add("sample", "video", sample)
    pipeline.add("decode", "video", decode)
    if train:
        if not (options.exact and options.crop == "vgg"):
            pipeline.add("sample", "crop", crop)
        pipeline.add("preprocess", "resize", resize)
        if options.flip:
            pipeline.add("preprocess", "flip", flip)
    else:
        pipeline.add("preprocess", "views", views)


def add_audio(
    pipeline: Pipeline, options: Audio, *, infos: Sequence[DatasetInfo], train: bool
) -> None:
    """Adds `audio` float32 [S] ([V, S] for tests) and `audio_mask` []; after `add_video`.

    Functions: parse 'audio', sample 'audio'. In training a window begins where the clip of an
    example with video
    begins: by time if the rates are known, else at the same share of the length. Where sound ends
    before the window does, it begins again (as in VATT).
    """
    for info in infos:
        if options.sample_rate and info.sample_rate and info.sample_rate != options.sample_rate:
            raise UserError(
                f"data.audio.sample_rate={options.sample_rate:g}, but {info.name} has "
                f"{info.sample_rate:g} Hz. Build the "
                "dataset with this rate (`mmjax build --sample-rate`), or change the option."
            )
    rates = {info.name: info.sample_rate for info in infos if info.sample_rate}
    if len(set(rates.values())) > 1:
        found = ", ".join(f"{name} {rate:g} Hz" for name, rate in rates.items())
        raise UserError(
            f"Sources of one mixture have other sample rates: {found}. Build them with one "
            "(`mmjax build --sample-rate`)."
        )
    for key in schema.WAVEFORM:
        pipeline.sequence(key, tf.float32)
        pipeline.context(key, tf.float32)
    for key in (schema.FRAME_RATE[0], schema.SAMPLE_RATE[0]):
        pipeline.context(key, tf.float32)
    fps_of = tf.constant([info.fps for info in infos], tf.float64)
    rate_of = tf.constant([info.sample_rate or options.sample_rate for info in infos], tf.float64)
    disguised = [info.waveform_format == "int32" for info in infos]
    span = options.num_samples * options.stride

    def parse(features: Features) -> Features:
        lists = [features[f"_sequence/{key}"] for key in schema.WAVEFORM]
        contexts = [features[f"_context/{key}"] for key in schema.WAVEFORM]
        rows = tf.add_n([tf.cast(ragged.nrows(), tf.int32) for ragged in lists])
        waveform = first_present(*(ragged.flat_values for ragged in lists), *contexts)
        present = tf.size(waveform) > 0
        tf.debugging.Assert(
            present | (rows == 0), ["zero-length audio: the record has a waveform without samples"]
        )
        return features | {
            "_waveform": tf.cond(present, lambda: waveform, lambda: tf.zeros([1])),
            "audio_mask": tf.cast(present, tf.float32),
        }

    def samples_per_frame(features: Features, length: tf.Tensor) -> tf.Tensor:
        source = features["_source"]
        fps = _known(features[f"_context/{schema.FRAME_RATE[0]}"], fps_of[source])
        rate = _known(features[f"_context/{schema.SAMPLE_RATE[0]}"], rate_of[source])
        by_share = tf.cast(length, tf.float64) / tf.cast(features["_num_frames"], tf.float64)
        return tf.where((fps > 0) & (rate > 0), rate / tf.maximum(fps, 1e-9), by_share)

    def sample(features: Features) -> Features:
        waveform, source = features["_waveform"], features["_source"]
        length = tf.size(waveform)
        if not train:
            start = crops.window_starts(length, span, options.num_clips)
            window = tf.gather(
                waveform, crops.looped(start, options.num_samples, options.stride, length)
            )
            window = tf.ensure_shape(window, [options.num_clips, options.num_samples])
        else:
            room = tf.maximum(length - (options.num_samples - 1) * options.stride, 1)
            start = random_below(room, seed_of(features, "audio instant"))
            if "_first_frame" in features:
                first = tf.cast(features["_first_frame"], tf.float64)
                synced = tf.cast(tf.round(first * samples_per_frame(features, length)), tf.int32)
                start = tf.where(features["video_mask"] > 0, synced, start)
            # As `images.looped` and `gather`, which take a microsecond for 100 samples.
            start %= length
            again = tf.tile(waveform, [(start + span - 1) // length + 1])
            window = again[start : start + span : options.stride]
            window = tf.ensure_shape(window, [options.num_samples])
        if any(disguised):
            window = tf.where(tf.constant(disguised)[source], _int32_repaired(window), window)
        return features | {"audio": window}

    pipeline.add("parse", "audio", parse)
    pipeline.add("sample", "audio", sample)


def add_text(
    pipeline: Pipeline,
    options: Text,
    *,
    tokenizer: Tokenizer,
    train: bool,
    features: Sequence[np.ndarray] | None = None,
) -> None:
    """Adds `text` int32 [L, W], 0 = padding, and `text_mask` [L], 1 where there is a caption; or as
    `text` the `features` of `stored.open_features`, float32 [1, D].

    Functions: parse 'text', sample 'text', and postprocess 'tokens', which tokenizes a batch at
    once.
    """
    key, number = schema.CAPTIONS[0], options.candidates
    sentences = options.keywords and sentence_maker(options.keywords, train=train)
    pipeline.context(key, tf.string)
    pipeline.sequence(key, tf.string)

    def parse(features: Features) -> Features:
        captions = first_present(
            features[f"_context/{key}"], features[f"_sequence/{key}"].flat_values
        )
        lengths = tf.strings.length(captions)
        if sentences:
            lengths = keywords_of(captions).row_lengths()
        captions = tf.boolean_mask(captions, lengths > 0)
        if options.require_text:
            tf.debugging.Assert(
                tf.size(captions) > 0, ["there is no caption, and data.text.require_text is set"]
            )
        mask = tf.sequence_mask(tf.minimum(tf.size(captions), number), number, tf.float32)
        return features | {"_captions": captions, "text_mask": mask}

    def sample(features: Features) -> Features:
        captions = features["_captions"]
        if train and options.sample == "random":
            draw = tf.random.stateless_uniform([tf.size(captions)], seed_of(features, "captions"))
            captions = tf.gather(captions, tf.argsort(draw))
        captions = captions[:number]
        if sentences:
            captions = sentences(captions, features)
        padded = tf.pad(captions, [[0, number - tf.size(captions)]], constant_values="")
        return features | {"text": tf.ensure_shape(padded, [number])}

    def tokens(features: Features) -> Features:
        ids = tokenizer.encode_tensor(tf.reshape(features["text"], [-1]))
        return features | {"text": tf.reshape(ids, [-1, number, options.max_tokens])}

    pipeline.add("parse", "text", parse)
    if features is not None:
        add_precomputed(pipeline, "text", features, shape=[1])
        return
    pipeline.add("sample", "text", sample)
    pipeline.add("postprocess", "tokens", tokens)


def add_label(pipeline: Pipeline, options: Label, *, num_classes: int) -> None:
    """Adds `label` int32 [], -1 = none, or with `multi_label` float32 [C]; parse 'label'."""
    for key in schema.LABELS:
        pipeline.context(key, tf.int64)

    def parse(features: Features) -> Features:
        labels = first_present(*(features[f"_context/{key}"] for key in schema.LABELS))
        wrong = tf.boolean_mask(labels, (labels < 0) | (labels >= num_classes))
        tf.debugging.Assert(
            tf.size(wrong) == 0,
            [
                "class number out of range:",
                wrong,
                f"is not in [0, {num_classes}), see data.label.num_classes",
            ],
        )
        if options.multi_label:
            label = tf.reduce_max(tf.one_hot(labels, num_classes), 0)
            label = tf.maximum(label, 0.0)  # the maximum over no label at all is -inf
        else:
            label = tf.cast(tf.concat([labels, [-1]], 0)[0], tf.int32)
        return features | {"label": label}

    pipeline.add("parse", "label", parse)


def encoded_parser(
    pipeline: Pipeline, key: str, name: str, mask: str
) -> Callable[[Features], Features]:
    """Images of a feature list or of the context; a black one where there is none."""
    pipeline.sequence(key, tf.string)
    pipeline.context(key, tf.string)
    black = tf.constant([crops.black_jpeg()])

    def parse(features: Features) -> Features:
        images = first_present(
            features[f"_sequence/{key}"].flat_values, features[f"_context/{key}"]
        )
        present = tf.size(images) > 0
        return features | {
            name: tf.cond(present, lambda: images, lambda: black),
            mask: tf.cast(present, tf.float32),
        }

    return parse


def first_present(first: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
    """The first of these vectors that is not empty, or else the last."""
    if not others:
        return first
    return tf.cond(tf.size(first) > 0, lambda: first, lambda: first_present(*others))


def _known(recorded: tf.Tensor, otherwise: tf.Tensor) -> tf.Tensor:
    """What the record says, float [0 or 1], or what the dataset says."""
    return tf.cast(tf.concat([tf.cast(recorded, tf.float64), [otherwise]], 0)[0], tf.float64)


def random_below(limit: tf.Tensor, seed: tf.Tensor, *, shape: Sequence[int] = ()) -> tf.Tensor:
    """int32 `shape`, uniform in [0, limit)."""
    return tf.random.stateless_uniform(shape, seed, 0, limit, tf.int32)


def _int32_repaired(waveform: tf.Tensor) -> tf.Tensor:
    """`schema.repair_int32_waveform` in TensorFlow."""
    return tf.cast(tf.bitcast(waveform, tf.int32), tf.float32) / 2.0**31
