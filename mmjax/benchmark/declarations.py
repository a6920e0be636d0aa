"""Lookup of end tasks for experiment files and results; tests pass a mapping of their own."""

from __future__ import annotations

from collections.abc import Mapping

from mmjax.end_tasks.declaration import EndTask
from mmjax.errors import UserError, choose

EndTasks = Mapping[str, EndTask]


def registered() -> EndTasks:
    """Returns the built-in end tasks by name, in the order of the paper."""
    from mmjax.end_tasks import registry

    return registry.END_TASKS


def find(name: str, end_tasks: EndTasks | None, what: str = "end task") -> EndTask:
    """Returns an end task.

    Args:
      name: Name in `end_tasks`; without them, a name of the registry or `package.module:Name`.
      end_tasks: End tasks by name, or None for the registry.
      what: What names it, for the error message.

    Raises:
      UserError: There is no such end task; the message contains the nearest name.
    """
    if end_tasks is not None:
        return choose(what, name, end_tasks)
    from mmjax.end_tasks import registry

    try:
        return registry.find(name)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


def find_or_none(name: str, end_tasks: EndTasks | None) -> EndTask | None:
    """Returns an end task, or None if it is unknown here, for example in another's results."""
    try:
        return find(name, end_tasks)
    except UserError:
        return None
