"""The README's first command on its real code path, shortened: built-in corpora, both recipes, report side by side."""

import json
import re
from pathlib import Path

import pytest

from hf_infinite_lr.cli import main

RECIPES = Path(__file__).parent.parent / "recipes" / "lm-docs-python-cpp"
PARTS = ", ".join(
    f"{{name: {n}, builtin: {n}, max_bytes: 60000, eval_bytes: 4096}}" for n in ("docs", "python", "cpp")
)
SHORT = ["--task_steps=[6]", "--per_device_train_batch_size=2", "--logging_steps=2", f"--tasks=[{PARTS}]"]


@pytest.mark.slow
@pytest.mark.pictures
def test_demo_trains_scores_reports_and_compares(tmp_path, capsys):
    runs = []
    for schedule in ("infinite", "cosine_rewarm"):
        run = tmp_path / schedule
        assert main(["train", "--config", str(RECIPES / f"{schedule}.yaml"), *SHORT, "--output_dir", str(run)]) == 0
        screen = capsys.readouterr().out
        for words in ("untrained", "after docs", "after cpp", "right after learning", "byte unigram", "forgetting"):
            assert words in screen
        for place in re.findall(r"^release of \w+\s+(\S+)$", screen, re.MULTILINE):
            assert (Path(place) / "model.safetensors").is_file()
        matrix = json.loads((run / "task_matrix.bits_per_byte.json").read_text())
        assert matrix["columns"] == ["docs", "python", "cpp"]
        assert all(value < 8.7 for row in matrix["matrix"] for value in row), "better than uniform over 384 tokens"
        assert {path.name for path in (run / "report").glob("*.png")} >= {"learning_rate.png", "loss.png"}
        runs.append(run)
    states = [json.loads((run / "continual_state.json").read_text()) for run in runs]
    assert states[0]["tasks"][-1]["updates"] == {"spent": 18, "on_path": 16}
    assert states[1]["tasks"][-1]["updates"] == {"spent": 18, "on_path": 18}
    assert states[0]["references"] == states[1]["references"]
    assert main(["report", *map(str, runs), "--output", str(tmp_path / "both")]) == 0
    assert "cosine_rewarm" in capsys.readouterr().out
    assert (tmp_path / "both" / "comparison.md").is_file()


@pytest.mark.slow
def test_a_used_directory_is_refused_and_a_finished_run_says_so(tmp_path, capsys):
    command = ["train", "--config", str(RECIPES / "infinite.yaml"), *SHORT, "--output_dir", str(tmp_path / "run")]
    command += ["--evaluate_on", "none"]
    assert main(command) == 0
    assert main(command) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert main([*command, "--resume_from_checkpoint", "true"]) == 0
    anneal = ["anneal", str(tmp_path / "run" / "trunk" / "01-docs"), "--num_anneal_steps", "2"]
    assert main(anneal) == 0
    assert "releases/01-docs" in capsys.readouterr().out
