"""A thread beside the training that sends the queue, and is waited for at the end."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars

from .publisher import Publisher
from .queue import Publication, PublicationQueue
from .sending import Left, left_sentence, send_queue, short

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 300.0
"""After the training, so much time in all goes into waiting for a Hub in trouble; what is sent meanwhile adds none."""

_PROGRESS_SECONDS = 10.0
_NICENESS = 19
_TURN_SECONDS = 0.0001


class BackgroundSender:
    """Sends what is put into the queue while the training goes on.

    Its own daemon thread instead of `HfApi.run_as_future`: a pool's threads are joined when the interpreter ends, so
    an upload that hangs would keep the process of a finished training alive.

    Args:
        queue ([`PublicationQueue`]): Of the run.
        publisher ([`Publisher`]): Sends one publication.
    """

    def __init__(self, queue: PublicationQueue, publisher: Publisher) -> None:
        self._queue = queue
        self._publisher = publisher
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._patience = PATIENCE_SECONDS
        self._next_line = 0.0
        self._left: list[Left] = []
        self._passed_over: set[Path] = set()
        self._thread: threading.Thread | None = None

    def notify(self) -> None:
        """Says that there is something to send."""
        self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="hub-publications", daemon=True)
            self._thread.start()

    def finish(self, seconds: float = math.inf) -> list[Left] | None:
        """Waits until everything is sent or the patience is used up, with a line of progress now and then.

        Args:
            seconds (`float`): How long at most; it can be called again.

        Returns:
            `list[Left]`, *optional*: What is still in the queue; None while some of it is being sent.
        """
        if self._thread is None:
            return []
        self._closing.set()
        self._wake.set()
        until = time.monotonic() + seconds
        while self._thread.is_alive() and (now := time.monotonic()) < until:
            if now >= self._next_line and (waiting := len(self._queue.waiting())):
                logger.info("waiting for %d publication(s) to reach the Hub", waiting)
                self._next_line = now + _PROGRESS_SECONDS
            self._thread.join(min(until - now, _PROGRESS_SECONDS))
        if self._thread.is_alive():
            return None
        self._thread, self._next_line = None, 0.0
        self._closing.clear()
        known = {each.publication: each for each in self._left}
        left = [known.get(each, Left(each, "not tried")) for each in self._queue.waiting()]
        if left:
            logger.warning("%s", left_sentence(left, self._queue.output_dir))
        return left

    def _work(self) -> None:
        make_way()
        closing = False
        while not closing:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing.is_set()
            self._left = self._send()

    def _send(self) -> list[Left]:
        """Sends the queue; whatever goes wrong is a reason why something is left, and no end of thread or training."""
        try:
            for file, reason in self._queue.unreadable():
                if file not in self._passed_over:
                    logger.warning("%s is passed over: %s", file, reason)
                    self._passed_over.add(file)
            with quiet_uploads(), short_turns():
                return send_queue(self._queue, self._publisher, pause=self._pause, on_sent=_tell)
        except Exception as error:
            logger.warning("sending the queue failed: %s", short(error), exc_info=True)
            return [Left(each, short(error)) for each in self._queue.waiting()]

    def _pause(self, seconds: float) -> bool:
        """Waits; from the end of the training on only as long as the patience lasts."""
        until = time.monotonic() + seconds
        self._closing.wait(min(seconds, threading.TIMEOUT_MAX))
        rest = until - time.monotonic()
        if rest > self._patience:
            return False
        if rest > 0:
            self._patience -= rest
            time.sleep(rest)
        return True


def make_way() -> None:
    """Gives the calling thread the lowest priority, where threads have one of their own: the training goes first."""
    if sys.platform == "linux":
        with suppress(OSError):  # of a sandbox that forbids the call
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


@contextmanager
def short_turns() -> Iterator[None]:
    """Lets other threads have the interpreter back after 0.1 milliseconds, where Python lets them wait for five.

    A training gives it away in each operation and asks for it again after, so that it would wait for nearly all that
    a thread beside it computes; `recipes/benchmarks/pushing.py` measures it.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _TURN_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def quiet_uploads() -> AbstractContextManager[object]:
    """Keeps huggingface_hub's bars out of the training's own, unless the user's environment asks for them."""
    return nullcontext() if constants.HF_HUB_DISABLE_PROGRESS_BARS is False else disable_progress_bars()


def _tell(publication: Publication, repo_id: str) -> None:
    logger.info("published %s as %s of %s", publication.folder, publication.tag, repo_id)
