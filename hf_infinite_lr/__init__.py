"""Infinite learning-rate schedules and continual pre-training for Hugging Face Trainer and Accelerate.

Importing the package registers the schedules `infinite`, `cosine_rewarm` and `rsqrt_rewarm` with transformers.
Names that need the Trainer are loaded when they are first used.
"""

from importlib import import_module
from typing import Any

from hf_infinite_lr.registry import register

__version__ = "0.1.0"

_HOME = {
    "ContinualArguments": "config",
    "ContinualMixin": "trainer",
    "ContinualTrainer": "trainer",
    "ContinualTrainingArguments": "config",
    "Preemption": "trainer.preemption",
    "Stream": "stream",
    "Task": "stream",
    "TrunkCheckpointCallback": "callbacks",
    "get_cosine_rewarm_schedule": "lr_scheduler",
    "get_infinite_schedule": "lr_scheduler",
    "get_rsqrt_rewarm_schedule": "lr_scheduler",
    "merge_checkpoints": "merging",
}

__all__ = [*_HOME, "__version__", "register"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


register()
