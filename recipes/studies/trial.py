"""One run of a study, and what is kept of it."""

import json
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import transformers
from arms import FROM_THE_FLOOR, METRICS, SECOND
from transformers import PrinterCallback, TrainerCallback

from hf_infinite_lr.recipe import load_recipe
from hf_infinite_lr.run_plan import replay_settings
from hf_infinite_lr.schedules import Schedule
from hf_infinite_lr.stream.loading import StreamBatches
from hf_infinite_lr.trainer import ContinualTrainer

HERE = Path(__file__).parent


class ZeroRates(TrainerCallback):
    """Counts the updates at rate 0, which change nothing."""

    def __init__(self):
        self.count = 0

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.count += optimizer.param_groups[0]["lr"] == 0


def run(study: str, entries: list[dict[str, Any]], changes: dict[str, Any], seed: int) -> dict[str, Any]:
    """
    Trains once and returns the scores and what they cost.

    Args:
        study (`str`): `lm` or `mae`, which names the recipe.
        entries (`list[dict]`): Its `tasks`.
        changes (`dict`): Keys of the recipe, and [`~arms.FROM_THE_FLOOR`].
        seed (`int`): Of the weights and of the order of samples.
    """
    quiet()
    started = time.process_time()
    keys = {key: value for key, value in changes.items() if key != FROM_THE_FLOOR}
    with tempfile.TemporaryDirectory() as folder, without_reports():
        keys |= {"tasks": entries, "seed": seed, "output_dir": folder}
        recipe = load_recipe(HERE / f"{study}.yaml", [f"--{key}={json.dumps(value)}" for key, value in keys.items()])
        trainer = recipe.trainer()
        if changes.get(FROM_THE_FLOOR):
            trainer.schedule = from_the_floor(trainer.schedule)
        zero = ZeroRates()
        trainer.add_callback(zero)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        state = trainer.record.state(trainer.state.global_step, finished=True)
        trunk = _trunk_scores(trainer, Path(folder))
        outcomes = {
            metric: {
                **{
                    key: state["matrices"][metric][key] for key in ("metric", "higher_is_better", "matrix", "baseline")
                },
                "trunk": trunk and [trunk[column][metric.removeprefix("eval_")] for column in trainer.columns],
            }
            for metric in (METRICS[study], *SECOND[study])
        }
        last = trainer.plan.tasks[-1]
        return {
            "tasks": state["matrices"][METRICS[study]]["tasks"],
            **outcomes.pop(METRICS[study]),
            **outcomes,
            "byte_unigram": state["references"].get("byte_unigram", {}).get("values"),
            "updates": {"spent": last.end_step, "on_path": trainer.plan.path_steps(last), "at_rate_0": zero.count},
            "distinct_samples_on_path": distinct_samples(trainer),
            "data": [task.fingerprint for task in trainer.plan.tasks],
            "cpu_seconds": round(time.process_time() - started, 1),
            "versions": state["versions"],
        }


def quiet() -> None:
    """Leaves the terminal to the progress bar of the whole study."""
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("hf_infinite_lr").setLevel(logging.WARNING)


@contextmanager
def without_reports() -> Iterator[None]:
    """A report with pictures for every release would take longer than these runs."""
    room = "hf_infinite_lr.trainer"
    with patch(f"{room}.publishing.write_report_of"), patch(f"{room}.mixin.write_report"):
        yield


@contextmanager
def short_fits() -> Iterator[None]:
    """Probes of the quick form: their many updates would take longer than all the rest of it."""
    with patch("hf_infinite_lr.evaluation.classifiers._LEAST_UPDATES", 100):
        yield


def from_the_floor(schedule: Schedule) -> Schedule:
    """A repeated cosine whose later warm-ups begin where the cosine before them has ended."""
    ends = [schedule.phases[0].start, *(phase.end for phase in schedule.phases)]
    return Schedule(
        tuple(
            replace(phase, start=end) if phase.name == "warmup" else phase
            for phase, end in zip(schedule.phases, ends, strict=False)
        )
    )


def _trunk_scores(trainer: ContinualTrainer, folder: Path) -> dict[str, dict[str, float]] | None:
    """The trunk of the last task before its annealing: column -> metric -> value; None where nothing anneals."""
    last = trainer.plan.tasks[-1]
    if last.branch_step is None:
        return None
    trunk = type(trainer.model).from_pretrained(folder / "trunk" / last.directory)
    trainer.model.load_state_dict(trunk.state_dict())
    found: dict[str, dict[str, float]] = {}
    for column in trainer.columns:
        loss = {"loss": trainer.evaluate(trainer.eval_dataset[column], metric_key_prefix="trunk")["trunk_loss"]}
        found[column] = {**loss, **(trainer.score_column(column, loss) if trainer.score_column else {})}
    if trainer.score_model:
        for column, scores in trainer.score_model(trainer, "trunk", trainer.columns, trainer.columns).items():
            found[column].update(scores)
    return found


def distinct_samples(trainer: ContinualTrainer) -> int:
    """Different samples, replayed ones included, that the updates on the path to the last released weights read."""
    args, plan = trainer.args, trainer.plan
    batches = StreamBatches(trainer.stream, plan, plan.global_batch_size, seed=args.seed, replay=replay_settings(args))
    path = [segment for segment in plan.segments if segment.on_trunk or segment is plan.segments[-1]]
    return len(
        {
            (sample.task, sample.row)
            for segment in path
            for batch in range(segment.first_batch, segment.first_batch + segment.num_steps)
            for sample in batches.global_batch(segment.task, batch)
        }
    )
