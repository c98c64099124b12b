"""The versions that the records were made with: the built-in corpora are the text of these very packages."""

import os
from pathlib import Path

from hf_infinite_lr.stream.corpora import corpus_versions


def installed() -> list[str]:
    """What decides the data here, as `name==version`; builds of one version, such as `+cpu`, count as one."""
    return [requirement.partition("+")[0] for requirement in corpus_versions("docs")]


def hold(path: Path) -> None:
    """
    Writes the installed versions where no records were made yet; refuses others than those of the records.

    Args:
        path (`Path`): The constraints file for pip that lies beside the records. Python stands in it as a comment.

    Raises:
        `SystemExit`: With the versions that differ.
    """
    lines = ["# " * requirement.startswith("python==") + requirement for requirement in installed()]
    if not path.exists():
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    kept = path.read_text(encoding="utf-8").splitlines()
    if kept != lines:
        differ = ", ".join(line.removeprefix("# ") for line in kept if line not in lines)
        raise SystemExit(
            f"The records were made with {differ}, and other versions are other data: install them "
            f"(pip install -e . -c {os.path.relpath(path)}), or delete that file and the records to begin anew."
        )
