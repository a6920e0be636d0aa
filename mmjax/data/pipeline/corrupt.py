"""Corrupt records: finds out what is wrong with them, and counts those that are skipped."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from mmjax.data.pipeline.examples import Examples
from mmjax.data.pipeline.order import Order, as_numpy, as_tensors
from mmjax.data.sources.base import Source
from mmjax.errors import UserError

log = logging.getLogger(__name__)

_Ids = Mapping[str, int]  # of one example; see `Order`


class CorruptRecords:
    """The corrupt records of one host.

    Args:
      sources: The sources, by index.
      order: Order of the examples, which selects replacements.
      examples: Makes an example again, to get its error.
      max_corrupt: Number of corrupt records above which `count` raises.
    """

    def __init__(
        self, sources: Sequence[Source], *, order: Order, examples: Examples, max_corrupt: int
    ):
        self._sources, self._order, self._examples = sources, order, examples
        self._max_corrupt = max_corrupt
        self._skipped: set[tuple[int, ...]] = set()  # (source, record[, positive]) of examples
        self._corrupt: set[tuple[int, int]] = set()  # (source, record)

    @property
    def total(self) -> int:
        """Number of corrupt records so far."""
        return len(self._corrupt)

    def first_error(self, batches: Sequence[Mapping[str, np.ndarray]]) -> UserError | None:
        """Returns the error of the first corrupt record of some batches; None if there is none.

        Args:
          batches: Ids of the examples of each batch, [B] each.
        """
        for ids in batches:
            for index in range(len(ids["record"])):
                if error := self._diagnose({name: int(ids[name][index]) for name in ids}):
                    return UserError(
                        f"{error[1]} Check the whole dataset with `mmjax validate`, or skip "
                        "corrupt records with data.corrupt='skip'."
                    )
        return None

    def count(self, attempts: np.ndarray, ids: Mapping[str, np.ndarray]) -> None:
        """Counts and logs the records that were skipped to make a batch.

        Args:
          attempts: Number of examples that failed at each position, [B].
          ids: Ids of the examples that were tried first, [B] each.

        Raises:
          UserError: There are too many corrupt records in total, or in a row.
        """
        limit = self._order.max_attempts
        for index in np.flatnonzero(attempts):
            item = {name: int(ids[name][index]) for name in ids}
            for attempt in range(min(int(attempts[index]), limit)):
                tensors = as_tensors(item), tf.constant(attempt, tf.int64)
                failed = as_numpy(self._order.replacement(*tensors))
                self._skip({name: int(value) for name, value in failed.items()})
            if limit > 1 and attempts[index] >= limit:
                location = self._sources[item["source"]].where(item["record"])
                raise UserError(
                    f"{limit} consecutive records are corrupt, starting at {location}. Check the "
                    "dataset with `mmjax validate`."
                )

    def _skip(self, item: _Ids) -> None:
        """Counts one example that could not be made."""
        key = tuple(value for name, value in item.items() if name != "position")
        if key in self._skipped:
            return
        self._skipped.add(key)
        source = item["source"]
        location = self._sources[source].where(item["record"])
        record, message = self._diagnose(item) or (
            item["record"],
            f"{location} could not be read temporarily.",
        )
        if (source, record) in self._corrupt:
            return
        self._corrupt.add((source, record))
        log.warning("Skipped a corrupt record (%d so far): %s", self.total, message)
        if self.total > self._max_corrupt:
            raise UserError(
                f"More than data.max_corrupt={self._max_corrupt} records are corrupt. The last "
                f"one: {message} Check the dataset with `mmjax validate`, or raise "
                "data.max_corrupt."
            )

    def _diagnose(self, item: _Ids) -> tuple[int, str] | None:
        """Returns the corrupt record of an example and its error; None if it can be made."""
        source = self._sources[item["source"]]
        records = [item[name] for name in ("record", "positive") if name in item]
        for record in records:
            try:
                # The example's own record is tried first, as both records; any later failure
                # comes from the paired record.
                own = [source.fetch(records[0])] * (len(records) - 1)
                self._examples.make_one(item, [*own, source.fetch(record)])
            except UserError as error:  # Its message names the record.
                return record, str(error)
            except tf.errors.OpError as error:
                return record, f"{source.where(record)}: {_reason(error)}."
        return None


def _reason(error: tf.errors.OpError) -> str:
    """Returns the line of the message before the one that names the node of the graph."""
    reason = error.message.partition("\n\t [[{{node")[0].strip().split("\n")[-1]
    if (asserted := "assertion failed: ") in reason:  # The parts of a failed assertion have [].
        reason = re.sub(r"\[(.*?)\](?= \[|$)", r"\1", reason.partition(asserted)[2])
    # Functions in Python raise their own errors, whose type says nothing to users.
    return reason.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ").removesuffix(".")
