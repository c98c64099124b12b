"""A disk that takes no more: one sentence, the last whole checkpoint stays, and the run goes on when there is room."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hf_infinite_lr.trainer import checkpoints
from hf_infinite_lr.trainer.disk import SaveError

SETTINGS = {"evaluate_on": "none", "eval_dataset": {}, "save_total_limit": 1}


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    return tiny.run(tmp_path_factory.mktemp("whole"), tiny.data("ab"), **SETTINGS)


@pytest.fixture(scope="module")
def interrupted(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("interrupted")
    tiny.run(out, tiny.data("ab"), stop_at=11, **SETTINGS)
    return out


def failing(real, number, path_word):
    """A writer that finds the disk full (or read-only) whenever a path of its call holds a word."""

    def writer(*args, **kwargs):
        if any(path_word in str(value) for value in args):
            raise OSError(number, os.strerror(number), str(args[0]))
        return real(*args, **kwargs)

    return writer


@pytest.mark.parametrize(
    ("owner", "name", "word", "number"),
    [
        (torch, "save", "optimizer.pt", errno.ENOSPC),
        (torch, "save", "rng_state.pth", errno.ENOSPC),
        (Path, "mkdir", ".incoming", errno.EROFS),
        (Path, "write_text", "stream_state", errno.ENOSPC),
        (Path, "write_text", "manifest", errno.ENOSPC),
        (os, "rename", "checkpoint-12", errno.EROFS),
        (os, "rename", "02-b", errno.ENOSPC),
        (os, "replace", "continual_state", errno.EROFS),
    ],
    ids=str,
)
def test_every_writer(tiny, tmp_path, monkeypatch, interrupted, whole, owner, name, word, number):
    out = tmp_path / "out"
    shutil.copytree(interrupted, out)
    last = next(path for _, path in checkpoints.candidates(out))
    before = {path.name: path.read_bytes() for path in last.iterdir()}
    run = tiny.trainer(out, tiny.data("ab"), **SETTINGS)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing(getattr(owner, name), number, word))
        with pytest.raises(SaveError) as caught:
            run.train(True)
    message = str(caught.value)
    assert os.strerror(number) in message
    assert str(out) in message
    assert "MB free" in message
    assert "the last checkpoint is" in message
    assert not (out / checkpoints.INCOMING).exists()
    newest = next(path for _, path in checkpoints.candidates(out))
    assert checkpoints.fault_of(newest) is None
    if newest == last:
        assert before == {path.name: path.read_bytes() for path in last.iterdir()}
    assert tiny.same_end(tiny.run(out, tiny.data("ab"), resume=True, **SETTINGS), whole)


def test_weights_that_do_not_fit(tiny, tmp_path, monkeypatch, interrupted):
    """safetensors has an error of its own."""
    out = tmp_path / "out"
    shutil.copytree(interrupted, out)

    def full(*args, **kwargs):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr("transformers.modeling_utils.safe_save_file", full)
        with pytest.raises(
            SaveError, match=r"checkpoint-12 could not be written.*No space left on device.*checkpoint-8\."
        ):
            tiny.trainer(out, tiny.data("ab"), **SETTINGS).train(True)
    assert not (out / checkpoints.INCOMING).exists()


def test_an_error_that_is_no_disks_stays_what_it_is(tiny, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(checkpoints, "write_manifest", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        tiny.trainer(tmp_path, tiny.data("a"), **SETTINGS).train()


RECIPE = """
objective: causal_lm
model_type: llama
tokenizer_name: byte
config_overrides:
  {hidden_size: 64, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2}
block_size: 16
tasks:
  - {name: a, data_files: a.jsonl, num_steps: 6}
eval_strategy: "no"
lr_scheduler_kwargs: {num_cooldown_steps: 1, num_anneal_steps: 1}
warmup_steps: 1
save_steps: 3
per_device_train_batch_size: 2
use_cpu: true
disable_tqdm: true
output_dir: out
"""
LIMITED = """
import resource, sys
from hf_infinite_lr.cli import main
if sys.argv[1] == "full":
    # No file may grow beyond this, which the optimizer's state does: the kernel refuses the write itself.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
sys.exit(main(["train", "--config", "recipe.yaml", "--resume_from_checkpoint", "true"]))
"""


@pytest.mark.slow
def test_the_command_says_one_sentence(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    lines = (json.dumps({"text": f"the line with number {number}"}) for number in range(400))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))

    def train(disk):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-W", "ignore", "-c", LIMITED, disk]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    full = train("full")
    assert full.returncode == 1, full.stderr[-3000:]
    (said,) = (line for line in full.stderr.splitlines() if line.startswith("hf-infinite-lr train: "))
    assert said.startswith("hf-infinite-lr train: checkpoint-3 could not be written to ")
    assert "there is no checkpoint yet" in said
    assert "Traceback" not in full.stderr
    assert not (tmp_path / "out" / ".incoming").exists()
    enough = train("enough")
    assert enough.returncode == 0, enough.stderr[-3000:]
    assert json.loads((tmp_path / "out" / "continual_state.json").read_text())["status"] == "finished"


def test_leftovers_of_killed_processes_go(interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "checkpoint-8", tmp_path / ".incoming" / "checkpoint-99")
    shutil.copytree(tmp_path / "releases" / "01-a", tmp_path / "releases" / ".outgoing-01-a")
    os.rename(tmp_path / "trunk" / "01-a", tmp_path / "trunk" / ".outgoing-01-a")
    (tmp_path / ".incoming-01-a").mkdir()
    (tmp_path / ".incoming-02-b").mkdir()
    os.utime(tmp_path / ".incoming-01-a", (0, 0))
    checkpoints.sweep(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".*"))
    assert left == [".incoming-02-b"]  # an annealing may be writing there
    assert checkpoints.fault_of(tmp_path / "trunk" / "01-a") is None
