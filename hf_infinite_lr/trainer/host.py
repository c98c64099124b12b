"""Which Trainers a continual run can stand on, and what it has to know of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator, DistributedType
from transformers import Trainer
from transformers.utils import logging

from hf_infinite_lr.config import ContinualArguments

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object  # at run time the host comes behind the mixins in the resolution order

_LEFT_AS_IN_TRAINER = (
    "get_train_dataloader",
    "_get_train_sampler",
    "_inner_training_loop",
    "_run_epoch",
    "_maybe_log_save_evaluate",
    "create_scheduler",
)


class Host(_Trainer):
    """What the mixins are written against: a Trainer."""

    def _unwrapped(self, model: Any = None) -> Any:
        """The model, or the one that is given, without the wrappers of data parallelism and compilation."""
        return self.accelerator.unwrap_model(self.model if model is None else model, keep_torch_compile=False)


def check_host(trainer_class: type, mixin: type) -> None:
    """Refuses a Trainer that replaces what a stream is served through.

    Args:
        trainer_class (`type`): The class that is being constructed.
        mixin (`type`): The mixin; classes behind it in the resolution order are the host's, those before it a user's.

    Raises:
        ValueError: naming the class and the method.
    """
    order = trainer_class.__mro__
    if Trainer not in order:
        raise ValueError(f"{trainer_class.__name__}: ContinualMixin works over transformers.Trainer or a subclass.")
    for each in order[: order.index(Trainer)]:
        if each in mixin.__mro__:
            continue
        for name in _LEFT_AS_IN_TRAINER:
            if name in vars(each):
                where = "under" if order.index(each) < order.index(mixin) else "over"
                raise ValueError(
                    f"ContinualMixin cannot work {where} {each.__name__}: it replaces Trainer.{name}, "
                    "through which the stream is served."
                )


def check_arguments(args: Any) -> None:
    """Refuses arguments without the continual fields."""
    if not isinstance(args, ContinualArguments):
        raise ValueError(
            f"args of type {type(args).__name__} must be ContinualTrainingArguments, or a dataclass with "
            "ContinualArguments before the host's own arguments."
        )


def portable_arguments(args: Any) -> Any:
    """The arguments as an instance of the nearest class outside this package, without the Hub token.

    What is pickled into `training_args.bin` then loads in a process that has never heard of this package.
    """
    base = next(
        cls for cls in type(args).__mro__ if cls is not ContinualArguments and not issubclass(cls, ContinualArguments)
    )
    portable = base.__new__(base)
    own = set(ContinualArguments.__dataclass_fields__)
    portable.__dict__.update({key: value for key, value in vars(args).items() if key not in own})
    portable.__dict__["hub_token"] = None
    return portable


def continual_arguments(args: Any) -> dict[str, Any]:
    """The continual fields as plain values."""
    return {name: getattr(args, name) for name in ContinualArguments.__dataclass_fields__}


REPLICATED = "replicated"
"""The engine of one process, and of several that hold the whole model each (DDP)."""


def engine_name(accelerator: Accelerator) -> str:
    """What holds weights and optimizer: `replicated`, or in shards `deepspeed-zero1` to `-zero3` or `fsdp`."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return f"deepspeed-zero{accelerator.state.deepspeed_plugin.zero_stage}"
    return "fsdp" if accelerator.distributed_type == DistributedType.FSDP else REPLICATED


@contextmanager
def bounded_length(args: Any) -> Iterator[None]:
    """Lets a host's constructor take a streaming dataset: it asks for `max_steps`, which here each task has."""
    given = args.max_steps
    args.max_steps = given if given > 0 else 1
    try:
        yield
    finally:
        args.max_steps = given


def one_pass(args: Any, num_steps: int) -> Any:
    """The arguments as Trainer's loop should see them: one epoch over the whole stream."""
    seen = copy.copy(args)
    seen.num_train_epochs = 1
    seen.max_steps = min(args.max_steps, num_steps) if args.max_steps > 0 else -1
    return seen


@contextmanager
def without_bars() -> Iterator[None]:
    """Silences the progress bars of transformers, such as one for every file that a save writes."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
