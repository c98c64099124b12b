"""A recipe: the YAML that says what to train, and the trainer that it makes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import set_seed

from hf_infinite_lr.config import (
    ContinualTrainingArguments,
    refuse_replay_of_streams,
    refuse_unsupported,
    task_steps_of,
)
from hf_infinite_lr.objectives.causal_lm import (
    ModelSource,
    build_model,
    build_tokenizer,
    byte_unigram_bits,
    language_model_scores,
)
from hf_infinite_lr.objectives.keys import from_mapping, nearest
from hf_infinite_lr.objectives.packing import PackedBlocks, PackedStream, causal_lm_collator, pack
from hf_infinite_lr.objectives.text import TextSource, TextSplits, load_held_out, load_text
from hf_infinite_lr.stream import Stream, Task
from hf_infinite_lr.stream.plan import task_lengths
from hf_infinite_lr.stream.task import is_streaming
from hf_infinite_lr.trainer import ContinualTrainer
from hf_infinite_lr.trainer.resume import refuse_used

OBJECTIVES = ("causal_lm",)
_TASK_LENGTHS = ("num_steps", "num_epochs", "num_tokens")


@dataclass
class DataArguments:
    """The keys of a recipe that say what the stream is made of.

    Args:
        tasks (`list[dict]`): Entries of the stream; keys of [`TextSource`] and at most one of `num_steps`,
            `num_epochs` and `num_tokens`.
        objective (`str`, defaults to `"causal_lm"`): What is learned.
        block_size (`int`, defaults to 1024): Tokens of a sample.
        evaluate_also (`list[dict]`): Evaluation-only columns; keys of [`TextSource`].
        preprocessing_num_workers (`int`, *optional*): Processes that tokenise and pack.
    """

    tasks: list[dict[str, Any]]
    objective: str = "causal_lm"
    block_size: int = 1024
    evaluate_also: list[dict[str, Any]] = field(default_factory=list)
    preprocessing_num_workers: int | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r} must be one of {', '.join(OBJECTIVES)}.")
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
        model ([`ModelSource`]): Which model and tokenizer.
        arguments ([`ContinualTrainingArguments`]): How to train.
        content (`dict`): The keys and values it was made of.
    """

    data: DataArguments
    model: ModelSource
    arguments: ContinualTrainingArguments
    content: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sources = [_source(entry, "tasks", _TASK_LENGTHS) for entry in self.data.tasks]
        self._held_out = [_source(entry, "evaluate_also", ()) for entry in self.data.evaluate_also]
        self._tokenizer: Any = None
        self._splits: list[TextSplits] = []
        self._columns: dict[str, tuple[Any, PackedBlocks]] = {}

    @property
    def global_batch_size(self) -> int:
        """Samples of one optimizer step."""
        args = self.arguments
        return args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def check(self) -> None:
        """Refuses what can be refused without reading data."""
        refuse_unsupported(self.arguments)
        streaming = [source.name for source in self._sources[:-1] if source.streaming]
        refuse_replay_of_streams(self.arguments, streaming)
        unread = tuple(self._task(entry, _Unread()) for entry in self.data.tasks)
        Stream(unread, dict.fromkeys(source.name for source in self._held_out))

    def task_lengths(self) -> dict[str, int]:
        """Optimizer steps of each task, by name. Data is loaded only where a length depends on it."""
        tasks = tuple(self._task(entry, _Unread()) for entry in self.data.tasks)
        by_epochs = [task.num_steps is None and (task.num_epochs or not self.arguments.task_steps) for task in tasks]
        if any(by_epochs):
            tasks = self.stream().tasks
        lengths = task_lengths(
            Stream(tasks, {}),
            self.global_batch_size,
            task_steps=task_steps_of(self.arguments),
            num_train_epochs=self.arguments.num_train_epochs,
        )
        return dict(zip((task.name for task in tasks), lengths, strict=True))

    def _task(self, entry: Mapping[str, Any], dataset: Any, **more: Any) -> Task:
        given = {key: entry[key] for key in _TASK_LENGTHS if entry.get(key) is not None}
        if len(given) > 1:
            raise ValueError(f"tasks: {entry['name']!r} has {', '.join(given)}: give one of them.")
        if (num_tokens := given.pop("num_tokens", None)) is not None:
            if type(num_tokens) not in (int, float):
                raise ValueError(f"tasks: num_tokens={num_tokens!r} of {entry['name']!r} must be a number.")
            steps = int(num_tokens // (self.data.block_size * self.global_batch_size))
            if steps < 1:
                raise ValueError(
                    f"tasks: num_tokens={num_tokens} of {entry['name']!r} is less than one global batch of "
                    f"{self.global_batch_size} blocks of {self.data.block_size} tokens."
                )
            given["num_steps"] = steps
        return Task(entry["name"], dataset, **given, **more)

    def stream(self) -> Stream:
        """Loads, tokenises and packs every dataset."""
        args = self.arguments
        self._tokenizer = build_tokenizer(self.model)
        with args.main_process_first(desc="loading and packing text"):
            self._splits = [load_text(source) for source in self._sources]
            tasks = [
                self._task(
                    entry,
                    self._pack(split.train),
                    eval_dataset=self._pack_eval(entry["name"], split.eval),
                    fingerprint=self._fingerprint(split),
                )
                for entry, split in zip(self.data.tasks, self._splits, strict=True)
            ]
            also = {source.name: self._pack_eval(source.name, load_held_out(source)) for source in self._held_out}
        return Stream(tuple(tasks), also)

    def _fingerprint(self, split: TextSplits) -> str | None:
        """Of a built-in corpus, which knows all its files, as tokens of this recipe; None leaves it to the rows."""
        if split.fingerprint is None:
            return None
        key = f"{split.fingerprint} {self.model.tokenizer_name} {self.data.block_size}"
        return hashlib.sha256(key.encode()).hexdigest()[:16]

    def _pack(self, documents: Any) -> Any:
        if is_streaming(documents):
            return PackedStream(documents, self._tokenizer, block_size=self.data.block_size)
        return self._packed(documents, count_bytes=False).dataset

    def _pack_eval(self, column: str, documents: Any) -> Any:
        blocks = self._packed(documents, count_bytes=True)
        self._columns[column] = documents, blocks
        return blocks.dataset

    def _packed(self, documents: Any, *, count_bytes: bool) -> PackedBlocks:
        return pack(
            documents,
            self._tokenizer,
            block_size=self.data.block_size,
            count_bytes=count_bytes,
            num_proc=self.data.preprocessing_num_workers,
        )

    def trainer(self) -> ContinualTrainer:
        """Builds everything. Whatever cannot work is refused here, as far as possible before data is read."""
        self.check()
        if not self.arguments.resume_from_checkpoint:
            refuse_used(Path(str(self.arguments.output_dir)))
        stream = self.stream()
        set_seed(self.arguments.seed)
        trainer = ContinualTrainer(
            model=build_model(self.model, self._tokenizer, block_size=self.data.block_size),
            args=self.arguments,
            train_dataset=list(stream.tasks),
            eval_dataset=stream.evaluate_also,
            data_collator=causal_lm_collator,
            processing_class=self._tokenizer,
            score_column=self._score,
        )
        trainer.references = self._references()
        trainer.units = {"eval_loss": "nats per token"}
        return trainer

    def write(self, path: Path) -> None:
        """Writes the recipe, overrides included, where a run leaves it."""
        path.write_text(yaml.safe_dump(self.content, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def _score(self, column: str, metrics: Mapping[str, float]) -> dict[str, float]:
        return language_model_scores(metrics["loss"], self._columns[column][1])

    def _references(self) -> dict[str, Any]:
        """The byte unigram of all training text, where all of it is at hand."""
        train = [split.train for split in self._splits]
        if any(is_streaming(documents) for documents in train):
            return {}
        held_out = {column: documents for column, (documents, _) in self._columns.items()}
        return {"byte_unigram": {"metric": "bits_per_byte", "values": byte_unigram_bits(train, held_out)}}


class _Unread:
    """Stands for data that has not been loaded, where only given lengths are asked for."""

    def __iter__(self) -> Any:
        raise AssertionError("data that was not loaded cannot be read")


def _source(entry: Mapping[str, Any], key: str, other_keys: Sequence[str]) -> TextSource:
    hints = get_type_hints(TextSource)
    try:
        typed = {name: _typed(TextSource, name, value) if name in hints else value for name, value in entry.items()}
        return from_mapping(TextSource, typed, other_keys=other_keys)
    except ValueError as error:
        raise ValueError(f"{key}: {entry.get('name')!r}: {error}") from error


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of its version 1.2: `3e-4` is a number, and `no` is a word (as in `save_strategy: no`)."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # the name and form that PyYAML looks up
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_value(text: str) -> Any:
    """A value of the command line, read as YAML.

    Example:

    ```python
    >>> parse_value("3e-4"), parse_value("true"), parse_value("no"), parse_value("{a: 1}")
    (0.0003, True, 'no', {'a': 1})

    ```
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError:
        return text


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies what the command line says.

    Args:
        path (`str` or `Path`): A YAML file.
        overrides (`Sequence[str]`): `--key value`, `--key=value`; `--a.b value` sets one entry of a mapping, and a
            mapping given for a mapping is merged into it.

    Raises:
        ValueError: one sentence naming the key, its value and the rule.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        content = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of keys to values, not a {type(content).__name__}.")
    for key, value in _pairs(overrides):
        _override(content, key.split("."), value)
    return recipe_of(content)


def _pairs(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    pairs = []
    words = iter(overrides)
    for word in words:
        if not word.startswith("--"):
            raise ValueError(f"{word!r} must be the name of a key, as in --learning_rate 3e-4.")
        key, equals, text = word.removeprefix("--").partition("=")
        value = text if equals else next(words, None)
        if value is None:
            raise ValueError(f"--{key} needs a value.")
        pairs.append((key, parse_value(value)))
    return pairs


def _override(content: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    first, *rest = keys
    old = content.get(first)
    if rest:
        if old is None:
            old = content[first] = {}
        if not isinstance(old, dict):
            raise ValueError(f"--{'.'.join(keys)}: {first} is {old!r}, no mapping.")
        _override(old, rest, value)
    elif isinstance(old, dict) and isinstance(value, dict):
        content[first] = {**old, **value}
    else:
        content[first] = value


def recipe_of(content: Mapping[str, Any]) -> Recipe:
    """A recipe from the mapping of a YAML; every key must belong to somebody."""
    parts = (DataArguments, ModelSource, ContinualTrainingArguments)
    known = {name: kind for kind in parts for name in (item.name for item in fields(kind) if item.init)}
    chosen: dict[type, dict[str, Any]] = {kind: {} for kind in parts}
    for key, value in content.items():
        if key not in known:
            raise ValueError(f"{key!r} is an unknown key{nearest(str(key), known)}.")
        chosen[known[key]][key] = _typed(known[key], key, value)
    for key in ("tasks", "output_dir"):
        if content.get(key) is None:
            raise ValueError(f"{key!r} is missing.")
    data, model = DataArguments(**chosen[DataArguments]), ModelSource(**chosen[ModelSource])
    return Recipe(data, model, ContinualTrainingArguments(**chosen[ContinualTrainingArguments]), dict(content))


def _typed(kind: type, key: str, value: Any) -> Any:
    """The value as the field's type, where YAML writes it otherwise (1 for 1.0, 1e9 for a whole number)."""
    if key == "lr_scheduler_kwargs" and not (value is None or isinstance(value, Mapping)):
        raise ValueError(f"{key}={value!r} must be a mapping of names to values.")
    hint = get_type_hints(kind)[key]
    allowed = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = {int, float, bool, str}
    if not set(allowed) <= {*plain, type(None)} or any(type(value) is option for option in allowed):
        return value
    if type(value) is int and float in allowed:
        return float(value)
    if type(value) is float and value.is_integer() and int in allowed:
        return int(value)
    if key == "resume_from_checkpoint" and isinstance(value, bool):
        return value
    names = " or ".join(option.__name__ for option in allowed if option is not type(None))
    raise ValueError(f"{key}={value!r} must be of type {names}.")
