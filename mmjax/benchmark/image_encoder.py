"""Opens the image encoder of a run or of a published file, to train heads on it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmjax import config, init_from
from mmjax.checkpoints.checksums import fingerprint
from mmjax.convert.load import load_sources
from mmjax.convert.source_config import config_of
from mmjax.errors import UserError, about
from mmjax.pixel_statistics import IMAGENET_MEAN, IMAGENET_STD
from mmjax.tasks.probe import TRUNK
from mmjax.tasks.trunk import Trunk, trunk_section

RANDOM = "random:"  # prefix of an encoder with random weights
# Encoders that need no source: {name: (size of the images, options of the tower)}.
_ARCHITECTURES: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet50": (224, dict(name="resnet50", zero_init_last=False)),
    "resnet_demo": (
        32,
        dict(name="resnet50", blocks=(1, 1, 1, 1), bottleneck=False, width_multiplier=0.25),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """A trained image encoder.

    Attributes:
      source: Where it comes from: a run directory, a file, or `random:…`.
      section: Config of the encoder; see `mmjax.tasks.trunk.trunk_section`.
      params: Its parameters, and those of the rest of its model.
      extra: Its statistics.
    """

    source: str
    section: Mapping[str, Any]
    params: dict
    extra: dict

    @property
    def is_random(self) -> bool:
        """Whether its weights are random."""
        return self.source.startswith(RANDOM)

    @functools.cached_property
    def trunk(self) -> Trunk:
        """The encoder without its parameters."""
        return Trunk(self.section)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the parameters and statistics."""
        return fingerprint({"params": self.params, "extra": self.extra})


def open_encoder(source: str | Sequence[str], *, seed: int = 0) -> ImageEncoder:
    """Returns an image encoder.

    Args:
      source: A run directory of any task that encodes images or video (also one of `--task=probe`
        with its fine-tuned encoder), `<run>/checkpoints/<step>`, or a published file; see
        `mmjax.load`. `random:SOURCE` is the encoder of a source with
        random weights; `random:resnet50` is torchvision's ResNet-50, and `random:resnet_demo` a
        small one for images of 32 pixels.
      seed: Seed of random weights.

    Raises:
      UserError: The source does not exist, cannot be read, or encodes no images.
    """
    sources = (source,) if isinstance(source, str | os.PathLike) else tuple(source)
    name = ", ".join(map(os.fspath, sources))
    if not name:
        raise UserError(
            "No encoder. Pass --override_checkpoint=RUN_OR_FILE, or random:resnet50 for one with "
            "random weights."
        )
    with about(name):
        if name.startswith(RANDOM):
            return _random(name, seed)
        section, leaves, where = _read(sources)
        params, extra = init_from.fill(Trunk(section).task, leaves, where)
    return ImageEncoder(source=name, section=section, params=params, extra=extra)


def _random(name: str, seed: int) -> ImageEncoder:
    inner = name.removeprefix(RANDOM)
    if inner in _ARCHITECTURES:
        section = architecture_section(inner)
    else:
        with about(inner):
            section, _, _ = _read((inner,))
    params, extra = jax.jit(Trunk(section).task.init)(jax.random.key(seed))
    return ImageEncoder(source=name, section=section, params=params, extra=extra)


def _read(sources: Sequence[str]) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """Returns the config of an encoder, {path: array}, and a description of the sources.

    Raises:
      UserError: The sources cannot be read, or encode no images.
    """
    cfg = config_of(sources)
    leaves, where = load_sources(sources)
    if cfg.task != "probe":
        return trunk_section(cfg, _num_classes(leaves)), leaves, where
    if not cfg.model.get(TRUNK):
        raise UserError(
            "This run of --task=probe has no encoder: its heads are trained on features that were "
            "computed once. Pass the encoder that it was trained on."
        )
    return config.plain(cfg.model[TRUNK]), init_from.part_of(leaves, TRUNK), where


def _num_classes(leaves: Mapping[str, np.ndarray]) -> int | None:
    kernel = leaves.get("classifier/kernel")
    return None if kernel is None else int(kernel.shape[-1])


def architecture_section(name: str) -> dict[str, Any]:
    """Returns the config of an encoder without weights; see `open_encoder`."""
    size, tower = _ARCHITECTURES[name]
    cfg = config.base()
    cfg.task = "guided"
    cfg.model = dict(image=tower)
    cfg.data = dict(image=dict(size=size))
    cfg.augment = dict(image=dict(mean=IMAGENET_MEAN, std=IMAGENET_STD))
    return trunk_section(cfg)
