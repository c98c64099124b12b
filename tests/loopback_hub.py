"""A small Hub on the loopback interface: the calls that huggingface_hub makes, with repositories kept in memory.

It answers as the Hub does where the client can tell the difference (status codes, error headers, commit hashes, entity
tags, oids of unchanged files, metadata that is refused), and can be told to fail. Files above a size that a test sets
go through the large file storage (batch, upload in one part or several, verification), and come back from it by a
redirection. While `open` is cleared it reads and answers nothing.
"""

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

OWNER = "user"
CALLS = ("create_repo", "refs", "commits", "tree", "preupload", "commit", "validate", "create_branch", "create_tag")
"""What a publication calls, by name; the names by which faults are set."""

LFS_CALLS = ("lfs_batch", "lfs_part", "lfs_complete", "lfs_put", "lfs_verify")
"""What the client calls besides for files of the large file storage; parts and completion for the largest ones."""

_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_ROUTES = [
    ("create_repo", "POST", r"/api/repos/create"),
    ("validate", "POST", r"/api/validate-yaml"),
    ("refs", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/refs"),
    ("commits", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/commits/(?P<revision>[^/]+)"),
    ("tree", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?P<path>/.*)?"),
    ("preupload", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)"),
    ("commit", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)"),
    ("create_branch", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)"),
    ("create_tag", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/tag/(?P<revision>[^/]+)"),
    ("delete_tag", "DELETE", r"/api/models/(?P<repo>[^/]+/[^/]+)/tag/(?P<revision>[^/]+)"),
    ("lfs_batch", "POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    ("lfs_put", "PUT", r"/storage/(?P<oid>[0-9a-f]{64})"),
    ("lfs_part", "PUT", r"/storage/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)"),
    ("lfs_complete", "POST", r"/storage/(?P<oid>[0-9a-f]{64})/complete"),
    ("lfs_verify", "POST", r"/storage/(?P<oid>[0-9a-f]{64})/verify"),
    ("lfs_get", "GET", r"/storage/(?P<oid>[0-9a-f]{64})"),
    ("info", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?"),
    ("head", "HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
    ("download", "GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
]


@dataclass
class Commit:
    oid: str
    title: str
    description: str
    files: dict[str, bytes]
    parent: "Commit | None" = None

    @property
    def history(self):
        """This commit and those before it, newest first."""
        found, at = [], self
        while at is not None:
            found.append(at)
            at = at.parent
        return found


@dataclass
class Repo:
    private: bool
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)

    def find(self, revision):
        known = {**self.branches, **self.tags}
        if revision in known:
            return known[revision]
        commits = [commit for head in known.values() for commit in head.history]
        return next((commit for commit in commits if commit.oid == revision), None)


@dataclass
class Fault:
    """What happens to a call.

    `kind`: a status; `html`, a 500 that is no JSON; `cut`, half of the request is read; `lost`, it is done and the
    answer is cut; `hang`, no answer until the server stops; `hang_done`, the same after it is done; `late`, a 504, and
    it is done after all, just before the next such call. The first `after` calls go well.
    """

    call: str
    kind: int | str
    times: int = 1
    retry_after: int | None = None
    after: int = 0
    message: str = "told to fail"
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):  # noqa: N818  # an answer, not an error of the server
    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


class LoopbackHub:
    """A context manager: serves while it is open, on a port of its own."""

    routes = tuple(_ROUTES)

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.calls: list[str] = []
        self.validated: list[str] = []
        self.tokens: set[str | None] = set()
        self.stopping, self.hanging = threading.Event(), threading.Event()
        self.lock = threading.Lock()
        self.bytes_per_second: float | None = None
        self.open = threading.Event()
        self.open.set()
        self.lfs_above: int | None = None
        self.part_size = 1 << 30
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self._late: dict[str, dict] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    # ---- What a test asks or tells ---------------------------------------------------------------------------

    def fail(self, call, kind, **more):
        self.faults.append(Fault(call, kind, **more))

    def titles(self, branch="main", repo=f"{OWNER}/model"):
        """Titles of a branch's commits, oldest first, without the first commit that comes with a repository."""
        return [commit.title for commit in reversed(self.repos[repo].branches[branch].history)][1:]

    def files(self, revision, repo=f"{OWNER}/model"):
        return self.repos[repo].find(revision).files

    def everything(self):
        """Names and contents of all that was ever committed, with the messages."""
        for repo in self.repos.values():
            for head in [*repo.branches.values(), *repo.tags.values()]:
                for commit in head.history:
                    yield "message", f"{commit.title}\n{commit.description}".encode()
                    yield from commit.files.items()

    # ---- The calls -------------------------------------------------------------------------------------------

    def fault_of(self, call):
        with self.lock:
            for fault in self.faults:
                if fault.call == call and fault.times > 0:
                    if fault.after > 0:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def create_repo(self, body, **_):
        name = f"{body['organization'] or OWNER}/{body['name']}"
        answer = {"url": f"{self.endpoint}/{name}", "name": name, "id": name}
        if name in self.repos:
            raise Refused(409, json.dumps({"error": "You already created this model repo", **answer}))
        self.repos[name] = Repo(private=body.get("visibility") == "private")
        self.add_commit(name, "main", "initial commit", "", {".gitattributes": b"*.bin filter=lfs\n"})
        return answer

    def add_commit(self, repo, branch, title, description, files, deleted=()):
        known = self.repos[repo].branches
        parent = known.get(branch)
        kept = {} if parent is None else {name: data for name, data in parent.files.items() if name not in deleted}
        content = {**kept, **files}
        seed = json.dumps(
            [title, description, sorted(content), parent and parent.oid, len(parent.history) if parent else 0]
        )
        oid = hashlib.sha1(seed.encode() + b"".join(content.values())).hexdigest()
        known[branch] = Commit(oid, title, description, content, parent)
        return known[branch]

    def validate(self, body, **_):
        self.validated.append(body["content"])
        errors = card_faults(body["content"])
        if errors:
            raise Refused(400, json.dumps({"errors": [{"message": text} for text in errors], "warnings": []}))
        return {"errors": [], "warnings": []}

    def refs(self, repo, **_):
        found = self.repos[repo]

        def listed(kind, refs):
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c.oid} for n, c in refs.items()]

        return {"branches": listed("heads", found.branches), "tags": listed("tags", found.tags), "converts": []}

    def commits(self, repo, revision, **_):
        history = self._commit(repo, revision).history
        date = "2026-01-01T00:00:00.000Z"
        rows = [{"id": c.oid, "title": c.title, "message": c.description, "date": date} for c in history]
        return [{**row, "authors": [{"user": OWNER}]} for row in rows]

    def tree(self, repo, revision, **_):
        files = self._commit(repo, revision).files
        return [
            {"type": "file", "path": name, "size": len(data), "oid": git_oid(data), **self._pointer(data)}
            for name, data in files.items()
        ]

    def _pointer(self, data):
        oid = self._stored(data)
        return {} if oid is None else {"lfs": {"oid": oid, "size": len(data), "pointerSize": 134}}

    def _stored(self, data):
        """The oid of a file that lies in the large file storage."""
        oid = hashlib.sha256(data).hexdigest()
        return oid if oid in self.objects else None

    def info(self, repo, revision="main", **_):
        commit, files = self._commit(repo, revision), self._commit(repo, revision).files
        names = [{"rfilename": name} for name in files]
        return {
            "id": repo,
            "modelId": repo,
            "sha": commit.oid,
            "siblings": names,
            "private": self.repos[repo].private,
            "tags": [],
        }

    def preupload(self, repo, revision, body, **_):
        files = self._commit(repo, revision).files
        return {
            "files": [
                {
                    "path": each["path"],
                    "uploadMode": "regular" if self.lfs_above is None or each["size"] <= self.lfs_above else "lfs",
                    "shouldIgnore": False,
                    "oid": self._oid(files[each["path"]]) if each["path"] in files else None,
                }
                for each in body["files"]
            ]
        }

    def _oid(self, data):
        return self._stored(data) or git_oid(data)

    def lfs_batch(self, repo, body, **_):
        assert body["operation"] == "upload"
        assert "basic" in body["transfers"]
        return {"transfer": "basic", "objects": [self._object(each["oid"], each["size"]) for each in body["objects"]]}

    def _object(self, oid, size):
        there = f"{self.endpoint}/storage/{oid}"
        upload = {"href": there}
        if size > self.part_size:
            number = -(-size // self.part_size)
            parts = {str(part): f"{there}/{part}" for part in range(1, number + 1)}
            upload = {"href": f"{there}/complete", "header": {"chunk_size": str(self.part_size), **parts}}
        actions = {"upload": upload, "verify": {"href": f"{there}/verify"}}
        return {"oid": oid, "size": size, **({} if oid in self.objects else {"actions": actions})}

    def lfs_put(self, oid, body, **_):
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "the content is not what its oid says")
        self.objects[oid] = body
        return {}

    def lfs_part(self, oid, part, body, **_):
        self.parts[oid, int(part)] = body
        return {}

    def lfs_complete(self, oid, body, **_):
        assert [part["etag"] for part in body["parts"]] == ["part"] * len(body["parts"])
        return self.lfs_put(oid, b"".join(self.parts[oid, part["partNumber"]] for part in body["parts"]))

    def lfs_verify(self, oid, body, **_):
        if body != {"oid": oid, "size": len(self.objects[oid])}:
            raise Refused(422, "the object is not what was announced")
        return {}

    def lfs_get(self, oid, **_):
        return self.objects[oid]

    def commit(self, repo, revision, body, **_):
        if revision not in self.repos[repo].branches:
            raise Refused(404, "Revision not found", "RevisionNotFound")
        header = body[0]["value"]
        if header.get("parentCommit") not in (None, self.repos[repo].branches[revision].oid):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in body if line["key"] == "file"
        }
        large = [line["value"] for line in body if line["key"] == "lfsFile"]
        for each in large:
            if len(self.objects.get(each["oid"], b"")) != each["size"]:
                raise Refused(400, f"{each['path']} was not uploaded")
        added |= {each["path"]: self.objects[each["oid"]] for each in large}
        deleted = [line["value"]["path"] for line in body if line["key"] == "deletedFile"]
        missing = [name for name in deleted if name not in self.repos[repo].branches[revision].files]
        if missing:
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        made = self.add_commit(repo, revision, header["summary"], header["description"], added, deleted)
        return {"commitUrl": f"{self.endpoint}/{repo}/commit/{made.oid}", "commitOid": made.oid, "success": True}

    def create_branch(self, repo, revision, body, **_):
        if revision in self.repos[repo].branches:
            raise Refused(409, "Reference already exists")
        self.repos[repo].branches[revision] = self._commit(repo, body.get("startingPoint", "main"))
        return {}

    def create_tag(self, repo, revision, body, **_):
        if body["tag"] in self.repos[repo].tags:
            raise Refused(409, "Tag already exists")
        self.repos[repo].tags[body["tag"]] = self._commit(repo, revision)
        return {}

    def delete_tag(self, repo, revision, **_):
        self.repos[repo].tags.pop(revision)
        return {}

    def download(self, repo, revision, path, **_):
        files = self._commit(repo, revision).files
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        return files[path]

    head = download

    def _commit(self, repo, revision):
        found = self.repos[repo].find(revision)
        if found is None:
            raise Refused(404, "Revision not found", "RevisionNotFound")
        return found


def connect(patch, hub, cache):
    """Points the client of this process at a Hub, and lets nothing wait between attempts."""
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    patch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    patch.setattr("huggingface_hub.hf_api.api.endpoint", hub.endpoint)  # of the functions outside HfApi
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    patch.setattr("hf_infinite_lr.hub.background.time.sleep", lambda seconds: None)


def git_oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def card_faults(content):
    """What the Hub refuses in a card's metadata, as far as its messages tell."""
    block = re.match(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", content, re.DOTALL)
    if block is None:
        return []
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if not isinstance(data, dict):
        return ["must be a mapping"]
    faults = []
    for key in ("datasets", "base_model"):
        values = data.get(key, [])
        for value in [values] if isinstance(values, str) else values:
            if not isinstance(value, str) or not _REPO_ID.fullmatch(value) or value[0] in ".-":
                faults.append(f'"{key}" with value {value!r} is not valid')
    for key in ("library_name", "pipeline_tag", "license"):
        if key in data and not re.fullmatch(r"[a-z0-9][\w.-]*", str(data[key])):
            faults.append(f'"{key}" with value {data[key]!r} is not valid')
    if not all(isinstance(tag, str) and tag for tag in data.get("tags", [])):
        faults.append('"tags" must be strings')
    return faults + _index_faults(data.get("model-index", []))


def _index_faults(index):
    faults = []
    for place, model in enumerate(index):
        if not isinstance(model.get("name"), str) or not model["name"]:
            faults.append(f'"model-index[{place}].name" must be a string')
        for result in model.get("results", ()):
            for part, keys in {"task": ("type",), "dataset": ("type", "name")}.items():
                faults += [f"{part}.{key} is required" for key in keys if not isinstance(result[part].get(key), str)]
            faults += ["metrics.value is required" for metric in result["metrics"] if metric.get("value") is None]
    return faults


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # the body, a second write, would wait 40 ms for the headers to be acknowledged

        def log_message(self, *args):
            """Nothing is printed."""

        def serve(self):
            hub.open.wait()
            path = urlsplit(self.path).path
            for call, method, route in hub.routes:
                if method == self.command and (match := re.fullmatch(route, path)):
                    return self.answer(call, {k: unquote(v) for k, v in match.groupdict().items() if v})
            self.rfile.read(int(self.headers.get("content-length") or 0))
            return self.send(404, b"{}")

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = serve  # noqa: N815

        def answer(self, call, found):
            with hub.lock:
                hub.calls.append(call)
                hub.tokens.add((self.headers.get("authorization") or "").removeprefix("Bearer ") or None)
            fault = hub.fault_of(call)
            length = int(self.headers.get("content-length") or 0)
            if fault is not None and fault.kind == "cut":
                self.rfile.read(length // 2)
                return self.drop()
            raw = self.receive(length)
            if fault is not None and fault.kind == "hang":
                return self.hang()
            if fault is not None and fault.kind == "html":
                return self.send(500, b"<html>In trouble</html>")
            if fault is not None and isinstance(fault.kind, int):
                more = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                return self.send(fault.kind, json.dumps({"error": fault.message}).encode(), **more, **fault.headers)
            if fault is not None and fault.kind == "late":
                hub._late[call] = {**found, "body": self.body(raw)}
                return self.send(504, b'{"error": "told to fail"}')
            if late := hub._late.pop(call, None):
                with hub.lock, suppress(Refused):
                    getattr(hub, call)(**late)
            try:
                if "repo" in found and found["repo"] not in hub.repos:
                    raise Refused(404, "Repository not found", "RepoNotFound")
                with hub.lock:
                    result = getattr(hub, call)(**found, body=self.body(raw))
            except Refused as refusal:
                if self.withheld(fault):
                    return None
                code = {"X-Error-Code": refusal.code} if refusal.code else {}
                text = str(refusal)
                text = text if text.startswith("{") else json.dumps({"error": text})
                return self.send(refusal.status, text.encode(), **code)
            if self.withheld(fault):
                return None
            if call == "lfs_get":
                return self.send(200, result)
            if call == "lfs_part":
                return self.send(200, b"", ETag="part")
            if isinstance(result, bytes) and (stored := hub._stored(result)):
                commit = hub.repos[found["repo"]].find(found["revision"]).oid
                linked = {"X-Linked-Size": str(len(result)), "X-Linked-Etag": f'"{stored}"', "X-Repo-Commit": commit}
                # Another host, as the real storage is: the client follows no redirection to it when it only asks.
                there = f"{hub.endpoint.replace('127.0.0.1', 'localhost')}/storage/{stored}"
                return self.send(302, b"", Location=there, **linked)
            if isinstance(result, bytes):
                oid = hub.repos[found["repo"]].find(found["revision"]).oid
                return self.send(200, result, **{"ETag": f'"{git_oid(result)}"', "X-Repo-Commit": oid})
            return self.send(200, json.dumps(result).encode())

        def receive(self, length):
            if hub.bytes_per_second is None:
                return self.rfile.read(length)
            parts = []
            while length > 0:
                hub.open.wait()
                parts.append(self.rfile.read(min(length, 1 << 16)))
                length -= len(parts[-1])
                time.sleep(len(parts[-1]) / hub.bytes_per_second)
            return b"".join(parts)

        def body(self, raw):
            if self.headers.get("content-type") == "application/x-ndjson":
                return [json.loads(line) for line in raw.splitlines()]
            if self.command == "PUT" or (raw and self.headers.get("content-type") is None):
                return raw
            return json.loads(raw) if raw else {}

        def withheld(self, fault):
            """Whether the answer of what is done is not sent."""
            kind = fault and fault.kind
            if kind == "lost":
                self.drop()
            elif kind == "hang_done":
                self.hang()
            return kind in ("lost", "hang_done")

        def hang(self):
            hub.hanging.set()
            hub.stopping.wait()
            return self.drop()

        def drop(self):
            self.close_connection = True
            self.connection.close()

        def send(self, status, content, **headers):
            hub.open.wait()
            self.send_response_only(status)
            given = {"Date": self.date_time_string(), "Content-Length": str(len(content)), **headers}
            for name, value in given.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler
