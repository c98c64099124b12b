"""The search that chose the settings of the two recipes beside it: the same number of trials for both schedules.

    python recipes/lm-docs-python-cpp/search.py [--jobs 2]

Every trial trains a recipe at SEARCH_STEPS steps a task with SEARCH_SEED, which no reported run uses, and is scored by
the final average of bits per byte over the tasks. Grid and scores are kept in search.json; a trial that stands there
is not run again. Delete the file to search anew.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from threading import Lock

from hf_infinite_lr.metrics import TaskMatrix, summary

HERE = Path(__file__).parent
RESULTS = HERE / "search.json"
SEARCH_STEPS, SEARCH_SEED = 200, 1000
LEARNING_RATES = [1.0e-3, 3.0e-3]
GRID = {
    "infinite": [
        {"learning_rate": rate, "lr_scheduler_kwargs.constant_lr_ratio": ratio}
        for rate, ratio in product(LEARNING_RATES, [0.5, 0.75])
    ],
    "cosine_rewarm": [
        {"learning_rate": rate, "lr_scheduler_kwargs.min_lr_ratio": ratio}
        for rate, ratio in product(LEARNING_RATES, [0.1, 0.01])
    ],
}


def run_recipe(schedule, setting):
    """Trains a recipe of this folder on one core; returns its matrix of bits per byte and its state."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = {"output_dir": folder, "save_strategy": "no", "disable_tqdm": True}
        words = [f"--{key}={value}" for key, value in {**fixed, **setting}.items()]
        command = [sys.executable, "-m", "hf_infinite_lr", "train", "--config", str(HERE / f"{schedule}.yaml"), *words]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        names = ("task_matrix.bits_per_byte.json", "continual_state.json")
        matrix, state = (json.loads((Path(folder) / name).read_text()) for name in names)
    return matrix, state


def score(schedule, setting):
    matrix, _ = run_recipe(schedule, {"task_steps": SEARCH_STEPS, "seed": SEARCH_SEED, **setting})
    return summary(TaskMatrix.from_dict(matrix))["final_average"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="trials at once, one core each")
    jobs = parser.parse_args().jobs
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"trials": []}
    results |= {"steps_per_task": SEARCH_STEPS, "seed": SEARCH_SEED, "score": "final average, bits per byte"}
    known = {json.dumps([trial["schedule"], trial["setting"]]) for trial in results["trials"]}
    lock = Lock()

    def trial(item):
        schedule, setting = item
        value = score(schedule, setting)
        with lock:
            results["trials"].append({"schedule": schedule, "setting": setting, "score": value})
            results["trials"].sort(key=lambda trial: (trial["schedule"], json.dumps(trial["setting"])))
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{schedule:14} {setting}: {value:.4f}", flush=True)

    items = [(schedule, setting) for schedule, settings in GRID.items() for setting in settings]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(trial, [item for item in items if json.dumps(list(item)) not in known]))
    for schedule in GRID:
        best = min((t for t in results["trials"] if t["schedule"] == schedule), key=lambda trial: trial["score"])
        print(f"best of {schedule}: {best['setting']} ({best['score']:.4f})")


if __name__ == "__main__":
    main()
