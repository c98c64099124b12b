"""The studies: every run of the page beside this file, for anyone to repeat.

    python recipes/studies/study.py lm [--jobs 2] [--tables lm-replay] [--seeds 0 1 2 3 4] [--quick]

First the search of each table, then its runs, one core each; what stands in lm.json or mae.json is not done again.
Delete records, or the file, to do them anew. The data is text of installed packages, so all records come from the
versions in constraints.txt; others are refused. `page.py` makes the page. `--quick` does the same with a few updates,
few samples in scores and probes, two trials a schedule and two seeds, into out/studies/quick: it checks the machinery
and says nothing of the schedules.
"""

import argparse
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pins
import records
from arms import LABELS, SEARCH_SEED, TABLES, Table, arms, grid, overrides
from tqdm import tqdm

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OUT = ROOT / "out" / "studies"
_CODE = ("hf_infinite_lr", "recipes/studies/*.py", "recipes/studies/*.yaml")


def commit(*, quick: bool, code: Sequence[str] = _CODE) -> str:
    """The commit that the runs come from; runs that are reported must not come from changed code."""
    git = ["git", "-C", str(ROOT)]
    changed = subprocess.run([*git, "status", "--porcelain", "--", *code], capture_output=True, text=True)
    if changed.stdout and not quick:
        raise SystemExit(f"Commit before a run that is reported; changed are:\n{changed.stdout}")
    return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()


def _do(table: Table, purpose: str, quick: bool, changes: dict[str, Any], seed: int) -> dict[str, Any]:
    """A run, in a process that has imported everything before."""
    from slices import entries
    from trial import run, short_fits

    tasks = entries(table.study, table.stream, purpose, OUT / "data", max_bytes=400_000 if quick else 4_000_000)
    shared = {"task_steps": [table.task_steps], "replay_fraction": table.replay}
    if not quick:
        return run(table.study, tasks, {**shared, **changes}, seed)
    few, held_out = ({"probe_samples": 50}, 120) if table.study == "mae" else ({}, 8)
    tasks = [{**task, "num_eval_samples": held_out} for task in tasks]
    with short_fits():
        return run(table.study, tasks, {**shared, **few, **changes}, seed)


def _final_average(record: dict[str, Any]) -> float:
    return sum(record["matrix"][-1]) / len(record["tasks"])


class Study:
    """What is to be done, what was done, and where it is kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        quick = options.quick
        self.path = (options.folder or (OUT / "quick" if quick else HERE)) / f"{options.study}.json"
        self.records = records.read(self.path)
        self.commit = commit(quick=quick)
        if not quick:
            pins.hold(self.path.with_name("constraints.txt"))
        known = {name: table for name, table in TABLES.items() if table.study == options.study}
        chosen = {name: table for name, table in known.items() if name in (options.tables or known)}
        if quick:
            chosen = {name: replace(table, task_steps=6, seeds=2) for name, table in chosen.items()}
        self.tables = chosen

    def search(self) -> list[tuple[str, dict[str, Any], tuple]]:
        """Trials that are missing: the kind of record, the record so far, and the arguments of `_do`."""
        found = []
        for name, table in self.tables.items():
            if table.searched is not None:
                continue
            for schedule, settings in grid(table.study).items():
                for setting in settings[:2] if self.options.quick else settings:
                    record = {"table": name, "schedule": schedule, "setting": setting, "seed": SEARCH_SEED}
                    changes = overrides(schedule, setting)
                    found.append(("search", record, (table, "search", self.options.quick, changes, SEARCH_SEED)))
        return self._missing(found)

    def runs(self) -> list[tuple[str, dict[str, Any], tuple]]:
        """Runs that are missing, all arms of one seed before the next."""
        found = []
        for name, table in self.tables.items():
            changes = arms(records.best(self.records, table.searched or name), table.task_steps)
            seeds = range(table.seeds) if self.options.seeds is None else self.options.seeds
            for seed, arm in product(seeds, table.arms):
                if arm in (self.options.arms or table.arms):
                    record = {"table": name, "arm": arm, "seed": seed, "changes": changes[arm]}
                    found.append(("runs", record, (table, "report", self.options.quick, changes[arm], seed)))
        found.sort(key=lambda unit: unit[1]["seed"])
        return self._missing(found)

    def _missing(self, units: list[tuple[str, dict[str, Any], tuple]]) -> list[tuple[str, dict[str, Any], tuple]]:
        done = {kind: {records.key_of(kind, record) for record in self.records[kind]} for kind in records.KINDS}
        return [unit for unit in units if records.key_of(unit[0], unit[1]) not in done[unit[0]]]

    def do(self, pool: ProcessPoolExecutor, units: Sequence[tuple[str, dict[str, Any], tuple]], title: str) -> None:
        """Does what is missing and writes the file after each run."""
        futures = {pool.submit(_do, *arguments): (kind, record) for kind, record, arguments in units}
        hours = 0.0
        with tqdm(as_completed(futures), total=len(futures), desc=title, unit="run") as bar:
            for future in bar:
                (kind, record), result = futures[future], future.result()
                if kind == "search":
                    known = ("metric", "higher_is_better", "cpu_seconds", "versions")
                    result = {"score": _final_average(result), **{key: result[key] for key in known}}
                self.records[kind].append({**record, **result, "commit": self.commit})
                records.write(self.path, self.records)
                hours += result["cpu_seconds"] / 3600
                bar.set_postfix_str(f"{hours:.2f} CPU hours")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["lm", "mae"])
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one core each")
    parser.add_argument("--tables", nargs="+", choices=list(TABLES))
    parser.add_argument("--arms", nargs="+", choices=list(LABELS), help="of each table; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", help="as many as each table has by default")
    parser.add_argument("--folder", type=Path, help="of the JSON, if not this one")
    parser.add_argument("--quick", action="store_true", help="a few updates, into out/studies/quick")
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes that train
    study = Study(parser.parse_args(argv))
    with ProcessPoolExecutor(study.options.jobs, mp_context=get_context("spawn")) as pool:
        study.do(pool, study.search(), "search")
        study.do(pool, study.runs(), "runs")


if __name__ == "__main__":
    main()
