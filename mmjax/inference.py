"""`mmjax.load`: use a trained model of any task on your own files, arrays and texts.

    import mmjax

    model = mmjax.load("runs/pretrain-demo")
    model.embed_video("cat.mp4") @ model.embed_text(["a cat", "a dog"]).T
    mmjax.load("runs/touch-demo").zero_shot(["rough", "smooth"]).classify("felt.png")
    mmjax.load("lgsimclr.ckpt").embed_image(["cat.jpg", "dog.jpg"])

A model is used through the `predict` functions of its task, as in evaluation, so that tasks from
other packages work too. docs/inference.md is the guide.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mmjax import config, init_from
from mmjax.convert import source_config
from mmjax.convert.load import load_sources
from mmjax.errors import UserError, about, check_choice
from mmjax.evals.features.embeddings import normalize
from mmjax.modalities import IMAGES, INPUTS
from mmjax.tasks import touch
from mmjax.tasks.base import Task
from mmjax.tasks.predict import make_predict_task

Path = str | os.PathLike
# A path, a Pillow image, or uint8 [H, W, 3].
Image = Any
# A path of a media file, an image or a directory of frames; or uint8 [T, H, W, 3].
Video = Any
# A path of an audio or video file; or floating-point [num_samples], mono, in [-1, 1].
Audio = Any

FEATURES = "features"  # the `target` that selects the pooled output of the tower
# Modalities in the order in which they are listed and in which zero-shot classification prefers
# them.
_ORDER = sorted(INPUTS, key=("touch", "image", "reference", "video", "audio", "text").index)
_MAX_WORDS = 10  # that a warning lists
_BATCH_SIZE = {"video": 8, "audio": 8, "image": 64, "touch": 64, "text": 64}


class Model:
    """A model with its parameters. Create it with `load`.

    The methods take one input and return float32 [D], or several and return float32 [N, D].

    An embedding depends on the modality that it is compared with: VATT's head, for example, maps
    video into one space to compare it with text, and into another one for audio. The argument
    `target` of the methods names this other modality. By default it is the only one, or else
    'text', or else the first one. Embeddings have length 1, so that inner products are cosines.
    With target='features', or if the model compares no modalities, the methods return the pooled
    output of the tower instead, which has any length.

    Args:
      cfg: The config of the run.
      leaves: {path: array} of its parameters and, below `extra/`, statistics.
      where: Description of their source, for messages.

    Attributes:
      cfg: The config.
      modalities: Modalities that the model encodes.
      spaces: {modality: the modalities that its embeddings can be compared with}.
      logit_scale: Factor of cosines before a softmax over classes, as in training.
    """

    def __init__(
        self,
        cfg: config.Config | Mapping[str, Any],
        leaves: Mapping[str, np.ndarray],
        where: str,
    ):
        self.cfg = config.resolve(cfg)
        built = make_predict_task(self.cfg, leaves)
        self._data, self._tokenizer = built.data, built.tokenizer
        self._state = init_from.fill(built.task, leaves, where)
        self._predict = built.task.predict
        self.logit_scale = _logit_scale(built.task, self._state[0], self.cfg)
        outputs = {
            modality: names
            for modality in _ORDER
            if modality in built.data_spec.batch
            and (names := self._outputs(modality, built.data_spec.batch))
        }
        self.modalities: tuple[str, ...] = tuple(outputs)
        self.spaces: dict[str, tuple[str, ...]] = {
            modality: tuple(n.partition("/")[2] for n in names if n.startswith(f"{modality}/"))
            for modality, names in outputs.items()
        }
        self._clips: dict[tuple[str, int], Callable] = {}  # by modality and number of clips
        self._compiled: dict[tuple[str, str], Callable] = {}  # by predict function and output

    def embed_video(
        self,
        videos: Video | Sequence[Video],
        *,
        target: str | None = None,
        num_clips: int = 1,
        batch_size: int = _BATCH_SIZE["video"],
    ) -> np.ndarray:
        """Returns the embeddings of videos.

        Files are sampled, resized and cropped as `mmjax build` and the evaluation do.

        Args:
          videos: Paths of videos (any format that FFmpeg reads), images, or directories of frames;
            or uint8 arrays [T, H, W, 3], with frames at the rate of the training data.
          target: Modality to compare with, or 'features'; see `Model`.
          num_clips: Number of evenly spaced clips of each video. Their outputs are averaged. One
            clip is the middle of the video.
          batch_size: Number of videos that are encoded at once.

        Raises:
          UserError: The model has no video, or a video cannot be read.
        """
        return self._embed("video", videos, target, batch_size, num_clips=num_clips)

    def embed_audio(
        self,
        audios: Audio | Sequence[Audio],
        *,
        target: str | None = None,
        sample_rate: float | None = None,
        num_clips: int = 1,
        batch_size: int = _BATCH_SIZE["audio"],
    ) -> np.ndarray:
        """Returns the embeddings of audio.

        Args:
          audios: Paths of audio or video files; or floating-point arrays [num_samples], mono, in
            [-1, 1].
          target: Modality to compare with, or 'features'; see `Model`.
          sample_rate: Sample rate of the arrays in Hz, to check that it is that of the model,
            `self.sample_rate`. Files are resampled.
          num_clips: Number of evenly spaced windows of each input. Their outputs are averaged. One
            window is the middle of the input.
          batch_size: Number of inputs that are encoded at once.

        Raises:
          UserError: The model has no audio, a file cannot be read, or the sample rate differs.
        """
        options = dict(num_clips=num_clips, sample_rate=sample_rate)
        return self._embed("audio", audios, target, batch_size, **options)

    def embed_image(
        self,
        images: Image | Sequence[Image],
        *,
        target: str | None = None,
        batch_size: int = _BATCH_SIZE["image"],
    ) -> np.ndarray:
        """Returns the embeddings of images.

        Args:
          images: Paths, Pillow images, or uint8 arrays [H, W, 3].
          target: Modality to compare with, or 'features'; see `Model`.
          batch_size: Number of images that are encoded at once.

        Raises:
          UserError: The model has no images, or an image cannot be read.
        """
        return self._embed("image", images, target, batch_size)

    def embed_touch(
        self,
        images: Image | Sequence[Image],
        *,
        background: Image | None = None,
        target: str | None = None,
        batch_size: int = _BATCH_SIZE["touch"],
    ) -> np.ndarray:
        """Returns the embeddings of images of a touch sensor.

        Args:
          images: Paths, Pillow images, or uint8 arrays [H, W, 3]: whole frames of the sensor, which
            are cropped and rotated as in training.
          background: Image of the sensor without contact, for models that subtract it. None for the
            file that the config names.
          target: Modality to compare with, or 'features'; see `Model`.
          batch_size: Number of images that are encoded at once.

        Raises:
          UserError: The model has no touch, an image cannot be read, or a background is missing.
        """
        return self._embed("touch", images, target, batch_size, background=background)

    def embed_text(
        self,
        texts: str | Sequence[str],
        *,
        target: str | None = None,
        batch_size: int = _BATCH_SIZE["text"],
    ) -> np.ndarray:
        """Returns the embeddings of texts, which are tokenized unchanged.

        The published TVL models were trained on keywords that end with a period: "rough, hard.".

        Args:
          texts: Texts.
          target: Modality to compare with, or 'features'; see `Model`.
          batch_size: Number of texts that are encoded at once.

        Raises:
          UserError: The model has no text.
        """
        return self._embed("text", texts, target, batch_size)

    def zero_shot(
        self,
        classes: Sequence[str],
        *,
        templates: Sequence[str] = ("{}.",),
        modality: str | None = None,
    ) -> ZeroShotClassifier:
        """Returns a classifier that compares inputs with the names of classes.

        Args:
          classes: Class names.
          templates: Prompts in which {} is replaced by the class name; their embeddings are
            averaged.
          modality: Modality of the inputs. None for the first of touch, image, video and audio that
            the model compares with text.

        Raises:
          UserError: The model does not compare the modality with text.
        """
        if isinstance(classes, str):
            raise UserError(f"zero_shot takes a list of class names; got {classes!r}.")
        return ZeroShotClassifier(self, tuple(classes), tuple(templates), modality=modality)

    def logits(
        self,
        inputs: Any,
        *,
        modality: str | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Returns the logits of the classes, float32 [C] or [N, C], of a fine-tuned model.

        Args:
          inputs: One or several inputs of the modality; see its `embed_` method.
          modality: Modality of the inputs; None for the first of `self.modalities`.
          batch_size: Number of inputs that are encoded at once.
          **options: Further options of the `embed_` method, for example `num_clips`.

        Raises:
          UserError: The model has no classifier, or an input cannot be read.
        """
        if "logits" not in self._predict:
            raise UserError(
                f"This model (--task={self.cfg.task}) has no classifier. Load a run of "
                "--task=finetune, or use zero_shot."
            )
        modality = modality or self.modalities[0]
        size = batch_size or _BATCH_SIZE[modality]
        single, batches = self._batches("logits", modality, inputs, size, **options)
        rows = self._run("logits", "logits", batches)
        return rows[0] if single else rows

    def classify(self, inputs: Any, **options: Any) -> str | int | list[str] | list[int]:
        """Returns the most likely class of one input, or of each of several.

        Classes are named if the training dataset is available and has class names; otherwise they
        are indices.

        Args:
          inputs: See `logits`.
          **options: Options of `logits`.
        """
        best = self.logits(inputs, **options).argmax(axis=-1)
        names = self.class_names
        classes = [names[i] if names else int(i) for i in np.atleast_1d(best)]
        return classes[0] if best.ndim == 0 else classes

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the logits; () if they are unknown."""
        return tuple(self._info.class_names) if self._info else ()

    @property
    def frame_rate(self) -> float | None:
        """Frames per second of video arrays; None if unknown."""
        return self._stored.fps

    @property
    def sample_rate(self) -> float | None:
        """Sample rate of audio arrays in Hz; None if unknown."""
        return self._stored.sample_rate

    @functools.cached_property
    def _info(self) -> Any:
        """Description of the training dataset; None if it is not available."""
        from mmjax.data.build.in_memory import training_info

        return training_info(self._data)

    @functools.cached_property
    def _stored(self) -> Any:
        from mmjax.data.build.in_memory import StoredFormat

        return StoredFormat.of(self._data, self._info)

    def _embed(
        self, modality: str, inputs: Any, target: str | None, batch_size: int, **options: Any
    ) -> np.ndarray:
        name = self._output_name(modality, target)
        method = f"embed_{modality}"
        single, batches = self._batches(method, modality, inputs, batch_size, **options)
        rows = self._run("features", name, batches)
        if "/" in name:  # as the evaluators do
            rows = normalize(rows)
        return rows[0] if single else rows

    def _output_name(self, modality: str, target: str | None) -> str:
        """Returns the output of the predict function 'features' for a target."""
        self._check(modality)
        spaces = self.spaces[modality]
        if target is None and spaces:
            target = "text" if "text" in spaces else spaces[0]
        if target in (None, FEATURES):
            return modality
        check_choice(f"target of embed_{modality}:", target, [*spaces, FEATURES])
        return f"{modality}/{target}"

    def _check(self, modality: str) -> None:
        if modality not in self.modalities:
            raise UserError(
                f"This model has no {modality}. Its modalities: {', '.join(self.modalities)}."
            )

    def _batches(
        self, method: str, modality: str, inputs: Any, batch_size: int, **options: Any
    ) -> tuple[bool, Any]:
        """Returns whether there is a single input, and an iterator of `(batch, number of inputs)`.

        All batches have the same size, so that the model is compiled once.
        """
        from mmjax.data.build.in_memory import is_single

        self._check(modality)
        single = is_single(modality, inputs)
        items = [inputs] if single else list(inputs)
        if not items:
            raise UserError(f"{method} needs at least one input; got {inputs!r}.")
        size = max(1, min(batch_size, len(items)))
        make = self._batch_maker(method, modality, items, **options)
        parts = (items[start : start + size] for start in range(0, len(items), size))
        return single, ((_padded(make(part), size), len(part)) for part in parts)

    def _batch_maker(
        self, method: str, modality: str, items: Sequence[Any], **options: Any
    ) -> Callable[[Sequence[Any]], dict[str, np.ndarray]]:
        """Returns the function from some inputs to a batch."""
        from mmjax.data.build import in_memory

        if modality == "text":
            if not all(isinstance(text, str) for text in items):
                raise UserError(f"{method} takes a text or a list of texts; got {items!r}.")
            self._warn_of_unknown_words(method, items)
            return self._text_batch
        if modality in IMAGES:
            section = getattr(self._data, modality)
            return lambda images: in_memory.image_batch(modality, images, section, **options)
        rate = options.pop("sample_rate", None)
        if rate and self.sample_rate and rate != self.sample_rate:
            raise UserError(
                f"{method}: sample_rate={rate:g} Hz, but the model takes {self.sample_rate:g} Hz. "
                "Resample the arrays, or pass the paths of files, which are resampled."
            )
        key = modality, options.pop("num_clips", 1)
        if key not in self._clips:
            self._clips[key] = in_memory.ClipBatches(
                self._data, modality, self._stored, num_clips=key[1], **options
            )
        return self._clips[key]

    def _text_batch(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        ids = self._tokenizer.encode(list(texts))[:, None]  # [N, 1, W]
        return {"text": ids, "text_mask": np.ones(ids.shape[:2], np.float32)}

    def _warn_of_unknown_words(self, method: str, texts: Sequence[str]) -> None:
        if unknown := self._tokenizer.unknown_words(texts):
            logging.warning(
                "%s: the vocabulary of this model lacks %d words: %s. They all become the same "
                "unknown token, so texts that differ only in them have the same embedding.",
                method,
                len(unknown),
                ", ".join(unknown[:_MAX_WORDS]) + (", …" if len(unknown) > _MAX_WORDS else ""),
            )

    def _run(self, predict: str, name: str, batches: Any) -> np.ndarray:
        """Returns an output of a predict function, averaged over views, float32 [N, D]."""
        function = self._predict[predict]
        if (predict, name) not in self._compiled:
            self._compiled[predict, name] = jax.jit(
                lambda state, batch: function(*state, batch)[name].astype(jnp.float32)
            )
        results = []
        for batch, count in batches:
            output = np.asarray(self._compiled[predict, name](self._state, batch))[:count]
            results.append(output.mean(axis=1) if output.ndim == 3 else output)
        return np.concatenate(results)

    def _outputs(self, modality: str, spec: Mapping[str, jax.ShapeDtypeStruct]) -> list[str]:
        """Returns the outputs of the predict function 'features' for a modality, by tracing it."""
        batch = {}
        for name in (modality, f"{modality}_mask", f"{modality}_background"):
            if name in spec:
                shape = spec[name].shape[1:]
                if modality in IMAGES and len(shape) == 4:  # views of training
                    shape = shape[1:]
                views = () if name.endswith("_mask") or modality == "text" else (1,)
                batch[name] = jax.ShapeDtypeStruct((1, *views, *shape), spec[name].dtype)
        outputs = jax.eval_shape(self._predict["features"], *self._state, batch)
        return [name for name in outputs if name.partition("/")[0] == modality]


class ZeroShotClassifier:
    """Classifies inputs by comparing them with class names; see `Model.zero_shot`.

    Attributes:
      classes: Class names.
      modalities: Modalities that can be classified.
      modality: The default modality of the inputs.
    """

    def __init__(
        self,
        model: Model,
        classes: tuple[str, ...],
        templates: tuple[str, ...],
        *,
        modality: str | None = None,
    ):
        model._check("text")
        self._model, self.classes, self._templates = model, classes, templates
        self.modalities = tuple(
            name
            for name, targets in model.spaces.items()
            if "text" in targets and name in model.spaces["text"]
        )
        if not self.modalities:
            raise UserError("This model compares no modality with text. Load another model.")
        self.modality = self._checked(modality or self.modalities[0])
        self._weights: dict[str, np.ndarray] = {}
        self._class_embeddings(self.modality)

    def probabilities(
        self, inputs: Any, *, modality: str | None = None, **options: Any
    ) -> np.ndarray:
        """Returns the softmax of scaled cosines, float32 [C] of one input or [N, C] of several.

        Args:
          inputs: Inputs of the modality; see its `embed_` method.
          modality: Modality of the inputs; None for `self.modality`.
          **options: Further options of this method, for example `background`.
        """
        modality = self._checked(modality or self.modality)
        embed: Callable = getattr(self._model, f"embed_{modality}")
        cosines = embed(inputs, target="text", **options) @ self._class_embeddings(modality).T
        scores = self._model.logit_scale * cosines
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return scores / scores.sum(axis=-1, keepdims=True)

    def classify(
        self, inputs: Any, *, modality: str | None = None, **options: Any
    ) -> str | list[str]:
        """Returns the most likely class of one input, or of each of several.

        Args:
          inputs: Inputs of the modality; see its `embed_` method.
          modality: Modality of the inputs; None for `self.modality`.
          **options: Further options of this method.
        """
        best = self.probabilities(inputs, modality=modality, **options).argmax(axis=-1)
        if best.ndim == 0:
            return self.classes[int(best)]
        return [self.classes[index] for index in best]

    def _checked(self, modality: str) -> str:
        check_choice("modality", modality, self.modalities)
        return modality

    def _class_embeddings(self, modality: str) -> np.ndarray:
        """Returns the embeddings of the classes in the space of text and a modality, [C, D]."""
        from mmjax.evals.zero_shot import zero_shot_weights

        if modality not in self._weights:
            embed = functools.partial(self._model.embed_text, target=modality)
            self._weights[modality] = zero_shot_weights(
                self.classes, embed, templates=self._templates
            )
        return self._weights[modality]


def load(source: Path | Sequence[str], *, overrides: Sequence[str] = ()) -> Model:
    """Returns a trained model, ready for use.

    Args:
      source: A run directory of any task (its newest checkpoint), `<run>/best` or
        `<run>/checkpoints/<step>`. Or published files: TVL's `.pth`, OpenCLIP's `.safetensors` or
        `.bin`, or both as a tuple; FLAIR's `.pt`; LGSSL's `.ckpt`, or a ResNet, MobileNetV2 or ViT
        of torchvision or timm, also as encoder of pyVTAB, MoCo, SwAV, SimSiam or VISSL.
      overrides: `--config.key=value` arguments for its config.

    Raises:
      UserError: The run or file does not exist, or its parameters do not match its config.
    """
    sources = (source,) if isinstance(source, str | os.PathLike) else tuple(source)
    sources = tuple(os.fspath(each) for each in sources)
    with about(", ".join(sources)):
        cfg = source_config.config_of(sources)
    config.apply(cfg, overrides)
    return Model(cfg, *load_sources(sources))


def _logit_scale(task: Task, params: Mapping[str, Any], cfg: config.Config) -> float:
    """Returns the factor of cosines: learned, or 1 / temperature of the loss, or 1."""
    if "logit_scale" in params:
        scale = np.exp(np.asarray(params["logit_scale"], np.float64))
        limit = cfg.loss.get("max_logit_scale", touch.MAX_LOGIT_SCALE)
        return float(min(scale, limit) if limit else scale)
    return 1 / (getattr(task, "temperature", None) or 1.0)


def _padded(batch: Mapping[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Returns a batch of `size` examples, filled up with copies of the first."""
    missing = size - len(next(iter(batch.values())))
    return {
        name: np.concatenate([x, x[:1].repeat(missing, 0)]) if missing else x
        for name, x in batch.items()
    }
