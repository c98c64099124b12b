"""Features of a fixed set of samples, extracted once for each model and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

from hf_infinite_lr.files import aside

Batches = Callable[[], Iterator[Any]]
"""Makes the batches of a fixed set, in order."""

Encoder = Callable[[Any], torch.Tensor]
"""A batch -> hidden states of shape (batch, 1 + tokens, width), the class token first."""


@dataclass(frozen=True)
class Features:
    """
    What a model makes of some samples.

    Args:
        cls (`np.ndarray`): The class token, shape (samples, width), type float32.
        pooled (`np.ndarray`): The mean over the other tokens, of the same shape and type.
    """

    cls: np.ndarray
    pooled: np.ndarray


@torch.no_grad()
def extract(encoder: Encoder, batches: Iterator[Any]) -> Features:
    """Runs the encoder over all batches."""
    cls, pooled = [], []
    for batch in batches:
        hidden = encoder(batch).float()
        cls.append(hidden[:, 0].cpu())
        pooled.append(hidden[:, 1:].mean(dim=1).cpu())
    return Features(torch.cat(cls).numpy(), torch.cat(pooled).numpy())


def fingerprint_of(model: nn.Module) -> str:
    """A hash of the weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class FeatureCache:
    """
    Features by model and set, as files that name the fingerprints of both.

    Args:
        folder (`Path`): Where the files lie, as `<model>/<set>.safetensors`.
        writes (`bool`, *optional*, defaults to `True`): Whether this process writes (one does).
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes

    def get(self, model: str, name: str, fingerprint: str, make: Callable[[], Features]) -> Features:
        """
        Features from the cache, or new ones where it has none of this fingerprint.

        Args:
            model (`str`): A name of the model, such as `01-digits`.
            name (`str`): A name of the set.
            fingerprint (`str`): Of model and set; files of another one are replaced.
            make (`Callable[[], Features]`): Extracts them.
        """
        path = self._path(model, name)
        if path.exists() and (known := _load(path, fingerprint)) is not None:
            return known
        made = make()
        if self.writes:
            with aside(path) as file:
                save_file({"cls": made.cls, "pooled": made.pooled}, file, metadata={"fingerprint": fingerprint})
        return made

    def known(self, model: str, name: str) -> Features | None:
        """Features of an earlier model, whatever their fingerprint; None where there are none."""
        path = self._path(model, name)
        return _load(path) if path.exists() else None

    def _path(self, model: str, name: str) -> Path:
        return self.folder / model / f"{name}.safetensors"


def _load(path: Path, fingerprint: str | None = None) -> Features | None:
    with safe_open(path, framework="np") as file:
        if fingerprint is not None and file.metadata()["fingerprint"] != fingerprint:
            return None
        return Features(file.get_tensor("cls"), file.get_tensor("pooled"))
