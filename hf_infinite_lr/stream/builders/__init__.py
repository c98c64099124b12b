"""Builders: streams of tasks out of datasets, divided by instance, class, distance, domain or time."""

from .classes import split_by_class
from .dates import split_by_time
from .distances import split_by_distance
from .domains import split_by_domain
from .instances import random_subset, split_by_instance
from .table import task_table

__all__ = [
    "random_subset",
    "split_by_class",
    "split_by_distance",
    "split_by_domain",
    "split_by_instance",
    "split_by_time",
    "task_table",
]
