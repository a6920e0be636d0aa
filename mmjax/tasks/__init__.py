"""Tasks: one file per `--task`. See `mmjax.tasks.base` for the interface."""

from mmjax.tasks.base import TASKS, Metrics, Task, make_task

__all__ = ["TASKS", "Metrics", "Task", "make_task"]
