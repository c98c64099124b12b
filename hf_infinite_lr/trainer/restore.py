"""Brings weights and optimizer back from a checkpoint, tensor by tensor and in place.

Trainer's own loaders hold a second copy of the optimizer's state (on every GPU under DDP), warn about tied weights
each time and are not strict; a rewind happens once per task, inside the run, so it must be exact, quiet and small.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import (
    ADAPTER_SAFE_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    is_peft_available,
)

from hf_infinite_lr.merging import stored_tensor, weighted_mean
from hf_infinite_lr.merging_adapters import blend_adapter
from hf_infinite_lr.stream.loading import kept_rng

_LOADING_FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def restore_weights(model: torch.nn.Module, directory: Path) -> None:
    """Copies a checkpoint's weights into a model of the same architecture.

    Args:
        model (`torch.nn.Module`): The unwrapped model; tied weights may stand in the file once.
        directory (`Path`): Holds safetensors as `save_pretrained` writes them.

    Raises:
        ValueError: if a tensor is missing, unknown or of another shape. The model may then be partly restored.
    """
    _write_each(model, directory, lambda target, tensor: target.copy_(tensor))


def blend_weights(model: torch.nn.Module, directory: Path, weight: float) -> None:
    """Makes a model the mean of itself and of saved weights, one tensor at a time; of an adapter as PEFT takes it.

    Args:
        model (`torch.nn.Module`): The unwrapped model.
        directory (`Path`): As for [`restore_weights`].
        weight (`float`): Of the model; the saved weights have 1 - `weight`. Whole numbers stay the model's.

    Raises:
        ValueError: as [`restore_weights`].
    """
    if is_peft_available():
        from peft import PeftModel

        if isinstance(model, PeftModel):
            with kept_rng():
                blend_adapter(model, directory, weight)
            return

    def blend(target: torch.Tensor, tensor: torch.Tensor) -> None:
        if target.is_floating_point():
            target.copy_(weighted_mean((target, tensor.to(target.device)), (weight, 1 - weight)))

    _write_each(model, directory, blend)


def _write_each(
    model: torch.nn.Module, directory: Path, write: Callable[[torch.Tensor, torch.Tensor], object]
) -> None:
    targets = _saved_tensors(model)
    reached: set[int] = set()
    with torch.no_grad():
        for name, tensor in _stored_tensors(directory) if _as_named(targets, directory) else _loaded(model, directory):
            target = targets.get(name)
            if target is None or target.shape != tensor.shape:
                there = "is not in the model" if target is None else f"has shape {tuple(target.shape)} in the model"
                raise ValueError(f"{directory}: tensor {name!r} of shape {tuple(tensor.shape)} {there}.")
            if target.data_ptr() not in reached:  # tied tensors may stand in a file twice
                write(target, tensor)
            reached.add(target.data_ptr())
    missing = [name for name, target in targets.items() if target.numel() and target.data_ptr() not in reached]
    if missing:
        raise ValueError(f"{directory} lacks the tensors {missing[:3]} of the model ({len(missing)} in all).")


def _saved_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that `save_pretrained` writes, under its names: of an adapter model, the adapter's."""
    if is_peft_available():
        from peft import PeftModel, get_peft_model_state_dict

        if isinstance(model, PeftModel):
            return get_peft_model_state_dict(model)
    return model.state_dict()


def _as_named(targets: dict[str, torch.Tensor], directory: Path) -> bool:
    """Whether a file holds the tensors under the model's own names; some families are saved under older ones."""
    return all(name in targets for name in _stored_names(directory))


def _loaded(model: torch.nn.Module, directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors as transformers renames and joins them, at the cost of a second copy of the model."""
    if not isinstance(model, PreTrainedModel):
        return _stored_tensors(directory)
    result: Any = type(model).from_pretrained(directory, dtype=model.dtype, output_loading_info=True)
    loaded, told = result
    if faults := {kind: sorted(map(str, told[kind]))[:3] for kind in _LOADING_FAULTS if told[kind]}:
        raise ValueError(f"{directory} does not hold the weights of this model: {faults}.")
    return iter(loaded.state_dict().items())


def _stored_names(directory: Path) -> Iterator[str]:
    for path in _weight_files(directory):
        with safe_open(path, framework="pt") as file:
            yield from file.keys()


def _stored_tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in _weight_files(directory):
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        for name in names:
            yield name, stored_tensor(path, name)


def _weight_files(directory: Path) -> list[Path]:
    index = directory / SAFE_WEIGHTS_INDEX_NAME
    if index.exists():
        return [directory / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    files = [directory / name for name in (SAFE_WEIGHTS_NAME, ADAPTER_SAFE_WEIGHTS_NAME)]
    if not (found := [path for path in files if path.exists()]):
        raise ValueError(f"{directory} holds no safetensors weights.")
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Copies a saved optimizer state into an optimizer over the same parameters.

    The file is mapped, not read, so that one tensor at a time is in memory. Learning rates are left as they are: they
    belong to the schedule.

    Args:
        optimizer (`torch.optim.Optimizer`): Not wrapped.
        path (`Path`): `optimizer.pt` of a checkpoint.

    Raises:
        ValueError: if the file's groups do not fit the optimizer's.
    """
    saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    saved_sizes = [len(group["params"]) for group in saved["param_groups"]]
    if sizes != saved_sizes:
        raise ValueError(f"{path} holds groups of {saved_sizes} parameters, the optimizer has {sizes}.")
    if type(optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict:
        optimizer.load_state_dict(saved)
        return
    for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group.update({key: value for key, value in saved_group.items() if key not in ("params", "lr", "initial_lr")})
        for parameter, number in zip(group["params"], saved_group["params"], strict=True):
            # As torch's own loader: moments follow the parameter, a step counter does so in fused kernels only.
            fused = bool(group.get("fused") or group.get("capturable"))
            _restore_state(optimizer.state, parameter, saved["state"].get(number, {}), fused)


def _restore_state(
    states: dict[Any, dict[str, Any]], parameter: torch.Tensor, saved: dict[str, Any], fused: bool
) -> None:
    if not saved:
        states.pop(parameter, None)
        return
    state = states.setdefault(parameter, {})
    for stale in set(state) - set(saved):
        del state[stale]
    for key, value in saved.items():
        if not isinstance(value, torch.Tensor):
            state[key] = value
        elif isinstance(state.get(key), torch.Tensor) and state[key].shape == value.shape:
            state[key].copy_(value)
        else:
            device = parameter.device if key != "step" or fused else "cpu"
            state[key] = value.to(device=device, copy=True)
