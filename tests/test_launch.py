"""Every launch file is read as Accelerate reads it and starts a recipe; a dead process ends the job."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from ports import free_port

from hf_infinite_lr.cli.launch import check_launch, read_launch
from hf_infinite_lr.cli.train import refuse
from hf_infinite_lr.recipe import load_recipe

LAUNCH = Path(__file__).parent.parent / "recipes" / "launch"
NAMES = ("cpu", "cpu-2", "gpu-1", "ddp", "fsdp2", *(f"deepspeed-zero{n}" for n in ("1", "2", "3", "3-offload")))
RECIPE = """
objective: causal_lm
model_type: llama
config_overrides:
  {hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2,
   max_position_embeddings: 16}
tokenizer_name: byte
block_size: 16
tasks:
  - {name: one, data_files: DATA/one.csv}
  - {name: two, data_files: DATA/two.csv, streaming: true, num_eval_samples: 2}
task_steps: [4]
per_device_train_batch_size: 2
evaluate_on: none
lr_scheduler_kwargs: {num_cooldown_steps: 1, num_anneal_steps: 1}
warmup_steps: 1
learning_rate: 1.0e-3
logging_steps: 1
report_to: none
output_dir: DATA/out
"""


def environment(**more):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **more}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    directory = tmp_path_factory.mktemp("recipe")
    for name in ("one", "two"):
        rows = "\n".join(f"{name} {number} is a line of text" for number in range(100))
        (directory / f"{name}.csv").write_text(f"text\n{rows}\n")
    path = directory / "recipe.yaml"
    path.write_text(RECIPE.replace("DATA", str(directory)))
    return path


def command(name, recipe, out, *launcher, train=()):
    words = ["launch", "--config_file", LAUNCH / f"{name}.yaml", *launcher, "-m", "hf_infinite_lr", "train"]
    words = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *words]
    return [str(word) for word in (*words, "--config", recipe, "--output_dir", out, *train)]


def launched(words, **more):
    done = subprocess.run(words, env=environment(**more), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def settings(out):
    return json.loads((out / "continual_state.json").read_text())["settings"]


def test_every_launch_file_is_there_and_is_read():
    assert {path.stem for path in LAUNCH.glob("*.yaml")} == set(NAMES)
    for name in NAMES:
        config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
        assert config.mixed_precision == "no", "precision belongs to the recipe"
        assert "scheduler" not in str(sorted(config.deepspeed_config))
        sharded = {"fsdp2": DistributedType.FSDP}.get(name, DistributedType.DEEPSPEED)
        assert (config.distributed_type == sharded) == name.startswith(("fsdp", "deepspeed"))
    assert load_config_from_file(str(LAUNCH / "deepspeed-zero3-offload.yaml")).deepspeed_config["zero_stage"] == 3


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_fits_or_is_refused_by_name(name):
    launch = read_launch(LAUNCH / f"{name}.yaml")
    refused = set()
    for path in LAUNCH.parent.glob("*-*/*.yaml"):
        recipe = load_recipe(path)
        try:
            assert list(check_launch(launch, recipe)) == []
        except ValueError as error:
            refused.add((path.parent.name[:4], str(error)[:45]))
    expected = set()
    if name.startswith("deepspeed"):
        expected |= {("mae-", "deepspeed: rewind='weights' cannot be used, because the engine keeps")}
    if "zero3" in name:
        expected |= {("mae-", "objective='mae' cannot be used with DeepSpeed ZeRO-3, which cuts")}
    if name.startswith(("deepspeed", "fsdp2")):
        engine = "FSDP" if name == "fsdp2" else "DeepSpeed"
        expected |= {("vit-", f"methods.slca cannot be used with {engine}, because it looks at")}
    assert refused == {(recipe, sentence[:45]) for recipe, sentence in expected}


def logged(out):
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [(entry["learning_rate"], entry["loss"]) for entry in history if "loss" in entry]


LONGER = ("--task_steps", "[60]")
ON_CPU = ("--use_cpu", "true")


@pytest.fixture(scope="module")
def on_two(recipe, tmp_path_factory):
    """The run of `cpu-2.yaml`: where it is, and what it said."""
    out = tmp_path_factory.mktemp("cpu-2") / "out"
    return out, launched(command("cpu-2", recipe, out, train=LONGER))


def terminated(words, log, **more):
    """Starts a job, sends SIGTERM to its first process alone once it has logged a step, and waits for its end."""
    with log.open("w") as file:
        process = subprocess.Popen(words, env=environment(**more), stdout=file, stderr=subprocess.STDOUT)
        while "  loss " not in log.read_text():
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=120)


def checkpoints(out):
    return [path.name for path in out.glob("checkpoint-*")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), [("cpu", ()), ("gpu-1", ON_CPU)])
def test_one_process_starts_on_the_cpu(name, more, recipe, tmp_path):
    launched(command(name, recipe, tmp_path / "out", train=more))
    assert settings(tmp_path / "out")["world_size"] == 1


@pytest.mark.slow
def test_two_processes_start_on_the_cpu_and_talk_once(on_two):
    out, done = on_two
    assert settings(out)["world_size"] == 2
    assert settings(out)["global_batch_size"] == 4
    assert done.stderr.count("back on the trunk of 01-one") == 1
    assert done.stdout.count("release of two") == 1
    # The samples of one, and what is held out of one and two; of what lies in the cache already there is no bar.
    assert done.stderr.count("Packing: 100%") in (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("deepspeed")])
def test_deepspeed_starts_on_the_cpu_too(name, recipe, tmp_path, tmp_path_factory, monkeypatch):
    if shutil.which("c++") is None or find_spec("deepspeed") is None:
        pytest.skip(f"{name}: DeepSpeed is not installed, or has no C++ compiler to build its CPU operator with")
    if "TORCH_EXTENSIONS_DIR" not in os.environ:  # a build that was killed in the usual one is waited for without end
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.getbasetemp() / "torch_extensions"))
    words = command(name, recipe, tmp_path / "out", "--num_processes", "1", train=ON_CPU)
    launched(words)
    assert settings(tmp_path / "out")["engine"] == name.removesuffix("-offload")
    assert (tmp_path / "out" / "releases" / "02-two" / "model.safetensors").exists()
    again = launched([*words, "--resume_from_checkpoint", "true"]) if name == "deepspeed-zero3" else None
    assert again is None or "is finished" in again.stderr


SHARDED = """
import sys
import conftest as tiny
from hf_infinite_lr.cli.run import leave_process_group
from two_ranks import OnCpu

tiny.run(sys.argv[1], tiny.data("ab"), cls=OnCpu, per_device_train_batch_size=tiny.BATCH // 2, save_strategy="no")
leave_process_group(wait=True)
"""


@pytest.mark.slow
def test_the_file_of_fsdp_shards_what_its_words_say(tmp_path):
    """By a script, because Accelerate would not let the package's own command run it on the CPU."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    search = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    words = ["launch", "--config_file", LAUNCH / "fsdp2.yaml", "--num_processes", "2", script, tmp_path / "out"]
    words = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *words]
    launched([str(word) for word in words], PYTHONPATH=search)
    assert settings(tmp_path / "out")["engine"] == "fsdp"
    trunk = tmp_path / "out" / "trunk" / "01-a"
    assert list(trunk.rglob("*.distcp")), "each process writes its own shard"
    assert (tmp_path / "out" / "releases" / "02-b" / "model.safetensors").exists(), "and a release is whole"


@pytest.mark.slow
def test_fsdp_is_refused_on_the_cpu_where_accelerate_would_run_something_else(recipe, tmp_path):
    words = command("fsdp2", recipe, tmp_path / "out", "--num_processes", "1", train=ON_CPU)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "hf-infinite-lr train: The launch asks for FSDP, but " in done.stderr
    assert not checkpoints(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_gpus"), [("gpu-1", 1), ("ddp", 2), ("fsdp2", 2)])
def test_it_starts_on_gpus(name, num_gpus, recipe, tmp_path):
    if torch.cuda.device_count() < num_gpus:
        pytest.skip(f"{name}.yaml is read but not started: it needs {num_gpus} GPU(s)")
    launched(command(name, recipe, tmp_path / "out", "--num_processes", num_gpus))
    assert settings(tmp_path / "out")["world_size"] == num_gpus


SLURM = {
    "scontrol": """case "$1 $2" in
    "show hostnames") echo 127.0.0.1;;
    "show job") printf '   StartTime=2026-07-02T00:00:00 EndTime=Unknown\\n';
        printf '   PreemptEligibleTime=2026-07-02T00:00:00 PreemptTime=%s\\n' "${PREEMPTED:-None}";;
    requeue*) echo "$2" >> "$REQUEUED";;
esac
""",
    "scancel": """[[ $* == "--signal=TERM $SLURM_JOB_ID" ]] || exit 2
below() { for pid in $(ps -o pid= --ppid $1); do below $pid; done; echo $1; }
kill -TERM $(for pid in $(cat "$STEP"); do below $pid; done)
""",
    "srun": """while [[ $1 == --* ]]; do shift; done
below() { for pid in $(ps -o pid= --ppid $1); do below $pid; done; echo $1; }
trap 'kill -KILL $(for pid in $pids; do below $pid; done)' TERM
SLURM_NODEID=0 "$@" & pids=$!
# On one machine the second launcher must not take the port before the first has looked whether it is free.
until (exec 3<>/dev/tcp/127.0.0.1/$((20000 + SLURM_JOB_ID % 20000))) 2>/dev/null; do
    kill -0 $pids || exit 1
    sleep 0.2
done
SLURM_NODEID=1 "$@" & pids="$pids $!"
echo $pids > "$STEP"
for pid in $pids; do
    wait $pid || status=$?
    while kill -0 $pid 2>/dev/null; do wait $pid || status=$?; done  # a signal has cut the first wait short
done
exit ${status:-0}
""",
}
"""Stand-ins for the commands of Slurm that the script calls: a job of two nodes that are this machine.

As in Slurm, a signal to a step reaches every process of it, the launchers' own processes too, and srun answers a
SIGTERM to itself by killing them all.
"""


def slurm(folder, **scripts):
    """Puts the stand-ins on the search path of a job; its environment."""
    for name, script in {**SLURM, **scripts}.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": free_port(), "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "here", "PROCESSES_PER_NODE": "1"}
    job |= {"REQUEUED": str(folder / "requeued"), "STEP": str(folder / "step")}
    return {**job, "PATH": f"{folder}{os.pathsep}{environment()['PATH']}"}


def requeued(folder):
    path = folder / "requeued"
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize(
    ("ends_with", "is_signalled", "preempted", "is_requeued"),
    [
        (0, False, "None", False),
        (3, False, "None", False),  # a failure of the run's own
        (1, True, "None", True),  # the end of its time
        (0, True, "None", False),  # it had just come to its end
        (1, False, "2026-07-02T10:00:00", True),  # the processes got the signal, the script did not
        (1, False, "2026-07-01T10:00:00", False),  # pre-empted in an earlier turn, and failed in this one
    ],
)
def test_the_job_asks_for_another_turn_where_it_was_taken_away(
    ends_with, is_signalled, preempted, is_requeued, tmp_path
):
    srun = f"trap 'exit {ends_with}' TERM\necho $$ > $STEP\necho started\n"
    srun += "while sleep 0.1; do :; done\n" if is_signalled else f"exit {ends_with}\n"
    job = slurm(tmp_path, srun=srun)
    words = ["bash", str(LAUNCH / "multi-node.sbatch")]
    more = {**job, "PREEMPTED": preempted, "RECIPE": "none.yaml"}
    process = subprocess.Popen(words, env=environment(**more), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    if is_signalled:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == ends_with
    assert requeued(tmp_path) == [job["SLURM_JOB_ID"]] * is_requeued


def test_the_job_passes_words_on_as_they_are(tmp_path):
    kwargs = "{num_anneal_steps: 0.1, min_lr: $HOME}"
    echo = {"srun": 'echo "$*"; shift 2; SLURM_NODEID=0 exec "$@"\n', "accelerate": 'printf "%s\\n" "$@"\n'}
    job = {**slurm(tmp_path, **echo), "RECIPE": "a recipe.yaml", "SLURM_CPUS_PER_TASK": "64"}
    words = ["bash", LAUNCH / "multi-node.sbatch", "--lr_scheduler_kwargs", kwargs]
    said = launched([str(word) for word in words], **job).stdout.splitlines()
    assert said[-2:] == ["--lr_scheduler_kwargs", kwargs]
    assert "a recipe.yaml" in said
    assert " --cpus-per-task=64 " in said[0]
    alone = subprocess.run(
        [str(word) for word in words], env=environment(**job, LAUNCH=str(LAUNCH / "cpu.yaml")), capture_output=True
    )
    assert alone.returncode == 1
    assert b"each would train alone" in alone.stderr


def test_a_process_that_fails_alone_says_so(monkeypatch, capsys):
    waited = []
    monkeypatch.setattr("hf_infinite_lr.cli.train.time.sleep", waited.append)
    monkeypatch.setenv("RANK", "0")
    assert refuse("train", ValueError("no such file")) == 1
    assert (capsys.readouterr().err, waited) == ("hf-infinite-lr train: no such file\n", [])
    monkeypatch.setenv("RANK", "3")
    assert refuse("train", ValueError("no such file")) == 1
    assert capsys.readouterr().err == "hf-infinite-lr train, process 3: no such file\n"
    assert waited, "the launcher ends it first where all fail alike"


@pytest.mark.slow
def test_a_launcher_that_is_terminated_leaves_a_checkpoint(recipe, on_two, tmp_path):
    words = command("ddp", recipe, tmp_path / "out", "--num_processes", "2", train=(*ON_CPU, *LONGER))
    assert terminated(words, tmp_path / "log") == 1, "torchrun's own status"
    (checkpoint,) = checkpoints(tmp_path / "out")
    seen = logged(tmp_path / "out" / checkpoint)
    assert seen
    assert seen == logged(on_two[0])[: len(seen)], "two launches, the same rates and losses"
    assert f"SIGTERM: saving at step {checkpoint.removeprefix('checkpoint-')}" in (tmp_path / "log").read_text()
    assert not (tmp_path / "out" / "releases" / "02-two").exists()


@pytest.mark.slow
def test_a_job_of_several_nodes_is_pre_empted_requeued_and_ends_as_several_processes(recipe, on_two, tmp_path):
    job = {**slurm(tmp_path), "RECIPE": str(recipe), "LAUNCH": str(LAUNCH / "ddp.yaml")}
    words = [LAUNCH / "multi-node.sbatch", "--output_dir", tmp_path / "out", *ON_CPU, *LONGER]
    assert terminated(words, tmp_path / "log", **job) != 0
    assert requeued(tmp_path) == [job["SLURM_JOB_ID"]]
    assert len(checkpoints(tmp_path / "out")) == 1, (tmp_path / "log").read_text()[-3000:]
    done = launched(words, **job)
    assert settings(tmp_path / "out")["world_size"] == 2
    assert logged(tmp_path / "out") == logged(on_two[0]), "two launches, the same rates and losses"
    assert done.stdout.count("release of two") == 1, "once per job, not per node"
    assert done.stderr.count("back on the trunk of 01-one") == 1, "once per job, not per node"
    assert requeued(tmp_path) == [job["SLURM_JOB_ID"]], "no more than once"


DYING = """
import os, signal, sys, time
import conftest as tiny
from hf_infinite_lr import Preemption
from transformers import TrainerCallback
from two_ranks import deepspeed

class Death(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and args.process_index == 1:
            print("died", time.time(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

engine = {"ddp": {}, "zero2": deepspeed(2)}[sys.argv[2]]
run = tiny.trainer(sys.argv[1], tiny.data("ab"), per_device_train_batch_size=4, callbacks=[Death()], **engine)
with Preemption(run):
    run.train()
"""
KILLED = "Signal 9 (SIGKILL) received"
CUT_OFF = r"RuntimeError: .*(Connection|closed|reset)"


@pytest.fixture
def dying(tmp_path, tmp_path_factory):
    """A script whose second process dies in its third step, as a function that starts it by each launcher.

    It tells of each its output, its errors and its status, in the order of the launchers.
    """
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    search = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    operators = os.environ.get("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.getbasetemp() / "torch_extensions"))
    common = {"PYTHONPATH": search, "TORCH_EXTENSIONS_DIR": operators}

    def start(engine, launchers, environments):
        words = [str(script), str(tmp_path / "out"), engine]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started = [
            subprocess.Popen([sys.executable, *launcher, *words], env=environment(**common, **more), **pipes)
            for launcher, more in zip(launchers, environments, strict=True)
        ]
        with ThreadPoolExecutor() as pool:  # a pipe that nobody reads would hold its writer up
            told = list(pool.map(lambda process: process.communicate(timeout=300), started))
        ended = time.time()
        died = float("".join(said for said, _ in told).split("died")[1].split()[0])
        assert ended - died < 60
        assert not list((tmp_path / "out").glob("checkpoint-*")), "an end by failure is no pre-emption"
        return [(errors, process.returncode) for (_, errors), process in zip(told, started, strict=True)]

    return start


@pytest.mark.slow
def test_a_dead_process_ends_the_job(dying):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    ((told, status),) = dying("ddp", [launcher], [{}])
    assert status != 0
    assert KILLED in told


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_a_dead_process_ends_the_other_one_also_without_a_launcher(engine, dying):
    if engine == "zero2" and (shutil.which("c++") is None or find_spec("deepspeed") is None):
        pytest.skip("DeepSpeed is not installed, or has no C++ compiler to build its CPU operator with")
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    (told, status), (_, died_of) = dying(engine, [[], []], [{**job, "RANK": n, "LOCAL_RANK": n} for n in ("0", "1")])
    assert died_of == -signal.SIGKILL
    assert status != 0
    assert re.search(CUT_OFF, told)


@pytest.mark.slow
def test_a_dead_process_ends_the_launchers_of_all_nodes(dying):
    port = free_port()
    meeting = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", port]
    launcher = ["-m", "torch.distributed.run", *meeting, "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_conf"]
    # As recipes/launch/multi-node.sbatch says to its launchers.
    waits = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "50"}
    ended = dying("ddp", [[*launcher, "is_host=1"], [*launcher, "is_host=0"]], [waits, waits])
    assert all(status != 0 for _, status in ended)
    told = sorted((errors for errors, _ in ended), key=lambda errors: KILLED in errors)
    assert KILLED in told[1], "the launcher whose process died"
    assert re.search(CUT_OFF, told[0]), "and the one that lost the connection"
