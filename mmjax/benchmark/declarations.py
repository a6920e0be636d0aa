"""The end tasks that files of results may name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmjax.end_tasks import registry
from mmjax.end_tasks.declaration import EndTask

EndTasks = Mapping[str, EndTask]


def known(names: Iterable[str] = ()) -> EndTasks:
    """Returns the end tasks that results may name: the built-in ones and some others.

    A file of results that others have written must not decide which modules are imported, so its
    end tasks are looked up here and never resolved.

    Args:
      names: Names from a file of the user, which can be `package.module:Name`.
    """
    aliases = {alias: registry.END_TASKS[name] for alias, name in registry.ALIASES.items()}
    return {**registry.END_TASKS, **aliases, **{name: registry.find(name) for name in names}}
