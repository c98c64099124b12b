"""What the model of a release is, as its files and classes tell it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .contents import BASE, is_local_path


def model_facts(
    folder: Path,
    model_class: str,
    base_class: str,
    *,
    num_parameters: int,
    num_trained: int,
    base_model: str | None,
    base_revision: str | None = None,
) -> dict[str, Any]:
    """What the saved model is.

    Args:
        folder (`Path`): The release.
        model_class (`str`): Of the model that was trained.
        base_class (`str`): Of the model below its adapter; without one the same.
        num_parameters (`int`): All, frozen ones included.
        num_trained (`int`): Those that are not frozen.
        base_model (`str`, *optional*): What it was loaded from: a Hub id or a local path.
        base_revision (`str`, *optional*): Of it on the Hub; an adapter names its own.
    """
    adapter = _read(folder / "adapter_config.json")
    config = _read((folder / BASE if adapter else folder) / "config.json") or {}
    base, revision = (base_model, base_revision)
    if adapter:
        base, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
    return {
        "class": model_class,
        "base_class": base_class,
        "type": config.get("model_type"),
        "kind": "adapter" if adapter else _kind(config, model_class),
        "causal": model_class.endswith(("ForCausalLM", "LMHeadModel")),
        "num_parameters": num_parameters,
        "num_trained": num_trained,
        "base_model": hub_id(base),
        "base_revision": revision if hub_id(base) else None,
        "from_scratch": not base,
        "has_config": bool(config),
        "has_tokenizer": (folder / "tokenizer_config.json").exists(),
        "image": [config.get("num_channels"), config.get("image_size")] if "image_size" in config else None,
    }


def _kind(config: Mapping[str, Any], model_class: str) -> str:
    if config.get("model_type") == "vit_mae":
        return "mae"
    return "lm" if model_class.endswith(("ForCausalLM", "LMHeadModel")) else "model"


def hub_id(name: str | None) -> str | None:
    """A name if it can be an id on the Hub; None for paths, also relative ones that exist here.

    >>> hub_id("EleutherAI/pythia-160m"), hub_id("/data/llama"), hub_id("./llama"), hub_id("")
    ('EleutherAI/pythia-160m', None, None, None)
    """
    if not name or is_local_path(name) or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
