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
        samples (`Sequence`): Mappings of columns to numbers, text, images, arrays, tensors, or lists and mappings of
            them; or one such value each. Not all need the same columns.
    """
    bare = not all(isinstance(sample, Mapping) for sample in samples)
    rows = [{_BARE: sample} if bare else dict(sample) for sample in samples]
    row_kinds = [{column: _kind(value) for column, value in row.items()} for row in rows]
    # Arrow holds either lists or taken-apart ones in a column.
    apart = {column for kind in row_kinds for column, of in kind.items() if isinstance(of, list) and of[0] == "parts"}
    for kind, row in zip(row_kinds, rows, strict=True):
        for column in apart & row.keys():
            if isinstance(row[column], (list, tuple)):
                kind[column] = ["parts", [_kind(part) for part in row[column]]]
    # Each kind once: as a rule all samples are of one.
    codes = [json.dumps(kind) for kind in row_kinds]
    places = {code: place for place, code in enumerate(dict.fromkeys(codes))}
    kinds, kind_of = [json.loads(code) for code in places], [places[code] for code in codes]
    columns = dict.fromkeys(column for row in rows for column in row)
    plain = [
        {column: _plain(row.get(column), kind.get(column)) for column in columns}
        for row, kind in zip(rows, row_kinds, strict=True)
    ]
    table = Dataset.from_list([{**row, _POSITION: at} for row, at in zip(plain, positions, strict=True)]).data.table
    note = json.dumps({"bare": bare, "kinds": kinds, "kind_of": kind_of if len(kinds) > 1 else None}).encode()
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
        self._bare, self._kinds, self._kind_of = note["bare"], note["kinds"], note["kind_of"]

    @cached_property
    def positions(self) -> list[int]:
        """Where the task has read each sample."""
        return self._rows.with_format("numpy")[_POSITION][:].tolist()

    def sample(self, place: int) -> Any:
        """The sample at a place of the file."""
        kind = self._kinds[self._kind_of[place] if self._kind_of else 0]
        row = _as_it_was(self._rows[place], kind)
        return row[_BARE] if self._bare else row


def _kind(value: Any) -> Any:
    """What a value is made of, as JSON: null for what Arrow itself gives back as it was."""
    if isinstance(value, torch.Tensor):
        return ["torch", str(value.dtype).removeprefix("torch."), value.ndim]
    if isinstance(value, (np.ndarray, np.generic)):
        return ["numpy", str(value.dtype), value.ndim]
    if isinstance(value, Mapping):
        parts = {key: _kind(part) for key, part in value.items()}
        return parts if any(part is not None for part in parts.values()) else None
    if isinstance(value, (list, tuple)):
        of = [_kind(part) for part in value]
        if any(part != of[0] for part in of):
            return ["parts", of]
        return ["list", of[0]] if of and of[0] is not None else None
    return None


def _plain(value: Any, kind: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        # numpy has no bfloat16, of which every number is one of float32 too.
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray):
        return value if value.ndim else value.item()  # Arrow would make a list of one
    if isinstance(value, Mapping) and isinstance(kind, Mapping):
        return {key: _plain(part, kind[key]) for key, part in value.items()}
    if isinstance(value, (list, tuple)) and kind is not None:
        name, of = kind
        if name == "list":
            return [_plain(part, of) for part in value]
        return {str(place): _plain(part, of[place]) for place, part in enumerate(value)}
    # The copy of an image has forgotten its file's format, such as JPEG, so that it is stored without loss.
    return value.copy() if type(value).__module__.startswith("PIL.") else value


def _as_it_was(value: Any, kind: Any) -> Any:
    if isinstance(kind, Mapping):
        return {key: _as_it_was(value[key], part) for key, part in kind.items()}
    if kind is None:
        return value
    name, of = kind[:2]
    if name == "list":
        return [_as_it_was(part, of) for part in value]
    if name == "parts":
        return [_as_it_was(value[str(place)], part) for place, part in enumerate(of)]
    if name == "torch":
        return torch.from_numpy(np.asarray(value)).to(getattr(torch, of))
    return np.asarray(value, dtype=of)[()]
