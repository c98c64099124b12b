"""A bound for how long the client waits for a server that says nothing."""

from __future__ import annotations

from collections.abc import Callable

from httpx2 import Client, Request, Timeout
from huggingface_hub.utils import _http, get_session

_SILENCE_SECONDS = 300.0
"""A server that says nothing for so long is given up for this attempt."""


def bound_silence() -> None:
    """Gives requests a timeout that have none.

    The client sets none, and no argument reaches its paged listings. Its uploads to the large file storage do not even
    carry our name, so whatever the process asks of the client from now on is bounded where it was not. After a failed
    connection the client makes itself another session, by the factory that it or the user has set.
    `set_client_factory` would close the session, and with it what other threads are reading.
    """
    factory = _http._GLOBAL_CLIENT_FACTORY
    if not isinstance(factory, _Bounded):
        _http._GLOBAL_CLIENT_FACTORY = _Bounded(factory)
        _bound(get_session())


class _Bounded:
    """A factory of clients whose requests all have a timeout."""

    def __init__(self, factory: Callable[[], Client]) -> None:
        self._factory = factory

    def __call__(self) -> Client:
        return _bound(self._factory())


def _bound(session: Client) -> Client:
    hooks = session.event_hooks
    if _set_timeout not in hooks["request"]:
        hooks["request"].append(_set_timeout)
        session.event_hooks = hooks
    return session


def _set_timeout(request: Request) -> None:
    if not any(request.extensions.get("timeout", {}).values()):
        request.extensions["timeout"] = Timeout(_SILENCE_SECONDS).as_dict()
