"""Batches of whole images and masks for the evaluator `segmentation`, on one or several processes.

Importing this module does not import TensorFlow; opening the data does.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from absl import logging

from mmjax import distributed
from mmjax.cpus import available_cpus
from mmjax.data.storage.mask_files import IGNORE
from mmjax.errors import UserError
from mmjax.evals.features.arrays import Request
from mmjax.evals.features.store import FeatureStore

if TYPE_CHECKING:  # these import TensorFlow
    from mmjax.data.pipeline.image_batches import Batch, Geometry, Placement
    from mmjax.data.pipeline.whole_images import WholeImages

Arrays = dict[str, np.ndarray]
_T = TypeVar("_T")


class EvaluationImages:
    """The images of a split in batches of few shapes.

    All processes iterate over the same batches; each reads its share of the images of a batch.

    Args:
      store: Opens the dataset.
      request: The split.
      geometry: {option of `mmjax.data.pipeline.image_batches.Geometry`: value}; `shorter_side` -1
        and `size` 0 stand for those of `data.segmentation`.
      boundary: Radius of boundaries as a fraction of the diagonal of an image.
    """

    def __init__(
        self,
        store: FeatureStore,
        request: Request,
        *,
        geometry: Mapping[str, Any],
        boundary: float,
    ):
        self._store, self._request = store, request
        self._geometry_options, self._boundary = dict(geometry), boundary
        self._skipped: set[int] = set()

    @functools.cached_property
    def names(self) -> list[str]:
        """Class names by index."""
        from mmjax.data.pipeline.segmentation import class_names

        return class_names(self._options, [self._source[0].info])

    @functools.cached_property
    def geometry(self) -> Geometry:
        """How images are scaled and padded."""
        from mmjax.data.pipeline.image_batches import Geometry

        options = self._geometry_options
        if options["shorter_side"] < 0:
            options["shorter_side"] = self._options.shorter_side
        return Geometry(**options | {"size": options["size"] or self._options.size})

    @functools.cached_property
    def images(self) -> WholeImages:
        """The images, by index of their records."""
        from mmjax.data.pipeline.whole_images import WholeImages

        return WholeImages(
            self._source[0], num_classes=len(self.names), nearest=self._options.nearest
        )

    @functools.cached_property
    def batches(self) -> list[Batch]:
        """The batches of all images, the same on every process.

        Raises:
          UserError: A record cannot be read.
        """
        from mmjax.data.pipeline.image_batches import arrange

        count = self._source[1]
        own = list(range(jax.process_index(), count, jax.process_count()))
        sizes, failure = np.zeros((count, 2), np.int64), None
        with concurrent.futures.ThreadPoolExecutor(available_cpus()) as threads:
            for record, result in zip(own, self._map(threads, self._size, own), strict=True):
                if isinstance(result, UserError):
                    failure = failure or result
                else:
                    sizes[record] = result
        self._raise_together(failure)
        sizes = distributed.sum_of_processes(sizes)
        return arrange(sizes, self.geometry, self._request.batch_size)

    def iterate(self) -> Iterator[tuple[Batch, Arrays]]:
        """Yields each batch with the arrays of this process.

        The arrays have the share of this process of `batch_size` examples; those without an image
        are zeros, and their masks have no class. `image` is uint8 [b, H, W, 3]; `image_mask`
        float32 [b]; `truth` uint8 [b, h, w]; `visible` and `truth_visible` int32 [b, 2], the part
        of image and mask that is not padding; `radii` int32 [b], radius of boundaries in pixels.

        Raises:
          UserError: A record cannot be read, here or on another process.
        """
        failure = None
        with concurrent.futures.ThreadPoolExecutor(available_cpus()) as threads:
            pending = None
            for batch in [*self.batches, None]:
                following = None if batch is None else (batch, self._start(threads, batch))
                if pending is not None:
                    arrays, error = self._finish(*pending)
                    if error and jax.process_count() == 1:
                        raise error
                    # Computations on a batch involve all processes, so they continue.
                    failure = failure or error
                    yield pending[0], arrays
                pending = following
        self._raise_together(failure)

    def evenly_spaced(self, count: int) -> set[int]:
        """Returns the indices of evenly spaced records that have an image, at most `count`."""
        records = sorted(record for batch in self.batches for record in batch.records)
        if not count or not records:
            return set()
        return {records[k] for k in np.linspace(0, len(records) - 1, count).astype(int)}

    def displayed(self, record: int) -> tuple[np.ndarray, np.ndarray, str, str]:
        """Returns an image and its class map in the size that is scored, its file and caption."""
        example = self.images.example(record)
        if self.geometry.mode == "crop":
            size = self.images.stored_size(record)
            image, truth = self.images.placed(record, self.geometry.place(size))
        else:
            image, truth = self.images.read(record)
        return image, truth, example.filename, next(iter(example.captions), "")

    def _start(self, threads: concurrent.futures.Executor, batch: Batch) -> dict[int, Any]:
        """Starts reading the images of this process; returns {index in its arrays: future}."""
        first, size = jax.process_index() * self._host_size, self._host_size
        own = list(zip(batch.records, batch.placements, strict=True))[first : first + size]
        return {
            row: threads.submit(self._caught, self._placed, record, placement)
            for row, (record, placement) in enumerate(own)
        }

    def _finish(
        self, batch: Batch, reading: Mapping[int, concurrent.futures.Future]
    ) -> tuple[Arrays, UserError | None]:
        """Returns the arrays of a batch, and the first error."""
        size, placement, failure = self._host_size, batch.placements[0], None
        arrays = {
            "image": np.zeros((size, *placement.canvas, 3), np.uint8),
            "image_mask": np.zeros(size, np.float32),
            "truth": np.full((size, *placement.truth_canvas), IGNORE, np.uint8),
            "visible": np.zeros((size, 2), np.int32),
            "truth_visible": np.zeros((size, 2), np.int32),
            "radii": np.ones(size, np.int32),
        }
        for row, future in reading.items():
            result = future.result()
            if isinstance(result, UserError):
                failure = failure or result
                continue
            if result is None:
                continue  # skipped
            placement, arrays["image"][row], arrays["truth"][row] = result
            arrays["image_mask"][row] = 1
            arrays["visible"][row] = placement.visible
            arrays["truth_visible"][row] = placement.truth_visible
            diagonal = float(np.hypot(*placement.truth_visible))
            arrays["radii"][row] = max(round(self._boundary * diagonal), 1)
        return arrays, failure

    @property
    def _host_size(self) -> int:
        return self._request.batch_size // jax.process_count()

    def _size(self, record: int) -> tuple[int, int]:
        return self.images.stored_size(record)

    def _placed(self, record: int, placement: Placement) -> tuple:
        return placement, *self.images.placed(record, placement)

    def _map(
        self, threads: concurrent.futures.Executor, function: Callable[..., _T], items: Sequence
    ) -> Iterator[_T | UserError]:
        results = threads.map(functools.partial(self._caught, function), items)
        return ((0, 0) if result is None else result for result in results)

    def _caught(self, function: Callable[..., _T], record: int, *others: Any) -> Any:
        """Returns the result, its error, or None for a corrupt record that is skipped."""
        try:
            return function(record, *others)
        except UserError as error:
            if self._store.data_cfg.get("corrupt") != "skip":
                return error
            if record not in self._skipped:
                self._skipped.add(record)
                logging.warning("%s: skipped a corrupt record: %s", self._request, error)
            return None

    def _raise_together(self, failure: UserError | None) -> None:
        if distributed.any_process(failure is not None):
            raise failure or UserError(
                f"{self._request}: reading the data failed on another process. See its log."
            )

    @functools.cached_property
    def _options(self) -> Any:
        """The section `data.segmentation`."""
        from mmjax.data.pipeline.config import parse_config

        return parse_config(self._store.data_cfg).segmentation

    @functools.cached_property
    def _source(self) -> tuple[Any, int]:
        source, count = self._store.source(self._request)
        if source is None:
            raise UserError(
                f"{self._request} is a stream, whose images cannot be read by index. Evaluate a "
                "dataset of `mmjax build`."
            )
        return source, count
