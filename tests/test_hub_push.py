"""The real client against a Hub on the loopback interface, in good and in bad weather."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import huggingface_hub
import pytest
import torch
from httpx2 import Client, ConnectError
from huggingface_hub.utils import _http, are_progress_bars_disabled, close_session
from huggingface_hub.utils._xet import abort_xet_session
from loopback_hub import CALLS, LFS_CALLS, LoopbackHub, connect
from loopback_xet import XET_CALLS, XetHub

from hf_infinite_lr.cli import main
from hf_infinite_lr.hub import (
    BackgroundSender,
    Left,
    NotPublishableError,
    Publication,
    PublicationQueue,
    Publisher,
    left_sentence,
    releases_of,
    send_queue,
    without_paths,
)
from hf_infinite_lr.hub import background as background_module
from hf_infinite_lr.hub.contents import refuse_secrets
from hf_infinite_lr.hub.metadata import card_metadata
from hf_infinite_lr.hub.silence import _set_timeout
from hf_infinite_lr.hub.templates import template_folder
from hf_infinite_lr.trainer.checkpoints import fault_of

RELEASE, TRUNK = ["release 01-a", "Card of release 01-a"], ["trunk 01-a"]


def add(queue, *words, **options):
    """Queues a directory as a run does."""
    new = queue.publication(*words, **options)
    if not queue.has_sent(new):
        queue.add(new)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that the client of this process talks to, and no waiting in the client's own retries."""
    with LoopbackHub() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        monkeypatch.setattr("hf_infinite_lr.hub.silence._SILENCE_SECONDS", 0.5)
        yield server


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny):
    """A run of one task whose trunk and release have never been sent."""
    run = tmp_path_factory.mktemp("made") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_infinite_lr.trainer.publishing.write_report_of", lambda run, folder: None)
        patch.setattr("hf_infinite_lr.trainer.mixin.write_report", lambda path: None)
        tiny.run(run, tiny.data("a"))
    return run


@pytest.fixture
def queue(made, tmp_path):
    """A copy of that run with its trunk and its release in the queue."""
    shutil.copytree(made, tmp_path / "run")
    queue = PublicationQueue(tmp_path / "run")
    add(queue, "trunk", "01-a", "user/model", branch="trunk", private=None)
    add(queue, "release", "01-a", "user/model", branch="main", private=None)
    return queue


def send(queue, pauses=None, patience=20):
    """Sends, noting how long each pause would have been."""
    pauses = [] if pauses is None else pauses

    def pause(seconds):
        pauses.append(seconds)
        return len(pauses) <= patience

    publisher = Publisher(queue.output_dir, fault_of, token="hf_token")
    return send_queue(queue, publisher, pause=pause, on_sent=lambda *told: None)


def assert_complete(hub, queue):
    """Everything is there, once."""
    assert queue.waiting() == []
    assert [hub.titles("trunk"), hub.titles()] == [TRUNK, RELEASE]
    assert set(hub.repos["user/model"].tags) == {"task-01-a", "task-01-a-trunk"}
    release, trunk = hub.files("task-01-a"), hub.files("task-01-a-trunk")
    assert release["model.safetensors"] == (queue.output_dir / "releases/01-a/model.safetensors").read_bytes()
    assert {"README.md", "config.json"} <= set(release)
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in release)
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(trunk)
    for files in (release, trunk):
        for name, facts in json.loads(files["manifest.json"])["files"].items():
            assert len(files[name]) == facts["bytes"]


def test_what_is_to_be_private_never_reaches_a_public_repository(hub, queue):
    shutil.rmtree(queue.output_dir / "hub" / "waiting")
    add(queue, "trunk", "01-a", "user/model", branch="trunk", private=None)
    add(queue, "release", "01-a", "user/model", branch="main", private=True)
    (left,) = send(queue)
    assert left.refused
    assert left.reason.startswith("user/model is public, but hub_private_repo asks for a private repository")
    assert [hub.titles("trunk"), hub.titles()] == [TRUNK, []]
    hub.repos["user/model"].private = True
    assert send(queue) == []
    assert_complete(hub, queue)


def test_sends_once_and_again_sends_nothing(hub, queue):
    assert send(queue) == []
    assert_complete(hub, queue)
    committed = hub.files("main")["README.md"].decode()
    assert hub.validated == [committed, committed], "before anything is sent, and by the client with its commit"
    calls = len(hub.calls)
    add(queue, "release", "01-a", "user/model", branch="main", private=None)
    assert queue.waiting() == []
    shutil.rmtree(queue.output_dir / "hub" / "sent")
    add(queue, "release", "01-a", "user/model", branch="main", private=None)
    assert send(queue) == []
    assert_complete(hub, queue)
    assert "commit" not in hub.calls[calls:]
    assert hub.tokens <= {"hf_token", None}


TIMES = {
    "create_repo": 2,
    "refs": 2,
    "commits": 3,
    "create_branch": 1,
    "validate": 2,
    "tree": 2,
    "preupload": 3,
    "commit": 3,
    "create_tag": 2,
}
"""How often a trunk and a release make each call; their three commits are the trunk, the files and the card."""
OF_THE_TRUNK = {**dict.fromkeys(TIMES, 1), "commits": 2, "validate": 0}
"""How many of these the trunk makes, before the release."""

PASSING = (429, "429 with a time", 500, "html", "cut", "hang")
DONE = ("lost", "hang_done")
WRITES = ("create_repo", "create_branch", "commit", "create_tag")


def _cases():
    """Faults at each call: those after which nothing is done follow each other, the others have a run of their own."""
    for call, times in TIMES.items():
        for after in range(times):
            together = PASSING if call in WRITES else (*PASSING, *DONE)
            alone = (401, 403, *((*DONE, "late") if call in WRITES else ()))
            yield from ((call, after, kinds) for kinds in (together, *((kind,) for kind in alone)))


CASES = list(_cases())


def test_the_faults_are_at_every_call_that_is_made(hub, queue):
    assert send(queue) == []
    assert Counter(hub.calls) == TIMES
    assert set(TIMES) == set(CALLS)
    faults = {(call, after, kind) for call, after, kinds in CASES for kind in kinds}
    assert len(faults) == sum(len(kinds) for _, _, kinds in CASES) == 20 * 10 + 8


@pytest.mark.parametrize(("call", "after", "kinds"), CASES, ids=lambda value: str(value))
def test_every_fault_at_every_call_costs_nothing_and_doubles_nothing(hub, queue, call, after, kinds, monkeypatch):
    monkeypatch.setattr("hf_infinite_lr.hub.silence._SILENCE_SECONDS", 0.2)
    for kind in kinds:
        named = {"kind": 429, "retry_after": 33} if kind == "429 with a time" else {"kind": kind}
        hub.fail(call, after=after, **named)
    left = send(queue)
    assert [fault.times for fault in hub.faults] == [0] * len(kinds), "each has happened"
    stays = ["trunk", "release"][after >= OF_THE_TRUNK[call] :]
    # The client uses an existing repository also where the token may not create one; the trunk has created it.
    refused = kinds in ((401,), (403,)) and (call, after) != ("create_repo", 1)
    assert [each.publication.kind for each in left] == (stays if refused else [])
    assert all(str(kinds[0]) in each.reason for each in left)
    assert main(["push", str(queue.output_dir)]) == 0
    assert_complete(hub, queue)


@pytest.fixture
def lfs_hub(hub, monkeypatch):
    """The same Hub, which takes larger files through the large file storage, as the Hub does above 10 MB."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # it speaks to servers of its own
    hub.lfs_above, hub.part_size = 10_000, 30_000
    return hub


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")  # the client's own
def test_large_files_go_through_the_large_file_storage(lfs_hub, queue, tmp_path):
    from transformers import AutoModelForCausalLM

    assert send(queue) == []
    assert_complete(lfs_hub, queue)
    weights, state = queue.output_dir / "releases/01-a/model.safetensors", queue.output_dir / "trunk/01-a/optimizer.pt"
    assert weights.stat().st_size < lfs_hub.part_size < state.stat().st_size
    assert {weights.read_bytes(), state.read_bytes()} <= set(lfs_hub.objects.values())
    assert {"lfs_batch", *LFS_CALLS} <= set(lfs_hub.calls)
    loaded = AutoModelForCausalLM.from_pretrained("user/model", revision="task-01-a").state_dict()
    local = AutoModelForCausalLM.from_pretrained(weights.parent).state_dict()
    assert all(torch.equal(loaded[name], local[name]) for name in local)
    assert "lfs_get" in lfs_hub.calls
    calls = len(lfs_hub.calls)
    shutil.rmtree(queue.output_dir / "hub" / "sent")
    add(queue, "release", "01-a", "user/model", branch="main", private=None)
    assert send(queue) == []
    assert "lfs_put" not in lfs_hub.calls[calls:]


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")  # the client's own
@pytest.mark.parametrize("call", LFS_CALLS)
@pytest.mark.parametrize("kind", [429, 500, "cut", "lost", "hang", 403])
def test_every_fault_of_the_large_file_storage_costs_nothing_and_doubles_nothing(lfs_hub, queue, call, kind):
    lfs_hub.fail(call, kind)
    left = send(queue)
    assert all("403" in each.reason or "uploading" in each.reason for each in left)
    assert bool(left) == (kind == 403)
    assert send(queue) == []
    assert_complete(lfs_hub, queue)


def _send_with_a_client_of_its_own(queue):
    close_session()
    send(queue)


KILLS = [
    (call, after, "hang") for call, times in TIMES.items() for after in range(times) if call in WRITES or not after
]
KILLS += [(call, after, "hang_done") for call in WRITES for after in range(TIMES[call])]


@pytest.mark.parametrize(("call", "after", "kind"), KILLS)
def test_a_kill_at_every_call_costs_nothing_and_doubles_nothing(hub, queue, call, after, kind, monkeypatch):
    monkeypatch.setattr("hf_infinite_lr.hub.silence._SILENCE_SECONDS", 60.0)
    hub.fail(call, kind, after=after)
    child = multiprocessing.get_context("fork").Process(target=_send_with_a_client_of_its_own, args=(queue,))
    child.start()
    assert hub.hanging.wait(20)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert len(queue.waiting()) in (1, 2)
    assert send(queue) == []
    assert_complete(hub, queue)


def test_a_repository_with_commits_keeps_them_and_loses_stale_weights(hub, queue):
    hub.create_repo({"organization": "user", "name": "model"})
    before = {"LICENSE": b"mine", "model-00001-of-00002.safetensors": b"old", "model.safetensors": b"old"}
    hub.add_commit("user/model", "main", "mine", "", before)
    assert send(queue) == []
    assert hub.titles() == ["mine", *RELEASE]
    files = hub.files("main")
    assert files["LICENSE"] == b"mine"
    assert "model-00001-of-00002.safetensors" not in files
    assert files["model.safetensors"] != b"old"
    trunk = queue.output_dir / "trunk" / "01-a"
    assert set(hub.files("task-01-a-trunk")) <= {path.name for path in trunk.iterdir()} | {".gitattributes"}


def test_a_tag_of_something_else_is_never_moved(hub, queue):
    hub.create_repo({"organization": "user", "name": "model"})
    hub.create_tag("user/model", "main", {"tag": "task-01-a-trunk"})
    left = send(queue)
    assert [each.publication.kind for each in left] == ["trunk"]
    assert left[0].reason == (
        "user/model has a tag of that name for something else: choose another hub_model_id, or delete the tag there"
    )
    assert hub.titles() == RELEASE, "what follows is not held up"


def test_a_release_that_the_run_made_again_with_other_weights_replaces_its_own(hub, queue):
    from safetensors.torch import load_file, save_file

    from hf_infinite_lr.trainer.checkpoints import write_manifest

    assert send(queue) == []
    folder = queue.output_dir / "releases" / "01-a"
    save_file(
        {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items()},
        folder / "model.safetensors",
    )
    write_manifest(folder)
    add(queue, "release", "01-a", "user/model", branch="main", private=None)
    assert send(queue) == []
    assert hub.files("task-01-a")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert hub.titles() == [*RELEASE, "release 01-a"], "the card is the same, and the client leaves it"
    add(queue, "release", "01-a", "user/model", branch="main", private=None)
    assert queue.waiting() == []


def test_a_further_attempt_hashes_and_validates_nothing_again(hub, queue):
    hashed = []

    def fault(folder, *, trust_unchanged):
        hashed.extend([] if trust_unchanged else [folder.name])
        return fault_of(folder, trust_unchanged=trust_unchanged)

    hub.fail("commit", 503, after=2)
    publisher = Publisher(queue.output_dir, fault)
    (first,) = send_queue(queue, publisher, pause=lambda seconds: False, on_sent=lambda *told: None)
    assert (first.publication.kind, hashed) == ("release", ["01-a", "01-a"]), "the trunk and the release"
    asked = hub.calls.count("validate")
    assert send_queue(queue, publisher, pause=lambda seconds: False, on_sent=lambda *told: None) == []
    assert (len(hashed), hub.calls.count("validate")) == (2, asked + 1), "the client validates what it commits"
    assert_complete(hub, queue)
    (queue.output_dir / "releases" / "01-a" / "config.json").write_text("{}")
    with pytest.raises(NotPublishableError, match=r"is not whole: config\.json"):
        publisher.files(first.publication)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"kind": 429, "retry_after": 77}, [77]),
        ({"kind": 429, "headers": {"RateLimit": '"api";r=0;t=55'}}, [55]),
        ({"kind": 429, "headers": {"RateLimit": '"api";r=9;t=55'}}, [1]),
        ({"kind": 429, "call": "commit", "times": 2}, [600, 600]),
        ({"kind": 503, "times": 9}, [1, 2, 4, 8, 16, 32, 64, 120, 120]),
        ({"kind": 429, "times": 2, "retry_after": 1}, [1, 2]),
        ({"kind": "cut", "times": 3}, [1, 2, 4]),
    ],
)
def test_waits_as_long_as_the_server_says_else_exponentially(hub, queue, fault, expected):
    hub.fail(**{"call": "refs", **fault})
    pauses = []
    assert send(queue, pauses) == []
    assert pauses == expected


@pytest.mark.parametrize(
    ("named", "least", "most"),
    [
        ("7", 7, 7),
        ("\u00b2", 0, 0),
        ("", 0, 0),
        ("soon", 0, 0),
        ("Wed, 01 Jan 2020 00:00:00 GMT", -1e12, 0),
        (None, 50, 60),
    ],
)
def test_the_servers_wish_to_wait_is_read_as_seconds_or_as_a_date(named, least, most):
    from hf_infinite_lr.hub.sending import _retry_after

    named = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True) if named is None else named
    assert least <= _retry_after(named, None) <= most


def test_a_wait_up_to_a_date_is_counted_by_the_servers_own_clock(hub, queue):
    """Which an hour's difference between the clocks would make an hour longer."""
    at = datetime.now(UTC) + timedelta(hours=1)
    dates = {"Retry-After": format_datetime(at + timedelta(seconds=60), usegmt=True)}
    hub.fail("refs", 503, headers={"Date": format_datetime(at, usegmt=True), **dates})
    pauses = []
    assert send(queue, pauses) == []
    assert pauses == [60]


def test_a_broken_directory_a_pickle_and_a_refused_card_stay_in_the_queue(hub, queue):
    release = queue.output_dir / "releases" / "01-a"
    facts = json.loads((release / "card.json").read_text())
    facts["model"]["base_model"] = "no/such/id"
    (release / "card.json").write_text(json.dumps(facts))
    (queue.output_dir / "trunk" / "01-a" / "config.json").write_text("{}")
    reasons = [each.reason for each in send(queue)]
    assert "trunk/01-a is not whole: config.json" in reasons[0]
    assert "the Hub refuses releases/01-a" in reasons[1]
    assert "base_model" in reasons[1]
    assert hub.titles() == [], "no half of a release"
    (release / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin is a pickle" in send(queue)[1].reason
    left = send(queue)
    assert left_sentence(left, queue.output_dir) == (
        f"Cannot be published until it is mended, or given up by deleting its file in {queue.output_dir}/hub/waiting: "
        f"trunk/01-a, releases/01-a ({left[0].reason}; {left[1].reason}). "
        f"Nothing is lost; mend that, and send it with: hf-infinite-lr push {queue.output_dir}"
    )


def test_the_thread_gives_up_when_its_patience_is_used_up(hub, queue, monkeypatch, caplog):
    monkeypatch.setattr(background_module, "PATIENCE_SECONDS", 0.0)
    hub.fail("refs", 503, times=1000)
    sender = BackgroundSender(queue, Publisher(queue.output_dir, fault_of))
    sender.notify()
    left = sender.finish()
    assert [each.publication.folder for each in left] == ["trunk/01-a", "releases/01-a"]
    assert f"hf-infinite-lr push {queue.output_dir}" in caplog.text
    hub.faults.clear()
    sender.notify()
    assert sender.finish() == []
    assert_complete(hub, queue)


def test_a_server_that_asks_to_wait_for_ages_is_given_up_at_the_end(hub, queue, caplog):
    caplog.set_level("INFO", logger="hf_infinite_lr")
    hub.fail("refs", 429, retry_after=10**13, times=1000)
    sender = BackgroundSender(queue, Publisher(queue.output_dir, fault_of))
    sender.notify()
    while "is tried again in" not in caplog.text:
        hub.stopping.wait(0.01)
    hub.stopping.wait(0.2)  # by now it waits; sleeping is switched off
    assert {each.reason for each in sender.finish()} == {"the Hub answered 429 Too Many Requests: told to fail"}
    assert "Traceback" not in caplog.text, "which ends the attempt, without a pause"


def test_a_directory_that_its_user_has_removed_is_told(hub, queue):
    shutil.rmtree(queue.output_dir / "trunk" / "01-a")
    (left,) = send(queue)
    assert (left.reason, left.refused) == ("trunk/01-a is no longer there", True)
    assert hub.titles() == RELEASE


def test_the_end_can_be_waited_for_a_moment_at_a_time(hub, queue, caplog):
    caplog.set_level("INFO", logger="hf_infinite_lr")
    hub.open.clear()
    sender = BackgroundSender(queue, Publisher(queue.output_dir, fault_of))
    sender.notify()
    assert [sender.finish(0.1), sender.finish(0.1)] == [None, None]
    assert caplog.text.count("waiting for 2 publication(s) to reach the Hub") == 1
    hub.open.set()
    assert sender.finish() == []
    assert_complete(hub, queue)


def test_the_interpreter_is_shared_in_short_turns_while_something_is_sent(hub, queue, monkeypatch):
    before, publisher, seen = sys.getswitchinterval(), Publisher(queue.output_dir, fault_of), []
    send_one = publisher.send
    monkeypatch.setattr(publisher, "send", lambda each: (seen.append(sys.getswitchinterval()), send_one(each))[1])
    sender = BackgroundSender(queue, publisher)
    sender.notify()
    assert sender.finish() == []
    assert (len(seen), max(seen)) == (2, pytest.approx(0.0001))
    assert sys.getswitchinterval() == before


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")  # the client's own
def test_no_bar_of_an_upload_runs_into_those_of_the_training(lfs_hub, queue, capsys):
    sender = BackgroundSender(queue, Publisher(queue.output_dir, fault_of))
    sender.notify()
    assert sender.finish() == []
    assert {"lfs_batch", "lfs_part"} <= set(lfs_hub.calls)
    assert "model.safetensors" not in capsys.readouterr().err
    assert not are_progress_bars_disabled()


def test_push_says_what_is_left_sends_it_and_is_done(hub, queue, monkeypatch, capsys):
    monkeypatch.setattr("hf_infinite_lr.cli.push.PATIENCE_SECONDS", 0)
    run = str(queue.output_dir)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["push", run]) == 3
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert main(["push", run, "--dry_run"]) == 3
    said = capsys.readouterr().out
    assert "releases/01-a -> user/model@main, tag task-01-a" in said
    assert "README.md" in said
    preview = (queue.output_dir / "hub/preview/user/model/01-a.md").read_bytes()
    assert preview.startswith(b"---\n")
    assert hub.calls == []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.fail("commit", 503)
    assert main(["push", run]) == 3
    assert "answered 503" in capsys.readouterr().err
    assert main(["push", run]) == 0
    assert "2 of 2: releases/01-a is task-01-a of user/model" in capsys.readouterr().out
    assert_complete(hub, queue)
    assert hub.files("task-01-a")["README.md"] == preview
    assert main(["push", run]) == 0
    assert "Nothing of" in capsys.readouterr().out


def test_push_sends_the_releases_of_a_run_that_was_not_told_to_publish(hub, made, tmp_path, capsys):
    shutil.copytree(made, tmp_path / "run")
    assert main(["push", str(tmp_path / "run"), "--hub_model_id", "model"]) == 0
    assert hub.titles() == RELEASE
    assert main(["push", str(tmp_path / "none")]) == 1
    assert "continual_state.json" in capsys.readouterr().err


def test_a_release_that_waits_as_private_stays_private(made, tmp_path, monkeypatch):
    """Offline the run has queued it; naming the repository again must not publish it to everybody."""
    monkeypatch.setattr("hf_infinite_lr.cli.push.PATIENCE_SECONDS", 0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    run = tmp_path / "run"
    shutil.copytree(made, run)
    queue = PublicationQueue(run)
    add(queue, "release", "01-a", "user/model", branch="dev", private=True)
    assert main(["push", str(run), "--hub_model_id", "user/model"]) == 3
    assert {(each.branch, each.private) for each in queue.waiting() if each.kind == "release"} == {("dev", True)}
    assert len(queue.waiting()) == len(list((run / "releases").iterdir()))


def test_a_dry_run_leaves_the_queue_as_it_is(made, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(made, run)
    queue = PublicationQueue(run)
    add(queue, "release", "01-a", "user/model", branch="main", private=None)
    waiting = queue.waiting()
    assert main(["push", str(run), "--hub_model_id", "user/mistyped", "--dry_run"]) == 3
    said = capsys.readouterr().out
    assert said.count("-> user/mistyped@main") == len(list((run / "releases").iterdir()))
    assert said.count("-> user/model@main") == 1
    for name in ("user/mistyped", "user/model"):
        assert f"# {name}: after task 1, a" in (run / "hub" / "preview" / name / "01-a.md").read_text()
    assert queue.waiting() == waiting


def test_naming_what_was_sent_does_not_hide_what_waits(hub, made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_infinite_lr.cli.push.PATIENCE_SECONDS", 0)
    shutil.copytree(made, tmp_path / "run")
    run = str(tmp_path / "run")
    assert main(["push", run, "--hub_model_id", "user/one"]) == 0
    with monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert main(["push", run, "--hub_model_id", "user/two"]) == 3
    waiting = len(PublicationQueue(tmp_path / "run").waiting())
    capsys.readouterr()
    assert main(["push", run, "--hub_model_id", "user/one", "--dry_run"]) == 3
    assert capsys.readouterr().out.count("-> user/two@main") == waiting > 0


def test_two_processes_do_not_send_the_same_queue(hub, queue):
    from filelock import FileLock

    with FileLock(queue.output_dir / "hub" / "lock"):
        assert {each.reason for each in send(queue)} == {"another process is sending this queue"}
    assert send(queue) == []


@pytest.mark.parametrize("name", ["user/my model", "https://host/user/model", ""])
def test_a_name_that_is_none_is_refused_and_queues_nothing(made, tmp_path, capsys, name):
    run = tmp_path / "run"
    shutil.copytree(made, run)
    assert main(["push", str(run), "--hub_model_id", name]) == 1
    assert f"hub_model_id={name!r} must be a name on the Hub" in capsys.readouterr().err
    assert PublicationQueue(run).waiting() == []


def test_a_bad_name_that_waits_is_passed_over(hub, queue):
    waiting = next((queue.output_dir / "hub" / "waiting").glob("*release*"))
    waiting.write_text(waiting.read_text().replace("user/model", "user/my model"))
    (left,) = send(queue)
    assert left.reason == "'user/my model' cannot be the name of a repository"


def test_a_repository_that_is_gone_is_filled_again(hub, made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made, run)
    words = ["push", str(run), "--hub_model_id", "user/model"]
    assert main(words) == 0
    hub.repos.clear()
    assert main(words) == 0
    assert hub.titles() == RELEASE


def test_the_runs_own_last_release_is_published_last(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made, run)
    (own,) = releases_of(run, ["01-a"])
    for name in ("02-b", "10-c", "100-d", "11-e", "02-b-from-7-over-3"):
        shutil.copytree(run / "releases" / own, run / "releases" / name)
    tasks = ["01-a", "02-b", "10-c", "11-e", "100-d"]
    assert releases_of(run, tasks) == ["02-b-from-7-over-3", *tasks]


def test_a_file_that_is_sent_in_this_moment_disturbs_nobody(queue, monkeypatch):
    real = Path.read_text

    def gone(path, **options):
        if "trunk" in path.name:
            path.unlink(missing_ok=True)
        return real(path, **options)

    monkeypatch.setattr(Path, "read_text", gone)
    assert [each.kind for each in queue.waiting()] == ["release"]


def test_the_command_that_is_named_works_with_any_directory(tmp_path):
    left = [Left(Publication("release", "01-a", "u/m", "main", None, "r", "d"), "why")]
    assert left_sentence(left, tmp_path / "my run").endswith(f"hf-infinite-lr push '{tmp_path}/my run'")


def test_what_waits_and_what_is_refused_are_told_apart(tmp_path):
    one, other = (Publication("release", name, "u/m", "main", None, "r", "d") for name in ("01-a", "02-b"))
    said = left_sentence([Left(one, "a pickle", refused=True), Left(other, "no connection")], tmp_path)
    assert said == (
        f"Cannot be published until it is mended, or given up by deleting its file in {tmp_path}/hub/waiting: "
        "releases/01-a (a pickle). Not on the Hub yet: releases/02-b (no connection). "
        f"Nothing is lost; send them with: hf-infinite-lr push {tmp_path}"
    )


@pytest.mark.parametrize(
    ("content", "may_be_ours"), [("{", False), ("{}", True), ('{"model": null}', True), (b"\xff", False)]
)
def test_a_bad_file_of_one_release_holds_up_nothing_behind_it(hub, queue, content, may_be_ours, caplog):
    shutil.rmtree(queue.output_dir / "hub" / "waiting")
    add(queue, "release", "01-a", "user/model", branch="main", private=None)
    add(queue, "trunk", "01-a", "user/model", branch="trunk", private=None)
    card = queue.output_dir / "releases" / "01-a" / "card.json"
    whole = card.read_bytes()
    card.write_bytes(content if isinstance(content, bytes) else content.encode())
    pauses = []
    (left,) = send(queue, pauses)
    assert left.refused
    assert left.reason.startswith("releases/01-a cannot be read: ")
    assert ("releases/01-a cannot be read\nTraceback" in caplog.text) == may_be_ours
    assert [pauses, hub.titles(), hub.titles("trunk")] == [[], [], TRUNK]
    card.write_bytes(whole)
    assert send(queue) == []
    assert_complete(hub, queue)


def test_a_file_that_cannot_be_read_while_it_is_sent_holds_up_nothing(hub, queue, monkeypatch):
    real = Publisher._commit

    def commit(self, publication, *words):
        if publication.kind == "trunk":
            raise PermissionError(13, "Permission denied", "/x/optimizer.pt")
        return real(self, publication, *words)

    monkeypatch.setattr(Publisher, "_commit", commit)
    (left,) = send(queue, patience=0)
    assert left.refused
    assert "Permission denied" in left.reason
    assert hub.titles() == RELEASE


@pytest.mark.parametrize("error", [KeyError("odd"), UnicodeDecodeError("utf-8", b"", 0, 1, "odd"), OSError("odd")])
def test_nothing_that_goes_wrong_ends_the_thread_or_the_training(hub, queue, monkeypatch, error, caplog):
    def fail(*words, **options):
        raise error

    sender = BackgroundSender(queue, Publisher(queue.output_dir, fault_of))
    with monkeypatch.context() as patch:
        patch.setattr(background_module, "send_queue", fail)
        sender.notify()
        (reason,) = {each.reason for each in sender.finish()}
        assert type(error).__name__ in reason
        assert "odd" in reason
        assert "in fail\n    raise error\n" in caplog.text, "where it went wrong"
    sender.notify()
    assert sender.finish() == []
    assert_complete(hub, queue)


def test_a_queue_that_cannot_be_locked_says_so(hub, queue):
    (queue.output_dir / "hub" / "lock").mkdir()
    assert {each.reason.split(":")[0] for each in send(queue)} == {"the queue cannot be locked"}
    assert hub.calls == []


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"schema_version": 2}', '{"schema_version": 1, "kind": "release"}', "1"]
)
def test_a_foreign_file_in_the_queue_is_passed_over_and_kept(hub, queue, content, capsys, caplog):
    foreign = queue.output_dir / "hub" / "waiting" / "notes.json"
    foreign.write_text(content)
    for file in ("run.json", "sent/000009.json"):
        (queue.output_dir / "hub" / file).parent.mkdir(exist_ok=True)
        (queue.output_dir / "hub" / file).write_text(content)
    add(queue, "release", "01-a", "user/model", branch="main", private=None)
    sender = BackgroundSender(queue, Publisher(queue.output_dir, fault_of))
    sender.notify()
    assert sender.finish() == []
    assert_complete(hub, queue)
    sender.notify()
    assert sender.finish() == []
    assert caplog.text.count(f"{foreign} is passed over") == 1, "and not at every wake"
    assert main(["push", str(queue.output_dir)]) == 3
    assert f"{foreign} is passed over" in capsys.readouterr().err
    assert foreign.read_text() == content


@pytest.mark.parametrize(
    ("status", "code", "missing"),
    [(404, "RepoNotFound", True), (401, "RepoNotFound", False), (404, "GatedRepo", False), (403, "GatedRepo", False)],
)
def test_only_a_repository_that_is_not_there_is_gone(hub, queue, status, code, missing):
    assert send(queue) == []
    (sent, _) = (each.publication for each in queue.sent())
    publisher = Publisher(queue.output_dir, fault_of)
    assert not publisher.misses(sent, "user/model")
    hub.fail("refs", status, headers={"X-Error-Code": code})
    assert publisher.misses(sent, "user/model") == missing


@pytest.fixture(scope="module")
def xet_cache(tmp_path_factory):
    """Where hf_xet keeps what it knows of a server: kept longer, it would send nothing to another one at that port."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_XET_CACHE", str(tmp_path_factory.mktemp("xet")))
        abort_xet_session()
        yield


@pytest.fixture
def xet_hub(monkeypatch, tmp_path, xet_cache):
    """The Hub with the storage that the real one has, to which the client's own hf_xet uploads."""
    with XetHub() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        server.lfs_above = 10_000
        yield server


def assert_there_by_xet(hub, queue):
    """Everything is there, once, and the commits name what the shards describe."""
    assert queue.waiting() == []
    assert [hub.titles("trunk"), hub.titles()] == [TRUNK, RELEASE]
    assert set(hub.repos["user/model"].tags) == {"task-01-a", "task-01-a-trunk"}
    weights, state = queue.output_dir / "releases/01-a/model.safetensors", queue.output_dir / "trunk/01-a/optimizer.pt"
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in (weights, state)} <= set(hub.objects)
    assert hub.xorb_bytes > 0.5 * (weights.stat().st_size + state.stat().st_size)


def test_weights_reach_the_storage_of_the_hub_by_xet(xet_hub, queue):
    assert send(queue) == []
    assert_there_by_xet(xet_hub, queue)
    assert set(XET_CALLS) <= set(xet_hub.calls)
    assert not {"lfs_batch", *LFS_CALLS} & set(xet_hub.calls)


@pytest.mark.parametrize("call", XET_CALLS)
@pytest.mark.parametrize("kind", [429, 500, "cut"])
def test_every_fault_of_xet_costs_nothing_and_doubles_nothing(xet_hub, queue, call, kind):
    xet_hub.fail(call, kind)
    assert send(queue) == []
    assert xet_hub.faults[0].times == 0
    assert_there_by_xet(xet_hub, queue)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("call", ["xet_token", "xet_xorb", "xet_shard"])
def test_a_refusal_by_xet_itself_is_not_tried_for_ever(xet_hub, queue, call, status):
    xet_hub.fail(call, status)
    pauses = []
    left = send(queue, pauses)
    assert {str(status) in each.reason and "//" not in each.reason for each in left} == {True}
    assert pauses == []
    assert send(queue) == []
    assert_there_by_xet(xet_hub, queue)


@pytest.mark.parametrize("error", ["XetAuthenticationError", "XetObjectNotFoundError"])
def test_a_refusal_of_the_large_file_storage_is_not_tried_for_ever(hub, queue, monkeypatch, error):
    import hf_xet

    def refuse(**options):
        raise getattr(hf_xet, error)("403 at https://cas.host/x?signature=planted\nsee there")

    monkeypatch.setattr("huggingface_hub._commit_api._upload_xet_files", refuse)
    hub.lfs_above = 10_000
    pauses = []
    left = send(queue, pauses)
    assert {(each.reason, each.refused) for each in left} == {(f"{error}: 403 at ... see there", False)}
    assert pauses == []


def test_who_is_not_logged_in_is_told_how(hub, queue):
    hub.fail("refs", 401, message="Invalid username or password.")
    (reason,) = {each.reason for each in send(queue)}
    said = "the Hub answered 401 Unauthorized: Invalid username or password."
    assert reason == f"{said} (log in with hf auth login, or set HF_TOKEN)"


def test_the_reason_is_the_hubs_own_without_addresses(hub, queue):
    hub.fail("commit", 403, message="Private storage is used up.\nSee https://host/pricing?x=planted")
    (reason,) = {each.reason for each in send(queue)}
    assert reason == "the Hub answered 403 Forbidden: Private storage is used up. See ..."


def test_when_the_commits_of_an_hour_are_used_up_the_end_of_the_training_does_not_wait(hub, queue):
    hub.fail("commit", 429, times=1000, message="You can retry this action in about 1 hour.")
    sender = BackgroundSender(queue, Publisher(queue.output_dir, fault_of))
    began = time.monotonic()
    sender.notify()
    (reason,) = {each.reason for each in sender.finish()}
    assert time.monotonic() - began < 60
    assert reason == "the Hub answered 429 Too Many Requests: You can retry this action in about 1 hour."


def test_a_session_that_the_client_makes_anew_is_bounded_too(hub, queue, monkeypatch):
    made, bounded = [], []

    class Own(Client):
        def request(self, method, url, **options):
            bounded.append(self.event_hooks["request"] == [_set_timeout])
            if "/commits/" in str(url) and len(made) == 1:
                raise ConnectError("the connection failed")
            return super().request(method, url, **options)

    def of_the_user():
        made.append(Own(follow_redirects=True))
        return made[-1]

    close_session()
    monkeypatch.setattr(_http, "_GLOBAL_CLIENT_FACTORY", of_the_user)
    assert send(queue) == []
    assert len(made) == 2
    assert all(bounded)
    assert_complete(hub, queue)
    close_session()


def test_what_waits_for_one_repository_is_not_sent_to_another_instead(hub, queue, capsys):
    run = str(queue.output_dir)
    assert main(["push", run, "--hub_model_id", "me/backup"]) == 0
    assert_complete(hub, queue)
    assert hub.titles(repo="me/backup") == RELEASE


@pytest.mark.parametrize("name", ["Apache 2.0", "MIT", "", "a/b"])
def test_a_license_that_the_hub_would_refuse_is_refused_before_the_training(tmp_path, name):
    from hf_infinite_lr import ContinualTrainingArguments

    with pytest.raises(ValueError, match=r"hub_license=.* must be the id of a license on the Hub, in lower case"):
        ContinualTrainingArguments(str(tmp_path), hub_license=name)
    assert ContinualTrainingArguments(str(tmp_path), hub_license="llama3.1").hub_license == "llama3.1"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"model_name_or_path": "/model", "_name_or_path": "/model"}, {"model_name_or_path": "./model"}),
        ({"base_model_name_or_path": "/models/gpt2"}, {"base_model_name_or_path": "./gpt2"}),
        ({"tasks": [{"dataset_name": "/data/squad"}]}, {"tasks": [{"dataset_name": "./squad"}]}),
        ({"data_files": {"train": ["/corpus.jsonl", "b"]}}, {"data_files": {"train": ["corpus.jsonl", "b"]}}),
        ({"x": "file:///mnt/x"}, {"x": "x"}),
        ({"/a/x": 1, "/b/x": 2, "/c/y": 3, "z": 4}, {"x-0": 1, "x-1": 2, "y": 3, "z": 4}),
        ({"separator": "/n"}, {}),
        ({"id2label": {"0": "/m/09x0r"}, "label2id": {"/m/09x0r": 0}}, {}),
        ({"added_tokens_decoder": {"5": {"content": "/m/09x0r"}}, "eos_token": "/s/x"}, {}),
        ({"extra_special_tokens": ["/m/x"]}, {}),
    ],
    ids=str,
)
def test_paths_are_cut_down_and_labels_and_tokens_stay(value, expected):
    name = {"_name_or_path": "model"} if "_name_or_path" in value else {}
    assert without_paths(value) == ({**expected, **name} or value)


def test_a_directory_is_looked_for_as_a_path_and_not_as_a_part_of_an_address():
    secrets = ("/datasets", "/home/ann/")
    refuse_secrets({"README.md": b"[a](https://huggingface.co/datasets/user/a) datasets/x /datasets2"}, secrets)
    for text in (b"in /datasets.", b"--to=/datasets/x", b'"/home/ann/x"', b"file:///datasets", rb'"\n/home/ann/x"'):
        with pytest.raises(NotPublishableError, match=r"notes\.md holds"):
            refuse_secrets({"notes.md": text}, secrets)


def test_the_metadata_name_nothing_local_by_what_may_be_another_dataset_on_the_hub():
    facts = json.loads((template_folder() / "examples" / "lm.json").read_text())
    results = card_metadata(facts, "user/model").eval_results
    assert {(each.dataset_type, each.dataset_config) for each in results} == {
        ("local", name) for name in ("docs", "python", "cpp")
    }
    assert len({each.unique_identifier for each in results}) == 3
