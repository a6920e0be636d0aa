"""Pairs of a dataset with the masks that a trained segmentation model predicts, without training.

This is for the commands `mmjax differences` and `mmjax prefill`. In training, the text stage
predicts masks with the current parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mmjax import config, init_from, sharding
from mmjax.checkpoints.checksums import fingerprint
from mmjax.config import Config
from mmjax.convert.load import load_sources
from mmjax.convert.source_config import config_of
from mmjax.data.pipeline import loader
from mmjax.data_spec import DataSpec
from mmjax.diagnostic_text.pairs import Pair, select_pairs
from mmjax.errors import UserError, about
from mmjax.modalities import INPUTS
from mmjax.tasks.base import make_task
from mmjax.tasks.segment import IGNORED, Segment
from mmjax.text_stage import options as options_lib
from mmjax.text_stage.options import TextOptions


class PredictedPairs:
    """A trained segmentation model and a split of a dataset.

    Images are those of evaluation: the central crops of `data.segmentation`. BatchNorm uses running
    averages. Keys of pairs are those of training on the same dataset.

    Args:
      source: A run of --task=segment, or a published file.
      data: Dataset; '' for the training dataset of the run.
      split: Split; '' for the training split of the run.
      overrides: `--config.key=value` arguments for the config of the model.
      size: Side of pairs in pixels; None for `config.text.size` of the run, or 224.
      predicted_limit: See `select_pairs`, for models whose config does not set
        `text.predicted_limit`.
      batch_size: Number of images in a batch, over all devices.

    Attributes:
      source: The source.
      data: The dataset, and `split`, its split.
      options: Options of texts: those of the run with the changes above.
      num_examples: Number of examples of the split.
      without_mask: Number of examples without an image or a mask, of those read so far.

    Raises:
      UserError: The source is another model or cannot be read, or the dataset has no masks or other
        classes.
    """

    def __init__(
        self,
        source: str,
        *,
        data: str = "",
        split: str = "",
        overrides: Sequence[str] = (),
        size: int | None = None,
        predicted_limit: int | None = 0,
        batch_size: int = 8,
    ):
        cfg = _config(source, overrides)
        self.options = _options(cfg, size, predicted_limit)
        section = _section(cfg, data, split)
        self.source, self.data, self.split = source, section["train"], section["split"]
        mesh_options = config.keywords(sharding.make_mesh, cfg.mesh, "mesh", provided=["devices"])
        self._mesh = sharding.make_mesh(**mesh_options)
        sharding.check_batch(batch_size, self._mesh, key="--batch-size")
        self._data = loader.make_eval_data(section, split=self.split, batch_size=batch_size)
        self._section, self._seed = section["segmentation"], cfg.seed
        self.num_examples = self._data.num_examples
        self.without_mask = 0
        with about(source):
            self._task, state = _load(source, cfg, DataSpec.of(self._data))
        self._fingerprint = fingerprint({"params": state[0], "extra": state[1]})
        self._state = jax.device_put(state, sharding.replicated(self._mesh))
        self._predict = jax.jit(self._classes, out_shardings=sharding.replicated(self._mesh))

    def description(self) -> dict[str, Any]:
        """Returns what determines the pairs, as JSON values."""
        return {
            "parameters": self._fingerprint,
            "dataset": self._data.info.name,
            "split": self.split,
            "num_examples": self.num_examples,
            "classes": list(self._data.mask_classes),
            "segmentation": config.plain(self._section),
            "size": self.options.size,
            "predicted_limit": self.options.predicted_limit,
            "seed": self._seed,
        }

    def _classes(self, state: tuple[dict, dict], batch: dict[str, jax.Array]) -> jax.Array:
        logits = self._task.predict["logits"](*state, batch)["logits"]
        return logits.argmax(-1).astype(jnp.uint8)

    def batches(self, *, progress: bool = True) -> Iterator[list[Pair]]:
        """Yields the pairs of each batch of images, in the order of the dataset.

        Args:
          progress: Whether to show a progress bar.
        """
        self.without_mask = 0
        count = math.ceil(self.num_examples / self._data.batch_size)
        for batch in tqdm(self._data.iterate(), self.split, count, disable=not progress):
            with jax.set_mesh(self._mesh):
                inputs = {name: batch[name] for name in ("image", "image_mask")}
                on_mesh = sharding.make_global(inputs, self._mesh)
                masks = jax.device_get(self._predict(self._state, on_mesh))
            labeled = (batch["segmentation"] != IGNORED).any((1, 2)) & (batch["image_mask"] > 0)
            valid = batch["mask"] > 0
            self.without_mask += int((valid & ~labeled).sum())
            yield self._pairs(batch, masks, np.flatnonzero(valid & labeled))

    def _pairs(
        self, batch: dict[str, np.ndarray], masks: np.ndarray, used: np.ndarray
    ) -> list[Pair]:
        return select_pairs(
            [str(example) for example in batch["example_id"][used]],
            batch["image"][used],
            batch["segmentation"][used],
            masks[used],
            [name.upper() for name in self._data.mask_classes],
            size=self.options.size,
            void=IGNORED,
            predicted_limit=self.options.predicted_limit,
            seed=(self._seed,),
        )


def _config(source: str, overrides: Sequence[str]) -> Config:
    """Returns the config of a segmentation model."""
    with about(source):
        cfg = config_of((source,))
        if cfg.task != "segment":
            raise UserError(
                f"This is a model of --task={cfg.task}. Pass a run of --task=segment, or a "
                "published segmentation model."
            )
    config.apply(cfg, overrides)
    return config.resolve(cfg)


def _options(cfg: Config, size: int | None, predicted_limit: int | None) -> TextOptions:
    section = {"predicted_limit": predicted_limit, **cfg.text}
    section["encoder"] = section.get("encoder") or "none"  # not needed to select and write
    return options_lib.parse(section if size is None else {**section, "size": size})


def _section(cfg: Config, data: str, split: str) -> dict[str, Any]:
    """Returns the section `data` with only masks, of one dataset."""
    section = {**cfg.data, **dict.fromkeys(INPUTS), "label": None, "pairs": None, "limit": 0}
    section["train"] = data or section["train"]
    section["split"] = split or section.get("split", "train")
    if not isinstance(section["train"], str):
        raise UserError(
            f"The model was trained on several datasets: {section['train']}. Pass --data DATASET, "
            "one of them."
        )
    return section


def _load(source: str, cfg: Config, spec: DataSpec) -> tuple[Segment, tuple[dict, dict]]:
    """Returns the task, and its `(params, extra)`."""
    task = make_task(cfg, dataclasses.replace(spec, train=False))
    if task.num_classes != spec.num_classes:
        raise UserError(
            f"The model predicts {task.num_classes} classes, but the masks of the dataset have "
            f"{spec.num_classes}. Pass --data with the dataset that the model was trained on."
        )
    leaves, where = load_sources((source,))
    return task, init_from.fill(task, leaves, where)
