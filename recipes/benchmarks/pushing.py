"""Steps per second of a training while it publishes against the same training while it does not, within one run.

    python recipes/benchmarks/pushing.py [--rounds 24] [--megabytes 32] [--megabytes_per_second 8] [--without_xet]

One process trains and again and again publishes a release in the background, as ContinualTrainer does, to a Hub of the
tests in a process of its own that reads no faster than it is told and makes way for the training. Weights go to its
storage by xet, as on the real one, whose client works beside the interpreter; --without_xet measures the client's
other way (`HF_HUB_DISABLE_XET`), in which Python sends every byte. A publication costs the sending thread a few
hundredths of a second whatever its size, and its bytes besides, so the size of the release is stated.

While a release is on its way the Hub opens and closes in turns, for a few steps each. A Hub that is closed reads and
answers nothing, so the sender soon sleeps, and these windows are those of a training that publishes nothing: the two
are compared within a second or two, whatever the machine does in the minute. The step in which it closes is not
counted: the client may still do what it does without the Hub (a digest of the weights, and by xet chunks of them).

The Hub shares the machine's cores with the training, which the real one does not. So in every round the same bytes
also go to it from a third process that does nothing else (`sendfile`), and what the training loses then is the Hub's
own; and in every round nothing is sent at all for as long, which says how fine the measurement is.

Printed are medians over the rounds with their 95 % intervals, as ratios of steps per second: of publishing against the
Hub alone (what our pushing costs), and of the open windows against the closed ones of each of the three, the last of
which is 1 in truth; and the CPU time of the sending thread for each release, without that of hf_xet's own threads. A
release counts as a whole: the seconds of all its open windows over those of all its closed ones, so that a rare long
stop counts for what it costs.

These ratios are as coarse as the machine is unsteady. What the kernel counts for the training thread is not (Linux;
with OMP_NUM_THREADS=1 it does all the work): the share of the open windows in which it slept, as it does while another
thread holds the interpreter, and in which it was ready and had no core. Both together, beyond what they are beside
the Hub alone, are what our pushing makes it wait. What is left of a slower step is that the training itself needed
more CPU time, since caches and memory are shared: that ratio is printed too.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "tests")]

from overhead import BATCH, common, data_and_model  # noqa: E402
from turns import UNCOUNTED, spread  # noqa: E402

WINDOW = 2
"""Steps for which the Hub stays open, or closed."""

KINDS = ("publishing", "the Hub alone", "nothing")


def serve(bytes_per_second, is_open, endpoint, done):
    """The Hub, in a process of its own that makes way, because its work is somebody else's in truth."""
    from loopback_xet import XetHub

    os.nice(19)
    with XetHub() as hub:
        hub.bytes_per_second, hub.lfs_above, hub.open = bytes_per_second, 1_000_000, is_open
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
    weight = torch.randn(megabytes * 250_000, generator=torch.Generator().manual_seed(number))
    save_file({"weight": weight}, folder / "model.safetensors")
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


def training_thread():
    """Seconds since whenever, seconds of CPU time and seconds without a core of the calling thread."""
    on_cpu, without_core, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return time.perf_counter(), int(on_cpu) / 1e9, int(without_core) / 1e9


def watch_of(rounds, megabytes, folder, carrier, is_open):
    """A callback that publishes, lets the Hub work alone, and does neither, in turns, and times the steps."""
    from transformers import TrainerCallback

    from hf_infinite_lr.hub import Publisher, send_queue
    from hf_infinite_lr.hub.background import make_way, quiet_uploads, short_turns
    from hf_infinite_lr.trainer.checkpoints import fault_of

    class Watch(TrainerCallback):
        def __init__(self):
            self.queues = [
                publication_of(Path(folder) / f"published-{n}", n + 1, megabytes) for n in range(2 * rounds)
            ]
            self.rounds = {kind: [] for kind in KINDS}
            self.cpu_seconds, self.steps = 0.0, WINDOW
            self.course = self.follow()
            next(self.course)

        def follow(self):
            """Takes the times of each step, and says with them what happens during the next one."""
            for _ in range(UNCOUNTED):
                yield
            draw = random.Random(0)
            for kind in (kind for _ in range(rounds) for kind in draw.sample(KINDS, len(KINDS))):
                is_open.set()
                is_busy = {"publishing": self.publish, "the Hub alone": self.carry, "nothing": self.rest}[kind]()
                opened, closed = [], []
                while is_busy():
                    is_open.set()
                    steps = 0
                    while steps < WINDOW and (steps == 0 or is_busy()):
                        opened.append((yield))
                        steps += 1
                    is_open.clear()
                    yield
                    for _ in range(steps):
                        closed.append((yield))
                self.rounds[kind].append(
                    [[sum(each) for each in zip(*times, strict=True)] for times in (opened, closed)]
                )
                if kind == "publishing":
                    self.steps = len(opened)

        def on_train_begin(self, args, state, control, **kwargs):
            self.since = training_thread()

        def on_step_end(self, args, state, control, **kwargs):
            before, self.since = self.since, training_thread()
            try:
                self.course.send([now - then for now, then in zip(self.since, before, strict=True)])
            except StopIteration:
                control.should_training_stop = True

        def publish(self):
            thread = threading.Thread(target=self.send, args=(self.queues.pop(),), daemon=True)
            thread.start()
            return thread.is_alive

        def send(self, queue):
            make_way()
            before = time.thread_time()
            publisher = Publisher(queue.output_dir, fault_of, token="hf_benchmark", hashed_before=True)
            with quiet_uploads(), short_turns():
                left = send_queue(queue, publisher, pause=_never, on_sent=_tell_nobody)
            assert not left, left
            self.cpu_seconds += time.thread_time() - before

        def carry(self):
            if carrier.poll():
                carrier.recv()  # that the one before has arrived
            carrier.send(next(self.queues.pop().output_dir.rglob("*.safetensors")))
            return lambda: not carrier.poll()

        def rest(self):
            left = iter(range(self.steps))
            return lambda: next(left, None) is not None

    return Watch()


def measure(rounds, megabytes, carrier, is_open):
    from hf_infinite_lr import ContinualTrainer, ContinualTrainingArguments
    from hf_infinite_lr.objectives.packing import causal_lm_collator

    data, model = data_and_model(2000)
    with tempfile.TemporaryDirectory() as folder:
        watch = watch_of(rounds, megabytes, folder, carrier, is_open)
        args = ContinualTrainingArguments(
            **common(str(Path(folder) / "run"), 1_000_000),
            lr_scheduler_kwargs={"num_cooldown_steps": 0, "constant_lr_ratio": 1, "num_anneal_steps": 0},
            warmup_steps=0,
            evaluate_on="none",
            release="none",
            task_steps=[1_000_000],
        )
        trainer = ContinualTrainer(
            model=model, args=args, train_dataset={"task": data}, data_collator=causal_lm_collator, callbacks=[watch]
        )
        trainer.train()
    return watch


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--megabytes", type=int, default=32, help="of each release")
    parser.add_argument("--megabytes_per_second", type=float, default=8.0, help="of each connection")
    parser.add_argument("--without_xet", action="store_true")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    endpoint, is_open, done = spawn.Queue(), spawn.Event(), spawn.Event()
    served = (arguments.megabytes_per_second * 1e6, is_open, endpoint, done)
    spawn.Process(target=serve, args=served, daemon=True).start()
    from huggingface_hub import constants

    constants.ENDPOINT, constants.HF_HUB_OFFLINE = endpoint.get(), False
    constants.HF_HUB_DISABLE_XET = arguments.without_xet
    carrier, far_end = spawn.Pipe()
    spawn.Process(target=carry, args=(far_end, constants.ENDPOINT), daemon=True).start()
    watch = measure(arguments.rounds + 1, arguments.megabytes, carrier, is_open)
    carrier.send(None)
    done.set()
    way = "without xet" if arguments.without_xet else "by xet"
    pace = f"{arguments.megabytes_per_second} MB/s a connection"
    print(f"batches of {BATCH}; releases of {arguments.megabytes} MB {way}, {pace}")
    # The first round opens the client's connection.
    tell({kind: rounds[1:] for kind, rounds in watch.rounds.items()})
    cpu = watch.cpu_seconds / len(watch.rounds["publishing"])
    print(f"the sending thread took {1000 * cpu:.0f} ms of CPU for each release")


def tell(rounds):
    """Prints what was found: of each round the times of the open and of the closed windows."""
    speed = {kind: [closed[0] / opened[0] for opened, closed in of_kind] for kind, of_kind in rounds.items()}
    ones = [1.0] * len(rounds["nothing"])
    seconds = statistics.median(opened[0] for opened, _ in rounds["publishing"])
    print(f"{len(ones)} rounds, {seconds:.1f} s for a release")
    print(f"publishing / the Hub alone, steps per second: {spread(speed['publishing'], speed['the Hub alone'])}")
    waits = {kind: [1 - opened[1] / opened[0] for opened, _ in of_kind] for kind, of_kind in rounds.items()}
    more = [one - other for one, other in zip(waits["publishing"], waits["the Hub alone"], strict=True)]
    print(f"the training waits so much of the time more than beside the Hub alone: {spread(more, ones)}")
    for kind, of_kind in rounds.items():
        print(f"{kind}")
        print(f"  open / closed, steps per second: {spread(speed[kind], ones)}")
        cpu = [closed[1] / opened[1] for opened, closed in of_kind]
        print(f"  the same by the training's own CPU time: {spread(cpu, ones)}")
        asleep = [1 - (opened[1] + opened[2]) / opened[0] for opened, _ in of_kind]
        print(f"  share of the open windows asleep: {spread(asleep, ones)}")
        without_core = [opened[2] / opened[0] for opened, _ in of_kind]
        print(f"  share of the open windows without a core: {spread(without_core, ones)}")


if __name__ == "__main__":
    main()
