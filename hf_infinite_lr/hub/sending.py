"""Sends a queue: in order, patiently, and never for longer than was asked for."""

from __future__ import annotations

import logging
import re
import shlex
import textwrap
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from json import JSONDecodeError
from pathlib import Path

from filelock import FileLock, Timeout
from httpx2 import HTTPError
from huggingface_hub import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

from .contents import NotPublishableError
from .publisher import Publisher
from .queue import FOLDER, Publication, PublicationQueue

logger = logging.getLogger(__name__)

_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 120.0
_COMMIT_LIMIT_SECONDS = 600.0
"""After the commits of an hour are used up, which the Hub answers without a time in its headers."""

_REFUSALS = frozenset((401, 402, 403, 404))
"""Answers that concern the account or the repository: the next publication would get the same."""
_PASSING = frozenset((408, 409, 412, 425, 429))
_XET_REFUSAL = re.compile(r"HTTP status client error \((401|402|403|404) ")
"""How hf_xet tells the same, besides by a PermissionError or a FileNotFoundError."""

_ADDRESS = re.compile(r"\w+://\S+")


class Stopped(Exception):  # noqa: N818  # the end of the attempts, not an error of the program
    """No further publication can be sent now; the reason is for a reader."""


@dataclass(frozen=True)
class Left:
    """A publication that is still in the queue, and why.

    Args:
        publication ([`Publication`]): What could not be sent.
        reason (`str`): In words.
        refused (`bool`): Whether trying again is of no use before something is mended.
    """

    publication: Publication
    reason: str
    refused: bool = False


def send_queue(
    queue: PublicationQueue,
    publisher: Publisher,
    *,
    pause: Callable[[float], bool],
    on_sent: Callable[[Publication, str], None],
) -> list[Left]:
    """Sends what waits, oldest first, until nothing is left that could be sent.

    Failures that pass (no connection, a server in trouble, too many requests) are tried again with exponential
    back-off, or after the time that the server names. One that concerns a single publication is passed over; one that
    concerns the account ends the attempts.

    Args:
        queue ([`PublicationQueue`]): Of the run.
        publisher ([`Publisher`]): Sends one.
        pause (`Callable`): Waits for so many seconds; False when there is no time left for it.
        on_sent (`Callable`): Told of each that was sent, with the repository's name.

    Returns:
        `list[Left]`: What is still in the queue.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(queue.output_dir / FOLDER / "lock", timeout=0))
        except Timeout:
            return _all_left(queue, {}, "another process is sending this queue")
        except OSError as error:
            return _all_left(queue, {}, f"the queue cannot be locked: {short(error)}")
        return _send_all(queue, publisher, pause, on_sent)


def _send_all(
    queue: PublicationQueue,
    publisher: Publisher,
    pause: Callable[[float], bool],
    on_sent: Callable[[Publication, str], None],
) -> list[Left]:
    faults: dict[Publication, str] = {}
    while unsent := [each for each in queue.waiting() if each not in faults]:
        try:
            repo_id = _send_one(queue, publisher, unsent[0], pause)
        except NotPublishableError as error:
            faults[unsent[0]] = _in_one_line(str(error))
        except Stopped as error:
            return _all_left(queue, faults, str(error))
        else:
            on_sent(unsent[0], repo_id)
    return _all_left(queue, faults, "")


def _all_left(queue: PublicationQueue, faults: dict[Publication, str], reason: str) -> list[Left]:
    return [Left(each, faults.get(each, reason), refused=each in faults) for each in queue.waiting()]


def _send_one(
    queue: PublicationQueue, publisher: Publisher, publication: Publication, pause: Callable[[float], bool]
) -> str:
    """Sends one publication, however many attempts that takes; the repository's full name."""
    wait = _FIRST_WAIT_SECONDS
    while True:
        if is_offline_mode():
            raise Stopped("HF_HUB_OFFLINE is set")
        try:
            repo_id, commit = publisher.send(publication)
        except HFValidationError as error:
            raise NotPublishableError(f"{publication.repo_id!r} cannot be the name of a repository") from error
        # hf_xet reports what goes wrong in its uploads as RuntimeError; a server in trouble may answer in HTML.
        except (HTTPError, OSError, RuntimeError, JSONDecodeError) as error:
            seconds = _seconds_until_retry(cause := _cause(error), wait)
            logger.info("%s is tried again in %.0f s: %s", publication.folder, seconds, short(cause))
            if not pause(seconds):
                raise Stopped(short(cause)) from error
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
        else:
            queue.done(publication, repo_id, commit)
            return repo_id


def _cause(error: Exception) -> Exception:
    """What is behind a failed upload to the large file storage, which the client wraps."""
    return error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error


def _seconds_until_retry(error: Exception, wait: float) -> float:
    """How long to wait after a failure.

    Raises:
        Stopped: the account or the repository does not allow it.
        NotPublishableError: the Hub does not take this publication, or a file of it cannot be read.
    """
    if isinstance(error, OfflineModeIsEnabled):
        raise Stopped("HF_HUB_OFFLINE is set") from error
    if not isinstance(error, HfHubHTTPError):
        if isinstance(error, OSError) and error.filename is not None:
            raise NotPublishableError(f"a file cannot be read: {short(error)}") from error
        if isinstance(error, (PermissionError, FileNotFoundError)) or _XET_REFUSAL.search(str(error)):
            raise Stopped(short(error)) from error
        return wait
    status = error.response.status_code
    if status in _REFUSALS:
        login = " (log in with hf auth login, or set HF_TOKEN)" if status == 401 else ""
        raise Stopped(f"{short(error)}{login}") from error
    if status < 500 and status not in _PASSING:
        raise NotPublishableError(short(error)) from error
    return max(wait, _named_wait(error, status))


def _named_wait(error: HfHubHTTPError, status: int) -> float:
    """Seconds that an answer asks to wait, 0 if it does not."""
    limit = parse_ratelimit_headers(error.response.headers)
    if status == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    named = error.response.headers.get("retry-after", "")
    if status == 429 and not named and "/commit/" in error.response.request.url.path:
        return _COMMIT_LIMIT_SECONDS
    return _retry_after(named, error.response.headers.get("date"))


def _retry_after(named: str, date: str | None) -> float:
    """Seconds that a server names, or those from its own date to the one that it names (RFC 9110, 10.2.3)."""
    if named.isdecimal():
        return float(named)
    try:
        now = datetime.now(UTC) if date is None else parsedate_to_datetime(date)
        return (parsedate_to_datetime(named) - now).total_seconds()
    except (TypeError, ValueError):  # none, or one without a zone
        return 0.0


def short(error: Exception) -> str:
    """What went wrong, in one line without addresses, which may carry signatures."""
    if isinstance(error, HfHubHTTPError):
        words = f"the Hub answered {error.response.status_code} {error.response.reason_phrase}".rstrip()
        words += f": {error.server_message}" if error.server_message else ""
    else:
        words = f"{type(error).__name__}: {error}"
    return _in_one_line(words)


def _in_one_line(words: str) -> str:
    return textwrap.shorten(_ADDRESS.sub("...", words), 300, placeholder=" ...")


def left_sentence(left: list[Left], output_dir: Path) -> str:
    """What is still in the queue, why, and the command that sends it."""
    refused, passing = [each for each in left if each.refused], [each for each in left if not each.refused]
    given_up = f"or given up by deleting its file in {output_dir / FOLDER / 'waiting'}"
    words = [f"Cannot be published until it is mended, {given_up}: {_listed(refused)}."] if refused else []
    words += [f"Not on the Hub yet: {_listed(passing)}."] if passing else []
    what = "send them" if passing else "mend that, and send it"
    return f"{' '.join(words)} Nothing is lost; {what} with: hf-infinite-lr push {shlex.quote(str(output_dir))}"


def _listed(left: list[Left]) -> str:
    """The first few by name, and every reason once."""
    names = ", ".join(each.publication.folder for each in left[:5])
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return f"{names}{more} ({'; '.join(dict.fromkeys(each.reason for each in left if each.reason))})"
