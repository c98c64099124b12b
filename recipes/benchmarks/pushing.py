"""Steps per second of a training while it publishes against the same training while it does not, within one run.

    python recipes/benchmarks/pushing.py [--rounds 40] [--megabytes 32] [--megabytes_per_second 8]

One process trains and again and again publishes a release in the background, as ContinualTrainer does, to a Hub of the
tests in a process of its own that reads no faster than it is told and makes way for the training; weights go to its
large file storage, as on the real one. A publication costs the sending thread a few hundredths of a second whatever
its size, and its bytes besides, so the size of the release is stated.

The Hub shares the machine's cores with the training, which the real one does not. So in every second block the same
bytes go to the same Hub from a third process that does nothing else (`sendfile`), and what the training loses then is
the Hub's own. Each busy block is held against the mean of the two quiet blocks on both its sides, as many steps long,
which a steady drift leaves as it is. The means are of whole blocks, so that a rare long stop counts for what it costs.

Printed are medians over the rounds with their 95 % intervals, as ratios of steps per second: of publishing against the
Hub alone (what our pushing costs), of both against the quiet blocks, and between quiet blocks, whose true value is 1
and whose interval says how fine the measurement was; and the share of one core that the sending thread took.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

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


def carry(connection, endpoint):
    """Sends files to the Hub's storage with as little work as can be, in a process of its own that makes way."""
    os.nice(19)
    address = urlsplit(endpoint)
    while (path := connection.recv()) is not None:
        with open(path, "rb") as file, socket.create_connection((address.hostname, address.port)) as to:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = f"PUT /storage/{digest} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {size}\r\n\r\n"
            to.sendall(head.encode())
            to.sendfile(file)
            answer = to.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        connection.send(size)


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


def watch_of(rounds, megabytes, folder, carrier):
    """A callback that publishes, lets the Hub work alone, and does neither, in turns, and times the steps."""
    from transformers import TrainerCallback

    from hf_infinite_lr.hub import Publisher, send_queue
    from hf_infinite_lr.hub.background import make_way, quiet_uploads
    from hf_infinite_lr.trainer.checkpoints import fault_of

    class Watch(TrainerCallback):
        def __init__(self):
            self.queues = [
                publication_of(Path(folder) / f"published-{n}", n + 1, megabytes) for n in range(2 * rounds)
            ]
            self.cpu_seconds, self.wall_seconds = 0.0, 0.0
            self.busy, self.seconds, self.quiet_steps = None, [], UNCOUNTED
            self.blocks = []

        def publish(self, queue):
            thread = threading.Thread(target=self.send, args=(queue,), daemon=True)
            thread.start()
            return thread.is_alive

        def send(self, queue):
            make_way()
            wall, cpu = time.perf_counter(), time.thread_time()
            publisher = Publisher(queue.output_dir, partial(fault_of, trust_unchanged=True), token="hf_benchmark")
            with quiet_uploads():
                left = send_queue(queue, publisher, pause=_never, on_sent=_tell_nobody)
            assert not left, left
            self.cpu_seconds += time.thread_time() - cpu
            self.wall_seconds += time.perf_counter() - wall

        def leave_to_the_hub(self, queue):
            carrier.send(next(queue.output_dir.rglob("*.safetensors")))
            return lambda: not carrier.poll() or not carrier.recv()

        def on_step_begin(self, args, state, control, **kwargs):
            self.since = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            self.seconds.append(time.perf_counter() - self.since)
            if self.busy is not None and not self.busy():
                self.quiet_steps, self.busy = len(self.seconds), None
                self._close_block()
            elif self.busy is None and len(self.seconds) >= self.quiet_steps:
                self._close_block()
                control.should_training_stop = not self.queues
                if self.queues:
                    # A pair of blocks has both, in an order that changes, so that neither is always the first.
                    number = 2 * rounds - len(self.queues)
                    first = (number // 2 + number) % 2 == 0
                    self.blocks.append("publishing" if first else "hub")
                    self.busy = (self.publish if first else self.leave_to_the_hub)(self.queues.pop(0))

        def _close_block(self):
            """Blocks without anything beside and with it follow each other; the first and the last are without."""
            self.blocks.append(statistics.mean(self.seconds))
            self.seconds = []

    return Watch()


def measure(rounds, megabytes, carrier):
    from hf_infinite_lr import ContinualTrainer, ContinualTrainingArguments
    from hf_infinite_lr.objectives.packing import causal_lm_collator

    data, model = data_and_model(2000)
    with tempfile.TemporaryDirectory() as folder:
        watch = watch_of(rounds, megabytes, folder, carrier)
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
    carrier, far_end = spawn.Pipe()
    spawn.Process(target=carry, args=(far_end, constants.ENDPOINT), daemon=True).start()
    watch = measure(arguments.rounds, arguments.megabytes, carrier)
    carrier.send(None)
    done.set()
    times = [block for block in watch.blocks if not isinstance(block, str)]
    kinds = [block for block in watch.blocks if isinstance(block, str)]
    before, busy, after = times[:-1:2], times[1::2], times[2::2]
    quiet = [(one + other) / 2 for one, other in zip(before, after, strict=True)]
    # The first pair opens the client's connection, and the quiet block before it warms up the training.
    slower = {
        kind: [b / q for k, b, q in zip(kinds[2:], busy[2:], quiet[2:], strict=True) if k == kind]
        for kind in ("publishing", "hub")
    }
    ones = [1.0] * len(slower["hub"])
    sizes = f"releases of {arguments.megabytes} MB at {arguments.megabytes_per_second} MB/s"
    print(f"batches of {BATCH}; {watch.wall_seconds:.1f} s of publishing, {sizes}; {len(ones)} rounds")
    print(f"publishing / the Hub alone, steps per second: {spread(slower['hub'], slower['publishing'])}")
    print(f"publishing / quiet: {spread(ones, slower['publishing'])}")
    print(f"the Hub alone / quiet: {spread(ones, slower['hub'])}")
    print(f"quiet / quiet: {spread(before[2:], after[2:])}")
    print(f"the sending thread took {100 * watch.cpu_seconds / watch.wall_seconds:.1f} % of one core while it sent")


if __name__ == "__main__":
    main()
