"""`hf-infinite-lr push OUTPUT_DIR`: publishes a run's releases, or what of them has not been sent."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hf_infinite_lr.announcement import show_on_console
from hf_infinite_lr.files import write_text
from hf_infinite_lr.hub import (
    CARD,
    NotPublishableError,
    Publication,
    PublicationQueue,
    Publisher,
    left_sentence,
    releases_of,
    send_queue,
)
from hf_infinite_lr.hub.background import PATIENCE_SECONDS
from hf_infinite_lr.report import read_run

LEFT = 3
"""Exit status while something is still in the queue."""


def push(argv: Sequence[str]) -> int:
    """
    Send the queue of a run's publications.

    Args:
        argv (`Sequence[str]`):
            The arguments after `push`.

    Returns:
        `int`: 0 when nothing is left, 1 where no run can be read, 3 while something is left.
    """
    arguments = _parser().parse_args(argv)
    # The trainer takes seconds to import, and `--help` should not wait for it.
    from hf_infinite_lr.trainer.checkpoints import fault_of

    show_on_console()
    try:
        run = read_run(arguments.output_dir)
        output_dir = run.path
        queue, publisher = PublicationQueue(output_dir), Publisher(output_dir, fault_of)
        unreadable = queue.unreadable()
        names = releases_of(output_dir, [task["directory"] for task in run.tasks])
        found = [] if arguments.hub_model_id is None else _releases(queue, names, arguments.hub_model_id)
        known = {each: queue.sent_to(each) for each in found}
        gone = [each for each, at in known.items() if at and not arguments.dry_run and publisher.misses(each, at)]
        new = [each for each, at in known.items() if at is None or each in gone]
        if not arguments.dry_run:
            for each in new:
                queue.add(each)
        replaced = {(each.folder, each.repo_id) for each in new}
        waiting = [*(each for each in queue.waiting() if (each.folder, each.repo_id) not in replaced), *new]
    except (ValueError, OSError) as error:
        print(f"hf-infinite-lr push: {error}", file=sys.stderr)
        return 1
    for file, reason in unreadable:
        print(f"hf-infinite-lr push: {file} is passed over: {reason}", file=sys.stderr)
    if not waiting:
        print(f"Nothing of {output_dir} waits to be sent.")
        return LEFT if unreadable else 0
    if arguments.dry_run:
        return _describe(publisher, waiting)
    return _send(queue, publisher, len(waiting)) or (LEFT if unreadable else 0)


def _send(queue: PublicationQueue, publisher: Publisher, total: int) -> int:
    patience, sent = PATIENCE_SECONDS, 0

    def pause(seconds: float) -> bool:
        nonlocal patience
        patience -= seconds
        if patience < 0:
            return False
        time.sleep(seconds)
        return True

    def tell(publication: Publication, repo_id: str) -> None:
        nonlocal sent
        sent += 1
        print(f"{sent} of {total}: {publication.folder} is {publication.tag} of {repo_id}", flush=True)

    left = send_queue(queue, publisher, pause=pause, on_sent=tell)
    if left:
        print(left_sentence(left, queue.output_dir), file=sys.stderr)
    return LEFT if left else 0


def _releases(queue: PublicationQueue, names: Sequence[str], repo_id: str) -> list[Publication]:
    """Every release for a repository, as private and on the branch that the run has asked for, if it has."""
    if not names:
        raise ValueError(f"{queue.output_dir / 'releases'} holds no release with a card.")
    known = [*(sent.publication for sent in queue.sent()), *queue.waiting()]
    asked = [publication for publication in known if publication.kind == "release"]
    branch, private = (asked[-1].branch, asked[-1].private) if asked else ("main", None)
    return [queue.publication("release", name, repo_id, branch=branch, private=private) for name in names]


def _describe(publisher: Publisher, waiting: Sequence[Publication]) -> int:
    """Lists what would go where, and renders the cards."""
    for publication in waiting:
        print(f"{publication.folder} -> {publication.repo_id}@{publication.branch}, tag {publication.tag}")
        try:
            files = publisher.files(publication)
            card = publisher.card(publication, publication.repo_id) if publication.kind == "release" else {}
        except NotPublishableError as error:
            print(f"  would be refused: {error}")
            continue
        for name, source in {**files, **card}.items():
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
            print(f"  {size:>12,}  {name}")
        if CARD in card:
            content = card[CARD]
            assert isinstance(content, bytes)
            target = publisher.output_dir / "hub" / "preview" / publication.repo_id / f"{publication.name}.md"
            write_text(target, content.decode())
            print(f"  card: {target}")
    return LEFT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-infinite-lr push",
        description="Publish a run's releases on the Hub: what waits, or with --hub_model_id all of them. "
        "Exit status 3 while something is left.",
    )
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="output_dir of a run")
    parser.add_argument("--dry_run", action="store_true", help="send nothing; list what would go and render the cards")
    parser.add_argument(
        "--hub_model_id", metavar="USER/MODEL", help="send all releases there, also of a run without push_to_hub"
    )
    return parser
