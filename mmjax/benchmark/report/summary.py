"""The table of a benchmark as results.csv, with the columns of pyVTAB, and as summary.json."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any, Literal

from mmjax import plain_text
from mmjax.benchmark.report import correlations
from mmjax.benchmark.report.encoder_names import Encoder
from mmjax.benchmark.report.table import Table
from mmjax.benchmark.report.tables import Failure

FORMAT_VERSION = 1
# Columns that the name of the encoder tells.
NAME_COLUMNS = ("Encoder", "Method", "Dataset", "Balance", "Epochs", "Updates", "DatasetSize")


def as_csv(table: Table) -> str:
    """Returns the content of results.csv.

    After NAME_COLUMNS come, for each end task, its metric, then for each of them
    `<name>-normalized`, then `<name>-rank`. pyVTAB negates errors in all columns; here the metric
    is the true value, and only the normalized score, of which larger is better, uses the negated
    one. Rank 1 is best. Cells without a value are empty.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    tasks = [column.name for column in table.columns]
    suffixes = ("", "-normalized", "-rank")
    header = [*NAME_COLUMNS, *(f"{name}{suffix}" for suffix in suffixes for name in tasks)]
    writer.writerow(map(plain_text.csv_cell, map(plain_text.plain, header)))
    for row, encoder in enumerate(table.encoders):
        numbers = [*table.values[row], *table.normalized[row]]
        ranks = ["" if math.isnan(rank) else f"{rank:.0f}" for rank in table.ranks[row]]
        writer.writerow([*_name_cells(encoder), *map(_number, numbers), *ranks])
    return out.getvalue()


def _name_cells(encoder: Encoder) -> list[str]:
    values = (
        encoder.short_name,
        encoder.method,
        encoder.dataset,
        encoder.balance,
        encoder.epochs,
        encoder.updates,
        encoder.dataset_size,
    )
    texts = ["" if value is None else str(value) for value in values]
    return [plain_text.csv_cell(plain_text.plain(text)) for text in texts]


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""


def as_object(table: Table, failures: Sequence[Failure]) -> dict[str, Any]:
    """Returns the content of summary.json: all of results.csv, with intervals and selection.

    It also has the correlations between end tasks. Values that do not exist are null.
    `normalized_against` is the encoder that normalized scores are relative to, or 'mean'.

    Args:
      table: The results.
      failures: (experiment, run, reason) of cells without a result.
    """
    return {
        "format": FORMAT_VERSION,
        "normalized_against": table.reference or "mean",
        "end_tasks": [
            {
                "name": column.name,
                "run": column.run,
                "end_task": column.end_task,
                "title": column.title,
                "metric": column.metric,
                "higher_is_better": column.higher_is_better,
                "pixelwise": column.pixelwise,
                "semantic": column.semantic,
            }
            for column in table.columns
        ],
        "encoders": [_encoder(table, row) for row in range(len(table.encoders))],
        "correlations": {m: _correlations(table, m) for m in correlations.METHODS},
        "failures": [dict(zip(("encoder", "run", "reason"), one, strict=True)) for one in failures],
    }


def _correlations(table: Table, method: Literal["spearman", "pearson"]) -> dict[str, Any]:
    found = correlations.correlate(table.scores, method)
    return {
        "coefficients": [list(map(_json, row)) for row in found.coefficients],
        "p_values": [list(map(_json, row)) for row in found.p_values],
        "encoders": found.counts.tolist(),
    }


def _encoder(table: Table, row: int) -> dict[str, Any]:
    encoder = table.encoders[row]
    cells = {}
    for number, column in enumerate(table.columns):
        selected = table.cells.get((encoder.name, column.name))
        if selected is not None:
            result = selected.result
            cells[column.name] = {
                "value": _json(table.values[row, number]),
                "ci95": result.ci95,
                "normalized": _json(table.normalized[row, number]),
                "rank": _json(table.ranks[row, number]),
                "config_name": result.config_name,
                "configs": selected.configs,
                "selected_on": selected.on,
                "validation_accuracy": result.validation_accuracy,
                "best_epoch": result.best_epoch,
                "seeds": list(result.seeds),
                "protocol": result.protocol,
                "cell_hash": result.cell_hash,
            }
    return {
        "name": encoder.name,
        "method": encoder.method,
        "dataset": encoder.dataset,
        "balance": encoder.balance,
        "epochs": encoder.epochs,
        "updates": encoder.updates,
        "dataset_size": encoder.dataset_size,
        "mean_rank": _json(table.mean_ranks[row]),
        "results": cells,
    }


def _json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
