"""Causal language models: the model and its tokenizer from a YAML."""

from typing import Any, cast

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .model_source import ModelSource, counts_only, override_config, stored_config

BYTE_TOKENIZER = "byte"
"""The `tokenizer_name` of UTF-8 bytes, which needs no download."""


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
    options = source.options
    model: PreTrainedModel
    if source.model_name_or_path is None:
        model = AutoModelForCausalLM.from_config(_new_config(source, tokenizer), **options)
    else:
        config = stored_config(source)
        override_config(config, source.config_overrides)
        if counts_only():
            model = AutoModelForCausalLM.from_config(config, **options)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                source.model_name_or_path, config=config, revision=source.revision, **options
            )
    _check_sizes(model, tokenizer, block_size)
    return model


def _new_config(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> Any:
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if source.config_name is not None:
        config = stored_config(source)
        override_config(config, {**special, **source.config_overrides})
        return config
    fields = {**special, "vocab_size": _vocabulary(tokenizer), **source.config_overrides}
    override_config(AutoConfig.for_model(str(source.model_type)), fields)
    # Made anew, because fields that follow from others, such as Llama's head_dim, are filled in when it is made.
    return AutoConfig.for_model(str(source.model_type), **fields)


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
