"""Trunks from the Hub: `user/model@revision` becomes a trunk of this run, once its manifest agrees."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from httpx2 import HTTPError
from huggingface_hub import hf_hub_download, snapshot_download

from hf_infinite_lr.manifest import MANIFEST, STATE

from .facts import trunk_step
from .sending import short

_REVISION = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+)")


def is_hub_revision(checkpoint: str) -> bool:
    """Whether a name means a revision of a repository, and not a path.

    >>> is_hub_revision("user/model@task-01-web-trunk"), is_hub_revision("out/trunk/01-web")
    (True, False)
    """
    return _REVISION.fullmatch(checkpoint) is not None and not Path(checkpoint).exists()


def fetch_trunk(
    checkpoint: str, aside: Path, fault_of: Callable[[Path], str | None], *, token: str | None = None
) -> str:
    """Downloads a published trunk and checks it against its manifest before anything of it is read.

    Args:
        checkpoint (`str`): `user/model@revision`.
        aside (`Path`): Where to put it; nothing lies there yet.
        fault_of (`Callable`): Why a directory is not what its manifest says; None when it is whole.
        token (`str`, *optional*): For a private repository.

    Returns:
        `str`: The name of the trunk's directory, such as `01-web`.

    Raises:
        ValueError: for a revision that holds no trunk of ours, or one that is not whole.
    """
    match = _REVISION.fullmatch(checkpoint)
    assert match is not None, checkpoint
    repo_id, revision = match["repo"], match["revision"]
    try:
        names = _names(Path(hf_hub_download(repo_id, MANIFEST, revision=revision, token=token)), checkpoint)
        snapshot = Path(snapshot_download(repo_id, revision=revision, allow_patterns=[*names, MANIFEST], token=token))
    except (HTTPError, OSError) as error:
        raise ValueError(
            f"resume_from_checkpoint={checkpoint!r} cannot be had: {short(error).rstrip('.')}."
        ) from error
    for name in [*names, MANIFEST]:
        if (snapshot / name).exists():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(snapshot / name, aside / name)
    if (fault := fault_of(aside)) is not None:
        raise ValueError(f"resume_from_checkpoint={checkpoint!r} is not what its manifest says: {fault}.")
    return _directory(aside, checkpoint)


def _names(manifest: Path, checkpoint: str) -> list[str]:
    """The files that a manifest lists, all of them below its own directory."""
    files = _read(manifest, checkpoint).get("files")
    names = list(files) if isinstance(files, dict) else []
    if not names or any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in names):
        raise ValueError(f"resume_from_checkpoint={checkpoint!r} has a {MANIFEST} that lists no files of its own.")
    return names


def _directory(trunk: Path, checkpoint: str) -> str:
    """The name of the task at whose branch point the trunk was saved."""
    file = trunk / STATE
    state = _read(file, checkpoint) if file.exists() else {}
    for task in state.get("tasks", ()):
        if trunk_step(task) == state["global_step"] and re.fullmatch(r"\d+-[a-z0-9-]+", task["directory"]):
            return str(task["directory"])
    raise ValueError(
        f"resume_from_checkpoint={checkpoint!r} is no trunk of a task: continue from a tag task-...-trunk."
    )


def _read(file: Path, checkpoint: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"resume_from_checkpoint={checkpoint!r}: {file.name} is not valid JSON.") from error
    return content if isinstance(content, dict) else {}
