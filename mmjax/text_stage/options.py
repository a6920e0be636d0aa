"""The section `text` of a config: how diagnostic texts are written, kept and embedded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax import config
from mmjax.diagnostic_text.negatives import BUILT_IN
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """The section `text.cache`; see `mmjax.diagnostic_text.update_policy.UpdatePolicy`.

    Attributes:
      path: Directory of `mmjax prefill` to start with; '' for an empty cache.
      every_pair: Whether all pairs get a new text in every step, without a cache.
      percentile, smoothing, threshold, budget, reuse, empty_similarity: See `UpdatePolicy`.
    """

    path: str = ""
    every_pair: bool = False
    percentile: float = 0.4
    smoothing: float = 0.0
    threshold: float | None = None
    budget: int | None = None
    reuse: bool = False
    empty_similarity: float = 1.0

    def policy(self) -> dict[str, Any]:
        """Returns the options of the update policy."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if k not in ("path", "every_pair")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegativeOptions:
    """The section `text.negatives`.

    Attributes:
      count: Negatives of each text; 0 for as many as there are other texts in a batch at most.
      probability: Probability that a word is replaced, besides the one that always is.
      path: JSON file of word pools.
      image_classes: Whether a class name is only replaced by those of classes in the same image, as
        in some of TTDL's experiments; or by any.
    """

    count: int = 0
    probability: float = 0.5
    path: str = BUILT_IN
    image_classes: bool = False

    def __post_init__(self) -> None:
        if self.count < 0:
            raise UserError(f"config.text.negatives.count={self.count} must be at least 0.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOptions:
    """The section `text`.

    Attributes:
      encoder: FLAIR: a run of --task=flair, or a published file.
      writer: `name` ('describer', 'templates', 'vlm' or `package.module:Name`) and options of
        `mmjax.diagnostic_text.writer`.
      cache: See `CacheOptions`.
      negatives: See `NegativeOptions`.
      size: Side of images and masks of pairs in pixels.
      pairs_per_image: Pairs that a batch has room for, per image. If more are selected, those that
        have changed least are left out, which the metric `text/left_out` counts.
      predicted_limit: How many classes that are only predicted are described per image; None for
        all.
      alpha: Opacity of masks in images for the encoder.
      batch_size: Texts, or images, that are encoded at once.
      staleness: By how many steps texts are written ahead. The masks that they describe are those
        of the parameters before that many steps. 0 writes them while the device waits.

    Raises:
      UserError: A value out of range.
    """

    encoder: str
    writer: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "describer"})
    cache: CacheOptions = CacheOptions()
    negatives: NegativeOptions = NegativeOptions()
    size: int = 224
    pairs_per_image: int = 3
    predicted_limit: int | None = 0
    alpha: float = 0.55
    batch_size: int = 32
    staleness: int = 1

    def __post_init__(self) -> None:
        least = dict(size=1, pairs_per_image=1, batch_size=1, staleness=0)
        for key, minimum in least.items():
            if getattr(self, key) < minimum:
                raise UserError(
                    f"config.text.{key}={getattr(self, key)} must be at least {minimum}."
                )
        if not self.encoder:
            raise UserError(
                "config.text.encoder is not set. Pass a run of --task=flair, or a published file "
                "of FLAIR."
            )
        if not 0 <= self.alpha <= 1:
            raise UserError(f"config.text.alpha={self.alpha} must be between 0 and 1.")


def parse(section: Mapping[str, Any]) -> TextOptions:
    """Returns the checked section `text`.

    Raises:
      UserError: An unknown key, or a value of the wrong type or out of range.
    """
    return TextOptions(**config.keywords(TextOptions, section, "text"))
