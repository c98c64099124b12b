"""Directories that are there whole or not at all: written aside, with a manifest, then moved into place."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hf_infinite_lr.files import file_sha256, read_json, write_json
from hf_infinite_lr.manifest import MANIFEST, STATE, manifest_of, seal

logger = logging.getLogger(__name__)

STREAM_STATE = "stream_state.json"
BUFFERS = "replay"
INCOMING = ".incoming"
OUTGOING = ".outgoing"
_FORSAKEN = 24 * 3600
_Answer = TypeVar("_Answer")
_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)


def write_manifest(directory: Path) -> None:
    """Lists every file below a directory with its size in bytes and its SHA-256, and seals the list with its own."""
    files = {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(directory / MANIFEST, manifest_of(files))


def fault_of(directory: Path, *, trust_unchanged: bool = False) -> str | None:
    """Why a directory is not what its manifest says; None when it is whole.

    Args:
        directory (`Path`): Of a checkpoint, trunk or release.
        trust_unchanged (`bool`):
            Passes over the content of files that nothing has written to since the manifest. Hashing takes longer than
            loading, so this is for a directory that the same run has hashed before.
    """
    try:
        manifest, listed = read_json(directory / MANIFEST), (directory / MANIFEST).stat().st_mtime_ns
        files = manifest["files"]
        if manifest["seal"] != seal(files):
            return f"{MANIFEST} has been changed"
        for name, expected in files.items():
            path = directory / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if trust_unchanged and path.stat().st_mtime_ns <= listed:
                continue
            if file_sha256(path) != expected["sha256"]:
                return f"{name} has other content than its manifest says"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def asked_of_main(accelerator: Accelerator, question: Callable[[], _Answer]) -> _Answer:
    """Lets the main process alone read files, as for their hashes, and tells all processes what it found.

    Args:
        accelerator (`Accelerator`): Of the run; every process has to ask.
        question (`Callable`): Reads and answers; its `ValueError` or `OSError` is raised in every process.
    """
    told: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            told[0] = question()
        except (ValueError, OSError) as error:
            told[1] = error
    broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    answer: _Answer = told[0]
    return answer


@contextmanager
def incoming(output_dir: Path, accelerator: Accelerator, name: str = INCOMING) -> Iterator[Path]:
    """A directory that all processes write aside in; neither rotation nor resuming takes it for a checkpoint."""
    aside = output_dir / name
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        yield aside
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)


def move_into_place(source: Path, target: Path) -> None:
    """Gives a finished directory its name; what had the name already goes.

    The two swap their names in one step where the system can (Linux), so that a reader always finds one of them.
    Elsewhere the old one makes room first, and [`sweep`] puts it back if the process dies in between.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and _exchange(source, target):
        shutil.rmtree(source, ignore_errors=True)
        return
    old = target.parent / f"{OUTGOING}-{target.name}"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(source, target)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps the names of two directories of one file system; False where that cannot be done in one step."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "renameat2"):
        return False
    return bool(libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def sweep(output_dir: Path) -> None:
    """Removes what a killed process has left aside, before a run begins to write.

    An annealing after the fact may be writing beside the run, so its directory goes only after a day without a change.
    """
    shutil.rmtree(output_dir / INCOMING, ignore_errors=True)
    for aside in output_dir.glob(f"{INCOMING}-*"):
        if time.time() - max(path.stat().st_mtime for path in (aside, *aside.rglob("*"))) > _FORSAKEN:
            shutil.rmtree(aside, ignore_errors=True)
    for folder in (output_dir, output_dir / "trunk", output_dir / "releases"):
        for old in folder.glob(f"{OUTGOING}-*"):
            target = folder / old.name.removeprefix(f"{OUTGOING}-")
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(old, target)


def link_tree(source: Path, target: Path) -> None:
    """A second name for a directory's files: hard links where the file system has them, else copies."""
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


def put_back_buffers(checkpoint: Path | None, output_dir: Path) -> None:
    """Lets a run find the samples that its streaming tasks had kept at a checkpoint; none for a fresh start."""
    shutil.rmtree(output_dir / BUFFERS, ignore_errors=True)
    if checkpoint is not None and (checkpoint / BUFFERS).exists():
        link_tree(checkpoint / BUFFERS, output_dir / BUFFERS)


def candidates(output_dir: Path) -> list[tuple[int, Path]]:
    """All places from which a run could go on, newest first: (global step, directory).

    `checkpoint-N` directories and the trunk's branch points; whether one is whole is not looked at. What was made
    after the run went back to an older checkpoint is newer than all from before, whatever its step.
    """
    return [(step, path) for _, step, _, path in _ranked(output_dir)]


def _ranked(output_dir: Path) -> list[tuple[int, int, int, Path]]:
    """The same with how often the run had gone back, and with 1 for a checkpoint and 0 for a trunk."""
    found = []
    for path in output_dir.glob("checkpoint-*"):
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name)):
            state = _state_of(path)
            found.append((_times_back(state), int(match.group(1)), 1, path))
    for path in (output_dir / "trunk").glob("[0-9]*"):
        state = _state_of(path)
        if isinstance(state.get("global_step"), int):
            found.append((_times_back(state), state["global_step"], 0, path))
        else:
            logger.warning("%s is passed over: its %s cannot be read.", path, STATE)
    return sorted(found, reverse=True)


def _state_of(path: Path) -> dict[str, Any]:
    try:
        state = read_json(path / STATE)
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _times_back(state: dict[str, Any]) -> int:
    number = state.get("times_back", 0)
    return number if isinstance(number, int) else 0


def times_back_from(output_dir: Path, checkpoint: Path) -> int:
    """How often a run has gone back once it goes on from a checkpoint: once more where there is a newer one."""
    state = _state_of(checkpoint)
    own = (_times_back(state), state.get("global_step", 0))
    newest = max(((back, step) for back, step, _, _ in _ranked(output_dir)), default=own)
    return newest[0] + 1 if newest > own else own[0]


def rotate(output_dir: Path, limit: int | None) -> None:
    """Removes all but the newest checkpoints; trunks stay.

    Args:
        output_dir (`Path`): Of the run.
        limit (`int`, *optional*): How many stay; None or below 1 for all.
    """
    if limit is None or limit < 1:
        return
    for path in [path for _, path in candidates(output_dir) if path.parent == output_dir][limit:]:
        logger.info("%s goes (save_total_limit=%d)", path, limit)
        shutil.rmtree(path, ignore_errors=True)


def is_used(output_dir: Path) -> bool:
    """Whether a run has left anything in a directory that a fresh start would mix with or write over."""
    return any((output_dir / name).exists() for name in (STATE, "trunk", "releases")) or any(
        output_dir.glob("checkpoint-*")
    )
