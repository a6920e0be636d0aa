"""From a batch as it travels (uint8 images, waveforms, words) to what towers take, on device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmjax import config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.modalities import IMAGES, INPUTS
from mmjax.preprocess import image as image_ops
from mmjax.preprocess import video as preprocess


class Inputs:
    """Normalization and augmentation of every modality that a batch has.

    Args:
      zero_centered: frames in [-1, 1] (VATT), else [0, 1].
      color_jitter: probability that a training clip's colors are jittered.
      repeat_frames: show each frame so often, for images before towers that take clips (VATT: 4).
      space_to_depth: fold blocks of 2 × 2 × 2 pixels into 24 channels (`channels=24` of a tower).
      audio_noise: standard deviation of the noise on training waveforms, relative to each one's
        peak.
      audio_mixup: (α, β) of the Beta distribution by which each training waveform is mixed with
        another of the batch, whatever else its example holds (VATT: 10, 2); None is off.
      spectrogram: keywords of `mmjax.preprocess.video.log_mel` (seconds, bins); None keeps waveforms.
      spec_augment: keywords of `mmjax.preprocess.video.spec_augment`; needs `spectrogram`.
      sample_rate: of the waveforms, Hz.
      image, touch: keywords of `mmjax.preprocess.image.Augmentation` for these images; None only scales
        them, see `zero_centered`. Images that come as features of their towers stay as they are.
        Of `image` there may be several, one for each of `data.image.crops`; evaluation takes the
        first.
    """

    def __init__(
        self,
        *,
        zero_centered: bool = True,
        color_jitter: float = 0.0,
        repeat_frames: int = 1,
        space_to_depth: bool = False,
        audio_noise: float = 0.0,
        audio_mixup: Sequence[float] | None = None,
        spectrogram: Mapping[str, Any] | None = None,
        spec_augment: Mapping[str, Any] | None = None,
        sample_rate: float | None = None,
        image: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        touch: Mapping[str, Any] | None = None,
    ):
        if spec_augment is not None and spectrogram is None:
            raise UserError("config.augment.spec_augment needs config.augment.spectrogram.")
        if repeat_frames < 1:
            raise UserError(f"config.augment.repeat_frames={repeat_frames} must be at least 1.")
        if audio_mixup is not None and (len(audio_mixup) != 2 or min(audio_mixup) <= 0):
            raise UserError(
                f"config.augment.audio_mixup={audio_mixup} must be two numbers above 0, or None."
            )
        self._images = {
            name: _augmentations(section, f"augment.{name}")
            for name, section in (("image", image), ("touch", touch))
            if section is not None
        }
        if len(self._images.get("touch", "1")) > 1:
            raise UserError("config.augment.touch must be one section: touch has one view.")
        self._zero_centered = zero_centered
        self._color_jitter = color_jitter
        self._repeat_frames = repeat_frames
        self._space_to_depth = space_to_depth
        self._audio_noise = audio_noise
        self._audio_mixup = audio_mixup
        self._sample_rate = sample_rate
        if spectrogram is not None and not (sample_rate or spectrogram.get("sample_rate")):
            raise UserError(
                "config.augment.spectrogram needs to know how many samples a second are stored, "
                "and the dataset does not say: set config.data.audio.sample_rate, or sample_rate "
                "in its dataset.json (`mmjax index DIRECTORY` makes one)."
            )
        self._spectrogram = spectrogram and config.keywords(
            preprocess.log_mel,
            spectrogram,
            "augment.spectrogram",
            provided=["waveform"],
            filled=["sample_rate"],
        )
        self._spec_augment = spec_augment and config.keywords(
            preprocess.spec_augment,
            spec_augment,
            "augment.spec_augment",
            provided=["key", "spectrogram"],
        )

    @classmethod
    def from_config(
        cls,
        augment: Mapping[str, Any],
        data_spec: DataSpec,
        *,
        towers: Sequence[str] = INPUTS,
        views: bool = False,
    ) -> Inputs:
        """The section `augment`, for a task that takes of the data what `towers` names; `views`
        tells that it takes several crops of an image.

        Raises:
          UserError: the data load more than that.
        """
        for modality in INPUTS:
            if modality in data_spec.batch and modality not in towers:
                raise UserError(
                    f"config.data loads {modality}, for which config.model has no tower: set "
                    f"config.data.{modality}=None."
                )
        if not views and "image" in data_spec.batch and data_spec.batch["image"].ndim == 5:
            raise UserError(
                "config.data.image.crops makes views of an image, which only --task=guided takes: "
                "leave it out."
            )
        section = config.keywords(cls.__init__, augment, "augment")
        return cls(**{"sample_rate": data_spec.sample_rate, **section})

    def __call__(
        self, batch: Mapping[str, jax.Array], key: jax.Array | None, *, train: bool
    ) -> dict[str, jax.Array]:
        """{modality: input} with the leading dimension of the batch; `key` only when training."""
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        keys = jax.random.split(key, 4) if train else None
        for number, name in enumerate(IMAGES):
            if name in inputs and not jnp.issubdtype(inputs[name].dtype, jnp.floating):
                picture_key = jax.random.fold_in(key, 4 + number) if train else None
                inputs[name] = self._image(name, batch, picture_key)
        if "video" in inputs:
            inputs["video"] = self._video(
                inputs["video"], batch.get("video_flip"), keys[0] if train else None
            )
        if "audio" in inputs:
            audio = inputs["audio"]
            if train and self._audio_noise:
                audio = preprocess.audio_noise(keys[1], audio, self._audio_noise)
            if train and self._audio_mixup is not None:
                alpha, beta = self._audio_mixup
                audio = preprocess.mixup(keys[3], audio, alpha=alpha, beta=beta)
            if self._spectrogram is not None:
                audio = preprocess.log_mel(
                    audio, **{"sample_rate": self._sample_rate, **self._spectrogram}
                )
                if train and self._spec_augment is not None:
                    audio = preprocess.spec_augment(keys[2], audio, **self._spec_augment)
            inputs["audio"] = audio
        return inputs

    def _image(self, name: str, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        """What towers take of uint8 images [N, H, W, 3], or [N, V, H, W, 3] of several views;
        augmented when there is a key."""
        x, background = batch[name], batch.get(f"{name}_background")
        if name not in self._images:
            return preprocess.normalize_video(x, zero_centered=self._zero_centered)
        sections = self._images[name]
        views = x.shape[1] if x.ndim == 5 else 1
        if key is None:
            sections = sections[:1]
        elif len(sections) not in (1, views):
            raise UserError(
                f"config.augment.{name} has {len(sections)} sections, but the images of an "
                f"example have {views} views (config.data.{name}.crops): give one section for "
                "each, or one for all."
            )
        if x.ndim < 5:
            return sections[0](x, background, key=key)
        made = [
            sections[view % len(sections)](
                x[:, view],
                None if background is None else background[:, view],
                key=None if key is None else jax.random.fold_in(key, view),
            )
            for view in range(views)
        ]
        return jnp.stack(made, axis=1)

    def _video(self, frames: jax.Array, flip: jax.Array | None, key: jax.Array | None) -> jax.Array:
        """What towers take of uint8 frames [N, T, H, W, 3]; augmented when there is a key."""
        if flip is not None:
            frames = preprocess.flip_video(frames, flip)
        if key is not None and self._color_jitter:
            frames = preprocess.normalize_video(frames, zero_centered=False)
            frames = preprocess.color_jitter(key, frames, probability=self._color_jitter)
            frames = frames * 2.0 - 1.0 if self._zero_centered else frames
        else:
            frames = preprocess.normalize_video(frames, zero_centered=self._zero_centered)
        if self._repeat_frames > 1:
            frames = frames.repeat(self._repeat_frames, axis=1)
        return preprocess.space_to_depth(frames) if self._space_to_depth else frames

    def shapes(self, spec: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, tuple[int, ...]]:
        """{modality: shape} of the inputs made of a batch of this spec."""
        fields = (*INPUTS, "touch_background")
        abstract = {name: spec[name] for name in fields if name in spec}
        made = jax.eval_shape(lambda batch: self(batch, None, train=False), abstract)
        return {name: tuple(leaf.shape) for name, leaf in made.items()}

    def each_view(
        self, encode: Callable[[jax.Array], jax.Array], batch: Mapping[str, Any], modality: str
    ) -> jax.Array:
        """What a tower makes of an evaluation batch: [B, V, …] → [B, V, D].

        Args:
          encode: from what the tower takes, [B, …], to its output, [B, D].
          batch: with the modality, and its background if there is one.
          modality: which field to encode.
        """
        fields = (modality, f"{modality}_background")
        views = {name: batch[name] for name in fields if name in batch}
        return map_views(lambda view: encode(self(view, None, train=False)[modality]), views)


def _augmentations(
    sections: Mapping[str, Any] | Sequence[Mapping[str, Any]], where: str
) -> list[image_ops.Augmentation]:
    """Of a section, or of each of several."""
    if isinstance(sections, Mapping):
        return [image_ops.Augmentation.from_config(sections, where)]
    if not sections or not all(isinstance(section, Mapping) for section in sections):
        raise UserError(f"config.{where}={sections!r} must be a section, or several in brackets.")
    return [
        image_ops.Augmentation.from_config(section, f"{where}[{number}]")
        for number, section in enumerate(sections)
    ]


def map_views(function: Callable[[Any], jax.Array], x: Any) -> jax.Array:
    """[B, V, …] → [B, V, D]: `function` on one view [B, …] of an evaluation batch after the other.

    All at once would take V times the memory: four windows of 64 clips at VATT's size, 40 GB for
    the attention of one layer. `x` may hold several arrays, of which each view has one.
    """
    views = jax.tree.map(lambda each: jnp.moveaxis(each, 1, 0), x)
    return jnp.moveaxis(jax.lax.map(function, views), 0, 1)
