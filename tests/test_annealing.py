"""Annealing after the fact gives the branch that the run itself has grown, and leaves the trunk alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_infinite_lr.cli import main


def files(folder):
    return {
        path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file() and "releases" not in str(path)
    }


def weights(release):
    return load_file(Path(release) / "model.safetensors")


@pytest.mark.parametrize("budget", ["within", "extra"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_release_is_that_of_the_run(tiny, tmp_path, budget, index):
    trainer = tiny.trainer(tmp_path, anneal_budget=budget)
    trainer.train()
    before = files(tmp_path)
    task = trainer.plan.tasks[index]
    expected = weights(tmp_path / "releases" / task.directory)
    release = tiny.trainer(tmp_path, anneal_budget=budget).anneal(
        tmp_path / "trunk" / task.directory, task.num_anneal_steps
    )
    assert release == tmp_path / "releases" / task.directory
    annealed = weights(release)
    assert all(torch.equal(annealed[name], tensor) for name, tensor in expected.items())
    assert files(tmp_path) == before


def test_longer_branch_is_another_model(tiny, tmp_path):
    trainer = tiny.trainer(tmp_path)
    trainer.train()
    task = trainer.plan.tasks[0]
    expected = weights(tmp_path / "releases" / task.directory)
    release = tiny.trainer(tmp_path).anneal(tmp_path / "trunk" / task.directory, task.num_anneal_steps + 1)
    assert any(not torch.equal(weights(release)[name], tensor) for name, tensor in expected.items())


def test_what_cannot_be_annealed_is_refused(tiny, tmp_path):
    trainer = tiny.trainer(tmp_path, save_steps=100)
    trainer.train()
    end = trainer.plan.tasks[0].end_step
    with pytest.raises(ValueError, match=rf"step {end} lies on the branch of 'a': anneal trunk/01-a instead"):
        tiny.trainer(tmp_path).anneal(tmp_path / f"checkpoint-{end}", 2)
    with pytest.raises(ValueError, match="num_anneal_steps=0 must be above 0"):
        tiny.trainer(tmp_path).anneal(tmp_path / "trunk" / "01-a", 0)
    (tmp_path / "trunk" / "01-a" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"not a whole checkpoint: optimizer.pt is missing"):
        tiny.trainer(tmp_path).anneal(tmp_path / "trunk" / "01-a", 2)


def test_command_line_says_what_is_missing(tmp_path, capsys):
    assert main(["anneal", str(tmp_path / "trunk" / "01-a")]) == 1
    assert "--num_anneal_steps N is missing" in capsys.readouterr().err
    assert main(["anneal", str(tmp_path / "trunk" / "01-a"), "--num_anneal_steps", "5"]) == 1
    assert "recipe.yaml cannot be read" in capsys.readouterr().err


def test_annealing_does_not_stop_where_the_run_did(tiny, tmp_path):
    tiny.run(tmp_path, max_steps=4)
    release = tiny.trainer(tmp_path, max_steps=4).anneal(tmp_path / "checkpoint-4", 2)
    assert release.name == "01-a-from-4-over-2"
    assert weights(release)
