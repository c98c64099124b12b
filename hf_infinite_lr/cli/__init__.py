"""The command line: `hf-infinite-lr VERB ...`. Each verb is loaded when it is called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

VERBS = {
    "run": "run a Trainer script with our schedules registered, the script unchanged",
    "train": "train a stream of datasets as a recipe says",
    "anneal": "make a release of a trunk checkpoint, whenever it was saved",
    "show": "draw a learning rate before a run starts",
    "report": "tables and pictures of one run, or of several side by side",
    "push": "publish a run's releases on the Hub, or what is left of them",
}

_USAGE = "usage: hf-infinite-lr VERB ...\n\n" + "\n".join(f"  {verb:8}{text}" for verb, text in VERBS.items())
_USAGE += "\n\nhf-infinite-lr VERB --help says more of a verb."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb.

    Args:
        argv (`Sequence[str]`, *optional*): Verb and its arguments; those of the process by default.

    Returns:
        `int`: The exit status: 0, 1 for input that is refused, 2 for a wrong call, 3 while `push` has not sent all.
    """
    verb, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    rest = rest[:-1]
    if verb in ("", "-h", "--help"):
        print(_USAGE, file=sys.stderr if not verb else sys.stdout)
        return 0 if verb else 2
    if verb not in VERBS:
        print(f"hf-infinite-lr: {verb!r} is no verb; there are {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    command: Callable[[Sequence[str]], int] = getattr(import_module(f"hf_infinite_lr.cli.{verb}"), verb)
    return command(rest)
