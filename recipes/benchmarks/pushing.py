"""What publishing a release costs the training beside it, in milliseconds and as a share of the time on its way.

    OMP_NUM_THREADS=1 python recipes/benchmarks/pushing.py [--rounds 40] [--megabytes 32] [--without_xet]

One process trains and again and again publishes a release in the background, as ContinualTrainer does, to a Hub of the
tests in a process of its own. That Hub is on the same machine and as fast as it can be, so that everything that a
publication makes this machine do comes within a second: while a slower line keeps the sender waiting, the training
loses nothing. Weights go by xet, as to the real Hub, whose client works beside the interpreter; --without_xet measures
the client's other way (`HF_HUB_DISABLE_XET`), in which Python sends every byte.

Each publication stands between a few steps without any. What the training loses by it are the seconds of its steps
beyond as many such quiet ones. The Hub itself shares the machine's cores, which the real one does not: so in every
round the same bytes also go to it from a third process that does nothing else (`sendfile`), and what that costs is the
Hub's own. And in every round nothing is sent at all, which says how fine the measurement is.

Printed are means over the rounds with their 95 % intervals (Student's t). Lost seconds are also told apart as the
kernel counts them for the training thread (Linux; with OMP_NUM_THREADS=1 it does all the work): asleep, as while
another thread holds the interpreter, ready but without a core, and more CPU time of its own, since caches and memory
are shared. The share is of the time that the bytes alone take on a line of --megabytes_per_second.
"""

import argparse
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
from turns import UNCOUNTED  # noqa: E402

QUIET = 4
"""Steps before and after each publication to which its own are compared."""

KINDS = ("publishing", "the Hub alone", "nothing")


def serve(endpoint, done):
    """The Hub, in a process of its own that makes way, because its work is somebody else's in truth."""
    from loopback_xet import XetHub

    os.nice(19)
    with XetHub() as hub:
        hub.lfs_above = 1_000_000
        endpoint.put(hub.endpoint)
        done.wait()


def carry(connection, endpoint):
    """Sends files to the Hub's storage with as little work as can be, in a process of its own that makes way."""
    os.nice(19)
    address = urlsplit(endpoint)
    while (task := connection.recv()) is not None:
        path, digest = task
        with open(path, "rb") as file, socket.create_connection((address.hostname, address.port)) as to:
            size = path.stat().st_size
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


def times_now():
    """Seconds since whenever, and of the calling thread those on a core and those without one; CPU of all threads."""
    on_core, without_core, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return time.perf_counter(), int(on_core) / 1e9, int(without_core) / 1e9, time.process_time()


def watch_of(rounds, megabytes, folder, carrier):
    """A callback that publishes, lets the Hub work alone, and does neither, in turns, and times the steps."""
    from transformers import TrainerCallback

    from hf_infinite_lr.files import file_sha256
    from hf_infinite_lr.hub import Publisher, send_queue
    from hf_infinite_lr.hub.background import make_way, quiet_uploads, short_turns
    from hf_infinite_lr.trainer.checkpoints import fault_of

    class Watch(TrainerCallback):
        def __init__(self):
            numbers = range(2 * rounds)
            self.queues = [publication_of(Path(folder) / f"published-{n}", n + 1, megabytes) for n in numbers]
            self.rounds = {kind: [] for kind in KINDS}
            self.sending_seconds, self.steps = [], QUIET
            self.course = self.follow()
            next(self.course)

        def follow(self):
            """Takes the times of each step, and says with them what happens during the next one."""
            for _ in range(UNCOUNTED):
                yield
            draw = random.Random(0)
            for kind in (kind for _ in range(rounds) for kind in draw.sample(KINDS, len(KINDS))):
                quiet = []
                for _ in range(QUIET):
                    quiet.append((yield))
                is_busy = {"publishing": self.publish, "the Hub alone": self.carry, "nothing": self.rest}[kind]()
                busy = [(yield)]
                while is_busy():
                    busy.append((yield))
                busy.append((yield))  # what ends with it may still go on
                for _ in range(QUIET):
                    quiet.append((yield))
                self.rounds[kind].append((busy, quiet))
                if kind == "publishing":
                    self.steps = len(busy) - 1

        def on_train_begin(self, args, state, control, **kwargs):
            self.since = times_now()

        def on_step_end(self, args, state, control, **kwargs):
            before, self.since = self.since, times_now()
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
            self.sending_seconds.append(time.thread_time() - before)

        def carry(self):
            file = next(self.queues.pop().output_dir.rglob("*.safetensors"))
            carrier.send((file, file_sha256(file)))
            return lambda: not self.has_arrived()

        def has_arrived(self):
            return carrier.poll() and carrier.recv()

        def rest(self):
            left = iter(range(self.steps - 1))
            return lambda: next(left, None) is not None

    return Watch()


def measure(rounds, megabytes, carrier):
    from hf_infinite_lr import ContinualTrainer, ContinualTrainingArguments
    from hf_infinite_lr.objectives.packing import causal_lm_collator

    data, model = data_and_model(2000)
    with tempfile.TemporaryDirectory() as folder:
        watch = watch_of(rounds, megabytes, folder, carrier)
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
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--megabytes", type=int, default=32, help="of each release")
    parser.add_argument("--megabytes_per_second", type=float, default=8.0, help="of the line that it would take")
    parser.add_argument("--without_xet", action="store_true")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    endpoint, done = spawn.Queue(), spawn.Event()
    spawn.Process(target=serve, args=(endpoint, done), daemon=True).start()
    from huggingface_hub import constants

    constants.ENDPOINT, constants.HF_HUB_OFFLINE = endpoint.get(), False
    constants.HF_HUB_DISABLE_XET = arguments.without_xet
    carrier, far_end = spawn.Pipe()
    spawn.Process(target=carry, args=(far_end, constants.ENDPOINT), daemon=True).start()
    watch = measure(arguments.rounds + 1, arguments.megabytes, carrier)
    carrier.send(None)
    done.set()
    way = "without xet" if arguments.without_xet else "by xet"
    print(f"batches of {BATCH}; releases of {arguments.megabytes} MB {way}; {arguments.rounds} rounds")
    # The first round opens the client's connection.
    rounds = {kind: of_kind[1:] for kind, of_kind in watch.rounds.items()}
    tell(rounds, watch.sending_seconds[1:], arguments.megabytes / arguments.megabytes_per_second)


def lost(rounds):
    """By round: seconds of a publication's steps beyond as many quiet ones; asleep, without a core, and on one."""
    found = []
    for busy, quiet in rounds:
        total, on_core, without_core, _ = (
            sum(of_busy) - len(busy) * statistics.fmean(of_quiet)
            for of_busy, of_quiet in zip(zip(*busy, strict=True), zip(*quiet, strict=True), strict=True)
        )
        found.append((total, total - on_core - without_core, without_core, on_core))
    return found


def tell(rounds, sending_seconds, seconds_on_the_line):
    """Prints what was found: of each round the times of the steps while something is sent, and of the quiet ones."""
    of_kind = {kind: lost(each) for kind, each in rounds.items()}
    for kind, found in of_kind.items():
        total, asleep, without_core, on_core = (milliseconds(each) for each in zip(*found, strict=True))
        print(f"{kind}: the training loses {total}")
        print(f"  asleep {asleep}; without a core {without_core}; more CPU time of its own {on_core}")
    more = [own[0] - hub[0] for own, hub in zip(of_kind["publishing"], of_kind["the Hub alone"], strict=True)]
    print(f"publishing less the Hub alone: {milliseconds(more)} for each release")
    share, half = mean_and_half_width([100 * each / seconds_on_the_line for each in more])
    print(f"  of the {seconds_on_the_line:.1f} s that its bytes take: {share:.2f} ± {half:.2f} % (bar: less than 1 %)")
    others = [sum(step[3] - step[1] for step in busy) for busy, _ in rounds["publishing"]]
    print(f"CPU time: sending thread {milliseconds(sending_seconds)}; with hf_xet's own {milliseconds(others)}")


def mean_and_half_width(values):
    from hf_infinite_lr.evaluation.interval import mean_and_half_width

    return mean_and_half_width(values)


def milliseconds(seconds):
    mean, half = mean_and_half_width([1000 * each for each in seconds])
    return f"{mean:.1f} ± {half:.1f} ms"


if __name__ == "__main__":
    main()
