import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

from hf_infinite_lr.plain_run import plain_schedule

RECIPE = Path(__file__).parent.parent / "recipes" / "accelerate_loop.py"


def logs_of(tmp_path, *launcher):
    log_file = tmp_path / "log.json"
    command = [sys.executable, *launcher, str(RECIPE), "--task_steps", "20", "--log_file", str(log_file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    processes = re.search(r"on (\d+) process", done.stdout)
    assert processes is not None
    return json.loads(log_file.read_text()), int(processes[1])


@pytest.mark.slow
def test_two_processes_have_the_rates_and_losses_of_one(tmp_path, monkeypatch):
    schedule, _ = plain_schedule(
        "infinite", learning_rate=1e-2, num_warmup_steps=4, num_training_steps=None, kwargs={"task_steps": [20, 20]}
    )
    one, processes = logs_of(tmp_path)
    assert processes == 1
    # With --cpu the launcher would start one process, whatever --num_processes says.
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    precision = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    two, processes = logs_of(tmp_path, *launch, *precision, "--main_process_port", free_port())
    assert processes == 2
    assert one["rates"] == two["rates"] == [1e-2 * schedule(step) for step in range(40)]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert one["losses"][19] < one["losses"][0] / 1.1, "something was learned"
