"""Selection of the training configuration that is reported for an encoder on an end task."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

from mmjax.benchmark.results import Result
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Selected:
    """The result that is reported.

    Attributes:
      result: The result of the best configuration.
      on: What it was selected on: 'validation' or 'test', or 'only' if there is one configuration.
      configs: Number of configurations.
    """

    result: Result
    on: Literal["validation", "test", "only"]
    configs: int


def signed(value: float | None, higher_is_better: bool) -> float:
    """Returns a value of a metric as a score, of which larger is better; -inf if undefined."""
    if value is None or math.isnan(value):
        return -math.inf
    return value if higher_is_better else -value


def select(results: Iterable[Result]) -> dict[tuple[str, str, str], Selected]:
    """Returns the best configuration for each (experiment, run, metric).

    Protocol 'default' selects on `validation_accuracy`, protocol 'paper' on `test_accuracy`. If no
    result has a `validation_accuracy`, the test decides, and `Selected.on` tells so. The first of
    equal configurations wins.

    Raises:
      UserError: Results of one run have different protocols or directions.
    """
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.experiment, result.run, result.metric), []).append(result)
    return {key: _best(group) for key, group in groups.items()}


def _best(group: Sequence[Result]) -> Selected:
    first = group[0]
    for field in ("protocol", "higher_is_better"):
        other = next((r for r in group if getattr(r, field) != getattr(first, field)), None)
        if other is not None:
            raise UserError(
                f"Results of {first.experiment} / {first.run} have different values of {field}: "
                f"{getattr(first, field)!r} ({first.config_name}) and {getattr(other, field)!r} "
                f"({other.config_name}). They cannot be compared: name the runs differently, or "
                "write them to different directories."
            )
    if len(group) == 1:
        return Selected(first, "only", 1)
    on_validation = first.protocol == "default" and any(
        r.validation_accuracy is not None for r in group
    )
    field = "validation_accuracy" if on_validation else "test_accuracy"
    best = max(group, key=lambda r: signed(getattr(r, field), r.higher_is_better))
    return Selected(best, "validation" if on_validation else "test", len(group))
