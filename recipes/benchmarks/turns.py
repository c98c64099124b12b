"""Turns: processes that work one at a time, step by step, so that a slow moment of the machine meets all alike."""

import multiprocessing
import os
import queue
import random
import statistics
import time
from itertools import pairwise

UNCOUNTED = 10
"""First rounds that are left out: caches and allocators fill in them."""


class Turns:
    """
    One process's share of the rounds; in every round each process makes one step, in an order that is drawn anew.

    Args:
        place: Which process this is.
        semaphores: One for each process.
        ready: A barrier that all pass before the first turn.
        steps: Rounds.
    """

    def __init__(self, place, semaphores, ready, steps):
        draw, places = random.Random(0), range(len(semaphores))
        order = [(step, one) for step in range(steps) for one in draw.sample(places, len(places))]
        self.first = order[0][1]
        self._next = {turn: following for turn, (_, following) in pairwise(order)}
        self.place, self.semaphores, self.ready, self.steps, self.seconds = place, semaphores, ready, steps, []

    def wait(self):
        """Until it is this process's turn; the time of its step begins here."""
        self.semaphores[self.place].acquire()
        self.since = time.perf_counter()

    def step_done(self):
        """Ends a step, hands the turn on, and waits for the next."""
        self.seconds.append(time.perf_counter() - self.since)
        following = self._next.get((len(self.seconds) - 1, self.place))
        if following is not None:
            self.semaphores[following].release()
        if len(self.seconds) < self.steps:
            self.wait()

    def counted(self):
        """Seconds of every step but the first `UNCOUNTED`."""
        return self.seconds[UNCOUNTED:]

    def callback(self):
        """For a Trainer each of whose steps is a turn."""
        from transformers import TrainerCallback

        class Clock(TrainerCallback):
            def on_train_begin(_, *args, **kwargs):  # noqa: N805  # self is the turns
                self.wait()

            def on_step_end(_, *args, **kwargs):  # noqa: N805
                self.step_done()

        return Clock()


def measure(work, runners, steps, *arguments):
    """
    Runs `work(runner, turns, *arguments)` in a process for each runner.

    Returns:
        `dict`: runner -> what its work returned. The work calls `turns.ready.wait()` before its first turn.
    """
    spawn = multiprocessing.get_context("spawn")
    semaphores, ready, results = [spawn.Semaphore(0) for _ in runners], spawn.Barrier(len(runners)), spawn.Queue()
    turns = [Turns(place, semaphores, ready, steps) for place in range(len(runners))]
    semaphores[turns[0].first].release()
    processes = [
        spawn.Process(target=_run, args=(work, runner, own, results, arguments), daemon=True)
        for runner, own in zip(runners, turns, strict=True)
    ]
    for process in processes:
        process.start()
    found = {}
    while len(found) < len(runners):
        try:
            place, result = results.get(timeout=1)
        except queue.Empty:
            if any(process.exitcode for process in processes):
                for process in processes:
                    process.terminate()
                raise SystemExit("one of the processes failed: its error stands above") from None
        else:
            found[place] = result
    for process in processes:
        process.join()
    return {runner: found[place] for place, runner in enumerate(runners)}


def _run(work, runner, turns, results, arguments):
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        results.put((turns.place, work(runner, turns, *arguments)))


def ratio(slower, faster):
    """The median over rounds of slower / faster, and the ends of a 95 % interval of that median (order statistics)."""
    ratios = sorted(a / b for a, b in zip(slower, faster, strict=True))
    half, middle = round(0.98 * len(ratios) ** 0.5), len(ratios) // 2
    return statistics.median(ratios), ratios[max(middle - half, 0)], ratios[min(middle + half, len(ratios) - 1)]


def spread(slower, faster, digits=4):
    """What [`ratio`] finds, in words."""
    median, low, high = (f"{value:.{digits}f}" for value in ratio(slower, faster))
    return f"{median}, 95 % interval {low} to {high}"
