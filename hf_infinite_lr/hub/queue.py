"""The queue of publications: one small file each, below `output_dir/hub`, written before anything is sent."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_infinite_lr.files import read_json, write_json
from hf_infinite_lr.manifest import MANIFEST

FOLDER = "hub"
KINDS = {"release": "releases", "trunk": "trunk"}
"""What can be published, with the directory below `output_dir` where it lies."""

_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Publication:
    """One directory that belongs on the Hub: a release or a trunk.

    Args:
        kind (`str`): `release` or `trunk`.
        name (`str`): The directory's name, such as `01-web`.
        repo_id (`str`): `user/model`, or a name alone, which goes to the namespace of the token.
        branch (`str`): The branch that gets the commit.
        private (`bool`, *optional*): Of a repository that has yet to be created.
        run (`str`): Identity of the run.
        digest (`str`): Identity of the weights.
    """

    kind: str
    name: str
    repo_id: str
    branch: str
    private: bool | None
    run: str
    digest: str

    @property
    def folder(self) -> str:
        """Where it lies, relative to `output_dir`."""
        return f"{KINDS[self.kind]}/{self.name}"

    @property
    def tag(self) -> str:
        """The tag that names it on the Hub."""
        return tag_of(self.kind, self.name)

    @property
    def origin(self) -> str:
        """The beginning of the description of its commits, by which a run knows its own again."""
        return f"hf_infinite_lr {self.run} {self.kind} {self.name}"

    @property
    def weights(self) -> str:
        """The part of that description that says which weights they are."""
        return f"weights {self.digest}"


@dataclass(frozen=True)
class Sent:
    """A publication that has gone.

    Args:
        publication ([`Publication`]): What was sent.
        repo_id (`str`): The full name of the repository that has got it.
    """

    publication: Publication
    repo_id: str


def tag_of(kind: str, name: str) -> str:
    """The tag of a release or trunk.

    >>> tag_of("trunk", "01-web")
    'task-01-web-trunk'
    """
    return f"task-{name}{'-trunk' if kind == 'trunk' else ''}"


def check_repo_id(repo_id: str) -> None:
    """Refuses what cannot be the name of a repository.

    Raises:
        ValueError: in one sentence.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"hub_model_id={repo_id!r} must be a name on the Hub, as in user/model.") from error


class PublicationQueue:
    """What a run still has to send, and what it has sent, as files that survive a kill.

    Args:
        output_dir (`Path`): Of the run.
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self._waiting = output_dir / FOLDER / "waiting"
        self._sent = output_dir / FOLDER / "sent"

    def add(self, new: Publication) -> None:
        """Puts a directory at the end of the queue.

        One that waits already for that repository keeps its place, with its newest weights.

        Args:
            new ([`Publication`]): From [`~PublicationQueue.publication`].
        """
        places = [file for file, old in self._files(new) if (old.folder, old.repo_id) == (new.folder, new.repo_id)]
        file = places[0] if places else self._waiting / f"{self._next():06d}{_ending(new)}"
        write_json(file, {"schema_version": _SCHEMA_VERSION, **asdict(new)})

    def publication(self, kind: str, name: str, repo_id: str, *, branch: str, private: bool | None) -> Publication:
        """A directory as something to send, with the weights that it holds now.

        Args:
            kind (`str`): `release` or `trunk`.
            name (`str`): The directory's name.
            repo_id (`str`): Where it goes.
            branch (`str`): The branch.
            private (`bool`, *optional*): Of a repository that has yet to be created.

        Raises:
            ValueError: for a name that the Hub would refuse.
        """
        check_repo_id(repo_id)
        digest = weights_digest(self.output_dir / KINDS[kind] / name)
        return Publication(kind, name, repo_id, branch, private, self._run_id(), digest)

    def has_sent(self, publication: Publication) -> bool:
        """Whether exactly this has gone already."""
        return self.sent_to(publication) is not None

    def sent_to(self, publication: Publication) -> str | None:
        """The full name of the repository that has got exactly this; None where it has not gone."""
        found = [sent.repo_id for sent in self.sent(publication) if sent.publication == publication]
        return found[-1] if found else None

    def goes_to(self, of: Publication, repo_ids: Collection[str]) -> bool:
        """Whether a directory, with whichever weights, waits for a repository or has gone there.

        Args:
            of ([`Publication`]): Of the directory.
            repo_ids (`Collection[str]`): Names of the repository.
        """
        waiting = {each.repo_id for _, each in self._files(of) if each.folder == of.folder}
        gone = {sent.repo_id for sent in self.sent(of) if sent.publication.folder == of.folder}
        return not (waiting | gone).isdisjoint(repo_ids)

    def waiting(self) -> list[Publication]:
        """What is still to be sent, oldest first."""
        return [publication for _, publication in self._files()]

    def unreadable(self) -> list[tuple[Path, str]]:
        """Files among those that wait which are none of this version, or not whole, and why; they are let alone."""
        return [(file, entry) for file, entry in self._entries() if isinstance(entry, str)]

    def sent(self, of: Publication | None = None) -> list[Sent]:
        """What has been sent, oldest first.

        Args:
            of ([`Publication`], *optional*): Reads only what was sent of its directory.
        """
        return [sent for file in _listed(self._sent, of) if (sent := _sent_by(file))]

    def done(self, publication: Publication, repo_id: str, commit: str) -> None:
        """Takes a publication out of the queue.

        Args:
            publication ([`Publication`]): What was sent.
            repo_id (`str`): The repository's full name.
            commit (`str`): The commit that its tag names.
        """
        for file, waiting in self._files():
            if waiting == publication:
                receipt = {"repo_id": repo_id, "tag": publication.tag, "commit": commit}
                write_json(self._sent / file.name, {**receipt, "publication": asdict(publication)})
                file.unlink()

    def _files(self, of: Publication | None = None) -> list[tuple[Path, Publication]]:
        return [(file, entry) for file, entry in self._entries(of) if isinstance(entry, Publication)]

    def _entries(self, of: Publication | None = None) -> Iterator[tuple[Path, Publication | str]]:
        """What waits, oldest first; of a file that cannot be read the reason."""
        for file in _listed(self._waiting, of):
            try:
                yield file, _publication_in(file)
            except FileNotFoundError:  # sent in this moment
                continue
            except (ValueError, TypeError, AttributeError, OSError) as error:
                yield file, str(error)

    def _next(self) -> int:
        names = [file.name for folder in (self._waiting, self._sent) for file in folder.glob("*.json")]
        return max((int(name[:6]) for name in names if name[:6].isdecimal()), default=0) + 1

    def _run_id(self) -> str:
        """Made once per `output_dir`, so that a run that was killed knows its commits again."""
        file = self.output_dir / FOLDER / "run.json"
        try:
            return str(read_json(file)["run"])
        except (ValueError, TypeError, KeyError, FileNotFoundError):  # none yet, or none that is whole
            run = uuid.uuid4().hex[:12]
            write_json(file, {"run": run})
            return run


def _ending(publication: Publication) -> str:
    """Of the name of its file, by which it is found among thousands without reading them."""
    return f"-{publication.kind}-{publication.name}.json"


def _listed(folder: Path, of: Publication | None) -> list[Path]:
    return sorted(folder.glob(f"*{escape('.json' if of is None else _ending(of))}"))


def _publication_in(file: Path) -> Publication:
    content = read_json(file)
    if content.pop("schema_version", None) != _SCHEMA_VERSION:
        raise ValueError(f"it is of another version: only schema_version {_SCHEMA_VERSION} can be sent")
    publication = Publication(**content)
    if publication.kind not in KINDS:
        raise ValueError(f"kind={publication.kind!r} must be {' or '.join(KINDS)}")
    return publication


def _sent_by(file: Path) -> Sent | None:
    """What a receipt says; None for a file that says nothing, whose publication is then looked for on the Hub."""
    try:
        receipt = read_json(file)
        return Sent(Publication(**receipt["publication"]), receipt["repo_id"]) if receipt["repo_id"] else None
    except (ValueError, TypeError, KeyError, OSError):
        return None


def weights_digest(folder: Path) -> str:
    """Identity of the weights that a directory's manifest lists.

    The other files do not count: they hold times and paths, which differ after a resume.
    """
    files = read_json(folder / MANIFEST)["files"]
    weights = {name: facts["sha256"] for name, facts in files.items() if name.endswith(".safetensors")}
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()[:16]
