"""The report of a benchmark: tables, figures and one HTML page from its files `results.json`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence

from mmjax import files
from mmjax.benchmark import declarations, find_results, names
from mmjax.benchmark.report import cached_features, figures, page, summary, table
from mmjax.benchmark.report.tables import Failure
from mmjax.benchmark.results import Result
from mmjax.errors import UserError


def write(
    out: str | os.PathLike, *, runs: Mapping[str, str], failures: Sequence[Failure] = ()
) -> pathlib.Path:
    """Writes the report of all results in a directory, and returns its page.

    The files are `report.html`, `results.csv`, `summary.json`, and `figures/<name>.svg`. Files of
    results that cannot be used are listed in the page.

    Args:
      out: Directory of the benchmark.
      runs: {name of a run: name of its end task}, in the order of the report.
      failures: (experiment, run, reason) of cells that failed or were skipped.
    """
    out = pathlib.Path(out)
    failures = list(failures)
    end_tasks = declarations.known(runs.values())
    results = find_results.find_results(
        out,
        end_tasks=end_tasks,
        runs=runs,
        on_error=lambda path, error: failures.append(
            (path.parent.parent.name, path.parent.name, str(error))
        ),
    )
    results, conflicts = _without_conflicts(results, end_tasks)
    failures += conflicts
    built = table.build(results, end_tasks=end_tasks, runs=list(runs))
    drawn = figures.draw_all(built, cached_features.find(out, built))
    (out / names.FIGURES).mkdir(parents=True, exist_ok=True)
    for name in (*figures.NAMES, *drawn):
        path = out / names.FIGURES / f"{name}.svg"
        if name in drawn:
            files.write_text(path, drawn[name].file())
        else:
            files.remove(path)  # of an earlier report
    files.write_text(out / names.CSV, summary.as_csv(built))
    files.write_json(out / names.SUMMARY, summary.as_object(built, failures))
    title = f"Benchmark of {out.resolve().name}"
    files.write_text(out / names.REPORT, page.render(built, drawn, failures, title))
    return out / names.REPORT


def _without_conflicts(
    results: Sequence[Result], end_tasks: declarations.EndTasks
) -> tuple[list[Result], list[Failure]]:
    """Returns the results of the runs that can be compared, and why the others cannot."""
    by_run: dict[str, list[Result]] = {}
    for result in results:
        by_run.setdefault(result.run, []).append(result)
    kept: list[Result] = []
    failures: list[Failure] = []
    for run, group in by_run.items():
        try:
            table.build(group, end_tasks=end_tasks)
        except UserError as error:
            failures.append(("", run, str(error)))
        else:
            kept += group
    return kept, failures
