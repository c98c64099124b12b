"""Where the model of a recipe comes from, and its configuration, for every objective."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig

from hf_infinite_lr.keys import nearest

_ORIGINS = ("model_name_or_path", "config_name", "model_type")


@dataclass(frozen=True)
class ModelSource:
    """
    Where a model comes from, for every objective; the fields are keys of the YAML.

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
        dtype (`str`, *optional*, defaults to `"float32"`):
            Type of the weights, such as `bfloat16`. That of a stored model is not taken over: many lie in half
            precision, in which an optimizer loses small updates. `bf16: true` computes in half precision without that.
        attn_implementation (`str`, *optional*): Attention kernels, such as `sdpa`.
        smoke_config_name (`str`, *optional*):
            The configuration of a small new model that stands in for `model_name_or_path` under `--smoke`: a JSON file
            or a folder.

    Raises:
        `ValueError`: If none or several of `model_name_or_path`, `config_name` and `model_type` are given, or
            `model_type` is unknown.
    """

    model_name_or_path: str | None = None
    config_name: str | None = None
    model_type: str | None = None
    config_overrides: Mapping[str, Any] = field(default_factory=dict)
    model_revision: str | None = None
    tokenizer_name: str | None = None
    dtype: str = "float32"
    attn_implementation: str | None = None
    smoke_config_name: str | None = None

    def __post_init__(self) -> None:
        if sum(getattr(self, key) is not None for key in _ORIGINS) != 1:
            found = ", ".join(f"{key} is {getattr(self, key)!r}" for key in _ORIGINS)
            raise ValueError(f"{found}: give exactly one of them.")
        if self.model_type is not None and self.model_type not in CONFIG_MAPPING:
            raise ValueError(f"model_type {self.model_type!r} is unknown{nearest(self.model_type, CONFIG_MAPPING)}.")
        if not isinstance(self.config_overrides, Mapping):
            raise ValueError(
                f"config_overrides is {self.config_overrides!r} but must be a mapping of fields to values."
            )

    @property
    def revision(self) -> str:
        """Of `model_name_or_path` or `config_name` on the Hub."""
        return self.model_revision or "main"

    @property
    def origin(self) -> str:
        """Key and value that say which model, for messages."""
        key = next(key for key in _ORIGINS if getattr(self, key) is not None)
        return f"{key}={getattr(self, key)!r}"

    @property
    def options(self) -> dict[str, Any]:
        """What transformers is told when it makes or loads the model."""
        attention = {} if self.attn_implementation is None else {"attn_implementation": self.attn_implementation}
        return {"dtype": self.dtype, **attention}


def stored_config(source: ModelSource) -> Any:
    """
    Loads the configuration that `config_name` or `model_name_or_path` names.

    Raises:
        `ValueError`: naming the key, if it cannot be loaded.
    """
    name = str(source.model_name_or_path or source.config_name)
    try:
        config = AutoConfig.from_pretrained(name, revision=source.revision)
    except OSError as error:
        raise ValueError(f"{source.origin} cannot be loaded: {str(error).splitlines()[0]}") from error
    if source.config_name is not None:
        config.name_or_path = ""  # what a model card would say the new model was continued from
    return config


def override_config(config: Any, overrides: Mapping[str, Any]) -> None:
    """
    Sets fields of a configuration.

    Raises:
        `ValueError`: for a name that it does not know, with the nearest that it does.
    """
    known = config.to_dict()
    for name, value in overrides.items():
        if name not in known:
            raise ValueError(
                f"config_overrides.{name} is no field of a {config.model_type} configuration{nearest(name, known)}."
            )
        setattr(config, name, value)


def counts_only() -> bool:
    """Whether a model is made without memory, to count its weights, so that there is nothing to load them into."""
    return torch.get_default_device().type == "meta"
