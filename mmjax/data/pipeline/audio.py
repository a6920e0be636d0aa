"""Audio waveforms: the section `data.audio` and its functions of the input pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from mmjax.data.pipeline import crops
from mmjax.data.pipeline.common import Context, check_positive, first_present, random_below
from mmjax.data.pipeline.phases import Features, Pipeline, seed_of
from mmjax.data.storage import schema
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audio:
    """The section `data.audio`.

    Attributes:
      num_samples: Number of samples of a window.
      stride: Take every stride-th sample, without a low-pass filter, as in VATT.
      sample_rate: Sample rate in Hz that the dataset must have; 0 accepts any.
      num_clips: Number of windows of an evaluation example, spread over its length.
    """

    num_samples: int = 153_600
    stride: int = 1
    sample_rate: float = 0.0
    num_clips: int = 1

    def __post_init__(self) -> None:
        check_positive("audio", self, "num_samples", "stride", "num_clips")

    def rate(self, stored: float) -> float:
        """Returns the sample rate of the windows in Hz.

        Args:
          stored: Sample rate of the dataset in Hz; 0 if it is unknown.
        """
        return (stored or self.sample_rate) / self.stride


def add_audio(pipeline: Pipeline, options: Audio, context: Context) -> None:
    """Adds the batch fields of audio; call it after `add_video`.

    Fields: `audio`, float32 [S] ([V, S] in evaluation), and `audio_mask` [].

    Functions: parse 'audio', sample 'audio'. In training, the window of an example with video
    starts at the same time as its clip: by time if both rates are known, else at the same fraction
    of the length. If the audio is too short, it is repeated, as in VATT.

    Raises:
      UserError: The sample rates of the sources differ from `data.audio.sample_rate` or from each
        other.
    """
    _check_sample_rates(options, context.infos)
    for key in schema.WAVEFORM:
        pipeline.sequence(key, tf.float32)
        pipeline.context(key, tf.float32)
    for key in (schema.FRAME_RATE[0], schema.SAMPLE_RATE[0]):
        pipeline.context(key, tf.float32)
    pipeline.add("parse", "audio", _parse)
    if context.train:
        window = _random_window(options, context.infos)
    else:
        window = _spaced_windows(options)
    # Some datasets store int32 samples as the floats with the same bits.
    is_int32 = [info.waveform_format == "int32" for info in context.infos]

    def sample(features: Features) -> Features:
        audio = window(features)
        if any(is_int32):
            source = features["_source"]
            audio = tf.where(tf.constant(is_int32)[source], _repair_int32(audio), audio)
        return features | {"audio": audio}

    pipeline.add("sample", "audio", sample)


def _check_sample_rates(options: Audio, infos: Sequence[DatasetInfo]) -> None:
    for info in infos:
        if options.sample_rate and info.sample_rate and info.sample_rate != options.sample_rate:
            raise UserError(
                f"data.audio.sample_rate={options.sample_rate:g}, but the audio of the dataset "
                f"{info.name} has {info.sample_rate:g} Hz. Rebuild the dataset with "
                f"`mmjax build --sample-rate`, or set data.audio.sample_rate={info.sample_rate:g}."
            )
    rates = {info.name: info.sample_rate for info in infos if info.sample_rate}
    if len(set(rates.values())) > 1:
        listed = ", ".join(f"{name} {rate:g} Hz" for name, rate in rates.items())
        raise UserError(
            f"The sources of data.train have different sample rates: {listed}. Rebuild them with "
            "the same rate (`mmjax build --sample-rate`)."
        )


def _parse(features: Features) -> Features:
    lists = [features[f"_sequence/{key}"] for key in schema.WAVEFORM]
    contexts = [features[f"_context/{key}"] for key in schema.WAVEFORM]
    num_features = tf.add_n([tf.cast(ragged.nrows(), tf.int32) for ragged in lists])
    waveform = first_present(*(ragged.flat_values for ragged in lists), *contexts)
    present = tf.size(waveform) > 0
    tf.debugging.Assert(
        present | (num_features == 0),
        ["zero-length audio: the record has a waveform without samples"],
    )
    return features | {
        "_waveform": tf.cond(present, lambda: waveform, lambda: tf.zeros([1])),
        "audio_mask": tf.cast(present, tf.float32),
    }


def _spaced_windows(options: Audio) -> Callable[[Features], tf.Tensor]:
    """Returns a function from features to evenly spaced windows, float32 [V, S]."""

    def windows(features: Features) -> tf.Tensor:
        waveform = features["_waveform"]
        length = tf.size(waveform)
        start = crops.window_starts(length, options.num_samples * options.stride, options.num_clips)
        index = crops.looped(start, options.num_samples, options.stride, length)
        shape = [options.num_clips, options.num_samples]
        return tf.ensure_shape(tf.gather(waveform, index), shape)

    return windows


def _random_window(options: Audio, infos: Sequence[DatasetInfo]) -> Callable[[Features], tf.Tensor]:
    """Returns a function from features to a window that starts with the video, float32 [S]."""
    fps_of = tf.constant([info.fps for info in infos], tf.float64)
    rate_of = tf.constant([info.sample_rate or options.sample_rate for info in infos], tf.float64)
    span = options.num_samples * options.stride

    def samples_per_frame(features: Features, length: tf.Tensor) -> tf.Tensor:
        source = features["_source"]
        fps = _recorded_or(features[f"_context/{schema.FRAME_RATE[0]}"], fps_of[source])
        rate = _recorded_or(features[f"_context/{schema.SAMPLE_RATE[0]}"], rate_of[source])
        by_length = tf.cast(length, tf.float64) / tf.cast(features["_num_frames"], tf.float64)
        return tf.where((fps > 0) & (rate > 0), rate / tf.maximum(fps, 1e-9), by_length)

    def window(features: Features) -> tf.Tensor:
        waveform = features["_waveform"]
        length = tf.size(waveform)
        room = tf.maximum(length - (options.num_samples - 1) * options.stride, 1)
        start = random_below(room, seed_of(features, "audio instant"))
        if "_first_frame" in features:
            first = tf.cast(features["_first_frame"], tf.float64)
            synced = tf.cast(tf.round(first * samples_per_frame(features, length)), tf.int32)
            start = tf.where(features["video_mask"] > 0, synced, start)
        # Equals `crops.looped` and `gather`, which take a microsecond per 100 samples.
        start %= length
        repeated = tf.tile(waveform, [(start + span - 1) // length + 1])
        samples = repeated[start : start + span : options.stride]
        return tf.ensure_shape(samples, [options.num_samples])

    return window


def _recorded_or(recorded: tf.Tensor, default: tf.Tensor) -> tf.Tensor:
    """Returns the value of the record, float [0] or [1], or else the default, as float64 []."""
    return tf.concat([tf.cast(recorded, tf.float64), [default]], 0)[0]


def _repair_int32(waveform: tf.Tensor) -> tf.Tensor:
    """Equals `schema.repair_int32_waveform`, in TensorFlow."""
    return tf.cast(tf.bitcast(waveform, tf.int32), tf.float32) / 2.0**31
