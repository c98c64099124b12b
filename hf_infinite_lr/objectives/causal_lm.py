"""Causal language models: the model and its tokenizer from a YAML, and scores in units that can be compared."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_infinite_lr.objectives.keys import nearest
from hf_infinite_lr.objectives.packing import PackedBlocks

BYTE_TOKENIZER = "byte"
"""The `tokenizer_name` of UTF-8 bytes, which needs no download."""


@dataclass(frozen=True)
class ModelSource:
    """
    Where a causal language model comes from; the fields are keys of the YAML.

    Args:
        model_name_or_path (`str`, *optional*): A pretrained model; or give `config_name` or `model_type`.
        config_name (`str`, *optional*):
            The configuration of a new model: a JSON file, a folder, or a model of the Hub whose weights are not taken.
        model_type (`str`, *optional*): A configuration class of a new model, such as `llama`.
        config_overrides (`Mapping[str, Any]`, *optional*):
            Fields of the configuration. For a new model the ids of the special tokens are the tokenizer's unless given
            here, and so is the vocabulary size with `model_type`.
        model_revision (`str`, *optional*): Branch, tag or commit of `model_name_or_path` or `config_name`.
        tokenizer_name (`str`, *optional*):
            A tokenizer of the Hub or of a folder, or `byte`; by default that of `model_name_or_path`.
        dtype (`str`, *optional*): Type of the weights, such as `bfloat16`.
        attn_implementation (`str`, *optional*): Attention kernels, such as `sdpa`.
        smoke_config_name (`str`, *optional*):
            The configuration of a small new model that stands in for `model_name_or_path` under `--smoke`: a JSON file
            or a folder.

    Example:

    ```python
    >>> source = ModelSource(model_type="llama", tokenizer_name="byte", config_overrides={"hidden_size": 64})
    >>> build_tokenizer(source)("ab")["input_ids"]
    [100, 101, 1]

    ```
    """

    model_name_or_path: str | None = None
    config_name: str | None = None
    model_type: str | None = None
    config_overrides: Mapping[str, Any] = field(default_factory=dict)
    model_revision: str | None = None
    tokenizer_name: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    smoke_config_name: str | None = None

    def __post_init__(self) -> None:
        origins = ("model_name_or_path", "config_name", "model_type")
        if sum(getattr(self, key) is not None for key in origins) != 1:
            found = ", ".join(f"{key} is {getattr(self, key)!r}" for key in origins)
            raise ValueError(f"{found}: give exactly one of them.")
        if self.model_type is not None and self.model_type not in CONFIG_MAPPING:
            raise ValueError(f"model_type {self.model_type!r} is unknown{nearest(self.model_type, CONFIG_MAPPING)}.")
        if not isinstance(self.config_overrides, Mapping):
            raise ValueError(
                f"config_overrides is {self.config_overrides!r} but must be a mapping of fields to values."
            )


def build_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """
    Loads the tokenizer of a model.

    Args:
        source ([`ModelSource`]): Names it by `tokenizer_name`, else by `model_name_or_path`.

    Returns:
        `PreTrainedTokenizerBase`: For `byte` a `ByT5Tokenizer` that never takes text for a special token.

    Raises:
        `ValueError`: If neither is given.
    """
    name = source.tokenizer_name or source.model_name_or_path
    if name is None:
        raise ValueError("tokenizer_name is missing: a new model needs one; 'byte' takes UTF-8 bytes as they are.")
    if name == BYTE_TOKENIZER:
        return ByT5Tokenizer(split_special_tokens=True)
    revision = source.model_revision if source.tokenizer_name in (None, source.model_name_or_path) else None
    return AutoTokenizer.from_pretrained(name, revision=revision or "main")


def counts_only() -> bool:
    """Whether a model is made without memory, to count its weights, so that there is nothing to load them into."""
    return torch.get_default_device().type == "meta"


def build_model(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, *, block_size: int | None = None
) -> PreTrainedModel:
    """
    Loads a pretrained model, or makes a new one (its weights drawn from torch's global generator).

    Args:
        source ([`ModelSource`]): Which model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer, for the size of the vocabulary.
        block_size (`int`, *optional*): Checked against the positions of the model.

    Returns:
        `PreTrainedModel`: The model.

    Raises:
        `ValueError`: If a configuration field is unknown, or vocabulary or positions are too few.
    """
    given = {"attn_implementation": source.attn_implementation, "dtype": source.dtype}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    model: PreTrainedModel
    if source.model_name_or_path is None:
        model = AutoModelForCausalLM.from_config(_new_config(source, tokenizer), **options)
    else:
        config = stored_config(source.model_name_or_path, "model_name_or_path", source)
        override_config(config, source.config_overrides)
        if counts_only():
            model = AutoModelForCausalLM.from_config(config, **options)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                source.model_name_or_path, config=config, revision=source.model_revision or "main", **options
            )
    _check_sizes(model, tokenizer, block_size)
    return model


def language_model_scores(eval_loss: float, blocks: PackedBlocks) -> dict[str, float]:
    r"""
    Perplexity and bits per byte of a held-out part.

    With the mean loss $\ell$ in nats per predicted token, $n$ predicted tokens (all of a block but its first) and $b$
    UTF-8 bytes of text that these stand for: perplexity is $e^\ell$, and bits per byte is $\ell n / (b \ln 2)$. An
    end-of-sequence token stands for no byte, but predicting it costs.

    Args:
        eval_loss (`float`): Mean over the predicted tokens of all blocks, in nats per token.
        blocks ([`PackedBlocks`]): What it was measured on, packed with `count_bytes=True`.

    Returns:
        `dict[str, float]`: `perplexity` and `bits_per_byte`.

    Raises:
        `ValueError`: If the bytes were not counted.

    Example:

    ```python
    >>> blocks = PackedBlocks(
    ...     datasets.Dataset.from_dict({"input_ids": [[100, 101, 102]]}),
    ...     block_size=3,
    ...     num_documents=1,
    ...     num_tokens=4,
    ...     num_predicted_bytes=2,
    ... )
    >>> language_model_scores(math.log(8), blocks)["bits_per_byte"]
    3.0

    ```
    """
    if not blocks.num_predicted_bytes:
        raise ValueError(
            f"num_predicted_bytes is {blocks.num_predicted_bytes}: pack with count_bytes=True for bits per byte."
        )
    tokens_per_byte = blocks.num_predicted_tokens / blocks.num_predicted_bytes
    perplexity = math.inf if eval_loss >= 700 else math.exp(eval_loss)
    return {"perplexity": perplexity, "bits_per_byte": eval_loss * tokens_per_byte / math.log(2)}


def byte_counts(documents: datasets.Dataset) -> np.ndarray:
    """
    How often each of the 256 bytes occurs in the UTF-8 text of some documents.

    Args:
        documents (`datasets.Dataset`): A column `text` of strings.

    Returns:
        `np.ndarray`: Shape (256,), type int64.
    """
    counts = np.zeros(256, np.int64)
    for batch in documents.select_columns("text").with_format("arrow").iter(1024):
        for text in batch.column("text").to_pylist():
            counts += np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)
    return counts


def byte_unigram_bits(train: Iterable[datasets.Dataset], evals: Mapping[str, datasets.Dataset]) -> dict[str, float]:
    r"""
    The reference row: what a model would score that knows only how frequent each byte is.

    $-\sum_v c_v \log_2 p_v / \sum_v c_v$ with the counts $c$ of the held-out bytes and $p_v = (n_v + 1) / (N + 256)$
    of the training bytes of **all** tasks together. Documents alone count, without end-of-sequence tokens.

    Args:
        train (`Iterable[datasets.Dataset]`): The training parts of all tasks, with a column `text`.
        evals (`Mapping[str, datasets.Dataset]`): The held-out parts by column name, with a column `text`.

    Returns:
        `dict[str, float]`: Bits per byte of each held-out part.

    Example:

    ```python
    >>> text = datasets.Dataset.from_dict({"text": ["b"]})
    >>> byte_unigram_bits([text.select([])], {"general": text})
    {'general': 8.0}

    ```
    """
    counts = sum((byte_counts(part) for part in train), start=np.zeros(256, np.int64)) + 1
    bits = -np.log2(counts / counts.sum())
    held_out = {name: byte_counts(part) for name, part in evals.items()}
    return {name: float(bits @ count / count.sum()) for name, count in held_out.items()}


def _new_config(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> Any:
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if source.config_name is not None:
        config = stored_config(source.config_name, "config_name", source)
        override_config(config, {**special, **source.config_overrides})
        return config
    fields = {**special, "vocab_size": _vocabulary(tokenizer), **source.config_overrides}
    override_config(AutoConfig.for_model(str(source.model_type)), fields)
    # Made anew, because fields that follow from others, such as Llama's head_dim, are filled in when it is made.
    return AutoConfig.for_model(str(source.model_type), **fields)


def stored_config(name: str, key: str, source: ModelSource) -> Any:
    """Loads a configuration; one that cannot be loaded is a `ValueError` that names the key."""
    try:
        return AutoConfig.from_pretrained(name, revision=source.model_revision or "main")
    except OSError as error:
        raise ValueError(f"{key} {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error


def override_config(config: Any, overrides: Mapping[str, Any]) -> None:
    """Sets fields of a configuration; a name that it does not know is refused with the nearest that it does."""
    known = config.to_dict()
    for name, value in overrides.items():
        if name not in known:
            raise ValueError(
                f"config_overrides.{name} is no field of a {config.model_type} configuration{nearest(name, known)}."
            )
        setattr(config, name, value)


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def _check_sizes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, block_size: int | None) -> None:
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if _vocabulary(tokenizer) > rows:
        raise ValueError(
            f"tokenizer_name {tokenizer.name_or_path!r} has {_vocabulary(tokenizer)} tokens but the model's "
            f"vocabulary holds only {rows}; take the model's own tokenizer or resize its embeddings."
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if block_size is not None and positions is not None and block_size > positions:
        raise ValueError(f"block_size is {block_size} but the model has only {positions} positions.")
