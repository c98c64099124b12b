"""Zero-shot benchmarks through EleutherAI's lm-evaluation-harness (`lm-eval`), which is an optional dependency."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedTokenizerBase

_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class BenchmarkArguments:
    """Which benchmarks score the releases; keys of a recipe.

    Args:
        zero_shot_tasks (`list[str]`, *optional*): Tasks or groups of the harness, by name.
        zero_shot_include_path (`str`, *optional*):
            A folder with task files of the harness's format, such as benchmarks over local data.
        zero_shot_batch_size (`int`, defaults to 8): Texts that are scored at once.
    """

    zero_shot_tasks: Sequence[str] = ()
    zero_shot_include_path: str | None = None
    zero_shot_batch_size: int = 8

    def __post_init__(self) -> None:
        names = self.zero_shot_tasks
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"zero_shot_tasks={names!r} must be a list of names.")
        if self.zero_shot_batch_size < 1:
            raise ValueError(f"zero_shot_batch_size={self.zero_shot_batch_size} must be at least 1.")
        if names and find_spec("lm_eval") is None:
            raise ValueError("zero_shot_tasks needs lm-eval: pip install 'hf_infinite_lr[lm-eval]'.")


class ZeroShot:
    """Scores a causal language model on benchmarks; their data is loaded once, when this is made.

    Every process scores all of it by itself, so that none waits for another past a time-out.

    Args:
        arguments ([`BenchmarkArguments`]): The benchmarks.
        tokenizer (`PreTrainedTokenizerBase`): The model's. Text is opened as it opens it by default, and never closed
            by an end-of-sequence token.

    Raises:
        ValueError: for a name that the harness does not know as a task or a group.
    """

    def __init__(self, arguments: BenchmarkArguments, tokenizer: PreTrainedTokenizerBase) -> None:
        self.names = tuple(arguments.zero_shot_tasks)
        self._tokenizer, self._batch_size = tokenizer, arguments.zero_shot_batch_size
        self._loaded = _load(self.names, arguments.zero_shot_include_path)
        for task in self._loaded["tasks"].values():
            task.set_config(key="num_fewshot", value=0)

    @property
    def sources(self) -> dict[str, dict[str, str | None]]:
        """Of each benchmark: `scored_by`, and of one that is a single task `dataset` (a name or path) and `subset`."""
        by = f"lm-evaluation-harness {version('lm_eval')}, zero-shot"
        configs = {name: task.config for name, task in self._loaded["tasks"].items() if name in self.names}
        data = {name: {"dataset": each.dataset_path, "subset": each.dataset_name} for name, each in configs.items()}
        return {name: {"scored_by": by, **data.get(name, {})} for name in self.names}

    def __call__(self, model: Any) -> dict[str, dict[str, float]]:
        """Scores a model.

        Args:
            model (`PreTrainedModel` or `PeftModel`): Whole, on one device.

        Returns:
            `dict[str, dict[str, float]]`: benchmark -> metric -> value in the harness's names, such as `acc` and
            `acc_stderr`; a filter of the harness follows the metric behind a comma.
        """
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        # It advises against launchers at every construction, because it would not share the work; nor shall it.
        logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)
        was_training = model.training
        scorer = HFLM(
            pretrained=model,
            tokenizer=self._tokenizer,
            batch_size=self._batch_size,
            add_bos_token=False if _closes(self._tokenizer) else None,
        )
        found = evaluate(scorer, self._loaded, bootstrap_iters=_BOOTSTRAPS, log_samples=False)
        model.train(was_training)
        results = {**found["results"], **found.get("groups", {})}
        return {name: _numbers(results[name]) for name in self.names}


def _load(names: Sequence[str], include_path: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include_path)
    known = {*manager.all_subtasks, *manager.all_groups}
    for name in names:
        if name not in known:
            raise ValueError(
                f"zero_shot_tasks names {name!r}, which is no task or group of lm-eval; `lm_eval ls tasks` lists them."
            )
    return manager.load(list(names))


def _closes(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """What the harness says of one benchmark, without names and counts of samples."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in result.items()
        if "," in key and isinstance(value, int | float)
    }
