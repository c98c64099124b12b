"""Both recipes of this folder over several seeds: the numbers of the README's results.

    python recipes/lm-docs-python-cpp/compare.py [--jobs 2] [--seeds 0 1]

Every run is kept in results.json with what it cost; a run that stands there is not done again. Delete the file to
start anew. Prints the table that stands in the README.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from search import GRID, HERE, run_recipe

from hf_infinite_lr.metrics import TaskMatrix, summary

RESULTS = HERE / "results.json"


def measure(schedule, seed):
    """What a run has left, without its pictures and weights."""
    matrix, state = run_recipe(schedule, {"seed": seed})
    last = state["tasks"][-1]
    return {
        "schedule": schedule,
        "seed": seed,
        "task_matrix": matrix,
        "summary": summary(TaskMatrix.from_dict(matrix)),
        "updates": last["updates"],
        "byte_unigram": state["references"]["byte_unigram"]["values"],
        "train_seconds_on_one_core": round(state["compute"]["train_seconds"], 1),
        "versions": state["versions"],
    }


def mean(runs, value):
    values = [value(run) for run in runs]
    return sum(values) / len(values)


def table(runs):
    """The README's table: means over seeds, bits per byte."""
    tasks = runs[0]["task_matrix"]["tasks"]
    lines = [
        f"| bits per byte (lower is better) | {' | '.join(tasks)} | average | lost since learned | updates (path) |",
        f"|---|{'---|' * (len(tasks) + 3)}",
    ]
    for schedule in GRID:
        own = [run for run in runs if run["schedule"] == schedule]
        diagonal = [mean(own, lambda run, j=j: run["task_matrix"]["matrix"][j][j]) for j in range(len(tasks))]
        final = [mean(own, lambda run, j=j: run["task_matrix"]["matrix"][-1][j]) for j in range(len(tasks))]
        average = mean(own, lambda run: run["summary"]["final_average"])
        forgetting = mean(own, lambda run: run["summary"]["forgetting_from_right_after_learning"])
        updates = own[0]["updates"]
        cost = f"{updates['spent']} ({updates['on_path']})"
        cells = " | ".join(f"{value:.3f}" for value in final)
        lines.append(f"| `{schedule}`, after the last task | {cells} | {average:.3f} | {forgetting:.3f} | {cost} |")
        cells = " | ".join(f"{value:.3f}" for value in diagonal)
        lines.append(f"| `{schedule}`, right after learning each | {cells} | {sum(diagonal) / len(tasks):.3f} | | |")
    unigram = [runs[0]["byte_unigram"][task] for task in tasks]
    cells = " | ".join(f"{value:.3f}" for value in unigram)
    lines.append(f"| byte unigram | {cells} | {sum(unigram) / len(tasks):.3f} | | |")
    return "\n".join(lines)


def averages(runs):
    """The final average of every run, by schedule, in the order of the seeds."""
    ordered = sorted(runs, key=lambda run: run["seed"])
    return {
        schedule: [run["summary"]["final_average"] for run in ordered if run["schedule"] == schedule]
        for schedule in GRID
    }


def verdict(runs):
    """What the averages say of the two schedules, and no more."""
    pairs = list(zip(*averages(runs).values(), strict=True))
    first, second = GRID
    if all(one < other for one, other in pairs):
        return f"`{first}` came out ahead with each of {len(pairs)} seeds"
    if all(one > other for one, other in pairs):
        return f"`{second}` came out ahead with each of {len(pairs)} seeds"
    return f"neither came out ahead with each of {len(pairs)} seeds"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one core each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    runs = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    known = {(run["schedule"], run["seed"]) for run in runs}
    lock = Lock()

    def one(item):
        run = measure(*item)
        with lock:
            runs.append(run)
            runs.sort(key=lambda run: (run["seed"], run["schedule"]))
            RESULTS.write_text(json.dumps(runs, indent=1) + "\n")
        print(f"{item[0]:14} seed {item[1]}: {run['summary']['final_average']:.4f}", flush=True)

    items = [(schedule, seed) for seed in options.seeds for schedule in GRID if (schedule, seed) not in known]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, items))
    print(table(runs))
    for schedule, values in averages(runs).items():
        print(f"{schedule}: {', '.join(f'{value:.3f}' for value in values)}")
    print(verdict(runs))


if __name__ == "__main__":
    main()
