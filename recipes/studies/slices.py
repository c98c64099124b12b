"""The data of the studies: slices of the built-in corpora and pictures, those of the search apart from those reported.

A quarter of a slice's training part is set apart for the search, which holds a quarter of that out for its scores;
reported runs train on the rest and are scored on the held-out part of the corpus, which no search has seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_infinite_lr.stream.corpora import load_corpus
from hf_infinite_lr.stream.pictures import load_pictures

PURPOSES = ("search", "report")
_APART = 0.25
_CHARACTERS = 1000  # of a held-out document, from its middle: many documents, and few licenses


@dataclass(frozen=True)
class Slice:
    """A task's data: a built-in corpus or set of pictures, and which of it.

    Args:
        name (`str`): Of the task.
        builtin (`str`): As in a recipe.
        folder (`str`): Of a corpus: the documents whose source begins so.
        classes (`int`, *optional*): Of pictures: those whose class has this remainder modulo 10.
        third (`int`, *optional*): Every third document, from this one on.
    """

    name: str
    builtin: str
    folder: str = ""
    classes: int | None = None
    third: int | None = None

    def of(self, rows: Dataset) -> Dataset:
        """The rows that belong to it."""
        if self.classes is not None:
            return rows.select(np.flatnonzero(np.asarray(rows["label"][:]) % 10 == self.classes))
        if self.third is not None:
            return rows.select(range(self.third, len(rows), 3))
        if self.folder:
            return rows.select(np.flatnonzero([source.startswith(self.folder) for source in rows["source"][:]]))
        return rows


STREAMS = {
    "lm": {
        "three": [Slice(name, name) for name in ("docs", "python", "cpp")],
        "same": [Slice(f"docs-{number}", "docs", third=number) for number in range(3)],
        "ten": [
            Slice("transformers-docs", "docs", "transformers/"),
            Slice("aten-cpp", "cpp", "torch/include/ATen/"),
            Slice("scipy-docs", "docs", "scipy/"),
            Slice("stdlib-python", "python"),
            Slice("torch-docs", "docs", "torch/"),
            Slice("torch-cpp", "cpp", "torch/include/torch/"),
            Slice("sklearn-docs", "docs", "sklearn/"),
            Slice("protobuf-cpp", "cpp", "torch/include/google/"),
            Slice("numpy-docs", "docs", "numpy/"),
            Slice("c10-cpp", "cpp", "torch/include/c10/"),
        ],
    },
    "mae": {
        "three": [Slice(name, name) for name in ("digits", "glyphs", "photos")],
        "ten": [Slice(f"glyphs-{number}", "glyphs", classes=number) for number in range(10)],
    },
}
_HELD_OUT = {"lm": {"three": 32, "same": 32, "ten": 12}, "mae": {"three": 300, "ten": 100}}  # at most, of a slice


def entries(study: str, stream: str, purpose: str, folder: Path, max_bytes: int) -> list[dict[str, str]]:
    """
    The entries of `tasks` of a recipe; files that are missing in `folder` are written.

    Args:
        study (`str`): `lm` or `mae`.
        stream (`str`): One of [`STREAMS`].
        purpose (`str`): `search` or `report`.
        folder (`Path`): Where the files lie, one folder for each content of the corpora.
        max_bytes (`int`): Of a corpus's training part, from which slices are taken.
    """
    found = []
    for part in STREAMS[study][stream]:
        source = _source(study, part.builtin, max_bytes)
        path = folder / source.fingerprint[:16] / f"{part.name}-{purpose}"
        files = {"data_files": f"{path}-train.parquet", "eval_data_files": f"{path}-eval.parquet"}
        if not all(Path(file).exists() for file in files.values()):
            path.parent.mkdir(parents=True, exist_ok=True)
            for file, rows in zip(
                files.values(), _parts(part, source, purpose, _HELD_OUT[study][stream]), strict=True
            ):
                rows.to_parquet(file)
        found.append({"name": part.name, **files})
    return found


@cache
def _source(study: str, builtin: str, max_bytes: int):
    if study == "mae":
        return load_pictures(builtin)
    return load_corpus(builtin, max_bytes=max_bytes, eval_bytes=max_bytes // 4)


def _parts(part: Slice, source, purpose: str, most: int) -> Sequence[Dataset]:
    halves = part.of(source.train).train_test_split(test_size=_APART, seed=0)
    train, held_out = halves["train"], part.of(source.eval)
    if purpose == "search":
        searched = halves["test"].train_test_split(test_size=_APART, seed=0)
        train, held_out = searched["train"], searched["test"]
    held_out = held_out.select(range(min(most, len(held_out))))
    if "text" in held_out.column_names:
        held_out = held_out.map(_middle, input_columns="text")
    return train, held_out


def _middle(text: str) -> dict[str, str]:
    start = max(0, (len(text) - _CHARACTERS) // 2)
    return {"text": text[start : start + _CHARACTERS]}
