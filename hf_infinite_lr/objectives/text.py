"""Documents of text from the built-in corpora, the Hub or local files, in a training and a held-out part."""

import codecs
import glob
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError
from pyarrow import parquet

from hf_infinite_lr.stream.corpora import load_corpus

logger = logging.getLogger(__name__)

DEFAULT_EVAL_FRACTION = 0.05
"""Share of the documents that is held out when nothing else is said."""

_BUILDERS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".csv": "csv"}
_COMPRESSIONS = frozenset({".gz", ".zst", ".bz2", ".xz"})
_LARGEST_DOCUMENT = 2**28


@dataclass(frozen=True)
class TextSource:
    """
    Where a task's text comes from: keys of an entry of `tasks` or `evaluate_also` in the YAML.

    Exactly one of `builtin`, `dataset_name` and `data_files` is given. The held-out part is `eval_split`,
    `eval_data_files`, or documents taken out of the training data: the share `eval_fraction` of them, chosen by a hash
    of their text, so that more data never moves a document to the other side and equal texts stay together; or
    `num_eval_samples` of them (of a stream the first ones).

    Args:
        name (`str`, *optional*): Name of the task, for messages.
        builtin (`str`, *optional*): A corpus of [`load_corpus`].
        max_bytes (`int`, *optional*): Of `builtin`: bytes in the training part.
        eval_bytes (`int`, *optional*): Of `builtin`: bytes in the held-out part.
        dataset_name (`str`, *optional*): A dataset of the Hub or of a folder.
        dataset_config_name (`str`, *optional*): Its configuration.
        split (`str`, *optional*, defaults to `"train"`): Its split to train on.
        revision (`str`, *optional*): Its branch, tag or commit.
        data_files (`str` or `list[str]`, *optional*):
            Files or globs of one kind: JSON lines, parquet or CSV, or else plain text with one document a file.
        streaming (`bool`, *optional*, defaults to `False`): Read while training instead of before.
        text_column (`str`, *optional*, defaults to `"text"`): Where the text stands.
        eval_split (`str`, *optional*): Split of `dataset_name` that is held out.
        eval_data_files (`str` or `list[str]`, *optional*): Files that are held out.
        eval_fraction (`float`, *optional*): Share of the documents to hold out; 0.05 if nothing else is given.
        num_eval_samples (`int`, *optional*):
            Documents to hold out instead of a share; with `eval_split` or `eval_data_files` the first so many of them.

    Example:

    ```python
    >>> TextSource(name="code", data_files="code/*.parquet", text_column="content", eval_fraction=0.01).streaming
    False

    ```
    """

    name: str = "text"
    builtin: str | None = None
    max_bytes: int | None = None
    eval_bytes: int | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | Sequence[str] | None = None
    streaming: bool = False
    text_column: str = "text"
    eval_split: str | None = None
    eval_data_files: str | Sequence[str] | None = None
    eval_fraction: float | None = None
    num_eval_samples: int | None = None

    def __post_init__(self) -> None:
        given = [key for key in ("builtin", "dataset_name", "data_files") if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(
                f"Task {self.name!r} must give exactly one of builtin, dataset_name and data_files, not {found}."
            )
        for key in _FOREIGN[given[0]]:
            if getattr(self, key) != getattr(type(self), key):
                raise ValueError(
                    f"{key} of task {self.name!r} is {getattr(self, key)!r} but does not go with {given[0]}."
                )
        for key in ("data_files", "eval_data_files"):
            files = getattr(self, key)
            names = [files] if files is None or isinstance(files, str) else files
            if not isinstance(names, Sequence) or not all(name is None or isinstance(name, str) for name in names):
                raise ValueError(f"{key} of task {self.name!r} is {files!r} but must be a path, or a list of paths.")
        self._check_held_out()

    def _check_held_out(self) -> None:
        parts = [key for key in ("eval_split", "eval_data_files", "eval_fraction") if getattr(self, key) is not None]
        if self.eval_fraction is not None and self.num_eval_samples is not None:
            parts.append("num_eval_samples")
        if len(parts) > 1:
            raise ValueError(f"Task {self.name!r} gives {' and '.join(parts)}, of which only one can hold.")
        if self.eval_fraction is not None and not 0 < self.eval_fraction < 1:
            raise ValueError(
                f"eval_fraction of task {self.name!r} is {self.eval_fraction!r} but must be between 0 and 1."
            )
        number = self.num_eval_samples
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ValueError(
                f"num_eval_samples of task {self.name!r} is {number!r} but must be a positive whole number."
            )

    @property
    def names_eval_part(self) -> bool:
        """Whether the held-out part is a part of its own instead of documents taken out of the training data."""
        return self.eval_split is not None or self.eval_data_files is not None


_FOREIGN = {
    "builtin": (
        "dataset_config_name",
        "split",
        "revision",
        "streaming",
        "text_column",
        "eval_split",
        "eval_data_files",
        "eval_fraction",
        "num_eval_samples",
    ),
    "dataset_name": ("max_bytes", "eval_bytes"),
    "data_files": ("max_bytes", "eval_bytes", "dataset_config_name", "split", "revision", "eval_split"),
}


@dataclass(frozen=True)
class TextSplits:
    """
    Documents of a task; both parts have the column `text` and those that were asked for.

    Args:
        train (`datasets.Dataset` or `datasets.IterableDataset`): To train on.
        eval (`datasets.Dataset`): Held out.
        num_empty (`int`, *optional*): Empty documents that were dropped; unknown of a stream.
        fingerprint (`str`, *optional*): Of a built-in corpus: a hash of its content.
    """

    train: datasets.Dataset | datasets.IterableDataset
    eval: datasets.Dataset
    num_empty: int | None = None
    fingerprint: str | None = None


@contextmanager
def naming_faults(source: TextSource) -> Iterator[None]:
    """Says of content that `datasets` cannot read, in one sentence, whose it is."""
    try:
        yield
    except (DatasetGenerationError, pa.ArrowInvalid, UnicodeDecodeError) as error:
        cause = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise ValueError(
            f"{(source.data_files or source.dataset_name)!r} of task {source.name!r} cannot be read: {cause}."
        ) from error


def load_text(source: TextSource, columns: Sequence[str] = ()) -> TextSplits:
    """
    Loads the documents of a task and holds some of them out.

    Args:
        source ([`TextSource`]): Where they come from.
        columns (`Sequence[str]`): Further columns to keep.

    Returns:
        [`TextSplits`]: A training part (a stream if asked for) and a held-out part.

    Raises:
        `ValueError`: If files or the text column are missing, a file is not UTF-8 text, or a part has no documents.
    """
    if source.builtin is not None:
        corpus = load_corpus(source.builtin, max_bytes=source.max_bytes, eval_bytes=source.eval_bytes)
        train, held_out = (_text_column(part, source, columns) for part in (corpus.train, corpus.eval))
        return TextSplits(train, held_out, num_empty=0, fingerprint=corpus.fingerprint)
    if source.streaming:
        return _load_stream(source, columns)
    documents, num_empty = _drop_empty(_documents(source, columns), source)
    if source.names_eval_part:
        return TextSplits(documents, _eval_part(source, columns), num_empty)
    held_out = _held_out(documents, source)
    train, evaluated = (documents.select(np.flatnonzero(mask)) for mask in (~held_out, held_out))
    return TextSplits(train, evaluated, num_empty)


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
        `ValueError`: As [`load_text`]; also for a stream without `num_eval_samples`.
    """
    if source.builtin is not None:
        return load_text(source).eval
    if source.names_eval_part:
        return _eval_part(source, ())
    if source.eval_fraction is not None:
        return load_text(source).eval
    if source.streaming and source.num_eval_samples is None:
        raise ValueError(f"Task {source.name!r} streams text to evaluate on and must say num_eval_samples.")
    return _first(_documents(source, ()), source)


def _load_stream(source: TextSource, columns: Sequence[str]) -> TextSplits:
    if source.eval_fraction is not None:
        raise ValueError(
            f"eval_fraction of task {source.name!r} needs all documents: with streaming give num_eval_samples."
        )
    if not source.names_eval_part and source.num_eval_samples is None:
        raise ValueError(
            f"Task {source.name!r} streams and must name its held-out part by eval_split, eval_data_files or "
            "num_eval_samples."
        )
    documents = _documents(source, columns).filter(_is_not_empty, input_columns="text")
    if source.names_eval_part:
        return TextSplits(documents, _eval_part(source, columns))
    return TextSplits(documents.skip(source.num_eval_samples), _first(documents, source))


def _eval_part(source: TextSource, columns: Sequence[str]) -> datasets.Dataset:
    return _first(_documents(source, columns, held_out=True), source)


def _first(documents: Any, source: TextSource) -> datasets.Dataset:
    if isinstance(documents, datasets.Dataset):
        found, _ = _drop_empty(documents, source)
        return found.select(range(min(len(found), source.num_eval_samples or len(found))))
    stream = documents.filter(_is_not_empty, input_columns="text")
    found = list(stream.take(source.num_eval_samples) if source.num_eval_samples else stream)
    if not found:
        raise ValueError(f"Task {source.name!r} has no document that is not empty.")
    return datasets.Dataset.from_list(found, features=documents.features)


def _documents(source: TextSource, columns: Sequence[str], *, held_out: bool = False) -> Any:
    """One part as a dataset with the column `text` and further ones."""
    files = source.eval_data_files if held_out and source.eval_data_files is not None else source.data_files
    if files is not None:
        documents = _from_files(source, [files] if isinstance(files, str) else list(files))
    else:
        documents = datasets.load_dataset(
            source.dataset_name,
            source.dataset_config_name,
            split=source.eval_split if held_out and source.eval_split else source.split,
            revision=source.revision,
            streaming=source.streaming,
        )
    return _text_column(documents, source, columns)


def _from_files(source: TextSource, patterns: Sequence[str]) -> Any:
    paths = [path for pattern in patterns for path in _expand(pattern, source)]
    kinds = sorted({_BUILDERS.get(_extension(path), "text") for path in paths})
    if len(kinds) > 1:
        raise ValueError(
            f"data_files {list(patterns)} of task {source.name!r} mixes {' and '.join(kinds)} files: give one kind."
        )
    builder = kinds[0]
    options = {"sample_by": "document"} if builder == "text" else {}
    for path in paths:
        if "://" in path or Path(path).suffix.lower() in _COMPRESSIONS:
            continue
        if builder == "parquet":
            _check_lengths(path, source)
        else:
            _check_encoding(path, builder)
    return datasets.load_dataset(builder, data_files=paths, split="train", streaming=source.streaming, **options)


def _expand(pattern: str, source: TextSource) -> list[str]:
    if "://" in pattern:
        return [pattern]
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    if not paths:
        raise ValueError(f"data_files {pattern!r} of task {source.name!r} matches no file.")
    return paths


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
    size = Path(path).stat().st_size
    if builder == "text" and size > _LARGEST_DOCUMENT:
        raise ValueError(
            f"{path} is one document of {size} bytes, above the limit of {_LARGEST_DOCUMENT}: split it into several "
            "files, or write it as JSON lines with one part a line."
        )
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = line = 0
    with open(path, "rb") as file:
        while True:
            chunk = file.read(2**20)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} is not UTF-8 text: byte {offset - pending + error.start} cannot be decoded; convert the "
                    "file to UTF-8."
                ) from error
            offset += len(chunk)
            line = len(chunk) - chunk.rfind(b"\n") - 1 + (0 if b"\n" in chunk else line)
            if builder != "text" and line > _LARGEST_DOCUMENT:
                raise ValueError(
                    f"{path} has a line of more than {_LARGEST_DOCUMENT} bytes, which is the limit of a document: "
                    "write one document a line, and split a longer one into several."
                )
            if not chunk:
                return


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


def _drop_empty(documents: datasets.Dataset, source: TextSource) -> tuple[datasets.Dataset, int]:
    found = documents.filter(_is_not_empty, input_columns="text", desc="Dropping empty documents")
    num_empty = len(documents) - len(found)
    if not len(found):
        raise ValueError(f"Task {source.name!r} has no document that is not empty ({len(documents)} were read).")
    if num_empty:
        logger.warning(
            "Task %r: %d of %d documents are empty and were dropped.", source.name, num_empty, len(documents)
        )
    return found, num_empty


def _held_out(documents: datasets.Dataset, source: TextSource) -> np.ndarray:
    """A mask: documents whose hash is below the fraction, or the `num_eval_samples` smallest hashes."""
    hashed = documents.map(_hash, input_columns="text", remove_columns="text", desc="Choosing held-out documents")
    places = np.asarray(hashed.with_format("numpy")["place"][:])
    fraction = source.eval_fraction if source.eval_fraction is not None else DEFAULT_EVAL_FRACTION
    number = source.num_eval_samples
    if number is None:
        limit = max(fraction, float(places.min()))
    else:
        limit = float(np.sort(places)[min(number, len(places)) - 1])
    mask = places <= limit
    if mask.all():
        raise ValueError(
            f"Task {source.name!r} has too few different documents ({len(documents)}) to hold some out: name "
            "eval_data_files or eval_split."
        )
    return mask


def _hash(text: str) -> dict[str, float]:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return {"place": int.from_bytes(digest, "big") / 2**64}
