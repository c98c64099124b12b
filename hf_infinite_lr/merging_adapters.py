"""Weighted means of adapters, which PEFT takes: of saved ones, and of one in training and a saved one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import is_peft_available

if TYPE_CHECKING:
    from peft import PeftModel

SVD = "svd"
_MERGED, _OTHER = "merged", "merged_with"


def merge_adapters(folders: Sequence[Path], weights: Sequence[float], method: str | None, target: Path) -> None:
    """Merges saved adapters of one base model.

    Args:
        folders (`Sequence[Path]`): LoRA adapters as PEFT saves them.
        weights (`Sequence[float]`): One for each.
        method (`str`, *optional*): A `combination_type` of PEFT's `add_weighted_adapter`; `svd` if nothing is said.
        target (`Path`): A folder that is there.

    Raises:
        ValueError: for adapters that PEFT cannot merge.
    """
    if not is_peft_available():
        raise ValueError("paths: merging adapters needs PEFT: pip install 'hf_infinite_lr[peft]'.")
    from peft import PeftConfig, PeftModel, PeftType

    for folder in folders:
        if (kind := PeftConfig.from_pretrained(str(folder)).peft_type) != PeftType.LORA:
            raise ValueError(f"paths: the adapter {str(folder)!r} is of type {kind}; only LoRA can be merged.")
    names = [f"adapter_{place}" for place in range(len(folders))]
    try:
        model = PeftModel.from_pretrained(_base_of(folders[0]), str(folders[0]), adapter_name=names[0])
        for folder, name in zip(folders[1:], names[1:], strict=True):
            model.load_adapter(str(folder), adapter_name=name)
        model.add_weighted_adapter(names, list(weights), _MERGED, combination_type=method or SVD)
    except (ValueError, RuntimeError) as error:
        cause = " ".join(str(error).split())
        raise ValueError(f"paths: PEFT cannot merge {[str(folder) for folder in folders]}: {cause}") from error
    model.save_pretrained(str(target), selected_adapters=[_MERGED])
    for path in (target / _MERGED).iterdir():
        path.rename(target / path.name)
    (target / _MERGED).rmdir()


def _base_of(folder: Path) -> Any:
    """The model that an adapter was trained on, in memory."""
    import transformers
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(folder))
    name, revision = config.base_model_name_or_path, config.revision or "main"
    architecture = transformers.AutoConfig.from_pretrained(name, revision=revision).architectures[0]
    return getattr(transformers, architecture).from_pretrained(name, revision=revision)


def fault_of_adapter(model: PeftModel) -> str | None:
    """What keeps an adapter from being merged while it is trained; None if nothing does."""
    from peft import PeftType

    config: Any = model.peft_config[model.active_adapter]
    if config.peft_type != PeftType.LORA:
        return f"of type {config.peft_type.value}"
    for name, plain in (("modules_to_save", None), ("use_dora", False), ("bias", "none")):
        if (getattr(config, name) or plain) != plain:
            return f"with {name}={getattr(config, name)!r}"
    return None


def blend_adapter(model: PeftModel, directory: Path, weight: float) -> None:
    """
    Makes a LoRA adapter the mean of itself and of a saved one, by PEFT's `svd`: the nearest one that keeps its rank.

    The parameters stay the same objects. PEFT draws random numbers for what it then overwrites.

    Args:
        model (`PeftModel`): Its active adapter is changed in place.
        directory (`Path`): A saved adapter of the same shape.
        weight (`float`): Of the model's; the saved one has 1 - `weight`.
    """
    from peft.tuners.lora import LoraLayer

    own = model.active_adapter
    with torch.no_grad(), _beside(model):
        model.load_adapter(str(directory), adapter_name=_OTHER)
        model.add_weighted_adapter(
            [own, _OTHER], [weight, 1 - weight], _MERGED, combination_type=SVD, svd_full_matrices=False
        )
        layer: Any
        for layer in [module for module in model.modules() if isinstance(module, LoraLayer)]:
            for down, up in ((layer.lora_A, layer.lora_B), (layer.lora_embedding_A, layer.lora_embedding_B)):
                if own in down:
                    _copy(down, up, own, layer.scaling[own])


@contextmanager
def _beside(model: PeftModel) -> Iterator[None]:
    """Takes further adapters away at the end and leaves the active one as it was trained."""
    own = model.active_adapter
    trained = {name: part.requires_grad for name, part in model.named_parameters()}
    try:
        yield
    finally:
        for name in [name for name in (_OTHER, _MERGED) if name in model.peft_config]:
            model.delete_adapter(name)
        model.set_adapter(own)
        for name, part in model.named_parameters():
            part.requires_grad_(trained[name])


def _copy(down: Any, up: Any, own: str, scaling: float) -> None:
    """Singular values come in order, so that the first ones are the nearest adapter of a smaller rank."""
    a, b, merged_a, merged_b = (
        getattr(each, "weight", each) for each in (down[own], up[own], down[_MERGED], up[_MERGED])
    )
    a.copy_(merged_a[: a.shape[0]])
    b.copy_(merged_b[:, : b.shape[1]] / scaling)
