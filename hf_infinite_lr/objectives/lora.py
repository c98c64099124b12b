"""Low-rank adapters of a pretrained model through PEFT: one for the whole stream, or one per task."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from hf_infinite_lr.keys import nearest

if TYPE_CHECKING:
    from peft import PeftModel

_SET_HERE = ("peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping")
MERGED = "merged"
"""Where a release keeps the model with its adapter folded in, below the adapter's own files."""
_ACROSS_TASKS = ("l2", "mas", "fisher", "lae")
"""Methods that hold a task's weights to those of the task before."""


@dataclass(frozen=True)
class AdapterArguments:
    """Training of an adapter instead of the whole model (LoRA, Hu et al. 2021, arXiv 2106.09685); keys of a recipe.

    Args:
        lora (`Mapping[str, Any]`, *optional*):
            Fields of `peft.LoraConfig`, such as `{r: 8, target_modules: [query_key_value]}`; `{}` takes its defaults.
        adapter_per_task (`bool`, defaults to `False`):
            Start every task with a fresh adapter on the pretrained model instead of going on with the one before.
            Each is kept in `releases/` under its task's name. Needs `reset_optimizer: true`.
        merge_releases (`bool`, defaults to `False`):
            Save beside the adapter of each release the whole model with the adapter folded in, in `merged/`.
    """

    lora: Mapping[str, Any] | None = None
    adapter_per_task: bool = False
    merge_releases: bool = False

    def __post_init__(self) -> None:
        if self.lora is None:
            for name in ("adapter_per_task", "merge_releases"):
                if getattr(self, name):
                    raise ValueError(f"{name}=True needs an adapter: give lora, such as lora: {{r: 8}}.")
            return
        if not isinstance(self.lora, Mapping):
            raise ValueError(f"lora={self.lora!r} must be a mapping of fields of peft.LoraConfig to values.")
        if not is_peft_available():
            raise ValueError("lora needs PEFT, which is not installed: pip install 'hf_infinite_lr[peft]'.")
        from peft import LoraConfig

        known = [field.name for field in fields(LoraConfig) if field.init and field.name not in _SET_HERE]
        for name in self.lora:
            if name not in known:
                raise ValueError(f"lora.{name} is no field of peft.LoraConfig{nearest(str(name), known)}.")

    def check_base(self, name_or_path: str | None) -> None:
        """Refuses an adapter of a new model, whose weights no release would hold."""
        if self.lora is not None and name_or_path is None:
            raise ValueError(
                "lora needs model_name_or_path: an adapter's release does not hold a new model's weights."
            )

    def check(self, arguments: Any) -> None:
        """Refuses training arguments under which fresh adapters would go on with what others have left."""
        if self.adapter_per_task and not arguments.reset_optimizer:
            raise ValueError(
                "adapter_per_task=True with reset_optimizer=False would train a fresh adapter with the optimizer "
                "states of another: set reset_optimizer=True."
            )
        for name in _ACROSS_TASKS:
            if self.adapter_per_task and name in arguments.methods:
                raise ValueError(
                    f"adapter_per_task=True with methods.{name} would pull each fresh adapter to the one before; "
                    "leave one of them out."
                )


def with_adapter(
    model: PreTrainedModel,
    lora: Mapping[str, Any],
    *,
    revision: str | None = None,
    task_type: str | None = "CAUSAL_LM",
) -> PeftModel:
    """Freezes a model and gives it a new adapter, drawn from torch's global generator.

    Args:
        model (`PreTrainedModel`): Changed in place, as PEFT does.
        lora (`Mapping[str, Any]`): Fields of `peft.LoraConfig`.
        revision (`str`, *optional*): Of the model on the Hub, which PEFT loads again under the saved adapter.
        task_type (`str`, *optional*, defaults to `"CAUSAL_LM"`): PEFT's name of what the model does, where it has one.

    Raises:
        ValueError: if a module is not in the model, or a value is none that PEFT takes.
    """
    from peft import LoraConfig, get_peft_model

    known = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for name in lora.get("modules_to_save") or ():  # PEFT passes over what it does not find
        if name.rpartition(".")[2] not in known:
            raise ValueError(f"lora.modules_to_save names {name!r}, which is not in the model{nearest(name, known)}.")
    try:
        return get_peft_model(model, LoraConfig(**lora, revision=revision, task_type=task_type))
    except (TypeError, ValueError) as error:
        raise ValueError(f"lora={dict(lora)!r}: {' '.join(str(error).split())}") from error


class FreshAdapter:
    """An adapter as it was when this was made, to begin another task with.

    Args:
        model (`PeftModel`): Its trainable parameters are copied, `modules_to_save` included.

    Example:

    ```python
    >>> layer = torch.nn.Linear(2, 1)
    >>> fresh, before = FreshAdapter(layer), layer.weight.clone()
    >>> _ = layer.weight.data.add_(1)
    >>> fresh.restore()
    >>> torch.equal(layer.weight, before)
    True

    ```
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._values = [
            (parameter, parameter.detach().clone()) for parameter in model.parameters() if parameter.requires_grad
        ]

    def restore(self) -> None:
        """Writes the values back in place."""
        with torch.no_grad():
            for parameter, value in self._values:
                parameter.copy_(value)


def save_merged(model: PeftModel, directory: Path) -> None:
    """Saves the base model with the adapter folded in, by PEFT's own merging of a copy.

    Args:
        model (`PeftModel`): Stays as it is, at the cost of a second copy of the model in memory.
        directory (`Path`): Where `from_pretrained` finds the merged model.
    """
    merged = copy.deepcopy(model).merge_and_unload()
    merged.save_pretrained(directory)
