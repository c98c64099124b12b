"""Built-in corpora: real text that already lies on every disk where this package runs.

Only the standard library and the declared dependencies of `hf_infinite_lr` (requirements without extras) are read, so
that no private package of the user gets into a model, and nothing is imported to be read.
"""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

logger = logging.getLogger(__name__)

EVAL_SHARE = 0.05
"""Share of the files that is held out."""

# A capped part holds at least so many files, so that one long file cannot be most of it.
_LEAST_FILES = 32
_FORMAT = 2
_FEATURES = datasets.Features({"text": datasets.Value("string"), "source": datasets.Value("string")})
_SKIPPED_DIRECTORIES = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class CorpusFile:
    """
    One document that may become part of a corpus.

    Args:
        source (`str`): Relative name, the same on every machine; it decides part and order.
        size (`int`): Size in bytes of what is read, so that a changed file is not taken from the cache.
        read (`Callable[[], str]`): Reads the text; a `ValueError`, `SyntaxError` or `OSError` skips the file.
    """

    source: str
    size: int
    read: Callable[[], str]

    @property
    def held_out(self) -> bool:
        """Whether the file belongs to the held-out part: a hash of its name is below `EVAL_SHARE`."""
        return _uniform("part", self.source) < EVAL_SHARE


@dataclass(frozen=True)
class CorpusSplits:
    """
    A corpus in two parts that share no file and no text.

    Args:
        train (`datasets.Dataset`): Training part with the columns `text` and `source`.
        eval (`datasets.Dataset`): Held-out part with the same columns.
        fingerprint (`str`): SHA-256 over the versions and over the names and texts of both parts, in hexadecimal.
        num_files (`int`): Files in both parts.
        num_bytes (`int`): UTF-8 bytes of text in both parts.
    """

    train: datasets.Dataset
    eval: datasets.Dataset
    fingerprint: str
    num_files: int
    num_bytes: int


def corpus_names() -> tuple[str, ...]:
    """
    Names of the built-in corpora.

    Example:

    ```python
    >>> corpus_names()
    ('cpp', 'docs', 'python')

    ```
    """
    return tuple(sorted(_FILES))


def load_corpus(name: str, *, max_bytes: int | None = None, eval_bytes: int | None = None) -> CorpusSplits:
    """
    Loads a built-in corpus: the same text for the same versions of Python and of the dependencies.

    - `docs`: the pydoc topics, the docstrings of the standard library and of the declared dependencies (one document a
      file, taken by `ast`), and the long descriptions in the dependencies' metadata;
    - `python`: the sources of the standard library, without tests and without the pydoc topics;
    - `cpp`: the C++ headers under `torch/include`.

    A file is held out when a hash of its relative name says so; the order is another hash of that name, so that a
    capped corpus is a fair sample of the whole. Files whose text was taken already are passed over. The result is kept
    under `HF_DATASETS_CACHE`, by versions, caps and file sizes.

    Args:
        name (`str`): One of [`corpus_names`].
        max_bytes (`int`, *optional*):
            Bytes of text in the training part. No document takes more than 1/32 of it; a longer one is cut at a line
            end.
        eval_bytes (`int`, *optional*):
            The same for the held-out part; by default the share `EVAL_SHARE` of `max_bytes`.

    Returns:
        [`CorpusSplits`]: Both parts, with counts.

    Raises:
        `ValueError`: If the name is unknown, or a cap is not a positive whole number.

    Example:

    ```python
    >>> load_corpus("python", max_bytes=10_000).train.column_names
    ['text', 'source']

    ```
    """
    if name not in _FILES:
        raise ValueError(f"builtin {name!r} is not a built-in corpus; there are {', '.join(corpus_names())}.")
    for field, value in (("max_bytes", max_bytes), ("eval_bytes", eval_bytes)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{field} is {value!r} but must be a positive whole number of bytes.")
    if eval_bytes is None and max_bytes is not None:
        eval_bytes = max(1, int(EVAL_SHARE * max_bytes))
    files = sorted(_FILES[name](), key=lambda file: file.source)
    versions = corpus_versions(name)
    directory = _cache_directory(name, files, versions, max_bytes, eval_bytes)
    if not (directory / "corpus.json").is_file():
        splits = build_corpus(files, versions=versions, max_bytes=max_bytes, eval_bytes=eval_bytes)
        if not len(splits.train) or not len(splits.eval):
            raise ValueError(f"builtin {name!r} found only {splits.num_files} files here, too few for two parts.")
        _save(splits, directory)
    return _load(directory)


def build_corpus(
    files: Iterable[CorpusFile], *, versions: Sequence[str] = (), max_bytes: int | None, eval_bytes: int | None
) -> CorpusSplits:
    """
    Splits files into a training and a held-out part and reads them up to the caps.

    Args:
        files (`Iterable[CorpusFile]`): Candidates, in any order.
        versions (`Sequence[str]`, *optional*): What else decides the content; part of the fingerprint.
        max_bytes (`int`, *optional*): Cap of the training part.
        eval_bytes (`int`, *optional*): Cap of the held-out part.

    Returns:
        [`CorpusSplits`]: Both parts, in memory.
    """
    ordered = sorted(files, key=lambda file: (_uniform("order", file.source), file.source))
    seen: set[bytes] = set()
    # The held-out part is read first, so that a text that occurs under two names never trains what it scores.
    held_out = _read([file for file in ordered if file.held_out], eval_bytes, seen)
    train = _read([file for file in ordered if not file.held_out], max_bytes, seen)
    digest = hashlib.sha256("\n".join(versions).encode())
    num_bytes = 0
    for part, rows in (("train", train), ("eval", held_out)):
        for source, text in rows:
            encoded = text.encode()
            num_bytes += len(encoded)
            digest.update(f"\0{part}\0{source}\0{len(encoded)}\0".encode() + encoded)
    return CorpusSplits(
        train=_dataset(train),
        eval=_dataset(held_out),
        fingerprint=digest.hexdigest(),
        num_files=len(train) + len(held_out),
        num_bytes=num_bytes,
    )


def _read(files: Iterable[CorpusFile], max_bytes: int | None, seen: set[bytes]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    room = sys.maxsize if max_bytes is None else max_bytes
    longest = max(1, room // _LEAST_FILES)
    for file in files:
        if not room:
            break
        try:
            encoded = file.read().replace("\r\n", "\n").strip("\n").encode()
        except (ValueError, SyntaxError, OSError, RecursionError) as error:
            logger.debug("%s was skipped: %s", file.source, error)
            continue
        digest = hashlib.blake2b(encoded).digest()
        if not encoded.strip() or digest in seen:
            continue
        seen.add(digest)
        size = min(len(encoded), longest, room)
        room -= size
        rows.append((file.source, _cut(encoded, size)))
    return rows


def _cut(encoded: bytes, size: int) -> str:
    """The whole lines in the first `size` bytes, or the whole characters when there is no line end."""
    head = encoded[:size].decode(errors="ignore")
    lines, newline, _ = head.rpartition("\n")
    return lines if newline and size < len(encoded) else head


def _dataset(rows: Sequence[tuple[str, str]]) -> datasets.Dataset:
    columns = {"text": [text for _, text in rows], "source": [source for source, _ in rows]}
    return datasets.Dataset.from_dict(columns, features=_FEATURES)


def _uniform(purpose: str, source: str) -> float:
    """A number in [0, 1) that depends on nothing but the two names."""
    digest = hashlib.blake2b(f"{purpose}\0{source}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _docs_files() -> Iterator[CorpusFile]:
    yield from _topic_files()
    for path, source in _standard_library():
        yield CorpusFile(f"python/{source}", path.stat().st_size, functools.partial(_docstrings, path))
    for distribution in _dependencies():
        name = distribution.metadata["Name"]
        description = str(distribution.metadata.json.get("description", ""))
        yield CorpusFile(f"{name}/METADATA", len(description), functools.partial(str, description))
        for path, source in _distribution_modules(distribution):
            yield CorpusFile(source, path.stat().st_size, functools.partial(_docstrings, path))


def _python_files() -> Iterator[CorpusFile]:
    for path, source in _standard_library():
        if not source.startswith("pydoc_data/"):
            yield CorpusFile(source, path.stat().st_size, functools.partial(_source, path))


def _cpp_files() -> Iterator[CorpusFile]:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("builtin 'cpp' needs the headers of an installed torch, and torch is not installed here.")
    package = Path(spec.submodule_search_locations[0])
    for path, source in _walk(package / "include", (".h", ".hpp", ".cuh")):
        yield CorpusFile(
            f"torch/include/{source}", path.stat().st_size, functools.partial(path.read_text, encoding="utf-8")
        )


_FILES: dict[str, Callable[[], Iterator[CorpusFile]]] = {
    "docs": _docs_files,
    "python": _python_files,
    "cpp": _cpp_files,
}


def _topic_files() -> Iterator[CorpusFile]:
    path = Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py")
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for topic, text in ast.literal_eval(node.value).items():
                yield CorpusFile(f"pydoc/{topic}", len(text), functools.partial(str, text))


def _standard_library() -> Iterator[tuple[Path, str]]:
    """Modules by `sys.stdlib_module_names`: what a distributor or a user put beside them does not count."""
    root = Path(sysconfig.get_path("stdlib"))
    for path, source in _walk(root, (".py",)):
        if source.split("/", 1)[0].removesuffix(".py") in sys.stdlib_module_names:
            yield path, source


def _walk(root: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if name not in _SKIPPED_DIRECTORIES]
        for name in names:
            if name.endswith(suffixes):
                path = Path(directory, name)
                yield path, path.relative_to(root).as_posix()


def _dependencies() -> list[importlib.metadata.Distribution]:
    """The installed distributions that this package declares as requirements outside of extras."""
    distributions = []
    for requirement in importlib.metadata.requires("hf_infinite_lr") or ():
        name, _, marker = requirement.partition(";")
        if not re.search(r"\bextra\b", marker):
            distributions.append(importlib.metadata.distribution(re.split(r"[^\w.-]", name.strip())[0]))
    return distributions


def _distribution_modules(distribution: importlib.metadata.Distribution) -> Iterator[tuple[Path, str]]:
    for file in distribution.files or ():
        if file.suffix == ".py" and not _SKIPPED_DIRECTORIES.intersection(file.parts) and ".." not in file.parts:
            path = Path(str(file.locate()))
            if path.is_file():
                yield path, file.as_posix()


def _docstrings(path: Path) -> str:
    with warnings.catch_warnings():
        # Invalid escape sequences in other people's sources.
        warnings.simplefilter("ignore")
        tree = ast.parse(path.read_bytes())
    texts = (ast.get_docstring(node) for node in _definitions(tree))
    return "\n\n".join(text for text in texts if text)


def _definitions(node: ast.AST) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """A module, class or function and those inside it, in the order of the source; expressions hold none."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _definitions(child)


def _source(path: Path) -> str:
    with tokenize.open(path) as file:
        return file.read()


def corpus_versions(name: str) -> tuple[str, ...]:
    """
    What decides the text of a built-in corpus, as `name==version`: Python, and the declared dependencies but for the
    corpus `python`.

    Args:
        name (`str`): One of [`corpus_names`].

    Example:

    ```python
    >>> [requirement.partition("==")[0] for requirement in corpus_versions("python")]
    ['python']

    ```
    """
    versions = {f"python=={platform.python_version()}"}
    if name != "python":
        versions.update(f"{found.metadata['Name']}=={found.version}" for found in _dependencies())
    return tuple(sorted(versions))


def _cache_directory(name: str, files: Sequence[CorpusFile], versions: Sequence[str], *caps: int | None) -> Path:
    description = [
        _FORMAT,
        EVAL_SHARE,
        _LEAST_FILES,
        name,
        versions,
        caps,
        [(file.source, file.size) for file in files],
    ]
    key = hashlib.sha256(json.dumps(description).encode()).hexdigest()[:16]
    return Path(datasets.config.HF_DATASETS_CACHE, "hf_infinite_lr", f"{name}-{key}")


def _save(splits: CorpusSplits, directory: Path) -> None:
    """Writes aside and moves into place, so that several processes may do it at once."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".writing-") as temporary:
        aside = Path(temporary, "corpus")
        aside.mkdir()
        splits.train.save_to_disk(aside / "train")
        splits.eval.save_to_disk(aside / "eval")
        counts = {key: getattr(splits, key) for key in ("fingerprint", "num_files", "num_bytes")}
        (aside / "corpus.json").write_text(json.dumps(counts))
        try:
            aside.replace(directory)
        except OSError:
            if not (directory / "corpus.json").is_file():
                shutil.rmtree(directory)
                aside.replace(directory)


def _load(directory: Path) -> CorpusSplits:
    counts = json.loads((directory / "corpus.json").read_text())
    train, held_out = (datasets.load_from_disk(directory / part) for part in ("train", "eval"))
    return CorpusSplits(train=train, eval=held_out, **counts)
