"""Weighted means of saved models: of whole models tensor by tensor, of adapters by PEFT."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .merging_adapters import merge_adapters

LINEAR = "linear"
_OF_THE_MODEL = re.compile(r".*(config|token|vocab).*\.json|.*\.(model|txt|jinja)")
"""Files beside the weights that `from_pretrained` of models, tokenizers and processors reads."""


def merge_checkpoints(
    paths: Sequence[str | Path], weights: Sequence[float], method: str | None = None, *, output_dir: str | Path
) -> Path:
    """Merges saved models of one architecture into a new one, which loads by `from_pretrained`.

    Whole models are read and written tensor by tensor, so that a few tensors are in memory however large the models
    are; the mean is taken in float32 at least and stored in the first one's type. Tied tensors stand in a file once
    and stay tied. Adapters are merged by PEFT's `add_weighted_adapter` with their base model in memory: of a LoRA its
    `svd` is the nearest one to the mean that keeps the rank, and `cat` the mean itself, whose rank is the sum. PEFT's
    `linear` is no mean: of an adapter and itself it makes twice the adapter.

    Running averages and means with the first model are what Roth et al. 2024 (arXiv 2408.14471) merge along a stream.

    Args:
        paths (`Sequence[str]`):
            Two folders or more, as releases are: with safetensors, whole or in shards. The other files (configuration,
            tokenizer) are the first one's.
        weights (`Sequence[float]`): One for each; those of whole models add up to 1.
        method (`str`, *optional*):
            Of whole models `linear`, the weighted mean; of adapters any `combination_type` of PEFT that needs no more
            arguments, and if nothing is said `svd`.
        output_dir (`str`): A folder that is not there yet.

    Returns:
        `Path`: `output_dir`.

    Raises:
        ValueError: one sentence, for folders that cannot be merged: other tensors or shapes, an adapter and a whole
            model, another base model.

    Example:

    ```python
    >>> merge_checkpoints(["releases/01-web", "releases/02-code"], [0.25, 0.75], output_dir="merged")  # doctest: +SKIP
    PosixPath('merged')

    ```
    """
    folders, target = [Path(path) for path in paths], Path(output_dir)
    _check_given(folders, weights, target)
    adapters = [(folder / ADAPTER_SAFE_WEIGHTS_NAME).exists() for folder in folders]
    if any(adapters) and not all(adapters):
        whole, adapter = folders[adapters.index(False)], folders[adapters.index(True)]
        raise ValueError(f"paths: {str(adapter)!r} is an adapter and {str(whole)!r} is not; merge one kind.")
    aside = target.with_name(f".{target.name}.incoming")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        if all(adapters):
            merge_adapters(folders, weights, method, aside)
        else:
            _merge_whole(folders, weights, method or LINEAR, aside)
        os.rename(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _check_given(folders: Sequence[Path], weights: Sequence[float], target: Path) -> None:
    if len(folders) < 2:
        raise ValueError(f"paths={[str(folder) for folder in folders]} must name two models or more.")
    if len(weights) != len(folders):
        raise ValueError(f"weights={list(weights)} must hold one weight for each of the {len(folders)} paths.")
    for weight in weights:
        if type(weight) not in (int, float) or not abs(weight) < float("inf"):
            raise ValueError(f"weights={list(weights)} must be finite numbers.")
    if target.exists():
        raise ValueError(f"output_dir={str(target)!r} is there already; name a new folder.")
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"paths: {str(folder)!r} is no folder.")


def weighted_mean(tensors: Iterable[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Returns the weighted sum in the first tensor's type, taken from left to right in float32 or float64.

    >>> weighted_mean([torch.tensor([1.0]), torch.tensor([3.0])], [0.25, 0.75])
    tensor([2.5000])
    """
    parts = iter(tensors)
    first = next(parts)
    kind = first.dtype if first.dtype == torch.float64 else torch.float32
    total = first.to(kind) * weights[0]
    for tensor, weight in zip(parts, weights[1:], strict=True):
        total += tensor.to(kind) * weight
    return total.to(first.dtype)


def stored_tensor(path: Path, name: str) -> torch.Tensor:
    """Reads one tensor of a safetensors file, which is opened for it alone: an open file is mapped, and every page
    that was once read would stay in memory until it is closed.
    """
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor


# ---- Whole models --------------------------------------------------------------------------------------------------


def _merge_whole(folders: Sequence[Path], weights: Sequence[float], method: str, target: Path) -> None:
    if method != LINEAR:
        raise ValueError(f"method={method!r} is one of adapters at most; whole models are merged by 'linear'.")
    if abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"weights={list(weights)} add up to {sum(weights)}, but must add up to 1.")
    models = [_StoredModel(folder) for folder in folders]
    for other in models[1:]:
        models[0].check_like(other)
    for file in models[0].files:
        _write_like(file, models, weights, target / file.name)
    for path in folders[0].iterdir():
        if path.name == SAFE_WEIGHTS_INDEX_NAME or (path.is_file() and _OF_THE_MODEL.fullmatch(path.name)):
            shutil.copyfile(path, target / path.name)


class _StoredModel:
    """The tensors of a folder, in one file or in shards, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _weight_files(folder)
        self._places: dict[str, Path] = {}
        self._shapes: dict[str, list[int]] = {}
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                self._places |= dict.fromkeys(file.keys(), path)
                self._shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    def tensor(self, name: str) -> torch.Tensor:
        return stored_tensor(self._places[name], name)

    def check_like(self, other: _StoredModel) -> None:
        """Refuses a model with other tensors."""
        for one, two in ((self, other), (other, self)):
            if lacking := sorted(one._places.keys() - two._places.keys()):
                raise ValueError(
                    f"paths: {str(two.folder)!r} lacks the tensor {lacking[0]!r} of {str(one.folder)!r}"
                    f" ({len(lacking)} in all); only models of one architecture can be merged."
                )
        for name in self._places:
            if self._shapes[name] != other._shapes[name]:
                raise ValueError(
                    f"paths: tensor {name!r} has shape {self._shapes[name]} in {str(self.folder)!r} and"
                    f" {other._shapes[name]} in {str(other.folder)!r}; only models of one architecture can be merged."
                )


def _weight_files(folder: Path) -> list[Path]:
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.exists():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(f"paths: {str(folder)!r} lacks the file {missing[0]!r} that its index names.")
        return [folder / name for name in names]
    if not (folder / SAFE_WEIGHTS_NAME).is_file():
        raise ValueError(f"paths: {str(folder)!r} holds no safetensors weights.")
    return [folder / SAFE_WEIGHTS_NAME]


def _write_like(file: Path, models: Sequence[_StoredModel], weights: Sequence[float], target: Path) -> None:
    """Writes the merged tensors with the header of a file: safetensors' own writer needs all tensors in memory."""
    with file.open("rb") as source:
        size = source.read(8)
        header = source.read(struct.unpack("<Q", size)[0])
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    with target.open("wb") as merged:
        merged.write(size + header)
        for name in sorted(entries, key=lambda each: entries[each]["data_offsets"]):
            tensor = _merged(name, models, weights)
            merged.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _merged(name: str, models: Sequence[_StoredModel], weights: Sequence[float]) -> torch.Tensor:
    first = models[0].tensor(name)
    if first.is_floating_point():
        return weighted_mean((model.tensor(name) for model in models), weights)
    for other in models[1:]:
        if not torch.equal(first, other.tensor(name)):
            raise ValueError(
                f"paths: tensor {name!r} is of type {first.dtype} and differs between {str(models[0].folder)!r} and"
                f" {str(other.folder)!r}; only numbers with a fraction can be merged."
            )
    return first


# ---- Along a run ---------------------------------------------------------------------------------------------------

MERGE_METHODS = ("ema", "first")


@dataclass(frozen=True)
class MergeSettings:
    """What a run merges each task's model with, `merge` of its arguments.

    A LoRA adapter is merged by PEFT's `svd`, which keeps its rank.

    Args:
        method (`str`):
            `ema`: the running average m_k = weight theta_k + (1 - weight) m_(k-1) of the models theta_k at the tasks'
            ends; m_0 = theta_0. `first`: weight theta_k + (1 - weight) times the model that the run began with, which
            should be a pretrained one (Roth et al. 2024, arXiv 2408.14471).
        weight (`float`, defaults to 0.5): Of the latest model, above 0 and below 1.
        next_start (`bool`, defaults to `False`):
            The next task goes on from the merged model; otherwise it is evaluated and released only.
    """

    method: str
    weight: float = 0.5
    next_start: bool = False

    def __post_init__(self) -> None:
        if self.method not in MERGE_METHODS:
            raise ValueError(f"merge.method={self.method!r} must be one of {', '.join(MERGE_METHODS)}.")
        if type(self.weight) not in (int, float) or not 0 < self.weight < 1:
            raise ValueError(f"merge.weight={self.weight!r} must be above 0 and below 1.")
        if type(self.next_start) is not bool:
            raise ValueError(f"merge.next_start={self.next_start!r} must be true or false.")

    @classmethod
    def of(cls, value: Any) -> MergeSettings:
        """Reads `merge`: a method's name, or a mapping (or JSON) of the fields."""
        if isinstance(value, str):
            value = json.loads(value) if value.lstrip().startswith("{") else {"method": value}
        if not isinstance(value, Mapping) or "method" not in value:
            raise ValueError(f"merge={value!r} must be {' or '.join(MERGE_METHODS)}, or a mapping with a method.")
        known = [field.name for field in fields(cls)]
        for key in value:
            if key not in known:
                raise ValueError(f"merge: {key!r} is an unknown key; the keys are {', '.join(known)}.")
        return cls(**value)
