"""Streams: what is learned, in which order, and how its samples reach the model."""

from .builders import (
    random_subset,
    split_by_class,
    split_by_distance,
    split_by_domain,
    split_by_instance,
    split_by_time,
    task_table,
)
from .in_order import InOrder
from .mixture import mixture
from .plan import Segment, StreamPlan, TaskPlan
from .task import Stream, Task

__all__ = [
    "InOrder",
    "Segment",
    "Stream",
    "StreamPlan",
    "Task",
    "TaskPlan",
    "mixture",
    "random_subset",
    "split_by_class",
    "split_by_distance",
    "split_by_domain",
    "split_by_instance",
    "split_by_time",
    "task_table",
]
