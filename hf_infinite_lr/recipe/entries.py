"""Entries of `tasks`: the keys that a recipe reads itself, and the tasks that one entry stands for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_infinite_lr.keys import nearest
from hf_infinite_lr.stream import (
    Task,
    split_by_class,
    split_by_distance,
    split_by_domain,
    split_by_instance,
    split_by_time,
)

from .by_perplexity import ByPerplexity

SPLITS: dict[str, Callable[..., list[Task]]] = {
    "class": split_by_class,
    "distance": split_by_distance,
    "domain": split_by_domain,
    "instance": split_by_instance,
    "time": split_by_time,
}
"""What `kind` of `split_into` can name; its other keys are those of the builder."""

OWN_KEYS = ("split_into", "subset", "by_perplexity", "mixture", "mixture_samples")
_BY_RECIPE = ("dataset", "name", "division")
_UNSAID = inspect.Parameter.empty


@dataclass(frozen=True)
class SplitInto:
    """`split_into` of an entry: how its data becomes several tasks.

    Args:
        kind (`str`): One of `SPLITS`.
        options (`dict`): Further keys, as the builder takes them.
    """

    kind: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, value: Any, task: str) -> SplitInto:
        """Reads the mapping of a recipe.

        Raises:
            ValueError: naming the key, its value and the rule.
        """
        where = f"tasks: {task!r}: split_into"
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{where}={value!r} must be a mapping with a kind, such as {{kind: class, num_tasks: 5}}."
            )
        kind = value.get("kind")
        if kind not in SPLITS:
            close = nearest(kind, SPLITS) if isinstance(kind, str) else ""
            raise ValueError(f"{where}: kind={kind!r} must be one of {', '.join(SPLITS)}{close}.")
        known = {name: p for name, p in inspect.signature(SPLITS[kind]).parameters.items() if name not in _BY_RECIPE}
        options = {key: option for key, option in value.items() if key != "kind"}
        for key in options:
            if key not in (*known, "balanced"):
                close = nearest(str(key), [*known, "balanced"])
                raise ValueError(f"{where}: {key!r} is an unknown key of kind {kind!r}{close}.")
        for key, parameter in known.items():
            if parameter.default is _UNSAID and key not in options:
                raise ValueError(f"{where}: {key!r} is missing, which kind {kind!r} needs.")
        return cls(kind, options)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the raw data that it reads."""
        parameters = inspect.signature(SPLITS[self.kind]).parameters
        column = self.options.get("column", parameters["column"].default if "column" in parameters else None)
        features = self.options.get("features")
        return tuple(name for name in (column, features) if isinstance(name, str))

    def names(self, task: str) -> list[str] | None:
        """Names of the tasks where they are known before data is read."""
        number = self.options.get("num_tasks")
        if number is None and self.options.get("boundaries") is not None:
            number = len(self.options["boundaries"]) + 1
        return [f"{task}-{part}" for part in range(1, number + 1)] if isinstance(number, int) else None

    def split(self, train: Any, held_out: Any, task: str) -> list[Task]:
        """Divides an entry's data; the held-out part by the same rule."""
        return SPLITS[self.kind](train, name=task, eval_dataset=held_out, **self.options)


@dataclass(frozen=True)
class Component:
    """A part of a mixture.

    Args:
        source (`dict`): What the objective reads, under a name of its own.
        weight (`float`): Share of the samples, in any unit.
        subset (`int` or `float`, *optional*): As in [`Entry`].
        by_perplexity ([`ByPerplexity`], *optional*): As in [`Entry`], without a curriculum.
    """

    source: Mapping[str, Any]
    weight: Any
    subset: int | float | None = None
    by_perplexity: ByPerplexity | None = None


@dataclass(frozen=True)
class Entry:
    """One entry of `tasks`.

    Args:
        content (`dict`): All its keys.
        split_into ([`SplitInto`], *optional*): How it becomes several tasks, each with the entry's length.
        subset (`int` or `float`, *optional*): Samples of its raw data to train on, or below 1 a share; the same in
            every epoch (Guo et al. 2024, strategy I).
        by_perplexity ([`ByPerplexity`], *optional*): Which of its documents to train on, and in which order; after
            `subset`.
        mixture (`tuple[Component, ...]`): Datasets that are mixed by weights and resampled each epoch (strategy III).
        mixture_samples (`int`, *optional*): Samples of an epoch of the mixture.
    """

    content: Mapping[str, Any]
    split_into: SplitInto | None = None
    subset: int | float | None = None
    by_perplexity: ByPerplexity | None = None
    mixture: tuple[Component, ...] = ()
    mixture_samples: int | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any], lengths: Iterable[str]) -> Entry:
        """Reads an entry.

        Args:
            content (`Mapping`): Its keys.
            lengths (`Iterable[str]`): Keys that say how long a task is.

        Raises:
            ValueError: naming the key, its value and the rule.
        """
        name, lengths = content["name"], tuple(lengths)
        given = [key for key in ("split_into", "mixture") if content.get(key) is not None]
        if len(given) > 1:
            raise ValueError(f"tasks: {name!r} has split_into and mixture: give one of them.")
        if "mixture_samples" in content and "mixture" not in given:
            raise ValueError(f"tasks: {name!r}: mixture_samples goes with mixture only.")
        split = SplitInto.of(content["split_into"], name) if "split_into" in given else None
        parts = _components(content, lengths) if "mixture" in given else ()
        ranked = _ranked(content, name)
        if split is not None and ranked is not None and ranked.curriculum:
            raise ValueError(f"tasks: {name!r} has split_into and by_perplexity with curriculum: give one of them.")
        return cls(content, split, content.get("subset"), ranked, parts, content.get("mixture_samples"))

    @property
    def name(self) -> str:
        """Of the entry, and of its task unless it is split."""
        return self.content["name"]

    @property
    def sources(self) -> list[Mapping[str, Any]]:
        """What the objective reads of it."""
        if self.mixture:
            return [part.source for part in self.mixture]
        return [{key: value for key, value in self.content.items() if key not in OWN_KEYS}]

    @property
    def ranked(self) -> dict[str, ByPerplexity]:
        """What is ranked by perplexity, by the names of the sources: its own data, or parts of its mixture."""
        chosen = {part.source["name"]: part.by_perplexity for part in self.mixture}
        return {name: by for name, by in {self.name: self.by_perplexity, **chosen}.items() if by is not None}

    @property
    def task_names(self) -> list[str] | None:
        """Names of its tasks; None where they are only known with the data."""
        return self.split_into.names(self.name) if self.split_into else [self.name]


def _components(content: Mapping[str, Any], lengths: Sequence[str]) -> tuple[Component, ...]:
    name, parts = content["name"], content["mixture"]
    for key in content:
        if key not in ("name", "mixture", "mixture_samples", *lengths):
            raise ValueError(f"tasks: {name!r}: {key!r} does not go with mixture; write it in the mixture's parts.")
    if not isinstance(parts, list) or not parts or not all(isinstance(part, Mapping) for part in parts):
        raise ValueError(f"tasks: {name!r}: mixture={parts!r} must be a list of mappings, one for each dataset.")
    return tuple(_component(part, f"{name} {place}", lengths) for place, part in enumerate(parts, start=1))


def _component(part: Mapping[str, Any], name: str, lengths: Sequence[str]) -> Component:
    if "weight" not in part:
        raise ValueError(f"tasks: part {name!r} of a mixture needs a weight.")
    for key in part:
        if key in (*lengths, "split_into", "mixture", "mixture_samples"):
            raise ValueError(f"tasks: part {name!r} of a mixture has {key!r}, which belongs to the task.")
    source = {key: value for key, value in part.items() if key not in ("weight", "subset", "by_perplexity")}
    ranked = _ranked(part, name)
    if ranked is not None and ranked.curriculum:
        raise ValueError(
            f"tasks: part {name!r} of a mixture has by_perplexity with curriculum, but a mixture is drawn at random."
        )
    return Component({**source, "name": name}, part["weight"], part.get("subset"), ranked)


def _ranked(content: Mapping[str, Any], name: str) -> ByPerplexity | None:
    value = content.get("by_perplexity")
    return None if value is None else ByPerplexity.of(value, name)
