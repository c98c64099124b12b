"""Sends one publication: a commit of the files, a commit of the card, a tag; what is there already is left alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, GitRefs, HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from .card import WrittenCard, render_card
from .contents import CARD, Contents, NotPublishableError, contents_of, refuse_secrets, secrets_of
from .metadata import evaluation_entries
from .queue import Publication, PublicationQueue
from .silence import bound_silence

logger = logging.getLogger(__name__)

CARD_FACTS = "card.json"
"""What a release's card is filled from; it lies beside the weights."""

_EVALUATION = ".eval_results/hf_infinite_lr.yaml"
_STALE = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth")
"""Endings of weights and states that an earlier commit may have left where a loader would still find them."""

_LIBRARY = "hf_infinite_lr"


class Publisher:
    """Talks to the Hub through huggingface_hub's client.

    Each attempt looks at what is there before it adds anything, and knows its own commits by their description, so
    that an attempt after a lost answer or a kill adds no second commit.

    Args:
        output_dir (`Path`): Of the run.
        fault_of (`Callable`): Why a directory is not what its manifest says; None when it is whole. With
            `trust_unchanged` it passes over the content of what nothing has written to since the manifest.
        token (`str`, *optional*): Left out, huggingface_hub's own.
        hashed_before (`bool`, defaults to `False`): Whether this process has hashed all that it will send.
    """

    def __init__(
        self,
        output_dir: Path,
        fault_of: Callable[..., str | None],
        *,
        token: str | None = None,
        hashed_before: bool = False,
    ) -> None:
        self.output_dir = output_dir
        self.token = token
        self._fault_of = fault_of
        self._hashed_before = hashed_before
        self._hashed: set[Path] = set()
        self._api = HfApi(token=token, library_name=_LIBRARY)

    def send(self, publication: Publication) -> tuple[str, str]:
        """One attempt; what lies here is read before the Hub is asked anything.

        Args:
            publication ([`Publication`]): What to send.

        Returns:
            `tuple[str, str]`: The repository's full name, and the commit that the tag names.

        Raises:
            NotPublishableError: what trying again cannot mend.
            HTTPError, OSError: of the client.
        """
        bound_silence()
        files, is_release = self.files(publication), publication.kind == "release"
        card = self.card(publication, publication.repo_id) if is_release else {}
        repo_id = self._api.create_repo(publication.repo_id, private=publication.private, exist_ok=True).repo_id
        if publication.private and not self._api.repo_info(repo_id).private:  # one that was there before
            raise NotPublishableError(
                f"{repo_id} is public, but hub_private_repo asks for a private repository: make it private, or choose "
                "another hub_model_id"
            )
        refs = self._api.list_repo_refs(repo_id)
        self._make_branch(publication, repo_id, refs)
        history = self._history(publication, repo_id)
        tagged = _tagged(publication, refs)
        if tagged is not None:
            description = history.get(tagged, "")
            if publication.weights in description:
                return repo_id, tagged
            if not description.startswith(publication.origin):
                raise NotPublishableError(
                    f"{repo_id} has a tag of that name for something else: choose another hub_model_id, or delete "
                    "the tag there"
                )
        if is_release:
            card = card if repo_id == publication.repo_id else self.card(publication, repo_id)
            if _committed(publication, "files", history) is None:
                _validate(publication, card)
        commit = self._commit(publication, repo_id, "files", files, history)
        if is_release:
            history = history if commit in history else {commit: "", **history}
            commit = self._commit(publication, repo_id, "card", card, history)
        if tagged is not None:
            self._api.delete_tag(repo_id, tag=publication.tag)
        self._api.create_tag(repo_id, tag=publication.tag, revision=commit)
        return repo_id, commit

    def misses(self, publication: Publication, repo_id: str) -> bool:
        """Whether the repository lacks what was sent to it; False where it cannot be asked.

        Args:
            publication ([`Publication`]): What was sent.
            repo_id (`str`): The repository's full name.
        """
        bound_silence()
        try:
            return _tagged(publication, self._api.list_repo_refs(repo_id)) is None
        except RepositoryNotFoundError as error:  # also of one that this token may not see
            return error.response.status_code == 404 and not isinstance(error, GatedRepoError)
        except (HTTPError, OSError, json.JSONDecodeError):
            return False

    def files(self, publication: Publication) -> Contents:
        """What the first commit holds: all but the card.

        Args:
            publication ([`Publication`]): What to send.

        Raises:
            NotPublishableError: for a directory that is not whole or holds what must not be published.
        """
        folder = self.output_dir / publication.folder
        with _read_here(publication):
            if not folder.is_dir():
                raise NotPublishableError(f"{publication.folder} is no longer there")
            if (fault := self._fault_in(folder)) is not None:
                raise NotPublishableError(f"{publication.folder} is not whole: {fault}")
            return contents_of(folder, publication.kind, secrets=secrets_of(self.output_dir, self.token))

    def _fault_in(self, folder: Path) -> str | None:
        """As the given one; hashing takes long, and the client will hash again, so it is done once."""
        fault = self._fault_of(folder, trust_unchanged=self._hashed_before or folder in self._hashed)
        if fault is None:
            self._hashed.add(folder)
        return fault

    def card(self, publication: Publication, repo_id: str | None) -> Contents:
        """What the second commit of a release holds: its card, and scores of benchmarks in the Hub's own form.

        Args:
            publication ([`Publication`]): A release.
            repo_id (`str`, *optional*): The repository's full name, where it is known.

        Raises:
            NotPublishableError: for a card that cannot be made, holds what must not be published, or has no valid
                metadata.
        """
        with _read_here(publication):
            facts = self._with_known_trunks(read_facts(self.output_dir / publication.folder), publication, repo_id)
            contents: Contents = {CARD: render_card(facts, repo_id=repo_id).encode()}
            if (entries := evaluation_entries(facts)) is not None:
                contents[_EVALUATION] = entries
            refuse_secrets(contents, secrets_of(self.output_dir, self.token))
            return contents

    def _with_known_trunks(
        self, facts: dict[str, Any], publication: Publication, repo_id: str | None
    ) -> dict[str, Any]:
        """The facts with what the queue knows of trunks: the run may have been told another repository since."""
        if not facts["trunk"]:
            return facts
        queue = PublicationQueue(self.output_dir)

        def is_there(name: str | None) -> bool:
            places = {publication.repo_id, *([repo_id] if repo_id else [])}
            return name is not None and queue.goes_to(replace(publication, kind="trunk", name=name), places)

        trunk = {**facts["trunk"], "parent_published": is_there(facts["trunk"]["parent"])}
        published = is_there(trunk["directory"]) and not trunk.get("checkpoint")
        own = {"repo_id": repo_id, "trunks": True} if published else {}
        return {**facts, "trunk": trunk, "hub": {**facts["hub"], **own}}

    def _make_branch(self, publication: Publication, repo_id: str, refs: GitRefs) -> None:
        """Makes the publication's branch where it is missing."""
        if publication.branch in ("main", *(branch.name for branch in refs.branches)):
            return
        start = None
        if publication.kind == "trunk":  # from the head of main it would carry a release, or what is not ours
            start = self._api.list_repo_commits(repo_id)[-1].commit_id
        self._api.create_branch(repo_id, branch=publication.branch, revision=start, exist_ok=True)

    def _history(self, publication: Publication, repo_id: str) -> dict[str, str]:
        """The commits of the publication's branch, newest first: id -> description."""
        commits = self._api.list_repo_commits(repo_id, revision=publication.branch)
        return {commit.commit_id: commit.message.strip() for commit in commits}

    def _commit(
        self, publication: Publication, repo_id: str, part: str, contents: Contents, history: Mapping[str, str]
    ) -> str:
        """The publication's commit of one part, made unless it is there, and only on top of what is known.

        A commit whose answer was lost may become visible later than the next look: the Hub then refuses a second one.
        """
        if (commit := _committed(publication, part, history)) is not None:
            return commit
        additions = [
            CommitOperationAdd(name, source if isinstance(source, bytes) else str(source))
            for name, source in contents.items()
        ]
        deletions = self._stale(publication, repo_id, contents) if part == "files" else []
        with _validated_by_the_hub(publication):
            return self._api.create_commit(
                repo_id,
                [*deletions, *additions],
                commit_message=f"{'Card of ' if part == 'card' else ''}{publication.kind} {publication.name}",
                commit_description=_description(publication, part),
                revision=publication.branch,
                parent_commit=next(iter(history), None),
            ).oid

    def _stale(self, publication: Publication, repo_id: str, contents: Contents) -> list[CommitOperationDelete]:
        """Weights of an earlier commit that this one does not replace, such as a shard too many."""
        there = self._api.list_repo_files(repo_id, revision=publication.branch)
        stale = [name for name in there if "/" not in name and name.endswith(_STALE) and name not in contents]
        return [CommitOperationDelete(name) for name in stale]


def _tagged(publication: Publication, refs: GitRefs) -> str | None:
    """The commit that the publication's tag names, if there is such a tag."""
    return {tag.name: tag.target_commit for tag in refs.tags}.get(publication.tag)


def _description(publication: Publication, part: str) -> str:
    """Of the commit of one part, by which it is known again."""
    return f"{publication.origin} {publication.weights} {part}"


def _committed(publication: Publication, part: str, history: Mapping[str, str]) -> str | None:
    """The newest commit of one part, if there is one."""
    description = _description(publication, part)
    return next((commit for commit, known in history.items() if known == description), None)


def _validate(publication: Publication, card: Contents) -> None:
    """Asks the Hub about a card before anything is committed, so that a refused one leaves no half of a release."""
    content = card[CARD]
    assert isinstance(content, bytes)
    with _validated_by_the_hub(publication):
        WrittenCard(content.decode()).validate()


@contextmanager
def _validated_by_the_hub(publication: Publication) -> Iterator[None]:
    """The client raises the Hub's refusal of a card's metadata as a `ValueError`.

    Raises:
        NotPublishableError: with the Hub's reason.
    """
    try:
        yield
    except json.JSONDecodeError:  # of a server in trouble, which answers in HTML
        raise
    except ValueError as error:
        answer = error.__context__
        said = answer.server_message if isinstance(answer, HfHubHTTPError) else None
        raise NotPublishableError(f"the Hub refuses {publication.folder}: {said or error}") from error


@contextmanager
def _read_here(publication: Publication) -> Iterator[None]:
    """Whatever goes wrong with local files, which anyone may have changed, concerns their publication alone.

    Raises:
        NotPublishableError: in place of any other exception.
    """
    try:
        yield
    except NotPublishableError:
        raise
    except Exception as error:
        # A file that says something else than it should, or a fault of ours: only the traceback tells them apart.
        if not isinstance(error, (ValueError, OSError)):
            logger.warning("%s cannot be read", publication.folder, exc_info=True)
        raise NotPublishableError(f"{publication.folder} cannot be read: {type(error).__name__}: {error}") from error


def releases_of(output_dir: Path, tasks: Sequence[str]) -> list[str]:
    """The releases of a run that have a card, in the order to publish them: its own last, in the order of its tasks.

    Args:
        output_dir (`Path`): Of the run.
        tasks (`Sequence[str]`): The tasks' directories.
    """
    found = {path.parent.name for path in (output_dir / "releases").glob(f"*/{CARD_FACTS}")}
    return [*sorted(found.difference(tasks)), *(name for name in tasks if name in found)]


def read_facts(folder: Path) -> dict[str, Any]:
    """What the card of a release is filled from."""
    facts: dict[str, Any] = json.loads((folder / CARD_FACTS).read_text(encoding="utf-8"))
    return facts
