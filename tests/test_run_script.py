import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from hf_infinite_lr.cli import run as run_module

TRAINER_SCRIPT = """
import torch
from neighbour import Counting
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
config = LlamaConfig(vocab_size=16, num_attention_heads=2, num_key_value_heads=2, **sizes)
Trainer(LlamaForCausalLM(config), args, train_dataset=Counting()).train()
print(f"world size {args.world_size}\\n", end="", flush=True)
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
LOADING = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

AutoModelForCausalLM.from_pretrained("out")
AutoTokenizer.from_pretrained("out")
name = torch.load("out/training_args.bin", weights_only=False).lr_scheduler_type
print(type(name).__name__, name, "hf_infinite_lr" in sys.modules)
"""
FLAGS = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--learning_rate", "1e-3"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "trainer_script.py").write_text(TRAINER_SCRIPT)
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
    return tmp_path


def launch(folder, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
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


@pytest.fixture
def sft_folder(tmp_path):
    """A model, its tokenizer and texts on disk, as TRL's script takes them."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=384, num_attention_heads=2, num_key_value_heads=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    ByT5Tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    lines = [json.dumps({"text": f"the quick brown fox jumps over {n} lazy dogs"}) for n in range(40)]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "line", "checkpoints"),
    [
        (
            "infinite",
            "annealing to 10 (to 1.0e-4). To continue on new data later, use checkpoint-8,",
            {"checkpoint-8"},
        ),
        ("cosine_rewarm", "cosine_rewarm: warm-up 0–2 (to 1.0e-3), cosine to 10 (to 1.0e-4).", set()),
    ],
)
def test_the_script_that_trl_ships(sft_folder, name, line, checkpoints):
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    script = Path(spec.origin).parent / "scripts" / "sft.py"
    given = ["--model_name_or_path", "model", "--dataset_name", "data", "--lr_scheduler_kwargs", '{"min_lr": 1e-4}']
    done = launch(sft_folder, "-m", "hf_infinite_lr", "run", str(script), *given, *flags(sft_folder, name))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(line) == 1
    assert {path.name for path in (sft_folder / "out").glob("checkpoint-*")} == checkpoints
    loaded = launch(sft_folder, "-c", LOADING)
    assert loaded.stdout.split() == ["str", name, "False"], loaded.stderr


@pytest.mark.slow
def test_two_processes_end_cleanly(folder, monkeypatch):
    # With --cpu the launcher would start one process, whatever --num_processes says.
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port()]
    command = ["-m", "hf_infinite_lr", "run", "trainer_script.py", *flags(folder, "cosine_rewarm", 4)]
    done = launch(folder, *launcher, *plain, *command)
    assert done.returncode == 0, done.stderr
    assert "terminate called" not in done.stderr
    assert done.stdout.count("world size 2") == 2
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
    from hf_infinite_lr.announcement import trunk_savers
    from hf_infinite_lr.registry import install_trunk_callback

    before = list(trainer.DEFAULT_CALLBACKS)
    try:
        install_trunk_callback()
        install_trunk_callback()
        assert [*before, TrunkCheckpointCallback] == trainer.DEFAULT_CALLBACKS
        assert TrunkCheckpointCallback in trunk_savers  # so that the line does not advise what is done
    finally:
        trainer.DEFAULT_CALLBACKS[:] = before
        trunk_savers.discard(TrunkCheckpointCallback)
