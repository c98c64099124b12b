"""What learners.py and preserving.py share: pre-trained encoders, a search, runs that are kept, and claims on them."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hf_infinite_lr.recipe import load_recipe
from hf_infinite_lr.stream.pictures import load_pictures

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "studies"))

from study import commit  # noqa: E402  # the rules of evidence are those of the studies
from trial import without_reports  # noqa: E402
from verdicts import Difference  # noqa: E402

PRETRAINING = HERE.parent / "mae-digits-glyphs-photos" / "infinite.yaml"
RECIPE = HERE / "infinite.yaml"
OUT = Path("out/vit-pictures")
SEARCH_SEED = 1000
_PACKAGES = ("hf_infinite_lr", "transformers", "torch", "peft", "scikit-learn", "matplotlib")
_CODE = ("hf_infinite_lr", *(f"{folder}/*.{kind}" for folder in (HERE, PRETRAINING.parent) for kind in ("py", "yaml")))
_QUIET = {"save_strategy": "no", "disable_tqdm": True, "log_level": "error", "use_cpu": True}
# Digits, letters and photographs together, without their labels, for 900 updates.
_TOGETHER = {
    "methods": {"joint": {}},
    "task_steps": [300],
    "replay_fraction": 0.0,
    "probes": [],
    "compare_releases": False,
    "num_pictures": 0,
    "evaluate_on": "none",
    "dataloader_num_workers": 0,
    "resume_from_checkpoint": True,
}

Record = Mapping[str, Any]


def train(path: Path, folder: Path, seed: int, **changes: Any) -> Any:
    """Trains a recipe with changed keys in this process; the trainer."""
    torch.set_num_threads(1)
    fixed = {"output_dir": str(folder), "seed": seed, **_QUIET, **changes}
    recipe = load_recipe(path, [f"--{key}={json.dumps(value)}" for key, value in fixed.items()])
    trainer = recipe.trainer()
    with without_reports():
        trainer.train(recipe.arguments.resume_from_checkpoint)
    return trainer


def pretrained(seed: int) -> str:
    """A masked autoencoder of all pictures' training parts, made where it is not there yet; its release's path."""
    folder = OUT / "backbones" / f"seed-{seed}"
    if not (folder / "releases" / "01-joint").exists():
        train(PRETRAINING, folder, seed, **_TOGETHER)
    return str(folder / "releases" / "01-joint")


def entry(builtin: str, purpose: str) -> dict[str, str]:
    """An entry of `tasks`: a domain, or for the search three quarters of its training part, scored on the rest."""
    if purpose == "report":
        return {"name": builtin, "builtin": builtin}
    parts = load_pictures(builtin).train.train_test_split(test_size=0.25, seed=0)
    paths = {part: OUT / "search" / f"{builtin}-{part}.parquet" for part in parts}
    for part, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        parts[part].to_parquet(path)
    return {"name": builtin, "data_files": str(paths["train"]), "eval_data_files": str(paths["test"])}


@dataclass(frozen=True)
class Claim:
    """That one arm is better than another.

    Args:
        text (`str`): In words.
        first (`str`): The arm that should be better.
        second (`str`): The other arm.
        measure (`str`): A number of each run, higher is better.
        margin (`float`): By how much the first may be worse.
    """

    text: str
    first: str
    second: str
    measure: str
    margin: float = 0.0

    def difference(self, runs: Sequence[Record]) -> Difference:
        """Of the runs, paired by seed."""
        values = [
            [run[self.measure] for run in sorted(runs, key=lambda run: run["seed"]) if run["arm"] == arm]
            for arm in (self.first, self.second)
        ]
        return Difference.of(*values, higher_is_better=True)

    def verdict(self, runs: Sequence[Record]) -> str:
        """Holds where the whole interval lies above minus the margin, contradicted where it lies below."""
        found = self.difference(runs)
        return replace(found, mean=found.mean + self.margin).supports().replace("supported", "holds")


@dataclass(frozen=True)
class Comparison:
    """Arms that are measured over seeds, those with a learning rate after a search for it.

    Args:
        path (`Path`): Where every trial and run is kept; one that stands there is not done again.
        rates (`Mapping`): Arm -> the learning rates that its search tries, as many as for any other; none for an arm
            that learns nothing; or the arm whose learning rate it takes.
        score (`str`): What the search maximises.
        measure (`Callable`): Arm, learning rate, seed, purpose and an empty folder -> the numbers of a run.
        claims (`Sequence[Claim]`): What is judged.
    """

    path: Path
    rates: Mapping[str, Sequence[float] | str]
    score: str
    measure: Callable[[str, float | None, int, str, Path], dict[str, Any]]
    claims: Sequence[Claim]

    def records(self, purpose: str) -> list[Record]:
        """Those of `search` or of `report`."""
        every = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else []
        return [record for record in every if record["purpose"] == purpose]

    def best(self, arm: str) -> float | None:
        """The learning rate with the best score; None for an arm that learns nothing."""
        searched = self.rates[arm] if isinstance(self.rates[arm], str) else arm
        trials = [trial for trial in self.records("search") if trial["arm"] == searched]
        return max(trials, key=lambda trial: trial[self.score])["learning_rate"] if trials else None

    def complete(self, seeds: Sequence[int]) -> None:
        """Measures what is missing."""
        revision = commit(quick=False, code=_CODE)
        for arm, rates in tqdm(self.rates.items(), desc="Search"):
            for rate in () if isinstance(rates, str) else rates:
                self._keep("search", arm, rate, SEARCH_SEED, revision)
        for seed in tqdm(seeds, desc="Seeds"):
            for arm in self.rates:
                self._keep("report", arm, self.best(arm), seed, revision)

    def _keep(self, purpose: str, arm: str, rate: float | None, seed: int, revision: str) -> None:
        key = {"purpose": purpose, "arm": arm, "learning_rate": rate, "seed": seed}
        every = [*self.records("search"), *self.records("report")]
        if any(key.items() <= record.items() for record in every):
            return
        pretrained(seed)
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            numbers = self.measure(arm, rate, seed, purpose, Path(folder))
        every.append(
            {
                **key,
                **numbers,
                "cpu_seconds": round(time.process_time() - started, 1),
                "versions": {package: version(package) for package in _PACKAGES},
                "commit": revision,
            }
        )
        self.path.write_text("[\n " + ",\n ".join(map(json.dumps, every)) + "\n]\n", encoding="utf-8")


def main(comparison: Comparison, doc: str) -> None:
    """The command line of both scripts."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    comparison.complete(parser.parse_args().seeds)
