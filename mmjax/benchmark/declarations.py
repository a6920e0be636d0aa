"""Lookup of end tasks for experiment files and results; tests pass a mapping of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmjax.end_tasks.declaration import EndTask
from mmjax.errors import UserError, choose

EndTasks = Mapping[str, EndTask]


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


def known(names: Iterable[str] = ()) -> EndTasks:
    """Returns the end tasks that results may name: the built-in ones and some others.

    A file of results that others have written must not decide which modules are imported, so its
    names are looked up here and never resolved.

    Args:
      names: Names from a file of the user, which can be `package.module:Name`.
    """
    from mmjax.end_tasks import registry

    aliases = {alias: registry.END_TASKS[name] for alias, name in registry.ALIASES.items()}
    return {**registry.END_TASKS, **aliases, **{name: registry.find(name) for name in names}}
