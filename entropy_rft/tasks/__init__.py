"""Where questions and their checkers come from: embedded tasks, GSM8K, DAPO-Math, any JSONL, reasoning-gym."""

from __future__ import annotations

from entropy_rft.tasks.instructions import DIRECT, INSTRUCTIONS, STEP_BY_STEP, STOP_EARLY
from entropy_rft.tasks.task import TASK_NAMES, Task, check_options, level_of, load_task, task_rows

__all__ = [
    "DIRECT",
    "INSTRUCTIONS",
    "STEP_BY_STEP",
    "STOP_EARLY",
    "TASK_NAMES",
    "Task",
    "check_options",
    "level_of",
    "load_task",
    "task_rows",
]
