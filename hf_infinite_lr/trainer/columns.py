"""Evaluation of every column of the task matrix, without a trace in the training that goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import DataLoaderAdapter
from accelerate.utils import recursively_apply, slice_tensors
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig
from transformers.trainer_pt_utils import find_batch_size
from transformers.utils import logging

from hf_infinite_lr.stream.loading import kept_rng
from hf_infinite_lr.stream.plan import StreamPlan
from hf_infinite_lr.stream.reader import is_streaming
from hf_infinite_lr.stream.task import Stream

from .flow import Stopwatch
from .host import Host, without_bars
from .preemption import outlive_sigterm
from .record import RunRecord

logger = logging.get_logger(__name__)

ScoreModel = Callable[[Any, str, tuple[str, ...], tuple[str, ...]], Mapping[str, Mapping[str, float]]]
"""`(trainer, release, columns, learned) -> {column: {metric: value}}`."""

_NO_SCORES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


class ColumnEvaluation(Host):
    """Scores the columns of a stream: its tasks and the evaluation-only datasets."""

    args: Any
    columns: tuple[str, ...]
    plan: StreamPlan
    record: RunRecord
    score_column: Callable[[str, dict[str, float]], Mapping[str, float]] | None
    finish_release: Callable[[Any, Path | None], Mapping[str, Mapping[str, float]]] | None
    score_model: ScoreModel | None
    _annealing: bool
    _scores: dict[str, dict[str, float]]
    _step_seconds: Stopwatch
    _evaluation_seconds: Stopwatch

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **kwargs: Any,
    ) -> dict[str, float]:
        """As in the host, leaving every RNG as it was; without a dataset, the columns that `evaluate_on` names."""
        if eval_dataset is None and (self.columns or self.is_in_train):
            columns = self._columns_at(self.state.global_step)
            return self._evaluate_columns(columns, ignore_keys, metric_key_prefix, **kwargs)
        with kept_rng(), self._loss_of_data():
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The host's step; its loss leaves out the rows by which Accelerate fills up the processes' last batches."""
        rows = self._own_rows(inputs)
        if rows is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        # As the mean of a process's own rows: Trainer's share of all rows supposes as many rows on each process.
        with _switched_off((self.args, "average_tokens_across_devices")):
            loss, _, _ = super().prediction_step(model, slice_tensors(inputs, rows), True, ignore_keys)
        if prediction_loss_only:
            return loss, None, None
        _, logits, labels = super().prediction_step(model, inputs, False, ignore_keys)
        return loss, logits, labels

    def _own_rows(self, inputs: Any) -> slice | None:
        """Which rows of a last batch are not repeated ones; None where no process has a batch of both.

        A process that has repeated rows alone keeps them, because Trainer drops their losses.
        """
        loader = self.accelerator.gradient_state
        if not loader.end_of_dataloader or loader.remainder <= 0:
            return None
        size = find_batch_size(inputs)
        tensors: list[torch.Tensor] = []
        recursively_apply(tensors.append, inputs)
        if not size or loader.remainder % size == 0 or any(part.shape[:1] != (size,) for part in tensors):
            return None  # the last: images in patches, say, which are not cut row by row
        own = loader.remainder - size * self.accelerator.process_index
        return slice(own if 0 < own < size else size)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As in `Trainer`, with workers that outlive the first SIGTERM, so that the run can still save."""
        loader = super().get_eval_dataloader(eval_dataset)
        inner = loader.base_dataloader if isinstance(loader, DataLoaderAdapter) else loader
        inner.worker_init_fn = outlive_sigterm
        return loader

    def _evaluate_columns(
        self, columns: tuple[str, ...], ignore_keys: list[str] | None = None, prefix: str = "eval", **kwargs: Any
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        with self._apart_from_training(), self._loss_of_data():
            for column in columns:
                data: Any = column  # a name will do
                found = super().evaluate(data, ignore_keys, f"{prefix}_{column}", **kwargs)
                self._scores[column] = self._scores_of(column, found, f"{prefix}_{column}_")
                scores = {f"{prefix}_{column}_{name}": value for name, value in self._scores[column].items()}
                metrics.update(found | scores)
        return metrics

    @contextmanager
    def _apart_from_training(self) -> Iterator[None]:
        """Leaves every RNG as it was, and counts the time as evaluation's."""
        self.record.train_seconds += self._step_seconds.stop()
        self._evaluation_seconds.start()
        with kept_rng():
            yield
        self.record.evaluation_seconds += self._evaluation_seconds.stop()
        if self.is_in_train:
            self._step_seconds.start()

    def _loss_of_data(self) -> AbstractContextManager[None]:
        """Leaves out what a mixture of experts adds to the loss of its data, so that models can be compared.

        The model itself adds it where its configuration says so, TRL's trainers where their attribute does.
        """
        config: Any = getattr(self._unwrapped(), "config", None)
        text = config.get_text_config() if isinstance(config, PreTrainedConfig) else config
        switches = [(owner, "output_router_logits") for owner in (config, text)]
        return _switched_off(*switches, (self, "aux_loss_enabled"))

    def _check_best_metric(self) -> None:
        """Refuses a `metric_for_best_model` that some evaluation would not have."""
        name = self.args.metric_for_best_model
        if name is None:
            return
        evaluated = [set(self._columns_at(task.end_step)) for task in self.plan.tasks]
        columns = [column for column in self.columns if all(column in each for each in evaluated)]
        if any(name.removeprefix("eval_").startswith(f"{column}_") for column in columns):
            return
        known = f"such as eval_{columns[0]}_loss" if columns else f"and evaluate_on={self.args.evaluate_on!r} has none"
        raise ValueError(f"metric_for_best_model={name!r} must be of a column that is always evaluated, {known}.")

    def _finished(self, directory: Path | None) -> Mapping[str, Mapping[str, float]]:
        """What `finish_release` says of the model as it is, after it has seen the release in `directory`."""
        if self.finish_release is None:
            return {}
        model = self._unwrapped()
        with self._apart_from_training(), without_bars():
            return self.finish_release(model, directory if self.args.should_save else None)

    def _score_release(self, release: str, learned: tuple[str, ...]) -> None:
        """Adds what `score_model` says of the model to the scores of the columns that were evaluated just now."""
        if self.score_model is None or self._annealing or self.args.evaluate_on == "none":
            return
        with self._apart_from_training():
            for column, scores in self.score_model(self, release, tuple(self._scores), learned).items():
                self._scores[column].update(scores)
                self.log({f"eval_{column}_{metric}": value for metric, value in scores.items()})

    def _scores_of(self, column: str, metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
        names = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
        others = [name for name, value in names.items() if not isinstance(value, (int, float, type(None)))]
        for name in others:
            kind = type(names[name]).__name__
            logger.warning_once(f"{name!r} of {column!r} is a {kind}: only numbers are recorded.")
        scores = {name: value for name, value in names.items() if name not in (*_NO_SCORES, *others)}
        return {**scores, **(self.score_column(column, scores) if self.score_column else {})}

    def _columns_at(self, step: int) -> tuple[str, ...]:
        tasks = [task.name for task in self.plan.tasks]
        current = self.plan.task_at(max(step - 1, 0)).index
        hidden = {
            "all": [],
            "seen": tasks[current + 1 :],
            "current": tasks[:current] + tasks[current + 1 :],
            "none": list(self.columns),
        }[self.args.evaluate_on]
        return tuple(column for column in self.columns if column not in hidden)


@contextmanager
def _switched_off(*switches: tuple[Any, str]) -> Iterator[None]:
    """Makes attributes that are true False for a while: pairs of an object and a name."""
    on = [(owner, name) for owner, name in switches if getattr(owner, name, False)]
    try:
        for owner, name in on:
            setattr(owner, name, False)
        yield
    finally:
        for owner, name in on:
            setattr(owner, name, True)


def check_evaluation(stream: Stream, evaluate_on: str) -> None:
    """Refuses a stream whose tasks cannot all be evaluated where they should be."""
    missing = [task.name for task in stream.tasks if task.eval_dataset is None]
    if evaluate_on != "none" and missing:
        raise ValueError(
            f"Task {missing[0]!r} has no eval_dataset: give one (eval_dataset={{{missing[0]!r}: ...}}), or set "
            "evaluate_on='none'."
        )
    for name, dataset in stream.eval_datasets.items():
        if evaluate_on != "none" and not is_streaming(dataset) and len(dataset) == 0:
            raise ValueError(
                f"The eval_dataset of {name!r} is empty, so that it would have no score: give it rows, or set "
                "evaluate_on='none'."
            )
