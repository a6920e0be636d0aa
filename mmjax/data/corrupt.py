"""Records that cannot be used: what is wrong with them, and the count of those that are skipped."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from mmjax.data.config import DataConfig
from mmjax.data.sources import Source
from mmjax.errors import UserError

log = logging.getLogger(__name__)

ATTEMPTS = 16  # records that may be corrupt in a row before training gives up


class CorruptRecords:
    """The policy `data.corrupt` on one host.

    Args:
      cfg: the section `data`.
      sources: of the records.
      train: the next record takes the place of one that is skipped.
      example: makes an example of its ids and its serialized record, or raises.
    """

    def __init__(
        self,
        cfg: DataConfig,
        sources: Sequence[Source],
        *,
        train: bool,
        example: Callable[[dict[str, int], bytes], None],
    ):
        self._cfg, self._sources, self._train, self._example = cfg, sources, train, example
        self._skipped: set[tuple[int, int]] = set()

    @property
    def number(self) -> int:
        """How many records were skipped so far."""
        return len(self._skipped)

    def culprit(self, batches: Sequence[Mapping[str, np.ndarray]]) -> UserError | None:
        """What is wrong with the first bad record of some batches, of which these are the ids."""
        for batch in batches:
            for row in range(len(batch["record"])):
                if problem := self._problem({key: int(batch[key][row]) for key in batch}):
                    return UserError(
                        f"{problem} (`mmjax validate` checks a whole dataset; data.corrupt='skip' "
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
            size = self._sources[item["source"]].num_examples
            first = item["record"]
            for number in range(int(attempts[row]) if self._train else 1):
                item["record"] = (first + number) % size
                key = (item["source"], item["record"])
                if key not in self._skipped:
                    self._skipped.add(key)
                    log.warning(
                        "skipped a corrupt record (%d so far): %s",
                        self.number,
                        self._problem(item),
                    )
                if self.number > self._cfg.max_corrupt:
                    raise UserError(
                        f"More than data.max_corrupt={self._cfg.max_corrupt} records are corrupt, "
                        f"last: {self._problem(item)}"
                    )
            if self._train and attempts[row] >= ATTEMPTS:
                raise UserError(
                    f"{ATTEMPTS} corrupt records in a row, from "
                    f"{self._sources[item['source']].where(first)} on."
                )

    def _problem(self, item: dict[str, int]) -> str | None:
        """Why a record cannot be used, or None if it can."""
        source = self._sources[item["source"]]
        try:
            self._example(item, source.fetch(item["record"]))
        except UserError as error:  # already says where
            return str(error)
        except tf.errors.OpError as error:
            # The reason is the line before the one that names the node of the graph.
            reason = error.message.partition("\n\t [[{{node")[0].strip().split("\n")[-1]
            if (asserted := "assertion failed: ") in reason:  # its parts come in brackets
                reason = re.sub(r"\[(.*?)\](?= \[|$)", r"\1", reason.partition(asserted)[2])
            return f"{source.where(item['record'])}: {reason}"
        return None
