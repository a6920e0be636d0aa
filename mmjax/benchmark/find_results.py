"""Finds the results below a directory, in our format and in that of pyVTAB."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmjax import files
from mmjax.benchmark import names, results
from mmjax.benchmark.declarations import EndTasks
from mmjax.benchmark.results import Result
from mmjax.errors import UserError, choose, unknown

Report = Callable[[pathlib.Path, UserError], None]


def find_results(
    out: str | os.PathLike,
    *,
    end_tasks: EndTasks,
    runs: Mapping[str, str] | None = None,
    on_error: Report | None = None,
) -> list[Result]:
    """Returns the results `OUT/<experiment>/<run>-<config>/results.json`, sorted by path.

    The names come from the file. Files of pyVTAB have only four numbers: their run is the longest
    known name that the directory starts with, so 'Pets-Detection-adam-0.0001' is never a result of
    'Pets'. Their metric is that of the paper.

    Args:
      out: Directory of the benchmark.
      end_tasks: End tasks by name; see `declarations.known`.
      runs: {name of a run: name of its end task} of runs that are not named after an end task.
      on_error: Called with a file that cannot be read and the error. None raises the error.

    Raises:
      UserError: A file is damaged, or two files are results of the same cell.
    """
    found: dict[tuple[str, str, str], pathlib.Path] = {}
    result_list = []
    for path in sorted(pathlib.Path(out).glob(f"*/*/{results.FILE_NAME}")):
        if path.parent.name.startswith(".") or path.parent.parent.name.startswith("."):
            continue  # incomplete
        try:
            result = _read(path, runs or {}, end_tasks)
            if other := found.get(result.key):
                raise UserError(
                    f"{path} and {other} are both results of {' / '.join(result.key)}. Delete one "
                    "of them, or change its names."
                )
        except UserError as error:
            if on_error is None:
                raise
            on_error(path, error)
        else:
            found[result.key] = path
            result_list.append(result)
    return result_list


def _read(path: pathlib.Path, runs: Mapping[str, str], end_tasks: EndTasks) -> Result:
    """Returns the result in a file of either format."""
    values = files.read_object(path, "Delete the file to run this cell again.")
    # Fields of pyVTAB and no others; a file of ours that lost fields still has names.
    if values and values.keys() <= set(results.ORIGINAL_FIELDS):
        return _original(path, values, runs, end_tasks)
    return results.from_object(values, path)


def split_directory_name(name: str, known: Iterable[str], where: str) -> tuple[str, str]:
    """Returns (run, configuration) of a directory '<run>-<config>'.

    Args:
      name: Name of the directory.
      known: Names of runs. The longest that fits is chosen.
      where: The file, for the error message.

    Raises:
      UserError: The directory starts with none of them.
    """
    known = list(known)
    fitting = [run for run in known if name.startswith(names.directory_name(run, ""))]
    if not fitting:
        raise unknown(f"run of {where}: directory", name, [f"{run}-CONFIG" for run in known])
    run = max(fitting, key=len)
    return run, name[len(run) + 1 :]


def _original(
    path: pathlib.Path,
    values: Mapping[str, Any],
    runs: Mapping[str, str],
    end_tasks: EndTasks,
) -> Result:
    """Returns the result in a file of pyVTAB."""
    if missing := [key for key in ("test_loss", "test_accuracy") if key not in values]:
        raise UserError(f"{path}: missing {', '.join(missing)}.")
    run, config_name = split_directory_name(path.parent.name, {**end_tasks, **runs}, str(path))
    declared = choose(f"end task of {path}:", runs.get(run, run), end_tasks)
    with_path = {key: f"{path}: {key}" for key in values}
    return Result(
        experiment=path.parent.parent.name,
        run=run,
        end_task=declared.name,
        config_name=config_name,
        metric=declared.paper_metric or declared.metric,
        higher_is_better=declared.higher_is_better,
        protocol="paper",
        **{key: results.number_or_nan(item, with_path[key]) for key, item in values.items()},
    )
