"""What of a directory goes to the Hub: no pickles in releases, and no path, token or user name anywhere."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import get_token

from hf_infinite_lr.files import safe_yaml
from hf_infinite_lr.manifest import MANIFEST, STATE, manifest_of

Contents = dict[str, Path | bytes]
"""Path in the repository -> a file as it is, or other bytes."""

CARD = "README.md"
BASE = "base"
"""Where the release of an adapter keeps the configuration of the model below it: at the top transformers would take it
for a whole model's, and not find the adapter."""
RECIPE = "recipe.yaml"
"""Where a run keeps its recipe, below `output_dir` and in each release."""

_REWRITTEN = frozenset(
    (
        "adapter_config.json",
        "card.json",
        "config.json",
        "continual_arguments.json",
        STATE,
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "stream_state.json",
        "tokenizer_config.json",
        "trainer_state.json",
    )
)
"""JSON files of libraries and of ours, which may name where something lay; other JSON is vocabulary and stays."""

_NEVER = frozenset(("training_args.bin", CARD, MANIFEST))
"""The pickled arguments hold paths and need an unsafe loader; the card has a commit of its own, and those that
libraries write below it name local paths; the manifest is made anew of what is published."""

_PICKLES = frozenset((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"))
_TEXTS = frozenset((".json", ".md", ".yaml", ".txt"))

_WORDS = re.compile(r"id2label|label2id|(.*_)?(labels|classes)|.*_tokens?|added_tokens_decoder")
"""Keys of labels and tokens, which may look like paths and are none."""
_PLACES = re.compile(r".*(path|dir|file|folder|checkpoint)s?|(config|dataset|tokenizer)_name")
"""Keys of what lies somewhere, where `/model` is a path too."""
_LOADED = re.compile(r".+_name_or_path|(config|dataset|tokenizer)_name")
"""Those of them that a loader takes for an id on the Hub, where no such path exists."""


class NotPublishableError(ValueError):
    """A directory that must not go to the Hub as it is, with the reason for a reader."""


def contents_of(folder: Path, kind: str, *, secrets: Sequence[str]) -> Contents:
    """The files of a release or trunk as they are published, with a manifest of their own and without the card.

    Args:
        folder (`Path`): A whole release or trunk.
        kind (`str`): `release` (safetensors only) or `trunk` (also torch's files of optimizer, schedule and RNG).
        secrets (`Sequence[str]`): What no published file may contain, from [`secrets_of`].

    Raises:
        NotPublishableError: weights in a pickle, or a file that holds a secret.
    """
    listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    found: Contents = {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if path.name in _NEVER:
            continue
        if kind == "release" and path.suffix in _PICKLES:
            raise NotPublishableError(f"{name} is a pickle: a release is published as safetensors only.")
        found[name] = _without_paths(path) if path.name in _REWRITTEN or name == RECIPE else path
    if not any(name.endswith(".safetensors") for name in found):
        raise NotPublishableError(f"{folder.name} holds no safetensors weights.")
    refuse_secrets(found, secrets)
    found[MANIFEST] = _manifest(found, {name: facts["sha256"] for name, facts in listed.items()})
    return found


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path


def _without_paths(path: Path) -> Path | bytes:
    """The file itself, or its content with absolute paths cut down to their last part."""
    text = path.read_text(encoding="utf-8")
    content = safe_yaml(text) if path.suffix == ".yaml" else json.loads(text)
    shortened = without_paths(content)
    if shortened == content:
        return path
    if path.suffix == ".yaml":
        return yaml.safe_dump(shortened, sort_keys=False, allow_unicode=True).encode()
    return (json.dumps(shortened, indent=2) + "\n").encode()


def without_paths(value: Any, key: str = "") -> Any:
    """Plain data with every absolute path cut down to its last part, in a form that is no id on the Hub.

    Args:
        value: Of JSON or YAML.
        key (`str`): What it is the value of; labels and tokens stay as they are.

    >>> without_paths({"model_name_or_path": "/models/gpt2", "data_files": "/corpus.jsonl", "id": "ann/gpt2"})
    {'model_name_or_path': './gpt2', 'data_files': 'corpus.jsonl', 'id': 'ann/gpt2'}
    """
    if _WORDS.fullmatch(key):
        return value
    if isinstance(value, dict):
        inner = (key if _PLACES.fullmatch(key) else str(name) for name in value)
        items = [without_paths(item, of) for item, of in zip(value.values(), inner, strict=True)]
        return dict(zip(_without_paths_in_keys(list(value)), items, strict=True))
    if isinstance(value, list):
        return [without_paths(item, key) for item in value]
    if isinstance(value, str) and (is_local_path(value) or (_PLACES.fullmatch(key) and _is_at_the_root(value))):
        return f"{'./' if _LOADED.fullmatch(key) else ''}{_last_part(value)}"
    return value


def _without_paths_in_keys(keys: list[Any]) -> list[Any]:
    """Keys cut down likewise, and numbered where that would make two the same."""
    cut = [_last_part(key) if isinstance(key, str) and is_local_path(key) else key for key in keys]
    counts, pairs = Counter(cut), enumerate(zip(keys, cut, strict=True))
    return [new if counts[new] == 1 or new == old else f"{new}-{place}" for place, (old, new) in pairs]


def _last_part(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def is_local_path(value: str) -> bool:
    """Whether a text is an absolute path of a machine, whatever it is the value of.

    >>> [is_local_path(text) for text in ("/data/x", "~/x", "C:/x", "file:///x", "user/model", "/s", "https://x/y")]
    [True, True, True, True, False, False, False]
    """
    if "\n" in value or len(value) > 4096:
        return False
    posix = PurePosixPath(value)
    beginning = value.startswith(("~/", "file:/")) or _is_windows_path(value)
    return beginning or (posix.is_absolute() and len(posix.parts) > 2)


def _is_at_the_root(value: str) -> bool:
    return PurePosixPath(value).is_absolute() and len(PurePosixPath(value).parts) == 2


def _is_windows_path(value: str) -> bool:
    return value[1:3] in (":\\", ":/") and PureWindowsPath(value).is_absolute()


def _manifest(contents: Contents, known: dict[str, str]) -> bytes:
    """As the manifest of a checkpoint, of what is published; hashes of files that go as they are are known."""
    files = {}
    for name, source in contents.items():
        if isinstance(source, bytes):
            size, digest = len(source), hashlib.sha256(source).hexdigest()
        else:
            size = source.stat().st_size
            digest = known.get(name) or hashlib.sha256(source.read_bytes()).hexdigest()
        files[name] = {"bytes": size, "sha256": digest}
    return (json.dumps(manifest_of(files), indent=2) + "\n").encode()


def secrets_of(output_dir: Path, token: str | None) -> tuple[str, ...]:
    """What no published file may contain: tokens, and the directories that name this machine's user or this run.

    Args:
        output_dir (`Path`): Of the run.
        token (`str`, *optional*): The token in use, if it is not the one that huggingface_hub finds by itself.
    """
    home = str(Path.home())
    folders = [str(output_dir.resolve()), *([f"{home}/"] if len(home) > 1 else [])]
    return tuple(secret for secret in (token, get_token(), *folders) if secret)


def refuse_secrets(contents: Contents, secrets: Sequence[str]) -> None:
    """The last look before anything is sent: refuses a readable file that holds a token or a local path.

    Args:
        contents (`Contents`): What is to be sent; vocabularies are passed over.
        secrets (`Sequence[str]`): From [`secrets_of`].

    Raises:
        NotPublishableError: naming the file, and not the secret.
    """
    for name, source in contents.items():
        if PurePosixPath(name).suffix not in _TEXTS or name in ("tokenizer.json", "vocab.json", "merges.txt"):
            continue
        text = source.decode() if isinstance(source, bytes) else source.read_text(encoding="utf-8")
        if any(_holds(text, secret) for secret in secrets):
            raise NotPublishableError(f"{name} holds a token or a path of this machine.")


def _holds(text: str, secret: str) -> bool:
    r"""Whether a text holds a token, or a directory as a path of its own: `/data` is none in `https://host/data/x`.

    >>> [_holds(text, "/data") for text in ("a.org/data/x", "/data2", "/data.d", "in /data.", r"a\n/data/x", "f:///data")]
    [False, False, False, True, True, True]
    """
    if not PurePosixPath(secret).is_absolute():
        return secret in text
    end = "" if secret.endswith("/") else r"(?![\w-]|\.\w)"
    return re.search(rf"(?:(?<![\w.~-])|(?<=\\[nrt])){re.escape(secret)}{end}", text) is not None
