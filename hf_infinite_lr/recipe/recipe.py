"""`Recipe`: who reads which key, and the trainer that all of them make together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from datasets import concatenate_datasets
from transformers import set_seed

from hf_infinite_lr.config import ContinualTrainingArguments, run_mode
from hf_infinite_lr.files import write_text
from hf_infinite_lr.keys import nearest, typed
from hf_infinite_lr.methods.joint import JOINT
from hf_infinite_lr.objectives.image_classification import ImageClassification
from hf_infinite_lr.objectives.language_modelling import LanguageModelling
from hf_infinite_lr.objectives.mae import MaskedAutoencoding
from hf_infinite_lr.objectives.objective import Objective
from hf_infinite_lr.run_plan import run_lengths
from hf_infinite_lr.stream import InOrder, Stream, Task, mixture, random_subset
from hf_infinite_lr.stream.labels import with_common_labels
from hf_infinite_lr.trainer import ContinualTrainer
from hf_infinite_lr.trainer.hub_rules import check_streams_on_hub
from hf_infinite_lr.trainer.resume import refuse_used
from hf_infinite_lr.unsupported import refuse_unsupported

from .document import read_document
from .entries import Component, Entry
from .smoke import for_two_steps

OBJECTIVES: dict[str, type[Objective]] = {
    "causal_lm": LanguageModelling,
    "mae": MaskedAutoencoding,
    "image_classification": ImageClassification,
}
"""What `objective` can name."""


@dataclass
class DataArguments:
    """The keys of every recipe that say what the stream is made of.

    Args:
        tasks (`list[dict]`): Entries of the stream: a name, keys of the objective that say where the data is, at
            most one key that says how long the task is, and the keys of [`~hf_infinite_lr.recipe.entries.Entry`]:
            `split_into` makes several tasks of one entry.
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
        entries (`tuple[Entry, ...]`): The entries of `tasks`.
        num_processes (`int`, *optional*): Of the run that is asked about, where it is another one than this process.
    """

    data: DataArguments
    objective: Objective
    arguments: ContinualTrainingArguments
    content: dict[str, Any] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    num_processes: int | None = None

    @property
    def global_batch_size(self) -> int:
        """Samples of one optimizer step."""
        args = self.arguments
        return args.train_batch_size * args.gradient_accumulation_steps * (self.num_processes or args.world_size)

    def check(self) -> None:
        """Refuses what can be refused without reading data."""
        refuse_unsupported(self.arguments)
        self.objective.check(self.arguments)
        streaming = []
        for entry in self.entries:
            kinds = {self.objective.is_streaming(source["name"]) for source in entry.sources}
            if len(kinds) > 1:
                raise ValueError(
                    f"tasks: {entry.name!r}: some parts of its mixture are streaming and some are not; make them all "
                    "one or the other."
                )
            streaming += [entry.name] if True in kinds else []
            self._check_ranked(entry)
        check_streams_on_hub(self.arguments, streaming)
        Stream(self._unread(), {entry["name"]: None for entry in self.data.evaluate_also})

    def _check_ranked(self, entry: Entry) -> None:
        for name, ranked in entry.ranked.items():
            where = f"tasks: {name!r}: by_perplexity"
            if not self.objective.has_perplexity:
                raise ValueError(f"{where} needs objective: causal_lm, but this is {self.data.objective}.")
            if self.objective.is_streaming(name):
                raise ValueError(
                    f"{where} needs all documents before the first step, so that streaming cannot be true."
                )
            if ranked.curriculum and (mode := run_mode(self.arguments)):
                raise ValueError(
                    f"{where}: curriculum=True cannot be used with methods.{mode}, which has its own order."
                )

    def _unread(self) -> tuple[Task, ...]:
        """The tasks as far as they are known without data; an entry stands for its tasks where they are not."""
        return tuple(
            self._task(entry, name, _Unread()) for entry in self.entries for name in entry.task_names or [entry.name]
        )

    def task_lengths(self) -> dict[str, int]:
        """Optimizer steps of each task, by name. Data is loaded only where a length or a name depends on it."""
        tasks = self._unread()
        by_epochs = [task.num_steps is None and (task.num_epochs or not self.arguments.task_steps) for task in tasks]
        if any(by_epochs) or any(entry.task_names is None for entry in self.entries):
            tasks = self.stream().tasks
        lengths = run_lengths(self.arguments, Stream(tasks, {}), self.global_batch_size)
        if run_mode(self.arguments) == JOINT:
            return {JOINT: sum(lengths)}
        return dict(zip((task.name for task in tasks), lengths, strict=True))

    def _task(self, entry: Entry, name: str, dataset: Any, **more: Any) -> Task:
        content = entry.content
        given = {key: content[key] for key in self.objective.lengths if content.get(key) is not None}
        if len(given) > 1:
            raise ValueError(f"tasks: {entry.name!r} has {', '.join(given)}: give one of them.")
        for key in [key for key in given if key not in Objective.lengths]:
            del given[key]
            given["num_steps"] = self.objective.steps_of(content, key, self.global_batch_size)
        return Task(name, dataset, **given, **more)

    def stream(self) -> Stream:
        """Loads every dataset and prepares its samples."""
        with self.arguments.main_process_first(desc="loading and preparing data"):
            tasks = tuple(task for entry in self.entries for task in self._loaded(entry))
            names = [entry["name"] for entry in self.data.evaluate_also]
            also = {name: self.objective.eval_samples(name, self.objective.load_held_out(name)) for name in names}
        return Stream(tasks, also)

    def _loaded(self, entry: Entry) -> list[Task]:
        if entry.mixture:
            return [self._mixed(entry)]
        splits = self.objective.load(entry.name, entry.split_into.columns if entry.split_into else ())
        train, key = self._chosen(splits.train, entry, entry.name)
        identity = self.objective.fingerprint(splits)
        served = InOrder if entry.by_perplexity and entry.by_perplexity.curriculum else _as_it_is
        parts = [Task(entry.name, train, splits.eval)]
        if entry.split_into is not None:
            parts = entry.split_into.split(train, splits.eval, entry.name)
        return [
            self._task(
                entry,
                part.name,
                served(self.objective.train_samples(part.dataset)),
                eval_dataset=self.objective.eval_samples(part.name, part.eval_dataset),
                fingerprint=_part_identity(identity, entry, part.name, key),
                holds=part.holds,
            )
            for part in parts
        ]

    def _mixed(self, entry: Entry) -> Task:
        loaded = [self.objective.load(part.source["name"]) for part in entry.mixture]
        trained = zip(with_common_labels([splits.train for splits in loaded]), entry.mixture, strict=True)
        chosen = [self._chosen(data, part, part.source["name"])[0] for data, part in trained]
        samples = [self.objective.train_samples(data) for data in chosen]
        weights = [part.weight for part in entry.mixture]
        held_out = concatenate_datasets(with_common_labels([splits.eval for splits in loaded]))
        return self._task(
            entry,
            entry.name,
            mixture(samples, weights, num_samples=entry.mixture_samples, seed=self._seed),
            eval_dataset=self.objective.eval_samples(entry.name, held_out),
            holds=f"mixture of {len(weights)} by weights {', '.join(str(weight) for weight in weights)}",
        )

    def _chosen(self, data: Any, part: Entry | Component, name: str) -> tuple[Any, str]:
        """The data to train on, and what identifies the choice beside the keys that ask for it."""
        if part.subset is not None:
            data = random_subset(data, part.subset, seed=self._seed)
        if part.by_perplexity is None:
            return data, ""
        scores = self.objective.scores(data, part.by_perplexity.reference, self.arguments)
        return data.select(part.by_perplexity.rows(scores, name)), scores.key

    @property
    def _seed(self) -> int:
        return self.arguments.seed if self.arguments.data_seed is None else self.arguments.data_seed

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
        trainer.benchmark_sources = self.objective.benchmark_sources
        trainer.tokens_per_sample = self.objective.tokens_per_sample
        return trainer

    def write(self, path: Path) -> None:
        """Writes the recipe, overrides included, where a run leaves it; without a token."""
        content = {key: value for key, value in self.content.items() if key != "hub_token"}
        write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _as_it_is(samples: Any) -> Any:
    return samples


def _part_identity(identity: str | None, entry: Entry, name: str, key: str) -> str | None:
    """Identity of a part of data that its source knows as a whole; `key` is that of its scores."""
    asked = ("split_into", "subset", "by_perplexity")
    chosen = {word: entry.content[word] for word in asked if entry.content.get(word) is not None}
    if identity is None or not chosen:
        return identity
    parts = f"{identity} {json.dumps(chosen, sort_keys=True, default=str)} {name} {key}".rstrip()
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


class _Unread:
    """Stands for data that has not been loaded, where only given lengths are asked for."""

    def __iter__(self) -> Any:
        raise AssertionError("data that was not loaded cannot be read")


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, smoke: Path | None = None) -> Recipe:
    """Reads a recipe and applies what the command line says.

    Args:
        path (`str` or `Path`): A YAML file.
        overrides (`Sequence[str]`): As in [`~hf_infinite_lr.recipe.document.read_document`].
        smoke (`Path`, *optional*): A folder for a run of two steps, as
            [`~hf_infinite_lr.recipe.smoke.for_two_steps`] makes of the recipe.

    Raises:
        ValueError: one sentence naming the key, its value and the rule.
    """
    content = read_document(path, overrides)
    name = content.get("objective", DataArguments.objective)
    if name not in OBJECTIVES:
        raise ValueError(f"objective={name!r} must be one of {', '.join(OBJECTIVES)}.")
    objective = OBJECTIVES[name]
    if smoke is not None:
        content = for_two_steps(content, objective, smoke)
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
    entries = tuple(Entry.of(entry, objective.lengths) for entry in data.tasks)
    return Recipe(
        data,
        objective(options, [source for entry in entries for source in entry.sources], data.evaluate_also),
        ContinualTrainingArguments(**{**objective.arguments, **chosen[ContinualTrainingArguments]}),
        content,
        entries,
    )
