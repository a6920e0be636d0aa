"""The tables of the page in HTML: results, normalized scores, details and failures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.benchmark.report.drawing import MAX_SHADE, NEGATIVE, POSITIVE, decimals
from mmjax.benchmark.report.markup import Markup, breakable, element, joined
from mmjax.benchmark.report.table import Table
from mmjax.monitor.report import format_seconds

Failure = tuple[str, str, str]  # (experiment, run, reason)
_MAX_SCORE = 2.5  # normalized score of the strongest color


def number(value: float) -> str:
    """Returns a metric with three or four digits."""
    if not math.isfinite(value):
        return "NaN"
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    return decimals(value, 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1)


def results(table: Table, failures: Sequence[Failure]) -> Markup:
    """Returns the metrics on test, with a row per end task and a column per encoder.

    Colors compare the encoders on one end task; the best one is bold.
    """
    failed = {(experiment, run): reason for experiment, run, reason in failures}
    body = []
    for n, column in enumerate(table.columns):
        cells = []
        for row in table.by_mean_rank():
            cell = table.cells.get((table.encoders[row].name, column.name))
            if cell is None:
                reason = failed.get((table.encoders[row].name, column.run))
                text = "–" if reason is None else "failed"
                cells.append(element("td", text, class_="missing", title=reason))
                continue
            interval = table.intervals[row, n]
            note = f"± {number(interval)}" if math.isfinite(interval) else ""
            best = table.ranks[row, n] == 1 and len(table.encoders) > 1
            style = _shade(0.6 * table.relative[row, n])
            cells.append(_cell(number(table.values[row, n]), note, style, best))
        unit = column.metric + ("" if column.higher_is_better else " ↓")
        body.append(element("tr", _row_head(column.title, unit), *cells))
    return _matrix(table, body)


def scores(table: Table) -> Markup:
    """Returns the normalized scores, with ranks, and the mean rank of each encoder."""
    order, body = table.by_mean_rank(), []
    for n, column in enumerate(table.columns):
        cells = []
        for row in order:
            value, rank = table.normalized[row, n], table.ranks[row, n]
            sign = "+" if value >= 0.005 else ""
            text = sign + decimals(value, 2)
            note = f"rank {rank:.0f}" if math.isfinite(rank) else ""
            cells.append(_cell(text, note, _shade(value / _MAX_SCORE), rank == 1))
        body.append(element("tr", _row_head(column.title, ""), *cells))
    means = [table.mean_ranks[row] for row in order]
    cells = [element("td", decimals(mean, 2)) for mean in means]
    body.append(element("tr", _row_head("Mean rank", ""), *cells, class_="total"))
    return _matrix(table, body)


def _matrix(table: Table, body: Sequence[Markup]) -> Markup:
    names = [table.encoders[row].short_name for row in table.by_mean_rank()]
    heads = [
        element("th", element("div", breakable(name)), scope="col", title=name) for name in names
    ]
    head = element("thead", element("tr", element("th", "End task", scope="col"), *heads))
    content = element("table", head, element("tbody", *body), class_="matrix")
    return element("div", content, class_="scroll", tabindex=0)


def _row_head(title: str, unit: str) -> Markup:
    note = element("small", unit) if unit else ""
    return element("th", element("div", title, title=title), note, scope="row")


def _cell(text: str, note: str, style: str | None, best: bool) -> Markup:
    content = element("b", text) if best else text
    small = element("small", note) if note else ""
    return element("td", content, small, style=style)


def _shade(value: float) -> str | None:
    """Returns the style of a table cell with the color of a value in [-1, 1]; None for NaN."""
    if not math.isfinite(value):
        return None
    color = POSITIVE if value > 0 else NEGATIVE
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    opacity = MAX_SHADE * min(abs(float(value)), 1.0)
    return f"background:rgba({red},{green},{blue},{opacity:.2f})"


def details(table: Table) -> Markup:
    """Returns how each reported result was made, with all its metrics."""
    heads = (
        *("Encoder", "Run", "Configuration", "Selected on", "Epoch", "Seeds", "Validation"),
        *("Test metrics", "Test loss", "Train loss", "Protocol", "Time"),
    )
    rows = []
    for encoder in table.encoders:
        for column in table.columns:
            cell = table.cells.get((encoder.name, column.name))
            if cell is None:
                continue
            result = cell.result
            metrics = {column.metric: result.test_accuracy} | dict(result.metrics)
            epochs = f" of {result.epochs}" if result.epochs is not None else ""
            of = f" (1 of {cell.configs})" if cell.configs > 1 else ""
            rows.append(
                (
                    encoder.name,
                    column.name,
                    result.config_name + of,
                    cell.on if cell.configs > 1 else "",
                    "" if result.best_epoch is None else f"{result.best_epoch}{epochs}",
                    len(result.seeds) or "",
                    _optional(result.validation_accuracy),
                    ", ".join(f"{k} {number(v)}" for k, v in metrics.items() if k != "loss"),
                    number(result.test_loss),
                    _optional(result.train_loss),
                    result.protocol,
                    "" if result.seconds is None else format_seconds(result.seconds),
                )
            )
    return _list(heads, rows)


def failed(failures: Sequence[Failure]) -> Markup:
    """Returns the cells that failed or were skipped, and the files that cannot be read."""
    return _list(("Encoder", "Run", "Reason"), failures)


def _optional(value: float | None) -> str:
    return "" if value is None else number(value)


def _list(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markup:
    head = element("tr", *(element("th", text, scope="col") for text in heads))
    body = [element("tr", *(element("td", breakable(str(value))) for value in row)) for row in rows]
    content = element("table", element("thead", head), element("tbody", joined(*body)))
    return element("div", content, class_="scroll list", tabindex=0)


def mixed_protocols(table: Table) -> list[str]:
    """Returns the titles of the columns whose results are of both protocols."""
    protocols: dict[str, set[str]] = {}
    for (_, name), cell in table.cells.items():
        protocols.setdefault(name, set()).add(cell.result.protocol)
    return [c.title for c in table.columns if len(protocols.get(c.name, ())) > 1]


def missing(table: Table) -> int:
    """Returns the number of cells without a result."""
    return int(np.size(table.values)) - len(table.cells)
