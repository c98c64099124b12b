"""Who knows whom: the rooms import each other in one direction only, and what few runs need when it is needed."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "hf_infinite_lr"


def _rooms_imported(file):
    """The rooms, folders and modules at the top, that a module imports when it is itself imported."""
    place = ["hf_infinite_lr", *file.relative_to(PACKAGE).with_suffix("").parts]
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            module = [*place[: -node.level], *(node.module or "").split(".")] if node.level else node.module.split(".")
            if module[0] == "hf_infinite_lr":
                yield from [module[1]] if len(module) > 1 and module[1] else [name.name for name in node.names]


def test_no_room_imports_one_that_imports_it():
    known = defaultdict(set)
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        known[room] |= set(_rooms_imported(file)) - {room}
    assert {"hub", "methods", "stream"} <= known["trainer"]
    left = dict(known)
    while ends := [room for room in left if not known[room] & left.keys()]:
        for room in ends:
            del left[room]
    assert not left, f"these import each other: { ({room: known[room] & left.keys() for room in left}) }"


def test_importing_a_room_loads_nothing_that_few_runs_need():
    code = """
import sys
import hf_infinite_lr.trainer, hf_infinite_lr.recipe, hf_infinite_lr.plots
print(sorted({"deepspeed", "evaluate", "lm_eval", "matplotlib", "sklearn"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
