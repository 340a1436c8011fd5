"""Tasks by name, by the path of a class, or made by the caller."""

from __future__ import annotations

import importlib
from typing import Any

from amc_compress.learners.tasks.task import Task
from amc_env.errors import InputDataError

TASKS: dict[str, str] = {
    "classification": "amc_compress.learners.tasks.classification:Classification",
}
"""Name -> path of the class."""


def make_task(task: str | Task) -> Task:
    """Returns a task by its name, by the path ``package.module:Class`` of its class, or as it is.

    Raises:
        InputDataError: If there is no such task.
    """
    if isinstance(task, Task):
        return task
    path = TASKS.get(task, task)
    module, _, name = path.partition(":")
    if not name:
        raise InputDataError(
            f"Expected a task among {', '.join(TASKS)}, or the path package.module:Class of a "
            f"class of yours, got {task!r}."
        )
    made: Any = getattr(importlib.import_module(module), name)()
    if not isinstance(made, Task):
        raise InputDataError(f"Expected {task!r} to be a class derived from Task, got another.")
    return made
