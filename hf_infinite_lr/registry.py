"""The file that touches transformers' private tables, so that the names work in every Trainer script.

`TrainingArguments` and `HfArgumentParser` accept the members of the enum `SchedulerType` alone, and `get_scheduler`
looks the member up in a table of functions. Neither can be extended from outside, so members and functions are added
to the live objects. `transformers.trainer` is not imported here, because that takes seconds.
"""

import logging
from collections.abc import Callable
from enum import Enum
from typing import Any

from hf_infinite_lr.announcement import announce, show_on_console, trunk_savers
from hf_infinite_lr.lr_scheduler import (
    ScheduleLR,
    get_cosine_rewarm_schedule,
    get_infinite_schedule,
    get_rsqrt_rewarm_schedule,
)

logger = logging.getLogger(__name__)


def _infinite(optimizer: Any, num_warmup_steps: int, num_training_steps: int, **kwargs: Any) -> ScheduleLR:
    return _announced(get_infinite_schedule, optimizer, num_warmup_steps, num_training_steps, kwargs)


def _cosine_rewarm(optimizer: Any, num_warmup_steps: int, num_training_steps: int, **kwargs: Any) -> ScheduleLR:
    return _announced(get_cosine_rewarm_schedule, optimizer, num_warmup_steps, num_training_steps, kwargs)


def _rsqrt_rewarm(optimizer: Any, num_warmup_steps: int, num_training_steps: int, **kwargs: Any) -> ScheduleLR:
    return _announced(get_rsqrt_rewarm_schedule, optimizer, num_warmup_steps, num_training_steps, kwargs)


FUNCTIONS: dict[str, Callable[..., ScheduleLR]] = {
    "infinite": _infinite,
    "cosine_rewarm": _cosine_rewarm,
    "rsqrt_rewarm": _rsqrt_rewarm,
}


def _announced(
    make: Callable[..., ScheduleLR],
    optimizer: Any,
    num_warmup_steps: int,
    num_training_steps: int,
    kwargs: dict[str, Any],
) -> ScheduleLR:
    scheduler = make(optimizer, num_warmup_steps, num_training_steps, **kwargs)
    announce(
        scheduler.name,
        scheduler.schedule,
        float(scheduler.base_lrs[0]),
        num_training_steps,
        num_warmup_steps=num_warmup_steps,
    )
    return scheduler


def add_member(enum_class: type[Enum], value: str) -> None:
    """Add a member to a string enum that is already built; a member that exists stays.

    Its pickle is the plain string, so that what is saved loads in a process without this package.

    Args:
        enum_class (`type[Enum]`):
            An enum whose members are strings.
        value (`str`):
            Value of the member; its name is the value in capitals.

    >>> from transformers.utils.generic import ExplicitEnum
    >>> class Colour(ExplicitEnum):
    ...     RED = "red"
    >>> add_member(Colour, "blue")
    >>> Colour("blue") is Colour.BLUE, [colour.value for colour in Colour]
    (True, ['red', 'blue'])
    """
    if value in enum_class._value2member_map_:
        return
    name = value.upper()
    member: Any = str.__new__(enum_class, value)  # type: ignore[type-var]
    member._name_ = name
    member._value_ = value
    member._sort_order_ = len(enum_class._member_names_)
    member.__objclass__ = enum_class
    member.__reduce_ex__ = lambda protocol: (str, (value,))  # noqa: ARG005
    enum_class._member_names_.append(name)
    enum_class._member_map_[name] = member
    enum_class._value2member_map_[value] = member
    hashable_values = enum_class.__dict__.get("_hashable_values_")  # Python 3.13 looks values up in this list as well
    if hashable_values is not None:
        hashable_values.append(value)
    type.__setattr__(enum_class, name, member)


def register() -> None:
    """Make `infinite`, `cosine_rewarm` and `rsqrt_rewarm` known to transformers: on import, harmless to repeat.

    Raises:
        `RuntimeError`: when another package has taken one of the names.

    >>> register()
    >>> from transformers.trainer_utils import SchedulerType
    >>> SchedulerType("infinite").value
    'infinite'
    """
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    from transformers.trainer_utils import SchedulerType

    functions: dict[Any, Any] = TYPE_TO_SCHEDULER_FUNCTION
    for name, function in FUNCTIONS.items():
        add_member(SchedulerType, name)
        registered = functions.get(SchedulerType(name), function)
        if registered.__module__ != __name__:
            raise RuntimeError(f"lr_scheduler_type={name!r} is already taken by {registered!r}; only one can have it.")
        functions[SchedulerType(name)] = function
    show_on_console()


def install_trunk_callback() -> None:
    """Give every Trainer that is made from now on a [`~hf_infinite_lr.callbacks.TrunkCheckpointCallback`]."""
    from transformers import trainer

    from hf_infinite_lr.callbacks import TrunkCheckpointCallback

    callbacks: list[Any] = trainer.DEFAULT_CALLBACKS
    if TrunkCheckpointCallback not in callbacks:
        callbacks.append(TrunkCheckpointCallback)
        trunk_savers.add(TrunkCheckpointCallback)
