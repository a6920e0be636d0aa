"""From a batch of the input pipeline (uint8 images, waveforms, token ids) to inputs of towers.

Runs on the device, inside jit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmjax import config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.modalities import IMAGES, INPUTS
from mmjax.preprocess.audio import audio_noise, log_mel, spec_augment
from mmjax.preprocess.color import DMVRColorJitter, to_float
from mmjax.preprocess.image import Augmentation
from mmjax.preprocess.mixup import mixup
from mmjax.preprocess.video import flip_video, space_to_depth


class Inputs:
    """Normalization and augmentation of every modality of a batch: the section `augment`.

    Args:
      zero_centered: Whether pixels are scaled to [-1, 1], as in VATT, or to [0, 1].
      color_jitter: Probability that the colors of a training clip are changed; see
        `mmjax.preprocess.color.DMVRColorJitter`.
      repeat_frames: Number of times each frame is repeated, for single images before towers that
        take clips (VATT: 4).
      space_to_depth: Whether to move blocks of 2 × 2 × 2 pixels into 24 channels (`channels=24` of
        a tower).
      audio_noise: Standard deviation of the noise on training waveforms, relative to the peak of
        each.
      audio_mixup: Parameters (α, β) of the Beta distribution by which each training waveform is
        mixed with another one of the batch, without its other modalities (VATT: 10, 2); None for
        no mixup.
      spectrogram: Options of `mmjax.preprocess.audio.log_mel`; None keeps waveforms.
      spec_augment: Options of `mmjax.preprocess.audio.spec_augment`; needs `spectrogram`.
      sample_rate: Sample rate of the waveforms in Hz.
      image, touch: Options of `mmjax.preprocess.image.Augmentation` for these images; None only
        scales them, see `zero_centered`. Precomputed features stay unchanged. `image` may be
        several sections, one per view of `data.image.crops`; evaluation uses the first. It applies
        to the `reference` of an image too, with the same random numbers.

    Raises:
      UserError: An unknown key, or a value of the wrong type or out of range.
    """

    def __init__(
        self,
        *,
        zero_centered: bool = True,
        color_jitter: float = 0.0,
        repeat_frames: int = 1,
        space_to_depth: bool = False,
        audio_noise: float = 0.0,
        audio_mixup: tuple[float, ...] | None = None,
        spectrogram: Mapping[str, Any] | None = None,
        spec_augment: Mapping[str, Any] | None = None,
        sample_rate: float | None = None,
        image: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        touch: Mapping[str, Any] | None = None,
    ):
        if repeat_frames < 1:
            raise UserError(
                f"config.augment.repeat_frames must be at least 1; got {repeat_frames}."
            )
        self._images = {
            name: _augmentations(section, f"augment.{name}")
            for name, section in (("image", image), ("touch", touch))
            if section is not None
        }
        if len(self._images.get("touch", "1")) > 1:
            raise UserError("config.augment.touch must be one section: touch has only one view.")
        self._zero_centered = zero_centered
        self._color_jitter = color_jitter
        self._repeat_frames = repeat_frames
        self._space_to_depth = space_to_depth
        self._audio = _Audio(
            noise=audio_noise,
            mixup=audio_mixup,
            spectrogram=spectrogram,
            spec_augment=spec_augment,
            sample_rate=sample_rate,
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
        """Returns the inputs of a task.

        Args:
          augment: The section `augment`.
          data_spec: Spec of the training data.
          towers: Modalities that the model encodes.
          views: Whether the task takes several views of an image.

        Raises:
          UserError: The section is invalid, or the data contain more than the model takes.
        """
        for modality in INPUTS:
            if modality in data_spec.batch and modality not in towers:
                raise UserError(
                    f"config.data.{modality} is set, but config.model has no tower for "
                    f"{modality}. Set config.data.{modality}=None, or add the tower."
                )
        if not views and "image" in data_spec.batch and data_spec.batch["image"].ndim == 5:
            raise UserError(
                "config.data.image.crops makes several views of an image, which only "
                "--task=guided takes. Set config.data.image.crops=()."
            )
        section = config.keywords(cls.__init__, augment, "augment")
        return cls(**{"sample_rate": data_spec.sample_rate, **section})

    def __call__(
        self, batch: Mapping[str, jax.Array], key: jax.Array | None, *, train: bool
    ) -> dict[str, jax.Array]:
        """Returns {modality: input of its tower}, with the leading dimension of the batch.

        Args:
          batch: Fields of the input pipeline.
          key: Key of the step; None in evaluation.
          train: Whether to augment.
        """
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        keys = jax.random.split(key, 4) if train else [None] * 4
        for index, name in enumerate(IMAGES):
            if name in inputs and not jnp.issubdtype(inputs[name].dtype, jnp.floating):
                index = IMAGES.index("image") if name == "reference" else index
                image_key = jax.random.fold_in(key, 4 + index) if train else None
                inputs[name] = self._image(name, batch, image_key)
        if "video" in inputs:
            inputs["video"] = self._video(inputs["video"], batch.get("video_flip"), keys[0])
        if "audio" in inputs:
            inputs["audio"] = self._audio(inputs["audio"], keys[1:])
        return inputs

    def _image(self, name: str, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        """Returns the input from uint8 images [B, H, W, 3], or [B, V, H, W, 3] of several views.

        Args:
          name: The modality.
          batch: The batch.
          key: Key of the augmentation; None in evaluation.
        """
        x, background = batch[name], batch.get(f"{name}_background")
        name = "image" if name == "reference" else name
        if name not in self._images:
            return to_float(x, zero_centered=self._zero_centered)
        sections = self._images[name]
        views = x.shape[1] if x.ndim == 5 else 1
        if key is None:
            sections = sections[:1]
        elif len(sections) not in (1, views):
            raise UserError(
                f"config.augment.{name} has {len(sections)} sections, but an example has {views} "
                f"views (config.data.{name}.crops). Set one section per view, or one for all."
            )
        if x.ndim < 5:
            return sections[0](x, background, key=key, batch=batch)
        augmented = [
            sections[view % len(sections)](
                x[:, view],
                None if background is None else background[:, view],
                key=None if key is None else jax.random.fold_in(key, view),
                batch=batch,
            )
            for view in range(views)
        ]
        return jnp.stack(augmented, axis=1)

    def _video(self, frames: jax.Array, flip: jax.Array | None, key: jax.Array | None) -> jax.Array:
        """Returns the input from uint8 frames [B, T, H, W, 3].

        Args:
          frames: The frames.
          flip: Which clips to mirror, bool [B]; None for none.
          key: Key of the color jitter; None in evaluation.
        """
        if flip is not None:
            frames = flip_video(frames, flip)
        if key is not None and self._color_jitter:
            jitter = DMVRColorJitter(probability=self._color_jitter)
            frames = jitter(key, to_float(frames))
            frames = frames * 2.0 - 1.0 if self._zero_centered else frames
        else:
            frames = to_float(frames, zero_centered=self._zero_centered)
        if self._repeat_frames > 1:
            frames = frames.repeat(self._repeat_frames, axis=1)
        return space_to_depth(frames) if self._space_to_depth else frames

    def shapes(self, spec: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, tuple[int, ...]]:
        """Returns {modality: shape of its input} for a batch with this spec."""
        fields = (*INPUTS, "touch_background")
        abstract = {name: spec[name] for name in fields if name in spec}
        inputs = jax.eval_shape(lambda batch: self(batch, None, train=False), abstract)
        return {name: tuple(leaf.shape) for name, leaf in inputs.items()}

    def each_view(
        self, encode: Callable[[jax.Array], Any], batch: Mapping[str, Any], modality: str
    ) -> Any:
        """Encodes every view of an evaluation batch.

        Args:
          encode: Function from the input of a tower [B, …] to an array [B, …] or a tree of such
            arrays.
          batch: The batch, with the modality [B, V, …] and its background, if any.
          modality: The modality to encode.

        Returns:
          The same with the views, [B, V, …].
        """
        fields = (modality, f"{modality}_background")
        views = {name: batch[name] for name in fields if name in batch}
        ids = {name: batch[name] for name in ("example_id", "source") if name in batch}
        return map_views(lambda view: encode(self(view | ids, None, train=False)[modality]), views)


class _Audio:
    """Augmentation and spectrograms of waveforms; see `Inputs` for the arguments."""

    def __init__(
        self,
        *,
        noise: float,
        mixup: tuple[float, ...] | None,
        spectrogram: Mapping[str, Any] | None,
        spec_augment: Mapping[str, Any] | None,
        sample_rate: float | None,
    ):
        if spec_augment is not None and spectrogram is None:
            raise UserError(
                "config.augment.spec_augment masks spectrograms, so it needs "
                "config.augment.spectrogram. Set it, or set config.augment.spec_augment=None."
            )
        if mixup is not None and (len(mixup) != 2 or min(mixup) <= 0):
            raise UserError(
                f"config.augment.audio_mixup={mixup} must be two positive numbers (α, β), or None."
            )
        if spectrogram is not None and not (sample_rate or spectrogram.get("sample_rate")):
            raise UserError(
                "config.augment.spectrogram needs the sample rate of the audio, which the dataset "
                "does not specify. Set config.data.audio.sample_rate, or sample_rate in its "
                "dataset.json (`mmjax index DIRECTORY` writes one)."
            )
        self._noise, self._mixup = noise, mixup
        self._log_mel = self._spec_augment = None
        if spectrogram is not None:
            options = config.keywords(
                log_mel,
                spectrogram,
                "augment.spectrogram",
                provided=["waveform"],
                filled=["sample_rate"],
            )
            self._log_mel = functools.partial(log_mel, **{"sample_rate": sample_rate, **options})
        if spec_augment is not None:
            self._spec_augment = _spec_augment_of(spec_augment)

    def __call__(self, audio: jax.Array, keys: Sequence[jax.Array | None]) -> jax.Array:
        """Returns the input from waveforms [..., S].

        Args:
          audio: The waveforms.
          keys: Keys of noise, masks and mixup; None each in evaluation.
        """
        noise_key, mask_key, mixup_key = keys
        train = noise_key is not None
        if train and self._noise:
            audio = audio_noise(noise_key, audio, self._noise)
        if train and self._mixup is not None:
            alpha, beta = self._mixup
            audio = mixup(mixup_key, audio, alpha=alpha, beta=beta)
        if self._log_mel is not None:
            audio = self._log_mel(audio)
            if train and self._spec_augment is not None:
                audio = self._spec_augment(mask_key, audio)
        return audio


def _spec_augment_of(section: Mapping[str, Any]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    options = config.keywords(
        spec_augment, section, "augment.spec_augment", provided=["key", "spectrogram"]
    )
    return functools.partial(spec_augment, **options)


def _augmentations(
    sections: Mapping[str, Any] | Sequence[Mapping[str, Any]], where: str
) -> list[Augmentation]:
    """Returns the augmentation of a section, or of each of several."""
    if isinstance(sections, Mapping):
        return [Augmentation.from_config(sections, where)]
    if not sections or not all(isinstance(section, Mapping) for section in sections):
        raise UserError(
            f"config.{where} must be a section (dict), or a tuple of sections, one per view; got "
            f"{sections!r}."
        )
    return [
        Augmentation.from_config(section, f"{where}[{index}]")
        for index, section in enumerate(sections)
    ]


def map_views(function: Callable[[Any], Any], x: Any) -> Any:
    """Applies a function to one view of an evaluation batch after the other.

    All views at once would need V times the memory: for four windows of 64 clips at VATT's size,
    40 GB for the attention of one layer.

    Args:
      function: Function from a view [B, …] to an array [B, …], or a tree of such arrays.
      x: Array [B, V, …], or a tree of such arrays.

    Returns:
      The same with the views, [B, V, …].
    """
    views = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), x)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), jax.lax.map(function, views))
