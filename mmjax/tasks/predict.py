"""Builds the task of a trained model to call its `predict` functions, without its training data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax.config import Config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.modalities import INPUTS
from mmjax.tasks.base import Task, make_task

if TYPE_CHECKING:  # these import TensorFlow
    from mmjax.data.pipeline.config import DataConfig
    from mmjax.data.text.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictTask:
    """A task that is not trained.

    Attributes:
      task: The task.
      cfg: Its config, without the files that only training needs.
      data: The section `data` of `cfg`.
      data_spec: The spec that the task was made from.
      tokenizer: Tokenizer of the text tower; None without one.
    """

    task: Task
    cfg: Config
    data: DataConfig
    data_spec: DataSpec
    tokenizer: Tokenizer | None


def make_predict_task(cfg: Config, leaves: Mapping[str, np.ndarray]) -> PredictTask:
    """Returns the task of a trained model.

    The training data are opened only if the config lacks the vocabulary of a text tower or the
    sample rate of spectrograms.

    Args:
      cfg: The config of the run.
      leaves: {path: array} of its parameters, for sizes that the config does not contain.

    Raises:
      UserError: The config is invalid, or the vocabulary or the sample rate is unknown.
    """
    from mmjax.data.pipeline.config import parse_config

    section = _without_training_files(cfg.data)
    data = parse_config(section)
    cfg = dataclasses.replace(cfg, data=section, model=_with_text_features(cfg.model, leaves))
    classifier = leaves.get("classifier/kernel")
    spec = DataSpec.of_config(
        cfg, num_classes=None if classifier is None else int(classifier.shape[-1])
    )
    tokenizer = None
    if data.text and cfg.model.get("text", "") is not None:
        tokenizer = _open_tokenizer(data)
    spec = dataclasses.replace(
        spec,
        vocab_size=tokenizer.vocab_size if tokenizer else None,
        sample_rate=_sample_rate(cfg, data),
        train=False,
    )
    return PredictTask(
        task=make_task(cfg, spec), cfg=cfg, data=data, data_spec=spec, tokenizer=tokenizer
    )


def _without_training_files(section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section `data` without pairs and precomputed features."""
    result = {**section, "pairs": None}
    for name in INPUTS:
        if result.get(name):
            result[name] = {k: v for k, v in result[name].items() if k != "features"}
    return result


def _with_text_features(
    model: Mapping[str, Any], leaves: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Returns the section `model` with the width of text features, if it has no text tower."""
    kernel = leaves.get("heads/text/linear/0/kernel")
    if kernel is None or model.get("text") is not None:
        return dict(model)
    return {**model, "text_features": int(kernel.shape[0])}


def _open_tokenizer(data: DataConfig) -> Tokenizer:
    from mmjax.data.pipeline.tokenizer import open_tokenizer

    try:
        return open_tokenizer(data)
    except UserError as error:
        raise UserError(
            f"The vocabulary of the text tower is not available: {error} To use the model without "
            "its training data, pass --config.data.text.vocab=FILE; to use it without text, "
            "--config.data.text=None and --config.model.text=None."
        ) from error


def _sample_rate(cfg: Config, data: DataConfig) -> float | None:
    """Returns the sample rate of the audio windows in Hz; None if it is unknown or not needed."""
    if not data.audio:
        return None
    stored = data.audio.sample_rate
    if not stored and cfg.augment.get("spectrogram"):
        from mmjax.data.build.in_memory import training_info

        info = training_info(data)
        stored = info.sample_rate if info else 0.0
    return data.audio.rate(stored) if stored else None
