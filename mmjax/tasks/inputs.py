"""From a batch as it travels (uint8 frames, waveforms, words) to what towers take, on device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from mmjax import config, preprocess
from mmjax.errors import UserError
from mmjax.tasks import DataFacts

MODALITIES = ("video", "audio", "text", "touch")


class Inputs:
    """Normalisation and augmentation of every modality that a batch has.

    Args:
      zero_centered: frames in [-1, 1] (VATT), else [0, 1].
      color_jitter: probability that a training clip's colours are jittered.
      audio_noise: standard deviation of the noise on training waveforms, relative to each one's
      peak.
      spectrogram: keywords of `mmjax.preprocess.log_mel` (seconds, bins); None keeps waveforms.
      spec_augment: keywords of `mmjax.preprocess.spec_augment`; needs `spectrogram`.
      sample_rate: of the waveforms, Hz.
    """

    def __init__(
        self,
        *,
        zero_centered: bool = True,
        color_jitter: float = 0.0,
        audio_noise: float = 0.0,
        spectrogram: Mapping[str, Any] | None = None,
        spec_augment: Mapping[str, Any] | None = None,
        sample_rate: int | None = None,
    ):
        if spec_augment is not None and spectrogram is None:
            raise UserError("config.augment.spec_augment needs config.augment.spectrogram.")
        self._zero_centered = zero_centered
        self._color_jitter = color_jitter
        self._audio_noise = audio_noise
        self._sample_rate = sample_rate
        self._spectrogram = spectrogram and config.keywords(
            preprocess.log_mel, spectrogram, "augment.spectrogram", given=["waveform"]
        )
        self._spec_augment = spec_augment and config.keywords(
            preprocess.spec_augment, spec_augment, "augment.spec_augment", given=["key", "spec"]
        )

    @classmethod
    def from_config(cls, augment: Mapping[str, Any], facts: DataFacts) -> Inputs:
        section = config.keywords(cls.__init__, augment, "augment")
        return cls(**{"sample_rate": facts.sample_rate, **section})

    def __call__(
        self, batch: Mapping[str, jax.Array], key: jax.Array | None, *, train: bool
    ) -> dict[str, jax.Array]:
        """{modality: input} with the leading dimension of the batch; `key` only when training."""
        inputs = {name: batch[name] for name in MODALITIES if name in batch}
        keys = jax.random.split(key, 3) if train else None
        for name in ("video", "touch"):
            if name in inputs:
                frames = inputs[name]
                if name == "video" and "video_flip" in batch:
                    frames = preprocess.flip_video(frames, batch["video_flip"])
                if train and self._color_jitter and name == "video":
                    frames = preprocess.color_jitter(
                        keys[0],
                        preprocess.normalize_video(frames, zero_centered=False),
                        probability=self._color_jitter,
                    )
                    inputs[name] = frames * 2.0 - 1.0 if self._zero_centered else frames
                else:
                    inputs[name] = preprocess.normalize_video(
                        frames, zero_centered=self._zero_centered
                    )
        if "audio" in inputs:
            audio = inputs["audio"]
            if train and self._audio_noise:
                audio = preprocess.audio_noise(keys[1], audio, self._audio_noise)
            if self._spectrogram is not None:
                audio = preprocess.log_mel(
                    audio, **{"sample_rate": self._sample_rate, **self._spectrogram}
                )
                if train and self._spec_augment is not None:
                    audio = preprocess.spec_augment(keys[2], audio, **self._spec_augment)
            inputs["audio"] = audio
        return inputs

    def shapes(self, spec: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, tuple[int, ...]]:
        """{modality: shape} of the inputs made of a batch of this spec."""
        abstract = {name: spec[name] for name in MODALITIES if name in spec}
        made = jax.eval_shape(lambda batch: self(batch, None, train=False), abstract)
        return {name: tuple(leaf.shape) for name, leaf in made.items()}


def flatten_views(batch: Mapping[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, int]]:
    """An evaluation batch with its view axes folded into the batch: `(batch, {modality: views})`.

    Word ids [B, L, W] stay as they are: their captions are their views.
    """
    flat, views = dict(batch), {}
    for name in MODALITIES:
        if name in batch:
            views[name] = batch[name].shape[1]
            if name != "text":
                flat[name] = batch[name].reshape(-1, *batch[name].shape[2:])
    return flat, views
