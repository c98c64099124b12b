"""A process that reads beside a run never finds half of a directory or of a file."""

import json
import subprocess
import sys

READER = """
import hashlib, json, sys
from pathlib import Path

out, stop = Path(sys.argv[1]), Path(sys.argv[2])
polls, seen, known = 0, set(), set()

def whole(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    for name, expected in manifest["files"].items():
        content = (directory / name).read_bytes()
        assert len(content) == expected["bytes"], (directory, name)
        assert hashlib.sha256(content).hexdigest() == expected["sha256"], (directory, name)

last = False
while not last:
    last = stop.exists()
    for path in [*out.glob("releases/*"), *out.glob("trunk/*")]:
        if not path.name.startswith("."):
            whole(path)
            known.add(path)
            seen.add(path.parent.name + "/" + path.name)
    for path in known:
        assert path.is_dir(), f"{path} was there and is gone"
    for path in [*out.glob("*.json"), *out.glob("*.yaml")]:
        if not path.name.startswith("."):
            json.loads(path.read_text())
            seen.add(path.name)
    polls += 1
print(json.dumps({"polls": polls, "seen": sorted(seen)}))
"""


def test_a_reader_beside_a_run_and_beside_an_annealing(tiny, tmp_path):
    """The annealing writes the run's own releases again, so that names change hands under the reader's eyes."""
    out, stop = tmp_path / "out", tmp_path / "stop"
    out.mkdir()
    words = [sys.executable, "-c", READER, str(out), str(stop)]
    reader = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        tiny.run(out, save_steps=1)
        for _ in range(3):
            tiny.trainer(out).anneal(out / "trunk" / "01-a", 2)
    finally:
        stop.touch()
        printed, errors = reader.communicate(timeout=120)
    assert reader.returncode == 0, errors
    found = json.loads(printed)
    tasks = ("01-a", "02-b", "03-c")
    directories = [f"{kind}/{task}" for kind in ("releases", "trunk") for task in tasks]
    assert set(found["seen"]) == {*directories, "continual_state.json", "task_matrix.json", "trainer_state.json"}
    assert found["polls"] > 20
