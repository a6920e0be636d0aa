"""Using a trained model: embeddings of touch, images and words, and classes by words.

import mmjax
model = mmjax.load("runs/touch-demo")
model.embed_touch(["felt.png"]) @ model.embed_text(["rough", "smooth"]).T
model.zero_shot(["rough", "smooth"]).classify("felt.png")
mmjax.load("lgsimclr.ckpt").embed_image(["cat.jpg", "dog.jpg"])  # a backbone's features
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mmjax import config, init_from
from mmjax.checkpoints import run_dir
from mmjax.checkpoints.find import find
from mmjax.convert.load import load_sources
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError, choose
from mmjax.losses.similarity import normalize
from mmjax.models import guided, tvl
from mmjax.preprocess.inputs import Inputs
from mmjax.state import ModelDef
from mmjax.tasks import touch
from mmjax.tasks.pairs import fit_vocabulary

# An image: a file, an object of Pillow, or uint8 [H, W, 3].
Image = Any
_BATCH = 64


# What builds the model of each task that `load` takes.
_MODELS = {"touch": tvl.make_model, "guided": guided.make_model}


class Model:
    """A model with its parameters, for use on what a user has at hand. Made by `load`.

    Embeddings are float32 of length 1: products are cosines. A model of images alone
    (`--task=guided` without texts) gives the backbone's features, of any length.

    Attributes:
      modalities: those it has, of 'touch', 'image' and 'text'.
      cfg: the config it was trained with.
      logit_scale: what cosines are multiplied by before a softmax; 1 without texts or touch.
    """

    def __init__(self, cfg: config.Config, leaves: Mapping[str, np.ndarray], where: str):
        from mmjax.data.pipeline import config as data_config  # these import TensorFlow
        from mmjax.data.pipeline import tokenizer

        self.cfg = cfg
        self._data = data_config.parse_config(cfg.data)
        options = dict(cfg.model)
        reads = self._data.text and options.get("text") is not None
        self._tokenizer = tokenizer.open_tokenizer(self._data) if reads else None
        if self._tokenizer is not None:
            options = fit_vocabulary(options, self._tokenizer.vocab_size)
        if "text" in options.get("heads", ()) and options.get("text") is None:
            # Trained on texts' features from elsewhere, whose width its head tells.
            options["text_features"] = leaves["heads/text/linear/0/kernel"].shape[0]
        model = ModelDef(_MODELS[cfg.task](**options))
        self.modalities: tuple[str, ...] = model.module.modalities
        inputs = Inputs.from_config(cfg.augment, DataSpec(batch={}))
        self._state = _fill(model, leaves, where)
        scale = np.exp(np.asarray(self._state[0].get("logit_scale", 0.0), np.float64))
        limit = cfg.loss.get("max_logit_scale", touch.MAX_LOGIT_SCALE)
        self.logit_scale = float(min(scale, limit) if limit else scale)

        project = _project if cfg.task == "guided" else tvl.TVL.project

        def embed(state, batch):
            module = model.bind(*state)
            return project(module, module.encode(inputs(batch, None, train=False)))

        self._embed = jax.jit(embed)

    def embed_touch(
        self,
        images: Image | Sequence[Image],
        *,
        background: Image | None = None,
        batch_size: int = _BATCH,
    ) -> np.ndarray:
        """float32 [N, D] of images of a touch sensor, or [D] of a single one.

        Args:
          images: files, Pillow's images or uint8 [H, W, 3]; whole frames of the sensor, which
            are cut and turned as in training.
          background: the sensor untouched, for models that subtract it; default the file that the
            config names.
          batch_size: images that go through the model at once.

        Raises:
          UserError: the model has no touch, a file is no image, or a background is missing.
        """
        return self._embed_images("touch", images, batch_size, background)

    def embed_image(
        self, images: Image | Sequence[Image], *, batch_size: int = _BATCH
    ) -> np.ndarray:
        """float32 [N, D] of images, or [D] of a single one; arguments as of `embed_touch`."""
        return self._embed_images("image", images, batch_size, None)

    def embed_text(self, texts: str | Sequence[str], *, batch_size: int = _BATCH) -> np.ndarray:
        """float32 [N, D] of texts as they are, or [D] of a single one.

        The released TVL models were trained on keywords that end with a full stop: "rough, hard.".
        """
        self._check("text")
        single = isinstance(texts, str)
        texts = [texts] if single else list(texts)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"embed_text takes a text or a list of them, not {texts}.")
        ids = self._tokenizer.encode(texts)
        rows = self._run("text", {"text": ids}, batch_size)
        return rows[0] if single else rows

    def zero_shot(
        self, classes: Sequence[str], *, templates: Sequence[str] = ("{}.",)
    ) -> ZeroShotClassifier:
        """A classifier of touch or images by the words of its classes.

        Args:
          classes: names.
          templates: sentences with {} where the name goes; their embeddings are averaged.
        """
        from mmjax.evals.zero_shot import zero_shot_weights

        if isinstance(classes, str):
            raise UserError(f"zero_shot takes the names of several classes, not {classes!r}.")
        weights = zero_shot_weights(classes, self.embed_text, templates=templates)
        return ZeroShotClassifier(self, tuple(classes), weights)

    def _check(self, modality: str) -> None:
        if modality not in self.modalities:
            raise UserError(f"This model has no {modality}; it has {', '.join(self.modalities)}.")

    def _embed_images(self, modality, images, batch_size, background) -> np.ndarray:
        from mmjax.data.pipeline import image_modality

        self._check(modality)
        options = getattr(self._data, modality)
        single = isinstance(images, str | os.PathLike) or hasattr(images, "getbands")
        single = single or getattr(images, "ndim", 4) == 3
        images = [images] if single else list(images)
        if not images:
            raise UserError(f"embed_{modality}: there is no image in the list.")

        def prepared(image):
            return image_modality.prepare(_read(image), options)

        rows = np.stack([prepared(image) for image in images])
        # The same id for all: augmentation in evaluation (`in_eval`) must not depend on the position.
        batch = {modality: rows, "example_id": np.zeros(len(rows), np.int32)}
        named = getattr(options, "background", "")
        if named:
            if background is None and named == image_modality.RECORDING:
                raise UserError(
                    "This model subtracts each recording's background: give an image of the "
                    "sensor untouched, embed_touch(…, background=…)."
                )
            image = prepared(named if background is None else background)
            batch["touch_background"] = np.broadcast_to(image, rows.shape)
        elif background is not None:
            raise UserError("This model was trained without a background: leave it out.")
        found = self._run(modality, batch, batch_size)
        return found[0] if single else found

    def _run(self, modality: str, batch: Mapping[str, np.ndarray], batch_size: int) -> np.ndarray:
        """The embeddings of a batch, in parts of one size: one shape, one compilation."""
        count = len(batch[modality])
        size = max(1, min(batch_size, count))
        made = []
        for start in range(0, count, size):
            part = {name: rows[start : start + size] for name, rows in batch.items()}
            missing = size - len(part[modality])
            part = {name: np.concatenate([x, x[:1].repeat(missing, 0)]) for name, x in part.items()}
            made.append(np.asarray(self._embed(self._state, part)[modality])[: size - missing])
        return np.concatenate(made)


def _project(module: guided.Guided, pooled: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Points that images and texts share, of length 1; without such heads, what was pooled."""
    image = "clip" if "clip" in module.heads else "projection"
    heads = {"image": image, "text": "text"}
    if not set(heads.values()) <= set(module.heads):
        return dict(pooled)
    return {m: normalize(module.heads[heads[m]](x, train=False)) for m, x in pooled.items()}


def _read(image: Image) -> np.ndarray:
    """uint8 [H, W, 3] of a file, an object of Pillow or an array."""
    from mmjax.data.storage import image_files

    if isinstance(image, str | os.PathLike):
        return image_files.read_image(image)
    if hasattr(image, "convert"):
        return np.asarray(image.convert("RGB"))
    return np.asarray(image)


class ZeroShotClassifier:
    """Classes by words; see `Model.zero_shot`.

    Attributes:
      classes: their names.
    """

    def __init__(self, model: Model, classes: tuple[str, ...], weights: np.ndarray):
        self._model, self.classes, self._weights = model, classes, weights

    def probabilities(
        self, images: Image | Sequence[Image], *, modality: str = "touch", **options: Any
    ) -> np.ndarray:
        """float32 [N, classes], or [classes] of a single image: the softmax of scaled cosines.

        Args:
          images: as of `Model.embed_touch`.
          modality: 'touch' or 'image'.
          **options: of `embed_touch` or `embed_image`.
        """
        choose("modality", modality, dict.fromkeys(("touch", "image")))
        embed: Callable = getattr(self._model, f"embed_{modality}")
        scores = self._model.logit_scale * (embed(images, **options) @ self._weights.T)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return scores / scores.sum(axis=-1, keepdims=True)

    def classify(
        self, images: Image | Sequence[Image], *, modality: str = "touch", **options: Any
    ) -> str | list[str]:
        """The likeliest class of each image, or of a single one; arguments as `probabilities`."""
        best = self.probabilities(images, modality=modality, **options).argmax(axis=-1)
        if best.ndim == 0:
            return self.classes[int(best)]
        return [self.classes[number] for number in best]


def load(source: str | os.PathLike | Sequence[str], *, overrides: Sequence[str] = ()) -> Model:
    """A model of touch, or of images, ready for use.

    Args:
      source: a run directory of `--task=touch` or `--task=guided` (its newest checkpoint;
        `<run>/best`; `<run>/checkpoints/<step>`), or published files: TVL's `.pth`, OpenCLIP's
        `.safetensors` or `.bin`, or both as a tuple; LGSSL's `.ckpt`, or any ResNet or MobileNetV2
        of torchvision or timm.
      overrides: `--config.key=value` arguments for its config.

    Raises:
      UserError: no such run or file, or one of another task.
    """
    sources = (source,) if isinstance(source, str | os.PathLike) else tuple(source)
    sources = tuple(os.fspath(each) for each in sources)
    cfg = _config_of(sources)
    config.apply(cfg, overrides)
    if cfg.task not in _MODELS:
        raise UserError(
            f"{source} is of --task={cfg.task}; mmjax.load takes models of {' and '.join(_MODELS)}."
        )
    return Model(config.resolve(cfg), *load_sources(sources))


def _config_of(sources: Sequence[str]) -> ml_collections.ConfigDict:
    """The config of a run directory, or the one that published files tell."""
    from mmjax.convert.clip import infer_config as clip_config
    from mmjax.convert.vision import infer_config as vision_config
    from mmjax.convert.vision import load as vision_load
    from mmjax.formats import torch_reader

    if len(sources) == 1 and not torch_reader.is_file(sources[0]):
        run, _ = find(sources[0])
        return run_dir.RunDir(run, create=False).read_config()
    if len(sources) == 1 and vision_load.fits(sources[0]):
        return vision_config.config_of(sources[0])
    return clip_config.config_of(sources)


def _fill(model: ModelDef, leaves: Mapping[str, np.ndarray], where: str) -> tuple[dict, dict]:
    """`(params, extra)` of a model out of {path: array}, on the device.

    Raises:
      UserError: some are missing or of another shape.
    """
    parts = {"params": model.params, "extra": model.extra}
    target = init_from.target_of(parts)
    values, report = init_from.match(target, leaves)
    if report.missing or report.mismatched:
        raise UserError(f"{where} does not hold the whole model of its config:\n{report}")

    made = init_from.replaced(parts, lambda path, leaf: jnp.asarray(values[path], leaf.dtype))
    return made["params"], made["extra"]
