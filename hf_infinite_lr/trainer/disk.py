"""What a disk that takes no more says: one sentence, whichever writer met it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .checkpoints import candidates

_TORCH_WRITER = "inline_container"  # the file in whose name torch's own writer fails, with a RuntimeError


class SaveError(OSError):
    """Something could not be written; what was whole before is whole still, and the run can be resumed."""


@contextmanager
def saving(what: str, output_dir: Path) -> Iterator[None]:
    """Turns the failure of any writer into one sentence with its path, its cause and what to go on from.

    Args:
        what (`str`): What is written, such as `checkpoint-8`.
        output_dir (`Path`): Of the run.

    Raises:
        SaveError: when the disk is full, read-only or gone.
    """
    try:
        yield
    except SaveError:
        raise
    except (OSError, SafetensorError) as error:
        raise SaveError(_sentence(what, output_dir, error)) from error
    except RuntimeError as error:
        if _TORCH_WRITER not in str(error):
            raise
        raise SaveError(_sentence(what, output_dir, error)) from error


def _sentence(what: str, output_dir: Path, error: Exception) -> str:
    saved = [path for _, path in candidates(output_dir)]
    last = f"the last checkpoint is {saved[0]}" if saved else "there is no checkpoint yet"
    return f"{what} could not be written to {output_dir} ({_free(output_dir)}): {error}; {last}."


def _free(output_dir: Path) -> str:
    try:
        return f"{shutil.disk_usage(output_dir).free / 1e6:.1f} MB free"
    except OSError:
        return "which cannot be read either"
