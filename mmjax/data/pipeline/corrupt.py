"""Records that cannot be used: what is wrong with them, and the count of those that are skipped."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from mmjax.data.pipeline.config import DataConfig
from mmjax.data.sources.registry import Source
from mmjax.errors import UserError

log = logging.getLogger(__name__)

_Ids = dict[str, int]  # of one example: position, source, record, partner

ATTEMPTS = 16  # records that may be corrupt in a row before training gives up


class CorruptRecords:
    """The policy `data.corrupt` on one host.

    Args:
      cfg: the section `data`.
      sources: of the records.
      train: the next record takes the place of one that is skipped.
      example: makes an example of its ids and its serialized records, or raises.
      following: the ids of what takes an example's place after so many attempts.
    """

    def __init__(
        self,
        cfg: DataConfig,
        sources: Sequence[Source],
        *,
        train: bool,
        example: Callable[[_Ids, list[bytes]], None],
        following: Callable[[_Ids, int], _Ids],
    ):
        self._cfg, self._sources, self._train = cfg, sources, train
        self._example, self._following = example, following
        self._skipped: set[tuple[int, ...]] = set()  # source, record and partner
        self._at_fault: set[tuple[int, int]] = set()  # source and record

    @property
    def number(self) -> int:
        """How many records were at fault so far."""
        return len(self._at_fault)

    def culprit(self, batches: Sequence[Mapping[str, np.ndarray]]) -> UserError | None:
        """What is wrong with the first bad record of some batches, of which these are the ids."""
        for batch in batches:
            for row in range(len(batch["record"])):
                if found := self._problem({key: int(batch[key][row]) for key in batch}):
                    return UserError(
                        f"{found[1]} (`mmjax validate` checks a whole dataset; data.corrupt='skip' "
                        "leaves such records out.)"
                    )
        return None

    def count(self, attempts: np.ndarray, ids: Mapping[str, np.ndarray]) -> None:
        """Counts and logs the records that were skipped to make a batch.

        Args:
          attempts: [B], for each row the number of records that were no good.
          ids: [B] each, of the records that were tried first.

        Raises:
          UserError: too many, in all or in a row.
        """
        for row in np.flatnonzero(attempts):
            item = {key: int(ids[key][row]) for key in ids}
            source = item["source"]
            for number in range(int(attempts[row]) if self._train else 1):
                self._skip(self._following(item, number))
            if self._train and attempts[row] >= ATTEMPTS:
                raise UserError(
                    f"{ATTEMPTS} corrupt records in a row, from "
                    f"{self._sources[source].where(item['record'])} on."
                )

    def _skip(self, item: _Ids) -> None:
        """Counts one example that could not be made."""
        key = tuple(value for name, value in item.items() if name != "position")
        if key in self._skipped:
            return
        self._skipped.add(key)
        where = self._sources[item["source"]].where(item["record"])
        found = self._problem(item) or (item["record"], f"{where} could not be read for a while")
        record, problem = found
        if (item["source"], record) in self._at_fault:
            return
        self._at_fault.add((item["source"], record))
        log.warning("skipped a corrupt record (%d so far): %s", self.number, problem)
        if self.number > self._cfg.max_corrupt:
            raise UserError(
                f"More than data.max_corrupt={self._cfg.max_corrupt} records are corrupt, last: "
                f"{problem}"
            )

    def _problem(self, item: _Ids) -> tuple[int, str] | None:
        """The record that an example cannot be made of, and why; None if it can be made."""
        source = self._sources[item["source"]]
        records = [item[name] for name in ("record", "positive") if name in item]
        for record in records:
            try:
                # The own record comes first, in every place: what fails after it is the partner.
                own = [source.fetch(records[0])] * (len(records) - 1)
                self._example(item, [*own, source.fetch(record)])
            except UserError as error:  # already says where
                return record, str(error)
            except tf.errors.OpError as error:
                return record, f"{source.where(record)}: {_reason(error)}"
        return None


def _reason(error: tf.errors.OpError) -> str:
    """The line before the one that names the node of the graph."""
    reason = error.message.partition("\n\t [[{{node")[0].strip().split("\n")[-1]
    if (asserted := "assertion failed: ") in reason:  # its parts come in brackets
        reason = re.sub(r"\[(.*?)\](?= \[|$)", r"\1", reason.partition(asserted)[2])
    return reason
