"""`objective: causal_lm`: documents of text as packed blocks for a causal language model."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hf_infinite_lr.evaluation.harness import BenchmarkArguments, ZeroShot
from hf_infinite_lr.stream.reader import is_streaming

from .causal_lm import BYTE_TOKENIZER, build_model, build_tokenizer
from .lm_scores import byte_unigram_bits, language_model_scores
from .lora import MERGED, AdapterArguments, FreshAdapter, save_merged, with_adapter
from .model_source import ModelSource
from .objective import Objective
from .packing import PackedBlocks, PackedStream, causal_lm_collator, pack
from .perplexity import DocumentScores, score_documents
from .source import Splits
from .text import TextSource, load_held_out, load_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackingArguments:
    """How text becomes samples; the fields are keys of a recipe.

    Args:
        block_size (`int`, defaults to 1024): Tokens of a sample.
        preprocessing_num_workers (`int`, *optional*): Processes that tokenise and pack.
    """

    block_size: int = 1024
    preprocessing_num_workers: int | None = None


class LanguageModelling(Objective):
    """Predicts the next token of text that is packed into blocks; entries are keys of [`TextSource`]."""

    keys = (PackingArguments, ModelSource, AdapterArguments, BenchmarkArguments)
    lengths = (*Objective.lengths, "num_tokens")
    has_perplexity = True
    units = {"eval_loss": "nats per token"}  # noqa: RUF012  # as declared by the base class
    smoke = {"block_size": 64, "preprocessing_num_workers": None}  # noqa: RUF012
    smoke_builtin = {"max_bytes": 65536, "eval_bytes": 4096}  # noqa: RUF012

    def __init__(
        self,
        options: Mapping[type, Any],
        tasks: Sequence[Mapping[str, Any]],
        evaluate_also: Sequence[Mapping[str, Any]],
    ) -> None:
        self.packing: PackingArguments = options[PackingArguments]
        self.source: ModelSource = options[ModelSource]
        self.adapter = options[AdapterArguments]
        self.adapter.check_base(self.source.model_name_or_path)
        self._tasks = {entry["name"]: TextSource.of(entry, "tasks", self.lengths) for entry in tasks}
        self._held_out = {entry["name"]: TextSource.of(entry, "evaluate_also", ()) for entry in evaluate_also}
        self.benchmarks: BenchmarkArguments = options[BenchmarkArguments]
        self._zero_shot: ZeroShot | None = None
        self._fresh: FreshAdapter | None = None
        self._train: list[Any] = []
        self._columns: dict[str, tuple[Any, PackedBlocks]] = {}

    def check(self, arguments: Any) -> None:
        """As for every objective with adapters; and refuses what would make its scores others than they are called."""
        self.adapter.check(arguments)
        if arguments.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={arguments.label_smoothing_factor} cannot be used for language models: it "
                "would be in the evaluation's loss, of which bits per byte and perplexity are made."
            )

    @property
    def tokens_per_sample(self) -> int:
        """The length of a block."""
        return self.packing.block_size

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Loaded when it is first needed."""
        return build_tokenizer(self.source)

    def is_streaming(self, name: str) -> bool:
        """Whether a task's text is read while training."""
        return self._tasks[name].streaming

    def steps_of(self, entry: Mapping[str, Any], key: str, global_batch_size: int) -> int:
        """Steps that `num_tokens` make: whole global batches of blocks."""
        num_tokens = entry[key]
        if type(num_tokens) not in (int, float):
            raise ValueError(f"tasks: num_tokens={num_tokens!r} of {entry['name']!r} must be a number.")
        steps = int(num_tokens // (self.packing.block_size * global_batch_size))
        if steps < 1:
            raise ValueError(
                f"tasks: num_tokens={num_tokens} of {entry['name']!r} is less than one global batch of "
                f"{global_batch_size} blocks of {self.packing.block_size} tokens."
            )
        return steps

    def load(self, name: str, columns: Sequence[str] = ()) -> Splits:
        """Loads a task's documents."""
        with self._tasks[name].naming_faults():
            return load_text(self._tasks[name], columns)

    def scores(self, data: Any, reference: ModelSource, arguments: Any) -> DocumentScores:
        """The perplexity of each document, in blocks of this recipe's size."""
        return score_documents(
            data,
            reference,
            block_size=self.packing.block_size,
            batch_size=arguments.per_device_eval_batch_size,
            device=arguments.device,
        )

    def load_held_out(self, name: str) -> Any:
        """Loads documents that are only evaluated on."""
        with self._held_out[name].naming_faults():
            return load_held_out(self._held_out[name])

    def train_samples(self, data: Any) -> Any:
        """Documents as blocks of tokens."""
        self._train.append(data)
        if is_streaming(data):
            return PackedStream(data, self.tokenizer, block_size=self.packing.block_size)
        return self._pack(data, count_bytes=False).dataset

    def eval_samples(self, column: str, data: Any) -> Any:
        """Held-out documents as blocks of tokens, their bytes counted."""
        blocks = self._pack(data, count_bytes=True)
        self._columns[column] = data, blocks
        return blocks.dataset

    def _pack(self, documents: Any, *, count_bytes: bool) -> PackedBlocks:
        return pack(
            documents,
            self.tokenizer,
            block_size=self.packing.block_size,
            count_bytes=count_bytes,
            num_proc=self.packing.preprocessing_num_workers,
        )

    def fingerprint(self, splits: Splits) -> str | None:
        """Of a built-in corpus, which knows all its files, as tokens of this recipe."""
        if splits.fingerprint is None:
            return None
        key = f"{splits.fingerprint} {self.source.tokenizer_name} {self.packing.block_size}"
        return hashlib.sha256(key.encode()).hexdigest()[:16]

    def model(self) -> Any:
        """The causal language model, with its adapter where there is one."""
        model = build_model(self.source, self.tokenizer, block_size=self.packing.block_size)
        if self.adapter.lora is None:
            return model
        adapted = with_adapter(model, self.adapter.lora, revision=self.source.model_revision)
        self._fresh = FreshAdapter(adapted) if self.adapter.adapter_per_task else None
        return adapted

    def trainer_options(self) -> dict[str, Any]:
        """Collator, tokenizer, and scores beside the loss."""
        if self.benchmarks.zero_shot_tasks:
            self._zero_shot = ZeroShot(self.benchmarks, self.tokenizer)
        return {
            "data_collator": causal_lm_collator,
            "processing_class": self.tokenizer,
            "score_column": self._score,
            "begin_task": self._fresh and self._fresh.restore,
            "finish_release": self._finish_release if self.finishes_releases else None,
        }

    @property
    def finishes_releases(self) -> bool:
        """For benchmarks too."""
        return super().finishes_releases or bool(self.benchmarks.zero_shot_tasks)

    @property
    def benchmark_sources(self) -> Mapping[str, Mapping[str, str | None]]:
        """Of the harness's tasks and groups."""
        return self._zero_shot.sources if self._zero_shot else {}

    def _finish_release(self, model: Any, directory: Path | None) -> dict[str, dict[str, float]]:
        if directory is not None and self.adapter.merge_releases:
            save_merged(model, directory / MERGED)
            self.tokenizer.save_pretrained(directory / MERGED)
        return self._zero_shot(model) if self._zero_shot else {}

    def _score(self, column: str, metrics: Mapping[str, float]) -> dict[str, float]:
        return language_model_scores(metrics["loss"], self._columns[column][1])

    @classmethod
    def stand_in(cls, entry: Mapping[str, Any], columns: Mapping[str, Sequence[Any]], folder: Path) -> dict[str, Any]:
        """A few documents as JSON lines, with the column that the entry names."""
        source = TextSource.of(entry, "tasks", cls.lengths)
        number = len(next(iter(columns.values()), range(16)))
        texts = [f"Document {place} stands in for others. " * 40 for place in range(number)]
        rows = [
            {source.text_column: text, **{name: values[place] for name, values in columns.items()}}
            for place, text in enumerate(texts)
        ]
        file = folder / f"{source.name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return source.on_local_file(entry, str(file), num_eval_samples=4)

    @classmethod
    def stand_in_model(cls, content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The tokenizer of bytes, and a new model of `smoke_config_name` with random weights, saved in the folder."""
        name, tokenizer = content.get("model_name_or_path"), content.get("tokenizer_name")
        config = content.get("smoke_config_name")
        if name is None:
            if tokenizer in (None, BYTE_TOKENIZER) or Path(tokenizer).exists():
                return {}
            logger.info("--smoke: the tokenizer of bytes stands in for that of %s", tokenizer)
            return {"tokenizer_name": BYTE_TOKENIZER}
        if config is None or Path(name).exists():
            return {}
        logger.info("--smoke: a random model of %s with a tokenizer of bytes stands in for %s", config, name)
        source = ModelSource(config_name=config, tokenizer_name=BYTE_TOKENIZER)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            build_model(source, build_tokenizer(source)).save_pretrained(folder / "model")
        return {
            "model_name_or_path": str(folder / "model"),
            "tokenizer_name": BYTE_TOKENIZER,
            "model_revision": None,
        }

    def references(self) -> dict[str, Any]:
        """The byte unigram of all training text, where all of it is at hand."""
        if any(is_streaming(documents) for documents in self._train):
            return {}
        held_out = {column: documents for column, (documents, _) in self._columns.items()}
        return {"byte_unigram": {"metric": "bits_per_byte", "values": byte_unigram_bits(self._train, held_out)}}
