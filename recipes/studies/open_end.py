"""The open end, as arithmetic: serving a decayed model after each of three tasks, and after a fourth."""

from collections.abc import Iterator

from arms import ANNEALING

_KNOWN = 3


def updates() -> dict[str, tuple[float, float, str]]:
    """
    What each way spends, in lengths of one task: until the third model is served, until the fourth is, and what the
    fourth starts from.
    """
    branch = ANNEALING
    anew = [sum(range(1, tasks + 1)) for tasks in (_KNOWN, _KNOWN + 1)]
    return {
        "`infinite`, `anneal_budget: within`": (_KNOWN, _KNOWN + 1, "the third task's trunk, at the constant"),
        "`infinite`, `anneal_budget: extra`": (
            _KNOWN + branch * (_KNOWN - 1),
            _KNOWN + 1 + branch * _KNOWN,
            "the third task's trunk, which has seen the branch's data too",
        ),
        "`cosine_rewarm`": (_KNOWN, _KNOWN + 1, "the third model, decayed; its rate is raised again"),
        "`warmup_stable_decay` over the three": (
            _KNOWN,
            2 * _KNOWN + 1,
            "nothing, if the one curve is to hold: its end was fixed; and the first two models are not decayed",
        ),
        "joint training, anew for each": (*anew, "nothing"),
    }


def lines() -> Iterator[str]:
    """The table, in lengths of one task."""
    yield "| schedule | until the third model | until the fourth | the fourth task starts from |"
    yield "|---|---|---|---|"
    for name, (third, fourth, start) in updates().items():
        yield f"| {name} | {third:g} | {fourth:g} | {start} |"
    yield ""
