"""Steps per second of a training while it publishes against the same training while it does not, within one run.

    python recipes/benchmarks/pushing.py [--rounds 40] [--megabytes 32] [--megabytes_per_second 8]

One process trains and again and again publishes a release in the background, as ContinualTrainer does, to a Hub of the
tests in a process of its own that reads no faster than it is told and makes way for the training; weights go to its
large file storage, as on the real one. A publication costs the sending thread a few hundredths of a second whatever
its size, and its bytes besides, so the size of the release is stated. After each follow as many steps without one as
fell into it, so that a slow moment of the machine meets both sides of it. The Hub shares the machine's
cores with the training; where these are few its work is part of what is measured. Each block of steps that publish is
held against the mean of the two blocks without on both its sides, which a steady drift leaves as it is.

Printed are the median over the rounds of the ratio of steps per second, with a 95 % interval of that median; the same
ratio between the two quiet blocks of each round, whose true value is 1 and whose interval says how fine the
measurement was; and the share of one core that the sending thread took. The means are of whole blocks, so that a rare
long stop counts for what it costs.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "tests")]

from overhead import BATCH, common, data_and_model  # noqa: E402
from turns import UNCOUNTED, spread  # noqa: E402


def serve(bytes_per_second, endpoint, done):
    """The Hub, in a process of its own that makes way, because its work is somebody else's in truth."""
    from loopback_hub import LoopbackHub

    os.nice(19)
    with LoopbackHub() as hub:
        hub.bytes_per_second, hub.lfs_above = bytes_per_second, 1_000_000
        endpoint.put(hub.endpoint)
        done.wait()


def publication_of(output_dir, number, megabytes):
    """A release of that size, as a run leaves it, in the queue."""
    import torch
    from safetensors.torch import save_file

    from hf_infinite_lr.hub import PublicationQueue
    from hf_infinite_lr.trainer.checkpoints import write_manifest

    folder = output_dir / "releases" / f"{number:02d}-task"
    data_and_model(0)[1].config.save_pretrained(folder)
    # Other weights each time, or the client would find nothing to send.
    save_file({"weight": torch.full((megabytes * 250_000,), float(number))}, folder / "model.safetensors")
    write_manifest(folder)
    facts = json.loads((Path(__file__).parents[2] / "model_cards" / "examples" / "lm.json").read_text())
    (folder / "card.json").write_text(json.dumps({**facts, "directory": folder.name}))
    queue = PublicationQueue(output_dir)
    queue.add(queue.publication("release", folder.name, "user/model", branch="main", private=None))
    return queue


def _never(_seconds):
    """No failure is waited for: the Hub of this measurement does not fail."""
    return False


def _tell_nobody(_publication, _repo_id):
    """Nothing is printed while it is measured."""


def watch_of(rounds, megabytes, folder):
    """A callback that publishes and counts the steps with and without."""
    from transformers import TrainerCallback

    from hf_infinite_lr.hub import Publisher, send_queue
    from hf_infinite_lr.hub.background import make_way, quiet_uploads
    from hf_infinite_lr.trainer.checkpoints import fault_of

    class Watch(TrainerCallback):
        def __init__(self):
            self.queues = [publication_of(Path(folder) / f"published-{n}", n + 1, megabytes) for n in range(rounds)]
            self.thread, self.cpu_seconds, self.wall_seconds = None, 0.0, 0.0
            self.seconds, self.quiet_steps = [], UNCOUNTED
            self.blocks = []

        def send(self, queue):
            make_way()
            wall, cpu = time.perf_counter(), time.thread_time()
            publisher = Publisher(queue.output_dir, fault_of, token="hf_benchmark")
            with quiet_uploads():
                left = send_queue(queue, publisher, pause=_never, on_sent=_tell_nobody)
            assert not left, left
            self.cpu_seconds += time.thread_time() - cpu
            self.wall_seconds += time.perf_counter() - wall

        def on_step_begin(self, args, state, control, **kwargs):
            self.since = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            self.seconds.append(time.perf_counter() - self.since)
            if self.thread is not None and not self.thread.is_alive():
                self.quiet_steps, self.thread = len(self.seconds), None
                self._close_block()
            elif self.thread is None and len(self.seconds) >= self.quiet_steps:
                self._close_block()
                control.should_training_stop = not self.queues
                if self.queues:
                    self.thread = threading.Thread(target=self.send, args=(self.queues.pop(0),), daemon=True)
                    self.thread.start()

        def _close_block(self):
            """Blocks without publishing and with it follow each other; the first and the last are without."""
            self.blocks.append(statistics.mean(self.seconds))
            self.seconds = []

    return Watch()


def measure(rounds, megabytes):
    from hf_infinite_lr import ContinualTrainer, ContinualTrainingArguments
    from hf_infinite_lr.objectives.packing import causal_lm_collator

    data, model = data_and_model(2000)
    with tempfile.TemporaryDirectory() as folder:
        watch = watch_of(rounds, megabytes, folder)
        args = ContinualTrainingArguments(
            **common(str(Path(folder) / "run"), 100_000),
            lr_scheduler_kwargs={"num_cooldown_steps": 0, "constant_lr_ratio": 1, "num_anneal_steps": 0},
            warmup_steps=0,
            evaluate_on="none",
            release="none",
            task_steps=[100_000],
        )
        trainer = ContinualTrainer(
            model=model, args=args, train_dataset={"task": data}, data_collator=causal_lm_collator, callbacks=[watch]
        )
        trainer.train()
    return watch


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--megabytes", type=int, default=32, help="of each release")
    parser.add_argument("--megabytes_per_second", type=float, default=8.0)
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    endpoint, done = spawn.Queue(), spawn.Event()
    server = spawn.Process(target=serve, args=(arguments.megabytes_per_second * 1e6, endpoint, done), daemon=True)
    server.start()
    from huggingface_hub import constants

    constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = endpoint.get(), False, True
    watch = measure(arguments.rounds, arguments.megabytes)
    done.set()
    # The first publication opens the client's connection, and the quiet block before it warms up the training.
    blocks = watch.blocks[2:]
    before, publishing, after = blocks[:-1:2], blocks[1::2], blocks[2::2]
    quiet = [(one + other) / 2 for one, other in zip(before, after, strict=True)]
    sizes = f"releases of {arguments.megabytes} MB at {arguments.megabytes_per_second} MB/s"
    print(f"batches of {BATCH}; {watch.wall_seconds:.1f} s of publishing, {sizes}")
    print(f"publishing / not publishing, steps per second, {len(quiet)} rounds: {spread(quiet, publishing)}")
    print(f"not publishing / not publishing: {spread(before, after)}")
    print(f"the sending thread took {100 * watch.cpu_seconds / watch.wall_seconds:.1f} % of one core while it sent")


if __name__ == "__main__":
    main()
