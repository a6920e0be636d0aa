"""The result table of a suite: one row per dataset, in percent, and the averages."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from mmjax import plain_text
from mmjax.evals.base import CONFIDENCE, DEVIATION
from mmjax.monitor import report

# Metrics of a dataset, and the titles of their columns.
COLUMNS = {
    "linear": "linear",
    "few_shot": "few-shot",
    f"few_shot{CONFIDENCE}": "± (95 %)",
    f"few_shot{DEVIATION}": "std",
    "knn": "kNN",
}
AVERAGED = ("linear", "few_shot", "knn")


def averages(results: Mapping[str, float], datasets: Sequence[str]) -> dict[str, float]:
    """Returns the average of each metric over the datasets that have it, and their number.

    They are called `average/linear`, `average/linear_datasets`, and so on.
    """
    result = {}
    for column in AVERAGED:
        values = [results[f"{d}/{column}"] for d in datasets if f"{d}/{column}" in results]
        if values:
            result[f"average/{column}"] = sum(values) / len(values)
            result[f"average/{column}_datasets"] = float(len(values))
    return result


def _columns(results: Mapping[str, float], datasets: Sequence[str]) -> list[str]:
    """Returns the columns that are not empty."""
    return [c for c in COLUMNS if any(f"{d}/{c}" in results for d in datasets)]


def _percent(results: Mapping[str, float], name: str) -> str:
    return f"{100 * results[name]:.1f}" if name in results else "–"


def _rows(
    results: Mapping[str, float], metrics: Mapping[str, str]
) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Returns the header, the rows of the datasets, and the rows of the averages.

    Args:
      results: Results by `<dataset>/<column>`, including `averages`.
      metrics: Name of the metric in the column `linear`, by dataset.
    """
    columns = _columns(results, list(metrics))
    header = ["dataset", "metric", *(COLUMNS[c] for c in columns)]
    rows = [
        [dataset, metric, *(_percent(results, f"{dataset}/{c}") for c in columns)]
        for dataset, metric in metrics.items()
    ]
    averaged = [c if c in AVERAGED else "" for c in columns]
    counts = [results.get(f"average/{c}_datasets", 0) for c in averaged]
    last = [
        ["average", "", *(_percent(results, f"average/{c}") if c else "" for c in averaged)],
        [
            "of datasets",
            "",
            *(f"{n:.0f}" if c else "" for c, n in zip(averaged, counts, strict=True)),
        ],
    ]
    return header, rows, last


def as_text(results: Mapping[str, float], metrics: Mapping[str, str], *, title: str) -> str:
    """Returns an aligned table with – in empty cells; see `_rows` for the arguments."""
    header, rows, last = _rows(results, metrics)
    widths = [max(map(len, column)) for column in zip(header, *rows, *last, strict=True)]

    def aligned(row: Sequence[str]) -> list[str]:
        numbers = zip(row[2:], widths[2:], strict=True)
        return [*row[:2], *(cell.rjust(width) for cell, width in numbers)]

    return report.format_table(aligned(header), [*map(aligned, (*rows, *last))], title=title)


def as_csv(results: Mapping[str, float], metrics: Mapping[str, str]) -> str:
    """Returns comma-separated percentages with four decimals and empty cells without a result."""
    columns = _columns(results, list(metrics))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["dataset", "metric", *columns])
    for dataset, metric in [*metrics.items(), ("average", "")]:
        numbers = [results.get(f"{dataset}/{c}") for c in columns]
        writer.writerow(
            [
                *map(plain_text.csv_cell, (dataset, metric)),
                *("" if n is None else f"{100 * n:.4f}" for n in numbers),
            ]
        )
    return out.getvalue()


def as_tex(results: Mapping[str, float], metrics: Mapping[str, str]) -> str:
    """Returns a LaTeX tabular with the rules of the package booktabs."""
    header, rows, last = _rows(results, metrics)

    def line(row: Sequence[str]) -> str:
        cells = (row[0], *row[2:])  # without the metric
        return " & ".join(map(plain_text.tex, cells)) + r" \\"

    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 2)}}}",
            r"\toprule",
            line(header),
            r"\midrule",
            *map(line, rows),
            r"\midrule",
            *map(line, last),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )
