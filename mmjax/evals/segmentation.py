"""Semantic segmentation: intersection over union, accuracy and boundary IoU over every pixel."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mmjax import errors, sharding
from mmjax.errors import UserError
from mmjax.evals import segmentation_counts as counts
from mmjax.evals.base import Evaluator
from mmjax.evals.end_task_metrics import class_iou
from mmjax.evals.segmentation_data import EvaluationImages
from mmjax.evals.segmentation_predict import Predictor
from mmjax.monitor import segmentation_figure

if TYPE_CHECKING:  # imports TensorFlow
    from mmjax.data.pipeline.image_batches import Batch


class Segmentation(Evaluator):
    """Metrics of the class that a model predicts for each pixel.

    Reports these metrics over all images of a split. Pixels without a class are not counted.

    * `miou`: mean over classes of `iou/<class>`.
    * `pixel_accuracy`: fraction of pixels with the right class.
    * `mean_class_accuracy`: mean of this fraction over the classes in the truth.
    * `boundary_iou`: mean over classes of the intersection over union of the pixels near the
      boundaries of masks (Cheng et al. 2021, Boundary IoU, arXiv 2103.16562).
    * `iou/<class>`: sum of intersections / sum of unions, without classes that occur neither in
      the truth nor in predictions.

    The predict function `logits` of the task is called with the batch fields `image`, uint8
    [B, H, W, 3], and `image_mask` [B]. It returns `logits` [B, H, W, C]. With mode='whole', H and W
    vary.

    Args:
      mode: 'whole' predicts whole images, padded at the bottom and on the right. 'windows' predicts
        overlapping windows of the size of the training crops and averages their logits. Both
        resize the logits to the stored size of the mask, bilinearly, and count each of its pixels
        once. 'crop' counts only the central crop of the scaled image and mask, as TTDL does.
      shorter_side: Length of the shorter side of images in pixels; 0 for their stored size, -1 for
        `data.segmentation.shorter_side`.
      size: Side of windows and crops in pixels; 0 for `data.segmentation.size`.
      overlap: Least overlap of neighboring windows as a fraction of their side.
      multiple: Whole images are padded to multiples of this number of pixels. With a larger number,
        there are fewer sizes to compile.
      num_examples: Number of examples in a figure, `figures/<evaluator>-<step>.png`; 0 for no
        figure. It shows images, true and predicted masks, errors and captions of evenly spaced
        examples, the same ones at every step.
      path: Directory of the figure; '' for `figures` in the run directory.
      boundary: Largest distance of pixels near a boundary, as a fraction of the diagonal of the
        image; 0 for no boundary IoU.
      data: Dataset; '' for the training dataset.
      split: Split of the dataset.
      batch_size: Number of images in a batch, over all devices.
      limit: Number of leading examples to use; 0 for all.
    """

    def __init__(
        self,
        *,
        mode: Literal["whole", "windows", "crop"] = "whole",
        shorter_side: int = -1,
        size: int = 0,
        overlap: float = 1 / 3,
        multiple: int = 32,
        boundary: float = 0.02,
        num_examples: int = 0,
        path: str = "",
        data: str = "",
        split: str = "test",
        batch_size: int = 8,
        limit: int = 0,
        **common: Any,
    ):
        super().__init__(**common)
        self.check_minimum(-1, shorter_side=shorter_side)
        self.check_minimum(0, size=size, num_examples=num_examples)
        self.check_minimum(1, multiple=multiple)
        for name, value in (("overlap", overlap), ("boundary", boundary)):
            if not 0 <= value < 1:
                raise UserError(f"{self.key(name)}={value} must be at least 0 and less than 1.")
        if not self.store.data_cfg.get("segmentation"):
            raise UserError(
                f"{self.key('type')}='segmentation' needs images with masks. Set "
                "config.data.segmentation."
            )
        self._mode, self._overlap, self._boundary = mode, overlap, boundary
        self._num_examples = num_examples
        self._path = pathlib.Path(path) if path else self.directory / "figures"
        self._request = self.add_request(
            ["logits"],
            predict="logits",
            data=data,
            split=split,
            batch_size=batch_size,
            limit=limit,
        )
        self._images = EvaluationImages(
            self.store,
            self._request,
            geometry=dict(mode=mode, shorter_side=shorter_side, size=size, multiple=multiple),
            boundary=boundary,
        )
        self._count = jax.jit(
            _count,
            static_argnames=("num_classes", "with_boundary"),
            out_shardings=(sharding.replicated(self.store.mesh), None),
        )

    @functools.cached_property
    def _predictor(self) -> Predictor:
        return Predictor(
            self.store.task.predict["logits"],
            num_classes=len(self._images.names),
            window=self._images.geometry.size if self._mode == "windows" else 0,
            overlap=self._overlap,
        )

    def check(self, state: Mapping[str, Any]) -> None:
        """Opens the dataset and traces the logits; see `Evaluator.check`."""
        super().check(state)
        side, batch_size = self._images.geometry.size, self._request.batch_size
        batch = {
            "image": jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.uint8),
            "image_mask": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
        }
        with errors.about(f"config.{self.section}"), jax.set_mesh(self.store.mesh):
            self._predictor.check(state, batch)

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics over all images of the split."""
        names, shown = self._images.names, {}
        confusion = np.zeros((len(names), len(names)), np.int64)
        edges = np.zeros((len(names), 3), np.int64)
        with errors.about(f"config.{self.section}"):
            for sums in self._sums(state, shown):
                confusion += sums["confusion"]
                edges += sums["boundary"]
            if not confusion.any():
                raise UserError(
                    f"No pixel of {self._request} has a class. Evaluate a split with segmentation "
                    "masks."
                )
        if shown and jax.process_index() == 0:
            self._draw(shown)
        return metrics(confusion, edges if self._boundary else None, names)

    def _sums(
        self, state: Mapping[str, Any], shown: dict[int, np.ndarray] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields the counts of each batch; the device is one batch ahead.

        Args:
          state: A train state.
          shown: Filled with {record: predicted classes, uint8 [h, w]} of the examples of the
            figure; None for no figure.
        """
        previous = None
        chosen = set() if shown is None else self._images.evenly_spaced(self._num_examples)
        with jax.set_mesh(self.store.mesh):
            for batch_of, arrays in self._images.iterate():
                batch = sharding.make_global(arrays, self.store.mesh)
                inputs = {name: batch[name] for name in ("image", "image_mask")}
                logits = self._predictor(state, inputs, batch["visible"])
                sums, classes = self._count(
                    logits,
                    batch,
                    num_classes=len(self._images.names),
                    with_boundary=self._boundary > 0,
                )
                if not chosen.isdisjoint(batch_of.records):
                    shown |= self._predictions(batch_of, classes, chosen)
                if previous is not None:
                    yield self._checked(jax.device_get(previous))
                previous = sums
            if previous is not None:
                yield self._checked(jax.device_get(previous))

    def _predictions(
        self, batch: Batch, classes: jax.Array, chosen: set[int]
    ) -> dict[int, np.ndarray]:
        """Returns {record: predicted classes} of the chosen images of a batch."""
        # Every process has only a part of the batch.
        gather = jax.jit(lambda x: x, out_shardings=sharding.replicated(self.store.mesh))
        classes = jax.device_get(gather(classes))
        result = {}
        for record, placement, mask in zip(batch.records, batch.placements, classes, strict=False):
            height, width = placement.truth_visible
            if record in chosen:
                result[record] = mask[:height, :width]
        return result

    def _draw(self, shown: Mapping[int, np.ndarray]) -> None:
        """Draws the figure of {record: predicted classes}."""
        path = self._path / f"{self.name}-{self.step:08d}.png"
        names, examples = self._images.names, []
        for record in sorted(shown):
            image, truth, file, text = self._images.displayed(record)
            confusion = np.asarray(
                counts.confusion(shown[record][None], truth[None], len(names)), np.int64
            )
            score = f"mIoU {metrics(confusion, None, names)['miou']:.3f}" * bool(confusion.any())
            examples.append(
                segmentation_figure.Example(
                    image=image,
                    truth=truth,
                    prediction=shown[record],
                    title="  ·  ".join(filter(None, (f"{record}", file, score))),
                    text=text,
                )
            )
        try:
            segmentation_figure.draw(
                path,
                examples,
                names=names,
                title=f"{self.name} · step {self.step}",
                subtitle=f"{len(examples)} images of the split {self._request.split!r} of "
                f"{self._request.data or 'config.data.train'}",
            )
        except OSError as error:
            logging.warning("%s: cannot write the figure %s: %s", self.name, path, error)
        else:
            logging.info("%s: wrote %s", self.name, path)

    def _checked(self, sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if sums["not_finite"]:
            raise UserError(
                f"{self._request}: the logits of {sums['not_finite']} images of a batch are not "
                "finite. Check that the checkpoint is from a run whose loss is finite, or set "
                "config.model.dtype='float32' if the compute dtype overflows."
            )
        return sums


def _count(
    logits: jax.Array, batch: Mapping[str, jax.Array], *, num_classes: int, with_boundary: bool
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns the counts of a batch, and the predicted classes uint8 [B, h, w]."""
    truth, sizes = batch["truth"], batch["truth_visible"]
    classes = counts.classes_at(logits, batch["visible"], sizes, truth.shape[1:])
    sums = {
        "confusion": counts.confusion(classes, truth, num_classes),
        "boundary": jnp.zeros((num_classes, 3), jnp.int32),
        "not_finite": (~_is_finite(logits, batch["visible"])).sum(),
    }
    if with_boundary:
        sums["boundary"] = counts.boundary_counts(
            classes, truth, sizes, batch["radii"], num_classes
        )
    return sums, classes


def _is_finite(logits: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns whether the logits of each image are finite, bool [B]."""
    rows, columns = (jnp.arange(logits.shape[1 + axis]) < sizes[:, axis, None] for axis in range(2))
    inside = rows[:, :, None] & columns[:, None, :]
    return (jnp.isfinite(logits).all(-1) | ~inside).all((1, 2))


def metrics(
    confusion: np.ndarray, boundary: np.ndarray | None, names: Sequence[str]
) -> dict[str, float]:
    """Returns the metrics of counts of pixels; see `Segmentation`.

    Args:
      confusion: int [C, C], the number of pixels of a class (row) with a prediction (column).
      boundary: int [C, 3], see `segmentation_counts.boundary_counts`; None for no boundary IoU.
      names: Class names by index.
    """
    correct, predicted, labeled = np.diag(confusion), confusion.sum(0), confusion.sum(1)
    iou = class_iou({"counts": np.stack([correct, predicted, labeled], -1)[None]})
    accuracy = correct[labeled > 0] / labeled[labeled > 0]
    result = {
        "miou": float(np.nanmean(iou)),
        "pixel_accuracy": float(correct.sum() / confusion.sum()),
        "mean_class_accuracy": float(accuracy.mean()),
    }
    if boundary is not None:
        result["boundary_iou"] = float(np.nanmean(class_iou({"counts": boundary[None]})))
    return result | {
        f"iou/{name}": float(value)
        for name, value in zip(names, iou, strict=True)
        if np.isfinite(value)
    }
