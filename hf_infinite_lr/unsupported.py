"""Settings of Trainer that would break trunk, order or exactness of a continual run."""

from __future__ import annotations

from enum import Enum
from operator import attrgetter
from typing import Any


def refuse_unsupported(args: Any) -> None:
    """Refuses the Trainer settings that would break trunk, order or exactness.

    Args:
        args: `TrainingArguments` of a continual run.

    Raises:
        ValueError: naming the setting, its value and why.
    """
    for name, (refused, reason) in _UNSUPPORTED.items():
        value = attrgetter(name)(args)
        value = value.value if isinstance(value, Enum) else value
        if value in refused:
            raise ValueError(f"{name}={value!r} cannot be used with ContinualTrainer: {reason}.")


_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "save_only_model": ((True,), "a rewind needs the optimizer's state"),
    "load_best_model_at_end": ((True,), "the model after training is the last release"),
    "save_strategy": (("best",), "it would drop the trunk's checkpoints"),
    "auto_find_batch_size": ((True,), "task boundaries are counted in global batches"),
    "ignore_data_skip": ((True,), "a resumed run would train on other data"),
    "save_on_each_node": ((True,), "transformers writes the weights on the first node alone; share output_dir"),
    "enable_jit_checkpoint": ((True,), "its checkpoints are not written aside first"),
    "accelerator_config.split_batches": ((True,), "batches are planned per process"),
    "accelerator_config.dispatch_batches": ((True,), "every process reads its own batches"),
    "lr_scheduler_type": (
        ("reduce_lr_on_plateau", "greedy"),
        "its rate follows the metrics, so it is no function of the step",
    ),
    "train_sampling_strategy": (("group_by_length", "batch_rebalance", "sequential"), "a stream has its own order"),
}
"""Trainer's settings with the values that are refused, and why."""
