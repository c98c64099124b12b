"""Kills a continual run at random moments until it is done, and compares it with one that was left alone.

    python recipes/benchmarks/kill_and_resume.py [--kills 30] [--seed 0] [--data map stream]

Three tasks on the infinite schedule, with dropout, a collator that draws random numbers, two loader workers,
accumulation over two batches, save_total_limit=1 and periodic evaluations; with replay where the data is map-style.
The same training is started again and again, each time with resume_from_checkpoint=True, and ended by SIGKILL at a
random time, most often after its first step. What is printed: the seed, each moment with what the process was doing
there, and whether weights, optimizer, RNG, rates, losses and scores are those of the undisturbed run, bit for bit. The
exit status is 0 if all are and all kills fell before the end. Every training process is a fork of this one, which has
imported everything and computed nothing.
"""

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path

import datasets
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from hf_infinite_lr import ContinualTrainer, ContinualTrainingArguments, Task

LENGTHS = {"a": 24, "b": 18, "c": 21}
BATCH = 8
IN_START = 1 / 6
"""Share of the kills that fall between the start of a process and its first step."""
ACTIVITIES = ("start", "step", "save", "evaluation", "release", "rewind", "end")


class Board:
    """Memory that outlives the training process: what it is doing, at which step, on a branch or not."""

    def __init__(self):
        self.memory = mmap.mmap(-1, struct.calcsize("3i"))
        self.write("start", 0, False)

    def write(self, activity, step, on_branch):
        self.memory[:] = struct.pack("3i", ACTIVITIES.index(activity), step, on_branch)

    def read(self):
        activity, step, on_branch = struct.unpack("3i", self.memory[:])
        return ACTIVITIES[activity], step, bool(on_branch)


class Watched(ContinualTrainer):
    """Says on a board what it is doing."""

    board: Board

    @contextmanager
    def doing(self, activity):
        before, step = self.board.read()[0], self.state.global_step
        on_branch = not self.plan.segments[self.plan.segment_of(max(step - 1, 0))].on_trunk
        self.board.write(activity, step, on_branch)
        yield
        self.board.write(before, step, on_branch)

    def training_step(self, *args, **kwargs):
        self.board.write("step", self.state.global_step, self.board.read()[2])
        return super().training_step(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        with self.doing("evaluation"):
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        with self.doing("save"):
            super()._save_checkpoint(*args, **kwargs)

    def _release(self, *args, **kwargs):
        with self.doing("release"):
            super()._release(*args, **kwargs)

    def _rewind(self, *args, **kwargs):
        with self.doing("rewind"):
            super()._rewind(*args, **kwargs)


def collate(samples):
    tokens = torch.tensor([sample["input_ids"] for sample in samples])
    tokens = (tokens + torch.randint(0, 2, tokens.shape) + np.random.randint(0, 2) + random.randint(0, 1)) % 32
    return {"input_ids": tokens, "labels": tokens}


def rows(count, seed):
    tokens = np.random.RandomState(seed).randint(0, 30, (count, 8)).tolist()
    return datasets.Dataset.from_dict({"input_ids": tokens})


def tasks(data):
    if data == "map":
        return [Task(name, rows(steps * BATCH + 3, ord(name))) for name, steps in LENGTHS.items()]
    # Each stream is shorter than its task, so that it starts over.
    return [
        Task(name, rows(110, ord(name)).to_iterable_dataset(num_shards=3 if name == "b" else 1), num_steps=steps)
        for name, steps in LENGTHS.items()
    ]


def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=16, attention_dropout=0.1, **sizes))


def train(folder, data, board):
    args = ContinualTrainingArguments(
        str(folder),
        per_device_train_batch_size=BATCH // 2,
        gradient_accumulation_steps=2,
        dataloader_num_workers=2,
        learning_rate=1e-2,
        lr_scheduler_kwargs={"num_anneal_steps": 0.2},
        replay_fraction=0.25 if data == "map" else 0.0,
        save_steps=3,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=6,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    held_out = {name: rows(16, 1000 + place) for place, name in enumerate([*LENGTHS, "general"])}
    trainer = Watched(model(), args, train_dataset=tasks(data), eval_dataset=held_out, data_collator=collate)
    trainer.board = board
    trainer.train(resume_from_checkpoint=True)
    board.write("end", trainer.state.global_step, False)


def started(folder, data, board):
    """A process that trains from where the folder is, its output in a file beside it."""
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    status = 1
    try:
        log = os.open(f"{folder}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        train(folder, data, board)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def ended(pid, flags=0):
    """Whether the process has ended by itself; one that failed ends this one too."""
    done, status = os.waitpid(pid, flags)
    if done and status:
        raise SystemExit(f"A training process failed (status {status}); --keep keeps its log.")
    return bool(done)


def killed_after(pid, board, seconds, *, in_start):
    """Whether the process was still there to be killed, so many seconds after its start or after its first step."""
    while not in_start and board.read()[0] == "start" and not ended(pid, os.WNOHANG):
        time.sleep(0.001)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ended(pid, os.WNOHANG):
            return False
        time.sleep(min(0.002, max(deadline - time.monotonic(), 0)))
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # loader workers that were just starting never learn that they are alone
    return status == signal.SIGKILL


def undisturbed(folder, data):
    """Trains to the end; seconds up to the first step, and in all."""
    board, since = Board(), time.monotonic()
    pid = started(folder, data, board)
    while board.read()[0] in ("start", "evaluation") and not ended(pid, os.WNOHANG):
        time.sleep(0.002)
    first = time.monotonic() - since
    ended(pid)
    return first, time.monotonic() - since


def disturbed(folder, data, kills, draw, start_seconds, seconds):
    """Kills and starts again; how many kills fell, and in what."""
    num_steps, fell, total = sum(LENGTHS.values()), [], 0
    while total < kills:
        board = Board()
        done = newest_step(folder) / num_steps
        share = (1 - done) * (seconds - start_seconds) / (kills - total + 1)
        in_start = draw.random() < IN_START
        life = draw.uniform(0.0, start_seconds if in_start else 2 * share)
        if not killed_after(started(folder, data, board), board, life, in_start=in_start):
            break
        total += 1
        activity, step, on_branch = board.read()
        fell.append(activity)
        where = "branch" if on_branch else "trunk"
        left_aside = ", a save half done" if (folder / ".incoming").exists() else ""
        since = "the start" if in_start else "the first step"
        print(f"kill {total:2}: {life:5.2f} s after {since}, in {activity} at step {step} on the {where}{left_aside}")
    ended(started(folder, data, Board()))
    return fell


def newest_step(folder):
    steps = [int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")]
    return max(steps, default=0)


def compare(one, other):
    """What is the same: name -> bool."""
    last = f"checkpoint-{sum(LENGTHS.values())}"
    places = [path.relative_to(one) for kind in ("trunk", "releases") for path in sorted((one / kind).iterdir())]
    found = {}
    for place in [*places, Path(last)]:
        found[f"weights of {place}"] = same(*(load_file(run / place / "model.safetensors") for run in (one, other)))
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            if (one / place / name).exists():
                found[f"{name} of {place}"] = same(*(loaded(run / place / name) for run in (one, other)))
    for path in sorted(one.glob("task_matrix*.json")):
        found[path.name] = path.read_text() == (other / path.name).read_text()
    gaps = [json.loads((run / "continual_state.json").read_text())["stability_gap"] for run in (one, other)]
    found["stability gap"] = gaps[0] == gaps[1] and gaps[0] is not None
    logs = [json.loads((run / "trainer_state.json").read_text())["log_history"] for run in (one, other)]
    for key in ("learning_rate", "loss", "grad_norm"):
        values = [{entry["step"]: entry[key] for entry in log if key in entry} for log in logs]
        found[f"{key} of all {len(values[0])} steps"] = values[0] == values[1]
    return found


def loaded(path):
    return torch.load(path, weights_only=False)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def measure(data, kills, seed, folder):
    """Whether everything was the same in the end."""
    whole, parts = folder / f"{data}-undisturbed", folder / f"{data}-killed"
    start_seconds, seconds = undisturbed(whole, data)
    print(
        f"{data}: undisturbed {seconds:.1f} s, of which {start_seconds:.1f} s to the first step; seed {seed}",
        flush=True,
    )
    fell = disturbed(parts, data, kills, random.Random(seed), start_seconds, seconds)
    print(", ".join(f"{fell.count(activity)} in {activity}" for activity in ACTIVITIES if activity in fell))
    found = compare(whole, parts)
    for name, is_same in found.items():
        print(f"  {'equal    ' if is_same else 'DIFFERENT'}  {name}")
    print(f"{data}: {len(fell)} of {kills} kills fell; {sum(found.values())} of {len(found)} things equal bit for bit")
    return all(found.values()) and len(fell) == kills


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", nargs="+", choices=("map", "stream"), default=("map", "stream"))
    parser.add_argument("--keep", type=Path, help="where the runs and their logs stay, instead of nowhere")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    folder = arguments.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        results = [measure(data, arguments.kills, arguments.seed, folder) for data in arguments.data]
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
