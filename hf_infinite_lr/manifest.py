"""The list of a directory's files that says whether it is whole, on a disk and on the Hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

MANIFEST = "manifest.json"
"""Its name in a checkpoint, trunk or release."""

STATE = "continual_state.json"
"""What a checkpoint, a trunk and an `output_dir` know about the run."""


def manifest_of(files: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `manifest.json`.

    Args:
        files (`Mapping`): Name -> `{"bytes", "sha256"}`.
    """
    return {"schema_version": 1, "files": dict(files), "seal": seal(files)}


def seal(files: Mapping[str, Any]) -> str:
    """What shows whether the list itself has been changed: its own SHA-256."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
