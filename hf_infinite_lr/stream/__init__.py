"""Streams: what is learned, in which order, and how its samples reach the model."""

from .plan import Segment, StreamPlan, TaskPlan
from .task import Stream, Task

__all__ = ["Segment", "Stream", "StreamPlan", "Task", "TaskPlan"]
