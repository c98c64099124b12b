"""The metadata of a model card, made and checked by huggingface_hub's own classes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from hf_infinite_lr.stream.task import slug


def card_metadata(facts: Mapping[str, Any], repo_id: str | None) -> ModelCardData:
    """The metadata of a release's card; all evaluation results go into its `model-index`.

    Args:
        facts (`Mapping`): From [`~hf_infinite_lr.hub.facts.release_facts`].
        repo_id (`str`, *optional*): The repository.
    """
    model = facts["model"]
    pipeline = _pipeline(model)
    task_type = pipeline or "other"
    results = [*_results(facts, task_type), *_benchmark_results(facts, task_type)]
    return ModelCardData(
        license=facts["hub"]["license"],
        library_name="peft" if model["kind"] == "adapter" else "transformers",
        pipeline_tag=pipeline,
        base_model=model["base_model"],
        datasets=list(facts["datasets"]) or None,
        tags=["hf_infinite_lr", "continual-pretraining", slug(facts["schedule"]["name"])],
        model_name=_one_line(repo_id or facts["output_dir"]) if results else None,
        eval_results=results or None,
    )


def scores_of(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The scores that a card tells: the half-width of an interval belongs to a score and is none that is learned.

    Args:
        facts (`Mapping`): From [`~hf_infinite_lr.hub.facts.release_facts`].
    """
    return [scores for scores in facts["scores"] if not scores["metric"].endswith("half_width")]


def _pipeline(model: Mapping[str, Any]) -> str | None:
    if model["causal"]:
        return "text-generation"
    if "ForImageClassification" in model["base_class"]:
        return "image-classification"
    return "image-feature-extraction" if model["kind"] == "mae" else None


def _results(facts: Mapping[str, Any], task_type: str) -> Iterator[EvalResult]:
    for scores in scores_of(facts):
        shared = Counter(_place(row) for row in scores["last"] if row is not None)
        for row in scores["last"]:
            if row is None or row["value"] is None or not math.isfinite(row["value"]):
                continue
            yield EvalResult(
                task_type=task_type,
                dataset_type=_dataset(row),
                dataset_name=_one_line(row["column"]),
                # Tasks of one dataset, or all that are local, are told apart by name, or they would be read as one.
                dataset_config=_one_line(row["column"]) if shared[_place(row)] > 1 else _subset(row),
                dataset_split=row["split"] if row["dataset"] else None,
                metric_type=slug(scores["metric"].removeprefix("eval_")).replace("-", "_"),
                metric_name=_one_line(f"{scores['metric']}{f' ({unit})' if (unit := scores['unit']) else ''}"),
                metric_value=row["value"],
            )


def _benchmark_results(facts: Mapping[str, Any], task_type: str) -> Iterator[EvalResult]:
    names = {row["benchmark"]: (row["dataset"], row["subset"]) for row in _benchmarks(facts)}
    shared = Counter(names.values())
    for row in _benchmarks(facts):
        name = _one_line(row["benchmark"])
        is_alone = row["dataset"] and shared[names[row["benchmark"]]] == 1
        yield EvalResult(
            task_type=task_type,
            dataset_type=_dataset(row),
            dataset_name=name,
            dataset_config=_subset(row) if is_alone else name,
            metric_type=slug(row["metric"]).replace("-", "_"),
            metric_name=_one_line(row["metric"]),
            metric_value=row["value"],
        )


def evaluation_entries(facts: Mapping[str, Any]) -> bytes | None:
    """`.eval_results/` of the Hub, which it reads for the leaderboards of benchmarks; None where there is nothing.

    The first metric of each benchmark over a dataset of the Hub, under the name that its harness gives it. A loss on
    held-out data is no score of a benchmark, whatever its dataset: that stays in `model-index`.

    Args:
        facts (`Mapping`): From [`~hf_infinite_lr.hub.facts.release_facts`].
    """
    first: dict[str, EvalResultEntry] = {}
    for row in _benchmarks(facts):
        if row["dataset"]:
            notes = ", ".join(_one_line(words) for words in (row["metric"], row["scored_by"]) if words)
            first.setdefault(
                row["benchmark"],
                EvalResultEntry(
                    dataset_id=row["dataset"], task_id=_one_line(row["benchmark"]), value=row["value"], notes=notes
                ),
            )
    if not first:
        return None
    entries = eval_result_entries_to_yaml(list(first.values()))
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True).encode()


def _benchmarks(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Scores that are numbers; the facts of earlier releases do not speak of benchmarks."""
    return [row for row in facts.get("benchmarks", ()) if math.isfinite(row["value"])]


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return _dataset(row), _subset(row), row["split"] if row["dataset"] else None


def _dataset(row: Mapping[str, Any]) -> str:
    """The id of a dataset on the Hub; what is not there gets no name of its own, which could be another's id."""
    return row["dataset"] or "local"


def _subset(row: Mapping[str, Any]) -> str | None:
    return row.get("subset") if row["dataset"] else None


def _one_line(value: str) -> str:
    return " ".join(value.split())
