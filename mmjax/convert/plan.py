"""The plan of a conversion: the model of a source, and which key fills which of its arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from mmjax import tree
from mmjax.convert.matching import format_mismatches
from mmjax.convert.vocabulary import Vocabulary
from mmjax.errors import UserError
from mmjax.state import ModelDef

# Mismatch of a key of the model that mmjax cannot use.
UNKNOWN_KEY = "is not an array of a model that mmjax supports"


@dataclasses.dataclass
class ConversionPlan:
    """The result of reading the names and shapes of a source, before its arrays are read.

    In paths of the model, BatchNorm statistics have no `extra/` in front.

    Attributes:
      source: Name of the source, for reports.
      step: Training step of the weights; 0 if unknown.
      cfg: Config that builds the model.
      model: The model.
      keys: {key: (shape, name of the dtype)} of everything in the source.
      targets: {key: the path it fills, with the layer in brackets, or why it is unused}. A reason
        is a category, or 'category: details'.
      source_keys: {path: keys that fill it}. Paths of the optimizer state start with `opt/`.
      read: Function from a path of the model to its array.
      mismatches: {key or path: description}.
      random_paths: Paths that the source does not fill; they are randomly initialized.
      make_optimizer_state: Returns the optimizer state; None if the source has no complete one.
      num_optimizer_arrays: Number of arrays in the optimizer state.
      details: Additional entries of the summary.
      notes: Lines for the report about decisions that the user may have to make.
      vocabulary: Vocabulary of the token embedding; None if unknown or without text.
      incomplete: Why no run directory can be written; '' if one can.
    """

    source: str
    step: int
    cfg: ml_collections.ConfigDict
    model: ModelDef
    keys: Mapping[str, tuple[tuple[int, ...], str]]
    targets: dict[str, str]
    source_keys: Mapping[str, Sequence[str]]
    read: Callable[[str], np.ndarray]
    mismatches: dict[str, str]
    random_paths: list[str]
    make_optimizer_state: Callable[[], dict] | None = None
    num_optimizer_arrays: int = 0
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    vocabulary: Vocabulary | None = None
    incomplete: str = ""

    def check(self, allow: Sequence[str] = ()) -> None:
        """Raises UserError if a run directory cannot be written.

        Args:
          allow: Patterns of keys and paths whose mismatches are accepted.
        """
        allowed = tree.first_match(
            allow, list(self.mismatches), what="--allow", every_pattern=False
        )
        refused = {name: text for name, text in self.mismatches.items() if allowed[name] is None}
        if refused:
            raise UserError(
                f"Cannot convert {self.source}. These keys do not match the model:\n"
                f"{format_mismatches(refused)}\n"
                "To continue without these keys, pass --allow PATTERN. Arrays that lack them are "
                "randomly initialized."
            )
        if self.incomplete:
            raise UserError(self.incomplete)
