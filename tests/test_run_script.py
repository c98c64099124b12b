import os
import socket
import subprocess
import sys

import pytest

from hf_infinite_lr.cli import run as run_module

TRAINER_SCRIPT = """
import torch
from neighbour import Counting
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
config = LlamaConfig(vocab_size=16, num_attention_heads=2, num_key_value_heads=2, **sizes)
Trainer(LlamaForCausalLM(config), args, train_dataset=Counting()).train()
"""
NEIGHBOUR = """
import torch

class Counting(torch.utils.data.Dataset):
    def __len__(self):
        return 200

    def __getitem__(self, index):
        tokens = torch.arange(index % 7, index % 7 + 8)
        return {"input_ids": tokens, "labels": tokens}
"""
SFT_SCRIPT = """
from datasets import Dataset
from transformers import ByT5Tokenizer, HfArgumentParser, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

(args,) = HfArgumentParser(SFTConfig).parse_args_into_dataclasses()
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
config = LlamaConfig(vocab_size=384, num_attention_heads=2, num_key_value_heads=2, **sizes)
dataset = Dataset.from_dict({"text": ["the quick brown fox", "jumps over the lazy dog"] * 20})
SFTTrainer(LlamaForCausalLM(config), args, train_dataset=dataset, processing_class=ByT5Tokenizer()).train()
"""
FLAGS = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--learning_rate", "1e-3"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "trainer_script.py").write_text(TRAINER_SCRIPT)
    (tmp_path / "sft_script.py").write_text(SFT_SCRIPT)
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
    return tmp_path


def launch(folder, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, env=environment)


def flags(folder, name, max_steps=10):
    given = ["--output_dir", str(folder / "out"), "--lr_scheduler_type", name, "--max_steps", str(max_steps)]
    return [*given, "--warmup_steps", "2", "--save_strategy", "no", *FLAGS]


@pytest.mark.slow
def test_a_trainer_script_unchanged(folder):
    done = launch(folder, "-m", "hf_infinite_lr", "run", "trainer_script.py", *flags(folder, "infinite"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("annealing to 10 (to 1.0e-4). To continue on new data later, use checkpoint-8,") == 1
    assert "add callbacks" not in done.stderr
    assert [path.name for path in (folder / "out").iterdir()] == ["checkpoint-8"]


@pytest.mark.slow
def test_an_sft_script_unchanged(folder):
    done = launch(folder, "-m", "hf_infinite_lr", "run", "sft_script.py", *flags(folder, "infinite"))
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "checkpoint-8" / "model.safetensors").exists()


@pytest.mark.slow
def test_two_processes_end_cleanly(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    command = ["-m", "hf_infinite_lr", "run", "trainer_script.py", *flags(folder, "cosine_rewarm", 4)]
    done = launch(folder, *launcher, *plain, *command)
    assert done.returncode == 0, done.stderr
    assert "terminate called" not in done.stderr
    assert done.stderr.count("cosine_rewarm: warm-up 0–2 (to 1.0e-3), cosine to 4 (to 1.0e-4).") == 1


@pytest.fixture
def run_here(tmp_path, monkeypatch):
    """Run a script's text in this process."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(run_module, "install_trunk_callback", lambda: None)

    def run(text, *arguments):
        script = tmp_path / "script.py"
        script.write_text(text)
        return run_module.run([str(script), *arguments])

    return run


@pytest.mark.parametrize(
    ("text", "code"),
    [("pass", 0), ("raise SystemExit", 0), ("raise SystemExit(3)", 3), ("raise SystemExit('no such data')", 1)],
)
def test_exit_codes_pass_through(run_here, text, code, capsys):
    assert run_here(text) == code
    assert ("no such data" in capsys.readouterr().err) == ("no such data" in text)


def test_the_script_sees_what_python_would_show_it(run_here, capsys, tmp_path):
    text = "import sys\nprint(__name__, sys.argv, sys.path[0], __file__)"
    assert run_here(text, "--verbose", "-x", "run") == 0
    script = str(tmp_path / "script.py")
    assert (
        capsys.readouterr().out.split("\n")[0] == f"__main__ {[script, '--verbose', '-x', 'run']} {tmp_path} {script}"
    )


def test_errors_of_the_script_are_its_own(run_here):
    with pytest.raises(ZeroDivisionError):
        run_here("1 / 0")


def test_missing_script(capsys):
    assert run_module.run(["nowhere.py", "--flag"]) == 1
    assert capsys.readouterr().err == ("hf-infinite-lr run: script='nowhere.py' must be a Python file that exists.\n")


def test_the_callback_is_installed_once():
    from transformers import trainer

    from hf_infinite_lr import TrunkCheckpointCallback
    from hf_infinite_lr.registry import install_trunk_callback

    before = list(trainer.DEFAULT_CALLBACKS)
    try:
        install_trunk_callback()
        install_trunk_callback()
        assert [*before, TrunkCheckpointCallback] == trainer.DEFAULT_CALLBACKS
    finally:
        trainer.DEFAULT_CALLBACKS[:] = before
