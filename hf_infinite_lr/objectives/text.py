"""Documents of text from the built-in corpora, the Hub or local files, in a training and a held-out part."""

import codecs
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import fsspec
import numpy as np
from pyarrow import parquet

from hf_infinite_lr.stream.corpora import load_corpus

from .source import DataSource, Splits, place

logger = logging.getLogger(__name__)

_BUILDERS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".csv": "csv"}
_COMPRESSIONS = frozenset({".gz", ".zst", ".bz2", ".xz"})
_LARGEST_DOCUMENT = 2**28


@dataclass(frozen=True)
class TextSource(DataSource):
    """
    Where a task's text comes from: the keys of [`DataSource`], of which `builtin` is a corpus of [`load_corpus`] and
    `data_files` are JSON lines, parquet or CSV, or else plain text with one document a file; and these.

    Args:
        max_bytes (`int`, *optional*): Of `builtin`: bytes in the training part.
        eval_bytes (`int`, *optional*): Of `builtin`: bytes in the held-out part.
        text_column (`str`, *optional*, defaults to `"text"`): Where the text stands.

    Example:

    ```python
    >>> TextSource(name="code", data_files="code/*.parquet", text_column="content", eval_fraction=0.01).streaming
    False

    ```
    """

    max_bytes: int | None = None
    eval_bytes: int | None = None
    text_column: str = "text"

    rows: ClassVar[str] = "documents"
    hint_of_rows: ClassVar[str] = " (a plain text file is one document; one for each line is what JSON lines are for)"
    only_of_builtin: ClassVar[tuple[str, ...]] = ("max_bytes", "eval_bytes")
    never_of_builtin: ClassVar[tuple[str, ...]] = ("text_column",)


def load_text(source: TextSource, columns: Sequence[str] = ()) -> Splits:
    """
    Loads the documents of a task and holds some of them out.

    Args:
        source ([`TextSource`]): Where they come from.
        columns (`Sequence[str]`): Further columns to keep.

    Returns:
        [`Splits`]: A training part (a stream if asked for) and a held-out part.

    Raises:
        `ValueError`: If files or the text column are missing, a file is not UTF-8 text, or a part has no documents.
    """
    if source.builtin is not None:
        corpus = load_corpus(source.builtin, max_bytes=source.max_bytes, eval_bytes=source.eval_bytes)
        train, held_out = (_text_column(part, source, columns) for part in (corpus.train, corpus.eval))
        return Splits(train, held_out, corpus.fingerprint)
    if source.streaming:
        return _load_stream(source, columns)
    documents = _drop_empty(_documents(source, columns), source)
    if source.names_eval_part:
        return Splits(documents, _eval_part(source, columns))
    held_out = source.held_out(_places(documents))
    train, evaluated = (documents.select(np.flatnonzero(mask)) for mask in (~held_out, held_out))
    return Splits(train, evaluated)


def load_held_out(source: TextSource) -> datasets.Dataset:
    """
    Loads text that is only evaluated on.

    Args:
        source ([`TextSource`]):
            The held-out part of `builtin`; else the part that an `eval_` key names; else all documents, or the first
            `num_eval_samples` of them.

    Returns:
        `datasets.Dataset`: One column, `text`.

    Raises:
        `ValueError`: As [`load_text`].
    """
    if source.builtin is not None:
        return load_text(source).eval
    if source.names_eval_part:
        return _eval_part(source, ())
    if source.eval_fraction is not None:
        return load_text(source).eval
    return _first(_documents(source, ()), source)


def _load_stream(source: TextSource, columns: Sequence[str]) -> Splits:
    documents = _documents(source, columns).filter(_is_not_empty, input_columns="text")
    if source.names_eval_part:
        return Splits(documents, _eval_part(source, columns))
    return Splits(documents.skip(source.num_eval_samples), _first(documents, source))


def _eval_part(source: TextSource, columns: Sequence[str]) -> datasets.Dataset:
    return _first(_documents(source, columns, held_out=True), source)


def _first(documents: Any, source: TextSource) -> datasets.Dataset:
    if isinstance(documents, datasets.Dataset):
        found = _drop_empty(documents, source)
        return found.select(range(min(len(found), source.num_eval_samples or len(found))))
    stream = documents.filter(_is_not_empty, input_columns="text")
    found = list(stream.take(source.num_eval_samples) if source.num_eval_samples else stream)
    if not found:
        raise ValueError(f"Task {source.name!r} has no document that is not empty.")
    return datasets.Dataset.from_list(found, features=documents.features)


def _documents(source: TextSource, columns: Sequence[str], *, held_out: bool = False) -> Any:
    """One part as a dataset with the column `text` and further ones."""
    documents = source.read(lambda paths: _from_files(source, paths), held_out=held_out)
    return _text_column(documents, source, columns)


def _from_files(source: TextSource, paths: Sequence[str]) -> Any:
    kinds = sorted({_BUILDERS.get(_extension(path), "text") for path in paths})
    if len(kinds) > 1:
        raise ValueError(f"data_files of task {source.name!r} mixes {' and '.join(kinds)} files: give one kind.")
    builder = kinds[0]
    options = {"sample_by": "document"} if builder == "text" else {}
    for path in paths:
        if "://" in path:
            continue
        if builder == "parquet":
            _check_lengths(path, source)
        else:
            _check_encoding(path, builder)
    return datasets.load_dataset(builder, data_files=paths, split="train", streaming=source.streaming, **options)


def _extension(path: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes if suffix.lower() not in _COMPRESSIONS]
    return suffixes[-1] if suffixes else ""


def _check_lengths(path: str, source: TextSource) -> None:
    """A document that fills memory cannot be recognised once it is being read, so the file's own counts are asked."""
    metadata = parquet.read_metadata(path)
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema == source.text_column and group.num_rows:
                mean = column.total_uncompressed_size // group.num_rows
                if mean > _LARGEST_DOCUMENT:
                    raise ValueError(
                        f"{path} has documents of {mean} bytes, above the limit of {_LARGEST_DOCUMENT}: split them "
                        "into several rows."
                    )


def _check_encoding(path: str, builder: str) -> None:
    """Reads a file once, in pieces: neither its encoding nor a document's length may stop a run later."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = length = 0
    with fsspec.open(path, "rb", compression="infer") as file:
        while chunk := file.read(2**20):
            _decode(decoder, chunk, path, offset)
            offset += len(chunk)
            cut = -1 if builder == "text" else chunk.rfind(b"\n")
            length = len(chunk) - cut - 1 + (length if cut < 0 else 0)
            if length > _LARGEST_DOCUMENT:
                what, remedy = (
                    ("is one document", "split it into several files, or write it as JSON lines")
                    if builder == "text"
                    else ("has a line", "write one document a line, and split a longer one into several")
                )
                raise ValueError(
                    f"{path} {what} of more than {_LARGEST_DOCUMENT} bytes, the limit of a document: {remedy}."
                )
    _decode(decoder, b"", path, offset)


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, path: str, offset: int) -> None:
    pending = len(decoder.getstate()[0])
    try:
        decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: byte {offset - pending + error.start} cannot be decoded; convert the file to "
            "UTF-8."
        ) from error


def _text_column(documents: Any, source: TextSource, columns: Sequence[str]) -> Any:
    column = source.text_column
    names = documents.column_names
    if names is None:
        names = list(next(iter(documents), {}))
    if column not in names:
        raise ValueError(
            f"text_column of task {source.name!r} is {column!r}, but there is only {', '.join(names) or 'no column'}."
        )
    feature = (documents.features or {}).get(column)
    if isinstance(feature, datasets.Value) and feature.dtype not in ("string", "large_string", "null"):
        raise ValueError(f"text_column {column!r} of task {source.name!r} holds {feature.dtype}, not text.")
    for other in columns:
        if other not in names:
            raise ValueError(f"column {other!r} of task {source.name!r} is missing: there is only {', '.join(names)}.")
    documents = documents.select_columns(list(dict.fromkeys([column, *columns])))
    return documents if column == "text" else documents.rename_column(column, "text")


def _is_not_empty(text: str | None) -> bool:
    return bool(text and not text.isspace())


def _drop_empty(documents: datasets.Dataset, source: TextSource) -> datasets.Dataset:
    found = documents.filter(_is_not_empty, input_columns="text", desc="Dropping empty documents")
    num_empty = len(documents) - len(found)
    if not len(found):
        raise ValueError(f"Task {source.name!r} has no document that is not empty ({len(documents)} were read).")
    if num_empty:
        logger.warning(
            "Task %r: %d of %d documents are empty and were dropped.", source.name, num_empty, len(documents)
        )
    return found


def _places(documents: datasets.Dataset) -> np.ndarray:
    placed = documents.map(_place, input_columns="text", remove_columns="text", desc="Choosing held-out documents")
    return np.asarray(placed.with_format("numpy")["place"][:])


def _place(text: str) -> dict[str, float]:
    return {"place": place(text.encode())}
