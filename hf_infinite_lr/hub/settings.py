"""The settings that a card lists: those that differ from their defaults and name no place."""

from __future__ import annotations

from dataclasses import MISSING, fields
from enum import Enum
from typing import Any

from .contents import is_local_path

LARGEST_TABLE = 12
"""Tasks and columns that a card lists; of more, the first and the last are listed."""

_NOT_SETTINGS = ("output_dir", "logging_dir", "run_name", "report_to", "disable_tqdm", "debug", "overwrite_output_dir")
_TOLD_ELSEWHERE = ("methods", "merge", "peft_type", "task_type", "base_model_name_or_path", "peft_version")
_NOT_SETTINGS_BEGIN = ("hub_", "push_", "resume_", "trackio_", "lr_scheduler_", "logging_first", "project", "do_")


def changed_settings(args: Any) -> dict[str, Any]:
    """Arguments that differ from the defaults of their class, without names of places, accounts and loggers.

    Args:
        args: A dataclass of arguments, such as `TrainingArguments` or `peft.LoraConfig`.
    """
    changed = {}
    for item in fields(args):
        value = getattr(args, item.name)
        value = value.value if isinstance(value, Enum) else value
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if item.name in (*_NOT_SETTINGS, *_TOLD_ELSEWHERE) or item.name.startswith(_NOT_SETTINGS_BEGIN):
            continue
        if value is None or "token" in item.name or not _is_plain(value):
            continue
        if value != default and (value or default is not None):
            changed[item.name] = brief(value)
    return changed


def _is_plain(value: Any) -> bool:
    """Whether a value can stand on a card: no object, and no path."""
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple, set)):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return "/" not in value and not is_local_path(value)
    return value is None or isinstance(value, (bool, int, float))


def brief(value: Any) -> Any:
    """A value with long lists cut in the middle."""
    if isinstance(value, dict):
        return {key: brief(item) for key, item in value.items()}
    if not isinstance(value, (list, tuple, set)):
        return value
    items = sorted(value) if isinstance(value, set) else list(value)
    half = LARGEST_TABLE // 2
    return items if len(items) <= LARGEST_TABLE else [*items[:half], "...", *items[-half:]]
