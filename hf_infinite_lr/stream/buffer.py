"""The samples that a streaming task keeps for replay: on disk, in the order in which they were read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .order import scatter
from .reservoir import Reservoir, chosen
from .sample_file import SampleFile, write_samples

FILE_SIZE = 256
"""Samples of one file, and at most so many are held in memory."""

_TAIL = "tail.arrow"


class StreamBuffer:
    """A reservoir over a stream whose samples lie in files.

    All processes read the same samples and let in the same ones; the main process alone writes them. A process holds
    the samples of a file in memory until the file is there. Whatever a position has let in stays on disk, because a
    run may be resumed from before it: about size x (1 + ln(samples / size)) samples in all.

    Args:
        name (`str`): The task's name, for messages.
        directory (`Path`): Where its files lie, or will.
        size (`int`): Samples to keep.
        key (`tuple[int, ...]`): Of the numbers that decide what is kept.
        class_column (`str`, *optional*): Column by which the buffer is balanced.
        class_names (`Mapping`, *optional*): Label -> name of a class, where labels are numbers of their dataset alone.
        writes (`bool`): Whether this process writes the files.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        size: int,
        key: tuple[int, ...],
        *,
        class_column: str | None = None,
        class_names: Mapping[Any, str] | None = None,
        writes: bool = True,
    ) -> None:
        self.name, self.directory, self.size, self.key = name, directory, size, key
        self.class_column, self.class_names, self.writes = class_column, class_names or {}, writes
        self._reservoir = Reservoir(size)
        self._read = 0
        self._positions: list[int] = []
        self._labels: list[Any] = []
        self._pending: list[Any] = []  # the samples since the last file that is known to be there
        self._files: list[SampleFile] = []

    def __len__(self) -> int:
        return len(self._positions)

    def offer(self, start: int, samples: Sequence[Any]) -> None:
        """Lets in what may be kept of the samples at positions `start` and after; those known are passed over."""
        samples = samples[max(self._read - start, 0) :]
        if not samples:
            return
        positions = np.arange(self._read, self._read + len(samples))
        self._read += len(samples)
        labels = None if self.class_column is None else [self._label(sample) for sample in samples]
        for place in self._reservoir.let_in(scatter(positions, *self.key), labels):
            self._positions.append(int(positions[place]))
            self._labels += [] if labels is None else [labels[place]]
            self._pending.append(samples[place])
        if start == 0:
            self.flush()  # samples that no file can hold are found before the first step
        self._write_whole_files()

    def chosen(self, size: int) -> np.ndarray:
        """The entries that are kept at the end, as places in the order of reading."""
        numbers = scatter(np.asarray(self._positions, np.int64), *self.key)
        return chosen(numbers, size, None if self.class_column is None else np.asarray(self._labels))

    def sample(self, entry: int) -> Any:
        """The sample of an entry, as it was read."""
        file, place = divmod(entry, FILE_SIZE)
        known = len(self._files)
        return self._files[file].sample(place) if file < known else self._pending[entry - known * FILE_SIZE]

    def labels(self, entries: np.ndarray) -> np.ndarray:
        """The labels of entries."""
        return np.asarray(self._labels)[entries]

    def flush(self) -> None:
        """Writes what is held in memory only, so that the directory holds all that was let in."""
        if self.writes and self._pending:
            self._write(_TAIL, self._pending, len(self._files) * FILE_SIZE)

    def load(self, position: int) -> None:
        """Takes over what the directory holds of the samples before a position; the rest will come again."""
        for path in [*self._whole_files(), self.directory / _TAIL]:
            if path.exists():
                self._adopt(SampleFile(path), position)
        self._read = position
        numbers = scatter(np.asarray(self._positions, np.int64), *self.key)
        self._reservoir.let_in(numbers, None if self.class_column is None else self._labels)

    def _adopt(self, file: SampleFile, position: int) -> None:
        known = self._positions[-1] if self._positions else -1
        new = [place for place, at in enumerate(file.positions) if known < at < position]
        self._positions += [file.positions[place] for place in new]
        if len(new) == FILE_SIZE:
            self._files.append(file)
        else:
            self._pending += [file.sample(place) for place in new]
        if self.class_column is not None:
            self._labels += [self._label(file.sample(place)) for place in new]

    def _label(self, sample: Any) -> Any:
        try:
            label = sample[self.class_column]
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"replay_class_column={self.class_column!r}: a sample of the streaming task {self.name!r} has no such "
                "column."
            ) from error
        label = label.item() if hasattr(label, "item") else label
        return self.class_names.get(label, str(label)) if self.class_names else label

    def _whole_files(self) -> list[Path]:
        return sorted(self.directory.glob("[0-9]*.arrow"))

    def _write_whole_files(self) -> None:
        while len(self._pending) >= FILE_SIZE:
            number = len(self._files)
            path = self.directory / f"{number:06d}.arrow"
            if self.writes:
                self._write(path.name, self._pending[:FILE_SIZE], number * FILE_SIZE)
            elif not path.exists():
                return
            self._files.append(SampleFile(path))
            del self._pending[:FILE_SIZE]

    def _write(self, name: str, samples: Sequence[Any], first: int) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        aside = self.directory / f".{name}.incoming"
        try:
            write_samples(aside, self._positions[first : first + len(samples)], samples)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(
                f"The samples of the streaming task {self.name!r} cannot be kept for replay ({error}): they must "
                "consist of numbers, text, arrays and lists."
            ) from error
        os.replace(aside, self.directory / name)
