"""The raw results: a JSON file for each study, one record a line; a run that stands there is not done again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KINDS = {"search": ("table", "schedule", "setting", "seed"), "runs": ("table", "arm", "seed")}
"""The two lists of a file, and what tells their records apart."""


def key_of(kind: str, record: Mapping[str, Any]) -> str:
    """What a record is known by."""
    return json.dumps([record[name] for name in KINDS[kind]])


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of a file; none where it is missing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {kind: [] for kind in KINDS}


def write(path: Path, records: Mapping[str, list[dict[str, Any]]]) -> None:
    """Writes the records in an order of their own, whoever came first."""
    parts = []
    for kind in KINDS:
        lines = [json.dumps(record) for record in sorted(records[kind], key=lambda record: key_of(kind, record))]
        parts.append(f' "{kind}": [\n  ' + ",\n  ".join(lines) + "\n ]" if lines else f' "{kind}": []')
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    aside.replace(path)


def best(records: Mapping[str, list[dict[str, Any]]], table: str) -> dict[str, dict[str, float]]:
    """The setting with the best score of each schedule that was searched for a table."""
    own = [trial for trial in records["search"] if trial["table"] == table]
    chosen = {}
    for schedule in sorted({trial["schedule"] for trial in own}):
        trials = [trial for trial in own if trial["schedule"] == schedule]
        sign = 1 if trials[0]["higher_is_better"] else -1
        chosen[schedule] = max(trials, key=lambda trial: sign * trial["score"])["setting"]
    return chosen
