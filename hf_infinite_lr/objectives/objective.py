"""What an objective of a recipe has to say: which keys it reads, and what it makes of data and model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from .lora import AdapterArguments
from .model_source import ModelSource
from .perplexity import DocumentScores
from .source import Splits


class Objective(ABC):
    """Turns the data of a recipe into samples of a model, and makes the model.

    A recipe asks in this order: [`~Objective.check`] before anything is read; [`~Objective.load`] and
    [`~Objective.train_samples`] for each task, [`~Objective.eval_samples`] for each column;
    [`~Objective.model`] and [`~Objective.trainer_options`] at last.

    Args:
        options (`Mapping[type, Any]`): An instance of each class of `keys`, filled from the recipe.
        tasks (`Sequence[Mapping]`): The entries of `tasks`, each with a name; of a mixture its parts.
        evaluate_also (`Sequence[Mapping]`): The entries of `evaluate_also`.

    Raises:
        ValueError: naming key, value and rule.
    """

    keys: ClassVar[tuple[type, ...]]
    """Dataclasses whose fields are keys of a recipe with this objective."""

    lengths: ClassVar[tuple[str, ...]] = ("num_steps", "num_epochs")
    """Keys of a task that say how long it is, of which a task may have one."""

    units: ClassVar[dict[str, str]] = {}
    """Units of metrics by name."""

    arguments: ClassVar[dict[str, Any]] = {}
    """Training arguments that a recipe with this objective has unless it says otherwise."""

    smoke: ClassVar[dict[str, Any]] = {}
    """Keys of a recipe that make two steps with it short, for `--smoke`."""

    smoke_builtin: ClassVar[dict[str, Any]] = {}
    """Keys of an entry that make built-in data short, for `--smoke`."""

    adapter = AdapterArguments()
    """Which adapter is trained instead of the whole model; of an objective without adapters none."""

    has_perplexity: ClassVar[bool] = False
    """Whether [`~Objective.scores`] can rank data by perplexity."""

    @property
    def tokens_per_sample(self) -> int | None:
        """Tokens of a sample, where samples are blocks of tokens; None otherwise."""
        return None

    @abstractmethod
    def __init__(
        self,
        options: Mapping[type, Any],
        tasks: Sequence[Mapping[str, Any]],
        evaluate_also: Sequence[Mapping[str, Any]],
    ) -> None: ...

    def check(self, arguments: Any) -> None:  # noqa: B027  # as a rule everything fits
        """Refuses what does not fit the `ContinualTrainingArguments`, before anything is read."""

    def check_zero(self, stage: int | None) -> None:  # noqa: B027  # as a rule every one fits
        """Refuses a stage of DeepSpeed's ZeRO under which the model cannot be made; None is a run without it."""

    @property
    def finishes_releases(self) -> bool:
        """Whether something reads the whole model before a release is saved, as merging an adapter does."""
        return self.adapter.merge_releases

    @property
    def begins_tasks(self) -> bool:
        """Whether something writes weights before a task's first step, as a fresh adapter does."""
        return self.adapter.adapter_per_task

    @abstractmethod
    def is_streaming(self, name: str) -> bool:
        """Whether a task is read while training."""

    def steps_of(self, entry: Mapping[str, Any], key: str, global_batch_size: int) -> int:
        """Steps of a task whose length is given in a unit of the objective's own (a key of `lengths`).

        Args:
            entry (`Mapping`): The task.
            key (`str`): The key that says the length.
            global_batch_size (`int`): Samples of one optimizer step.
        """
        raise NotImplementedError(key)

    @abstractmethod
    def load(self, name: str, columns: Sequence[str] = ()) -> Splits:
        """Loads the data of a task, or of a part of a mixture.

        Args:
            name (`str`): Of the entry.
            columns (`Sequence[str]`): Columns of the raw data, such as labels or dates, that both parts must keep
                because the data is divided by them.

        Raises:
            ValueError: also for a column that is missing.
        """

    @abstractmethod
    def load_held_out(self, name: str) -> Any:
        """Loads an entry of `evaluate_also`."""

    def scores(self, data: Any, reference: ModelSource, arguments: Any) -> DocumentScores:
        """What a reference model makes of a task's data, where the objective has perplexity.

        Args:
            data: As [`~Objective.load`] gives it, map-style.
            reference ([`ModelSource`]): The model.
            arguments: The `ContinualTrainingArguments`, for batch size and device.
        """
        raise NotImplementedError(type(self).__name__)

    @abstractmethod
    def train_samples(self, data: Any) -> Any:
        """The training part of a task as samples: a dataset, or a stream for a stream."""

    @abstractmethod
    def eval_samples(self, column: str, data: Any) -> Any:
        """The held-out part of a column as samples."""

    @abstractmethod
    def fingerprint(self, splits: Splits) -> str | None:
        """Identity of a task's samples, where its source knows all of them; None leaves it to the samples."""

    @abstractmethod
    def model(self) -> PreTrainedModel:
        """Loads the model, or makes a new one from torch's global generator."""

    def empty_model(self) -> PreTrainedModel:
        """The model without memory for its weights, to count them."""
        with torch.device("meta"):
            return self.model()

    @property
    def uncounted(self) -> str:
        """What `empty_model` lacks as long as no data is read, in a sentence; empty where it is whole."""
        return ""

    @abstractmethod
    def trainer_options(self) -> dict[str, Any]:
        """Further arguments of the trainer, such as its collator."""

    @property
    def benchmark_sources(self) -> Mapping[str, Mapping[str, str | None]]:
        """By whom and on what each benchmark of `finish_release` is scored, once `trainer_options` has been asked."""
        return {}

    @classmethod
    @abstractmethod
    def stand_in(cls, entry: Mapping[str, Any], columns: Mapping[str, Sequence[Any]], folder: Path) -> dict[str, Any]:
        """An entry that reads a small local file with the columns of the Hub dataset that `entry` names.

        Args:
            entry (`Mapping`): Of `tasks` or `evaluate_also`, as the objective reads it.
            columns (`Mapping[str, Sequence]`): Further columns with their values, one for each row.
            folder (`Path`): Where to write the file.
        """

    @classmethod
    def stand_in_model(cls, content: Mapping[str, Any], folder: Path) -> dict[str, Any]:  # noqa: ARG003
        """Keys of a recipe that take local stand-ins for what its model and tokenizer are on the Hub.

        Args:
            content (`Mapping`): The recipe.
            folder (`Path`): Where to write them.
        """
        return {}

    def references(self) -> dict[str, Any]:
        """Reference rows of the task matrix: name -> `{"metric", "values"}`."""
        return {}
