"""`Recipe`: who reads which key, and the trainer that all of them make together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import set_seed

from hf_infinite_lr.config import ContinualTrainingArguments, refuse_unsupported, run_lengths
from hf_infinite_lr.objectives.keys import nearest, typed
from hf_infinite_lr.objectives.language_modelling import LanguageModelling
from hf_infinite_lr.objectives.objective import Objective
from hf_infinite_lr.stream import Stream, Task
from hf_infinite_lr.trainer import ContinualTrainer
from hf_infinite_lr.trainer.resume import refuse_used

from .document import read_document

OBJECTIVES: dict[str, type[Objective]] = {"causal_lm": LanguageModelling}
"""What `objective` can name."""


@dataclass
class DataArguments:
    """The keys of every recipe that say what the stream is made of.

    Args:
        tasks (`list[dict]`): Entries of the stream: a name, keys of the objective that say where the data is, and at
            most one key that says how long the task is.
        objective (`str`, defaults to `"causal_lm"`): What is learned.
        evaluate_also (`list[dict]`): Evaluation-only columns: a name, and keys of the objective.
    """

    tasks: list[dict[str, Any]]
    objective: str = "causal_lm"
    evaluate_also: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key in ("tasks", "evaluate_also"):
            entries = getattr(self, key)
            if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
                raise ValueError(f"{key}={entries!r} must be a list of mappings, one for each dataset.")
            for place, entry in enumerate(entries, start=1):
                if not isinstance(entry.get("name"), str):
                    raise ValueError(f"{key}: entry {place} needs a name.")
        if not self.tasks:
            raise ValueError("tasks=[] must name at least one dataset.")


@dataclass
class Recipe:
    """A parsed recipe; nothing is loaded yet.

    Args:
        data ([`DataArguments`]): What to learn.
        objective ([`Objective`]): Reads the data and makes the model.
        arguments ([`ContinualTrainingArguments`]): How to train.
        content (`dict`): The keys and values it was made of.
    """

    data: DataArguments
    objective: Objective
    arguments: ContinualTrainingArguments
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def global_batch_size(self) -> int:
        """Samples of one optimizer step."""
        args = self.arguments
        return args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def check(self) -> None:
        """Refuses what can be refused without reading data."""
        refuse_unsupported(self.arguments)
        unread = tuple(self._task(entry, _Unread()) for entry in self.data.tasks)
        Stream(unread, {entry["name"]: None for entry in self.data.evaluate_also})

    def task_lengths(self) -> dict[str, int]:
        """Optimizer steps of each task, by name. Data is loaded only where a length depends on it."""
        tasks = tuple(self._task(entry, _Unread()) for entry in self.data.tasks)
        by_epochs = [task.num_steps is None and (task.num_epochs or not self.arguments.task_steps) for task in tasks]
        if any(by_epochs):
            tasks = self.stream().tasks
        lengths = run_lengths(self.arguments, Stream(tasks, {}), self.global_batch_size)
        return dict(zip((task.name for task in tasks), lengths, strict=True))

    def _task(self, entry: Mapping[str, Any], dataset: Any, **more: Any) -> Task:
        given = {key: entry[key] for key in self.objective.lengths if entry.get(key) is not None}
        if len(given) > 1:
            raise ValueError(f"tasks: {entry['name']!r} has {', '.join(given)}: give one of them.")
        for key in [key for key in given if key not in Objective.lengths]:
            del given[key]
            given["num_steps"] = self.objective.steps_of(entry, key, self.global_batch_size)
        return Task(entry["name"], dataset, **given, **more)

    def stream(self) -> Stream:
        """Loads every dataset and prepares its samples."""
        with self.arguments.main_process_first(desc="loading and preparing data"):
            tasks = tuple(self._loaded(entry) for entry in self.data.tasks)
            names = [entry["name"] for entry in self.data.evaluate_also]
            also = {name: self.objective.eval_samples(name, self.objective.load_held_out(name)) for name in names}
        return Stream(tasks, also)

    def _loaded(self, entry: Mapping[str, Any]) -> Task:
        splits = self.objective.load(entry["name"])
        return self._task(
            entry,
            self.objective.train_samples(splits.train),
            eval_dataset=self.objective.eval_samples(entry["name"], splits.eval),
            fingerprint=self.objective.fingerprint(splits),
        )

    def trainer(self) -> ContinualTrainer:
        """Builds everything. Whatever cannot work is refused here, as far as possible before data is read."""
        self.check()
        if not self.arguments.resume_from_checkpoint:
            refuse_used(Path(str(self.arguments.output_dir)))
        stream = self.stream()
        set_seed(self.arguments.seed)
        trainer = ContinualTrainer(
            model=self.objective.model(),
            args=self.arguments,
            train_dataset=list(stream.tasks),
            eval_dataset=stream.evaluate_also,
            **self.objective.trainer_options(),
        )
        trainer.references = self.objective.references()
        trainer.units = dict(self.objective.units)
        return trainer

    def write(self, path: Path) -> None:
        """Writes the recipe, overrides included, where a run leaves it."""
        path.write_text(yaml.safe_dump(self.content, sort_keys=False, allow_unicode=True), encoding="utf-8")


class _Unread:
    """Stands for data that has not been loaded, where only given lengths are asked for."""

    def __iter__(self) -> Any:
        raise AssertionError("data that was not loaded cannot be read")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies what the command line says.

    Args:
        path (`str` or `Path`): A YAML file.
        overrides (`Sequence[str]`): As in [`~hf_infinite_lr.recipe.document.read_document`].

    Raises:
        ValueError: one sentence naming the key, its value and the rule.
    """
    content = read_document(path, overrides)
    name = content.get("objective", DataArguments.objective)
    if name not in OBJECTIVES:
        raise ValueError(f"objective={name!r} must be one of {', '.join(OBJECTIVES)}.")
    objective = OBJECTIVES[name]
    parts: tuple[type, ...] = (DataArguments, *objective.keys, ContinualTrainingArguments)
    known = {key: kind for kind in parts for key in (item.name for item in fields(kind) if item.init)}
    chosen: dict[type, dict[str, Any]] = {kind: {} for kind in parts}
    for key, value in content.items():
        if key not in known:
            raise ValueError(f"{key!r} is an unknown key{nearest(str(key), known)}.")
        chosen[known[key]][key] = typed(known[key], key, value)
    for key in ("tasks", "output_dir"):
        if content.get(key) is None:
            raise ValueError(f"{key!r} is missing.")
    data = DataArguments(**chosen[DataArguments])
    options = {kind: kind(**chosen[kind]) for kind in objective.keys}
    return Recipe(
        data,
        objective(options, data.tasks, data.evaluate_also),
        ContinualTrainingArguments(**chosen[ContinualTrainingArguments]),
        content,
    )
