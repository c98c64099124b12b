"""Samples in an Arrow file, which come back as what they were: arrays as arrays, tensors as tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

_BARE = "sample"  # the column of samples that are no mappings
_POSITION = "position_in_task"
_KINDS = b"kinds"


def write_samples(path: Path, positions: Sequence[int], samples: Sequence[Any]) -> None:
    """Writes samples and their positions in their task.

    Args:
        path (`Path`): The file.
        positions (`Sequence[int]`): Where the task has read each sample.
        samples (`Sequence`): Mappings of columns to numbers, text, images, arrays, tensors or lists of them; or one
            such value each.
    """
    bare = not isinstance(samples[0], Mapping)
    rows = [{_BARE: sample} if bare else dict(sample) for sample in samples]
    kinds = {column: kind for column, value in rows[0].items() if (kind := _kind(value)) is not None}
    plain = [{column: _plain(value) for column, value in row.items()} for row in rows]
    table = Dataset.from_list([{**row, _POSITION: at} for row, at in zip(plain, positions, strict=True)]).data.table
    note = json.dumps({"bare": bare, "kinds": kinds}).encode()
    table = table.replace_schema_metadata({**table.schema.metadata, _KINDS: note})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


class SampleFile:
    """Reads a file of [`write_samples`], mapped into memory.

    Args:
        path (`Path`): The file.
    """

    def __init__(self, path: Path) -> None:
        self._rows = Dataset.from_file(str(path))
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            note = json.loads(reader.schema.metadata[_KINDS])
        self._bare, self._kinds = note["bare"], note["kinds"]

    @cached_property
    def positions(self) -> list[int]:
        """Where the task has read each sample."""
        return self._rows.with_format("numpy")[_POSITION][:].tolist()

    def sample(self, place: int) -> Any:
        """The sample at a place of the file."""
        row = self._rows[place]
        del row[_POSITION]
        for column, kind in self._kinds.items():
            row[column] = _as_it_was(row[column], kind)
        return row[_BARE] if self._bare else row


def _kind(value: Any) -> list[str] | None:
    if isinstance(value, torch.Tensor):
        return ["torch", str(value.detach().cpu().numpy().dtype)]
    return ["numpy", str(value.dtype)] if isinstance(value, (np.ndarray, np.generic)) else None


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return value if value.ndim else value.item()  # Arrow would make a list of one
    # The copy of an image has forgotten its file's format, such as JPEG, so that it is stored without loss.
    return value.copy() if type(value).__module__.startswith("PIL.") else value


def _as_it_was(value: Any, kind: Sequence[str]) -> Any:
    array = np.asarray(value, dtype=kind[1])
    return torch.from_numpy(array) if kind[0] == "torch" else array[()]
