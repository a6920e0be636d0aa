"""The table encoders x end tasks: selected values, ranks and normalized scores.

`values` are those of the metric, whatever its direction. All that compares encoders uses `scores`,
in which metrics such as an error have their sign flipped, so that larger is better everywhere.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from mmjax.benchmark.declarations import EndTasks
from mmjax.benchmark.report import encoder_names, selection
from mmjax.benchmark.report.encoder_names import Encoder
from mmjax.benchmark.report.selection import Selected
from mmjax.benchmark.results import Result
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A run: an end task with its metric.

    Attributes:
      name: Name of the run, with the metric in brackets if its results have several.
      title: Title of the end task, or `name` if the run is not named after it.
      run: Name of the run.
      end_task: Name of the end task.
      metric: Name of the metric.
      higher_is_better: Whether larger values are better.
      pixelwise: Whether the target is a map; None if the end task is unknown here.
      semantic: Whether it is a semantic task; None if the end task is unknown here.
    """

    name: str
    title: str
    run: str
    end_task: str
    metric: str
    higher_is_better: bool
    pixelwise: bool | None
    semantic: bool | None


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Selected results by encoder and column; E encoders and T columns.

    Attributes:
      encoders: The rows.
      columns: The columns.
      cells: {(name of the encoder, name of the column): the selected result}.
      reference: Name of the encoder that normalized scores are relative to; '' for the mean.
    """

    encoders: Sequence[Encoder]
    columns: Sequence[Column]
    cells: Mapping[tuple[str, str], Selected]
    reference: str

    def _array(self, field: str) -> np.ndarray:
        array = np.full((len(self.encoders), len(self.columns)), np.nan)
        for row, encoder in enumerate(self.encoders):
            for number, column in enumerate(self.columns):
                cell = self.cells.get((encoder.name, column.name))
                value = None if cell is None else getattr(cell.result, field)
                if value is not None:
                    array[row, number] = value
        return array

    @functools.cached_property
    def values(self) -> np.ndarray:
        """float64 [E, T]: metrics on test; NaN where there is no result."""
        return self._array("test_accuracy")

    @functools.cached_property
    def intervals(self) -> np.ndarray:
        """float64 [E, T]: half of the 95 % confidence intervals; NaN where there is none."""
        return self._array("ci95")

    @functools.cached_property
    def scores(self) -> np.ndarray:
        """float64 [E, T]: `values`, with the sign flipped where lower is better."""
        return self.values * [1.0 if c.higher_is_better else -1.0 for c in self.columns]

    @functools.cached_property
    def normalized(self) -> np.ndarray:
        """float64 [E, T]: (score - reference) / population standard deviation over encoders.

        The reference is the score of the encoder `reference`, or the mean. NaN where the reference
        has no result, and where all encoders have the same score.
        """
        means, deviations = _moments(self.scores)
        rows = [n for n, encoder in enumerate(self.encoders) if encoder.name == self.reference]
        return (self.scores - (self.scores[rows[0]] if rows else means)) / deviations

    @functools.cached_property
    def ranks(self) -> np.ndarray:
        """float64 [E, T]: 1 for the best encoder; equal scores share the better rank."""
        return stats.rankdata(-self.scores, method="min", axis=0, nan_policy="omit")

    @functools.cached_property
    def relative(self) -> np.ndarray:
        """float64 [E, T]: scores scaled to 0 for the worst encoder and 1 for the best.

        NaN where all encoders have the same score.
        """
        result = np.full_like(self.scores, np.nan)
        for number, scores in enumerate(self.scores.T):
            known = scores[np.isfinite(scores)]
            if len(known) and known.max() > known.min():
                result[:, number] = (scores - known.min()) / (known.max() - known.min())
        return result

    @functools.cached_property
    def mean_ranks(self) -> np.ndarray:
        """float64 [E]: mean rank of each encoder over its results; NaN without results."""
        return mean_of_known(self.ranks)

    def column(self, end_task: str) -> int | None:
        """Returns the index of the first column of an end task, or None."""
        tasks = [column.end_task for column in self.columns]
        return tasks.index(end_task) if end_task in tasks else None

    def by_mean_rank(self) -> list[int]:
        """Returns the indices of the encoders, the best mean rank first."""
        order = np.argsort(np.nan_to_num(self.mean_ranks, nan=np.inf), kind="stable")
        return [int(row) for row in order]


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Returns the mean of each row of an array [N, M] without its NaN; NaN for empty rows."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _moments(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and population standard deviation of each column, NaN if it is zero."""
    columns = [column[np.isfinite(column)] for column in scores.T]
    means = [column.mean() if len(column) else np.nan for column in columns]
    deviations = [column.std() if len(column) else np.nan for column in columns]
    # Equal scores can differ from their mean by rounding.
    equal = [len(column) and column.max() == column.min() for column in columns]
    return np.array(means), np.where(np.array(equal, bool), np.nan, deviations)


def build(
    results: Iterable[Result],
    *,
    end_tasks: EndTasks,
    runs: Sequence[str] = (),
) -> Table:
    """Returns the table of the selected results.

    Normalized scores are relative to the encoder 'Supervised', as in the paper; without it, to the
    mean.

    Args:
      results: Results of all configurations.
      end_tasks: End tasks by name. Results can name others, of which less is known.
      runs: Names of runs in the order of the columns; others follow in the order of `end_tasks`.

    Raises:
      UserError: Results of a run have different end tasks, directions or, for one encoder,
        protocols.
    """
    results = list(results)
    selected = selection.select(results)
    names = sorted({r.experiment for r in results})
    columns = _columns(results, runs, end_tasks)
    by_run = {(column.run, column.metric): column.name for column in columns}
    cells = {(e, by_run[run, metric]): cell for (e, run, metric), cell in selected.items()}
    return Table(
        encoders=[encoder_names.parse(name) for name in names],
        columns=columns,
        cells=cells,
        reference=encoder_names.SUPERVISED if encoder_names.SUPERVISED in names else "",
    )


def _order(first: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """Returns a sorting key that puts some names first, in their order."""
    positions = {name: n for n, name in enumerate(dict.fromkeys(first))}
    return lambda name: (positions.get(name, len(positions)), name)


def _columns(results: Sequence[Result], runs: Sequence[str], end_tasks: EndTasks) -> list[Column]:
    groups: dict[tuple[str, str], Result] = {}
    for result in results:
        first = groups.setdefault((result.run, result.metric), result)
        for field in ("higher_is_better", "end_task"):
            own, other = (_comparable(r, field, end_tasks) for r in (result, first))
            if own != other:
                raise UserError(
                    f"Results of {result.run} have different values of {field} for "
                    f"{result.metric}: {other!r} ({first.experiment}) and {own!r} "
                    f"({result.experiment}). Rename one of the runs, or delete its results."
                )
    order = _order([*runs, *end_tasks])
    names = [run for run, _ in groups]
    return [
        _column(result, f"{run} [{metric}]" if names.count(run) > 1 else run, end_tasks)
        for (run, metric), result in sorted(
            groups.items(), key=lambda item: (order(item[0][0]), item[0][1])
        )
    ]


def _comparable(result: Result, field: str, end_tasks: EndTasks) -> Any:
    """Returns a field that is the same for all results of a column; end tasks can have aliases."""
    value = getattr(result, field)
    declared = end_tasks.get(value) if field == "end_task" else None
    return declared.name if declared else value


def _column(result: Result, name: str, end_tasks: EndTasks) -> Column:
    declared = end_tasks.get(result.end_task)
    titled = declared is not None and name == result.end_task
    return Column(
        name=name,
        title=declared.title if titled else name,
        run=result.run,
        end_task=declared.name if declared else result.end_task,
        metric=result.metric,
        higher_is_better=result.higher_is_better,
        pixelwise=None if declared is None else declared.pixelwise,
        semantic=None if declared is None else declared.semantic,
    )
