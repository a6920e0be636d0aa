"""The declaration of an end task: its data, target, head, loss, metrics and training defaults.

An end task measures how useful the features of an encoder are: a head is trained on them, and its
predictions on held-out images are scored. `mmjax.end_tasks.registry` lists the built-in ones.

Source: Kotar et al. 2021, Contrasting Contrastive Self-Supervised Representation Learning
Pipelines, arXiv 2103.14005 (pyVTAB).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

# How images and targets become arrays of one size:
#   resize         to the size, without keeping the aspect ratio
#   crop           a random window of the size
#   scaled_crop    a random window after random scaling and mirroring (Cityscapes)
#   whole          the stored image; resized only if it has another size
FramingType = Literal["resize", "crop", "scaled_crop", "whole"]
# What a head predicts:
#   label     one class per example, int32 [B]
#   classes   one class per pixel, int32 [B, H, W, 1]; -1 is ignored
#   binary    K binary maps, float32 [B, H, W, K] in {0, 1}; NaN is ignored
#   values    K real-valued maps, float32 [B, H, W, K]; NaN is ignored
TargetType = Literal["label", "classes", "binary", "values"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Framing:
    """How images, with their target, become arrays of one size.

    Attributes:
      type: See `FramingType`.
      size: (height, width) in pixels; None for the option `size` of the section `data.end_task`.
      max_draws: Number of windows tried, for type 'crop', until one contains more than one class;
        the last one is used in any case.
    """

    type: FramingType = "resize"
    size: tuple[int, int] | None = None
    max_draws: int = 1

    def scaled(self, height: int) -> tuple[int, ...]:
        """Returns (height, width) of the same aspect ratio; () if no size is declared."""
        return (height, round(height * self.size[1] / self.size[0])) if self.size else ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndTask:
    """An end task.

    Attributes:
      name: Key of the registry, as in pyVTAB's YAML files.
      title: Name in the tables of the paper.
      reader: `package.module:Name` of the function `(root, split, paper) -> Source` that opens its
        files; see `mmjax.data.end_tasks`. `split` is 'train' or 'test'.
      semantic: Whether it is a semantic task; the others are structural.
      target: What a head predicts.
      num_images: Number of images per example.
      num_outputs: Number of classes, or of maps K; None for the classes of the training split.
      train_framing: Of training examples.
      test_framing: Of validation and test examples.
      target_format: How the file of a target becomes a map: a name in
        `mmjax.data.end_tasks.targets.FORMATS`, or `package.module:Name`; '' for labels.
      depth: (a, b) if the target is a depth: a · target + b is proportional to the distance, which
        relative errors need. None for other targets.
      color_jitter: Whether training examples get random color changes and grayscale.
      head: Name of the default head; see `mmjax.models.decoders`.
      loss: Name of the loss and its options; see `mmjax.losses.end_task`.
      metric: The metric that configurations are compared by; see `mmjax.evals.end_task_metrics`.
      paper_metric: The metric of the paper, if it differs.
      higher_is_better: Whether larger values of `metric` and `paper_metric` are better.
      epochs: Passes over the training examples.
      batch_size: Examples per update.
      encode_once: Whether features are computed once, before training.
      configs: {name: options} of the training configurations of the paper. The options are those of
        pyVTAB's YAML files: `optimizer`, `lr`, `momentum`, `scheduler`.
      validation: Fraction of the training examples that configurations are selected on, if there is
        no `validation_split`.
      validation_split: Name of the published split for that; '' for none.
      evaluation_only: Name of the end task whose heads are evaluated on these data; '' for an end
        task that is trained.
    """

    name: str
    title: str
    reader: str
    semantic: bool
    target: TargetType = "label"
    num_images: int = 1
    num_outputs: int | None = None
    train_framing: Framing = Framing()
    test_framing: Framing = Framing()
    target_format: str = ""
    depth: tuple[float, float] | None = None
    color_jitter: bool = False
    head: str = "linear"
    loss: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(name="cross_entropy"))
    metric: str = "top1"
    paper_metric: str = ""
    higher_is_better: bool = True
    epochs: int = 100
    batch_size: int = 32
    encode_once: bool = True
    configs: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=lambda: {"adam-0.0001": dict(optimizer="adam", lr=1e-4)}
    )
    validation: float = 0.1
    validation_split: str = ""
    evaluation_only: str = ""

    @property
    def pixelwise(self) -> bool:
        """Whether a head predicts maps, from feature maps instead of an embedding."""
        return self.target != "label"
