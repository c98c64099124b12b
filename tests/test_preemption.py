"""SIGTERM saves at the next step, on every process at the same one, and the run goes on from there bit for bit."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainerCallback

from hf_infinite_lr import Preemption
from hf_infinite_lr.cli import main
from hf_infinite_lr.recipe import Recipe

SETTINGS = {"evaluate_on": "none", "eval_dataset": {}}


class Terminate(TrainerCallback):
    """Sends SIGTERM to its own process in the middle of a step."""

    def __init__(self, step, signals=1):
        self.step, self.signals = step, signals

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for _ in range(self.signals):
                os.kill(os.getpid(), signal.SIGTERM)


def preempted(tiny, tmp_path, tasks, step, **settings):
    """A run that SIGTERM has ended in the update at a step."""
    before = signal.getsignal(signal.SIGTERM)
    run = tiny.trainer(tmp_path, tasks, callbacks=[Terminate(step)], **settings)
    with Preemption(run) as preemption:
        assert signal.getsignal(signal.SIGTERM) != before
        run.train(True)
    assert signal.getsignal(signal.SIGTERM) == before
    assert preemption.acted
    assert preemption.exit_status == 143
    assert run.state.global_step == step + 1
    return run


@pytest.mark.parametrize(
    ("step", "settings"),
    [
        (4, {}),
        (4, {"save_strategy": "no"}),
        (6, {}),  # on the branch
        (7, {"save_strategy": "no"}),  # its end
        (8, {"anneal_budget": "extra", "save_steps": 100}),  # the trunk's repeat
        (4, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "dataloader_num_workers": 2}),
        (4, {"save_strategy": "epoch", "save_total_limit": 1}),
    ],
    ids=str,
)
def test_the_run_goes_on_bit_for_bit(tiny, tmp_path, step, settings):
    settings = {**SETTINGS, **settings}
    whole = tiny.run(tmp_path / "whole", tiny.data("ab"), **settings)
    preempted(tiny, tmp_path / "parts", tiny.data("ab"), step, **settings)
    assert (tmp_path / "parts" / f"checkpoint-{step + 1}").is_dir()
    rest = tiny.run(tmp_path / "parts", tiny.data("ab"), resume=True, **settings)
    assert list(rest.watch.rates) == list(range(step + 1, whole.plan.num_steps))
    assert tiny.same_end(rest, whole)


def test_a_run_that_has_ended_was_not_preempted(tiny, tmp_path):
    run = tiny.trainer(tmp_path, tiny.data("a"), callbacks=[Terminate(7)], **SETTINGS)
    with Preemption(run) as preemption:
        run.train()
    assert preemption.exit_status == 0
    assert run.state.global_step == run.plan.num_steps


def test_the_handler_goes_also_when_training_fails(tiny, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run = tiny.trainer(tmp_path, tiny.data("a"), stop_at=2, **SETTINGS)
    with pytest.raises(InterruptedError), Preemption(run):
        run.train()
    assert signal.getsignal(signal.SIGTERM) == before
    assert not [callback for callback in run.callback_handler.callbacks if isinstance(callback, Preemption)]


RECIPE = """
objective: causal_lm
model_type: llama
tokenizer_name: byte
config_overrides:
  {hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2}
block_size: 16
tasks:
  - {name: a, data_files: a.jsonl, num_steps: 6}
evaluate_on: none
report_to: none
lr_scheduler_kwargs: {num_cooldown_steps: 1, num_anneal_steps: 1}
warmup_steps: 1
save_strategy: "no"
per_device_train_batch_size: 2
use_cpu: true
output_dir: out
resume_from_checkpoint: true
"""


def test_the_command_exits_with_143_and_goes_on(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f"line number {n}"}) for n in range(400)))
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        made = Recipe.trainer

        def terminated(recipe):
            trainer = made(recipe)
            trainer.add_callback(Terminate(2))
            return trainer

        patched.setattr(Recipe, "trainer", terminated)
        assert main(["train", "--config", "recipe.yaml"]) == 143
    assert (tmp_path / "out" / "checkpoint-3").is_dir()
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert json.loads((tmp_path / "out" / "continual_state.json").read_text())["status"] == "finished"


SCRIPT = """
import json, os, signal, sys
import conftest as tiny
from hf_infinite_lr import Preemption
from hf_infinite_lr.cli.run import leave_process_group
from test_preemption import Terminate

out, rank, signals = sys.argv[1], int(os.environ.get("RANK", 0)), int(sys.argv[2])
settings = dict(per_device_train_batch_size=4, save_strategy="no", evaluate_on="none", eval_dataset={})
# One process alone gets the signal.
callbacks = [Terminate(3, signals)] if rank == int(sys.argv[3]) else []
run = tiny.trainer(out, tiny.data("ab"), callbacks=callbacks, noise=False, **settings)
with Preemption(run) as preemption:
    run.train(True)
# One write, since both processes share the pipe.
print(f"stopped {rank} {run.state.global_step} {preemption.exit_status}\\n", end="", flush=True)
leave_process_group(wait=True)
sys.exit(preemption.exit_status)
"""


def command(*words):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run([sys.executable, "-W", "ignore", *words], env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "status"), [("15.0", 143), ("-1", -signal.SIGTERM)])
def test_a_later_signal_ends_at_once_but_one_that_was_passed_on_does_not(tmp_path, seconds, status):
    script = tmp_path / "script.py"
    later = f"from hf_infinite_lr.trainer import preemption\npreemption.REPEATED_SECONDS = {seconds}\n"
    script.write_text(later + SCRIPT)
    done = command(str(script), str(tmp_path / "out"), "2", "0")
    assert done.returncode == status, done.stderr[-2000:]
    assert (tmp_path / "out" / "checkpoint-4").exists() == (status == 143)


@pytest.mark.slow
def test_two_processes_agree_on_the_step_when_one_is_signalled(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(script)]
    done = command(*launcher, str(tmp_path / "out"), "1", "1")
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("stopped"))
    assert lines == ["stopped 0 5 143", "stopped 1 5 143"], done.stderr[-2000:]
    assert (tmp_path / "out" / "checkpoint-5" / "rng_state_1.pth").exists()
    rest = command(*launcher, str(tmp_path / "out"), "0", "1")
    assert "stopped 1 14 0" in rest.stdout, rest.stderr[-2000:]


def test_a_worker_that_evaluates_outlives_the_first_signal(tiny, tmp_path):
    run = tiny.trainer(tmp_path, tiny.data("a"), dataloader_num_workers=1, per_device_eval_batch_size=1)
    batches = iter(run.get_eval_dataloader("a"))
    first = next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGTERM)
    assert 1 + sum(1 for _ in batches) == 8 * len(first["input_ids"])
