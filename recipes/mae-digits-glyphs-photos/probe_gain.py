"""What continual pre-training is worth on digits: the linear probe after the last task against the untrained encoder.

    python recipes/mae-digits-glyphs-photos/probe_gain.py [--jobs 2] [--seeds 0 1 2]

Both recipes are trained for every seed, one core each. Every run is kept in results.json; one that stands there is not
done again. Prints a table: for each probe and schedule the mean difference over the seeds with its 95 % interval, bold
where that excludes 0; for the linear probe also that of the model right after digits, before it could lose any.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from hf_infinite_lr.evaluation import mean_and_half_width

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
SCHEDULES = ("infinite", "cosine_rewarm")
COLUMN = "digits"
METRICS = {
    "linear_accuracy": "linear probe",
    "knn_accuracy": "nearest neighbours",
    "nearest_class_mean_accuracy": "nearest class mean",
    "few_shot_accuracy": "few-shot linear probe",
}
_LEFT_OUT = "few_shot_half_width"


def measure(schedule, seed):
    """Trains a recipe of this folder on one core; its matrices of accuracies, and what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = {"output_dir": folder, "save_strategy": "no", "disable_tqdm": True, "seed": seed}
        words = [f"--{key}={value}" for key, value in fixed.items()]
        command = [sys.executable, "-m", "hf_infinite_lr", "train", "--config", str(HERE / f"{schedule}.yaml"), *words]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        state = json.loads((Path(folder) / "continual_state.json").read_text())
    return {
        "schedule": schedule,
        "seed": seed,
        "matrices": {name: matrix for name, matrix in state["matrices"].items() if name != _LEFT_OUT},
        "updates": state["tasks"][-1]["updates"],
        "train_seconds_on_one_core": round(state["compute"]["train_seconds"], 1),
        "versions": state["versions"],
    }


def gains(runs, metric, row=-1):
    """After a task, by default the last one, minus untrained, on digits, for every seed."""
    place = runs[0]["matrices"][metric]["columns"].index(COLUMN)
    found = [
        (run["matrices"][metric]["matrix"][row][place], run["matrices"][metric]["baseline"][place]) for run in runs
    ]
    return [after - before for after, before in found if before is not None]


def cell(differences):
    """The mean difference in points with its 95 % interval, bold where that excludes 0."""
    mean, half = mean_and_half_width(differences)
    text = f"{100 * mean:+.2f} ({100 * (mean - half):+.2f} to {100 * (mean + half):+.2f})"
    return f"**{text}**" if abs(mean) > half else text


def table(runs):
    """A row for each probe, a column for each schedule."""
    schedules = [name for name in SCHEDULES if any(run["schedule"] == name for run in runs)]
    rows = [(label, metric, -1) for metric, label in METRICS.items()]
    rows.insert(1, (f"linear probe, right after {COLUMN}", "linear_accuracy", 0))
    heads = [f"points on {COLUMN}, trained minus untrained", *(f"`{name}`" for name in schedules)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for label, metric, row in rows:
        cells = [cell(gains([run for run in runs if run["schedule"] == name], metric, row)) for name in schedules]
        lines.append(f"| {' | '.join([label, *cells])} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one core each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    options = parser.parse_args()
    if len(set(options.seeds)) < 2:
        parser.error("--seeds must name at least two: an interval needs them.")
    runs = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    known = {(run["schedule"], run["seed"]) for run in runs}
    lock = Lock()

    def one(item):
        run = measure(*item)
        with lock:
            runs.append(run)
            runs.sort(key=lambda run: (run["seed"], run["schedule"]))
            RESULTS.write_text(json.dumps(runs, indent=1) + "\n")
        print(f"{item[0]:14} seed {item[1]}: {gains([run], 'linear_accuracy')[0]:+.3f}", flush=True)

    items = [(schedule, seed) for seed in options.seeds for schedule in options.schedules]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, [item for item in items if item not in known]))
    print(table([run for run in runs if run["schedule"] in options.schedules and run["seed"] in options.seeds]))


if __name__ == "__main__":
    main()
