"""`by_perplexity` of an entry: which of its documents are learned, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_infinite_lr.keys import from_mapping
from hf_infinite_lr.objectives.model_source import ModelSource
from hf_infinite_lr.objectives.perplexity import DocumentScores


@dataclass(frozen=True)
class ByPerplexity:
    """Ranks a task's documents by their perplexity under a reference model.

    To keep the best of a domain under a reference model of that domain is strategy II of Guo et al. 2024
    (arXiv 2406.14833); to learn the easy ones first is a curriculum. In a recipe:

    ```yaml
    tasks:
      - name: medicine
        data_files: med/*.parquet
        num_epochs: 4
        by_perplexity: {model_name_or_path: EleutherAI/pythia-160m, keep: 0.25, curriculum: true}
    ```

    Args:
        reference ([`ModelSource`]):
            The model: `model_name_or_path`, and if need be `model_revision`, `tokenizer_name`, `dtype` and its other
            keys. It scores as [`~hf_infinite_lr.objectives.perplexity.score_documents`] says.
        keep (`int` or `float`, *optional*): Documents of the lowest perplexity to keep, or below 1 a share of them.
        curriculum (`bool`, defaults to `False`): Visit the task from low to high perplexity instead of shuffled.
    """

    reference: ModelSource
    keep: int | float | None = None
    curriculum: bool = False

    @classmethod
    def of(cls, value: Any, task: str) -> ByPerplexity:
        """Reads the mapping of a recipe.

        Raises:
            ValueError: naming the key, its value and the rule.
        """
        where = f"tasks: {task!r}: by_perplexity"
        if not isinstance(value, Mapping) or value.get("model_name_or_path") is None:
            raise ValueError(
                f"{where}={value!r} must be a mapping with a model_name_or_path, such as "
                "{model_name_or_path: EleutherAI/pythia-160m, keep: 0.5}."
            )
        try:
            reference = from_mapping(ModelSource, value, other_keys=("keep", "curriculum"))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        keep, curriculum = value.get("keep"), value.get("curriculum", False)
        share = type(keep) is float and 0 < keep < 1
        if keep is not None and not share and (type(keep) is not int or keep < 1):
            raise ValueError(
                f"{where}: keep={keep!r} must be a whole number of documents, or a share above 0 and below 1."
            )
        if type(curriculum) is not bool:
            raise ValueError(f"{where}: curriculum={curriculum!r} must be true or false.")
        if keep is None and not curriculum:
            raise ValueError(
                f"{where} says neither keep (how many documents) nor curriculum: true; give at least one."
            )
        return cls(reference, keep, curriculum)

    def rows(self, scores: DocumentScores, task: str) -> np.ndarray:
        """The rows of the documents to learn: in the order of the curriculum, else in their own.

        Args:
            scores ([`DocumentScores`]): Of all documents.
            task (`str`): Name of the task, for the error.

        Raises:
            ValueError: for more documents than there are.
        """
        ranked = np.argsort(scores.perplexities, kind="stable")
        number = len(ranked) if self.keep is None else self.keep
        if isinstance(number, float):
            number = max(1, int(number * len(ranked) + 1e-9))
        if number > len(ranked):
            raise ValueError(
                f"tasks: {task!r}: by_perplexity: keep={number} is more than the {len(ranked)} documents that there "
                "are."
            )
        return ranked[:number] if self.curriculum else np.sort(ranked[:number])
