"""The papers' claims, and the comparisons that speak for or against each."""

from dataclasses import dataclass

from verdicts import MARGINS

AVERAGE, LOST, LEARNED = "final average", "lost since learned", "right after learning"
NOT_TESTABLE = "not testable here"
_PRIMARY = ("lm-no-replay", "lm-replay", "lm-ten", "mae-no-replay", "mae-replay", "mae-ten")
_AND_LONG = (*_PRIMARY, "lm-long")


@dataclass(frozen=True)
class Comparison:
    """
    Whether one arm is better than another, or on par with it.

    Args:
        first, second (`tuple[str, str]`): Table and arm.
        measure (`str`): What is compared.
        par (`bool`): Whether the claim is that they are on par, and not that the first is better.
    """

    first: tuple[str, str]
    second: tuple[str, str]
    measure: str = AVERAGE
    par: bool = False

    def margin(self, metric: str) -> float | None:
        """Of being on par; None where the claim is that the first is better."""
        return MARGINS[metric] if self.par else None


@dataclass(frozen=True)
class Claim:
    """
    Something that a paper says.

    Args:
        source (`str`): Which paper.
        text (`str`): The claim.
        comparisons (`tuple[Comparison, ...]`): What speaks for or against it here.
        reason (`str`): Why there is none.
    """

    source: str
    text: str
    comparisons: tuple[Comparison, ...] = ()
    reason: str = ""


def _each(tables: tuple[str, ...], first: str, second: str, **more) -> tuple[Comparison, ...]:
    return tuple(Comparison((table, first), (table, second), **more) for table in tables)


def _replay(arm: str) -> tuple[Comparison, ...]:
    kinds = ("lm", "mae")
    return tuple(Comparison((f"{kind}-replay", arm), (f"{kind}-no-replay", arm), measure=LOST) for kind in kinds)


_HIGHER = ("cosine_rewarm", "cosine_half_peaks")
CLAIMS = (
    Claim(
        "Singh et al. 2025",
        "The infinite schedule ends ahead of the repeated cosine.",
        _each(_PRIMARY, "infinite", "cosine_rewarm"),
    ),
    Claim(
        "Singh et al. 2025",
        "The repeated cosine forgets while re-warming; the infinite schedule forgets less.",
        _each(_PRIMARY, "infinite", "cosine_rewarm", measure=LOST),
    ),
    Claim(
        "Singh et al. 2025",
        "The lead stays at scale, and in zero-shot benchmarks.",
        reason="models of 10^4 to 10^6 parameters, some hundred to two thousand updates",
    ),
    Claim(
        "Ibrahim et al. 2024", "5 % replay reduces forgetting much.", _replay("infinite") + _replay("cosine_rewarm")
    ),
    Claim(
        "Ibrahim et al. 2024",
        "Re-warming, re-decaying, fresh optimizer states and 5 % replay match training on the union.",
        _each(("lm-replay", "mae-replay"), "cosine_reset", "joint_cosine", par=True),
    ),
    Claim(
        "Ibrahim et al. 2024",
        "On identically distributed parts the infinite schedule is on par with the repeated cosine.",
        _each(("lm-weak",), "infinite", "cosine_rewarm", par=True),
    ),
    Claim(
        "Ibrahim et al. 2024",
        "Higher peaks adapt more and forget more.",
        _each(_PRIMARY, *_HIGHER, measure=LEARNED) + _each(_PRIMARY, *reversed(_HIGHER), measure=LOST),
    ),
    Claim(
        "Ibrahim et al. 2024, Gupta et al. 2023",
        "Warm-ups of 0 and of 2 % of a task end on par.",
        _each(("lm-no-replay",), "cosine_no_warmup", "cosine_2_warmup", par=True),
    ),
    Claim(
        "Gupta et al. 2023",
        "Re-warming first raises both losses, and in the long run beats training from scratch on the new data.",
        reason="no evaluation inside a task and no run from scratch on a later task; open",
    ),
    Claim(
        "Hu et al. 2022",
        "With simple replay, sequential self-supervised training is mostly on par with joint training.",
        _each(("mae-replay",), "infinite", "joint_infinite", par=True)
        + _each(("mae-replay",), "cosine_rewarm", "joint_cosine", par=True),
    ),
    Claim(
        "Hu et al. 2022",
        "Forgetting is milder than in supervised learning; minima and representations tell why.",
        reason="no supervised learner, no sharpness measured; open",
    ),
    Claim(
        "Guo et al. 2024",
        "The stability gap and its three remedies.",
        reason="needs a pre-trained model and benchmarks of a target domain",
    ),
)

QUESTIONS = {
    "(a) Is `infinite` ahead of `cosine_rewarm`?": _each(_AND_LONG, "infinite", "cosine_rewarm"),
    "(b) How far is each from joint training under its own schedule?": (
        _each(_AND_LONG, "infinite", "joint_infinite") + _each(_AND_LONG, "cosine_rewarm", "joint_cosine")
    ),
    "(c) What do the updates of `anneal_budget: extra` buy?": (
        _each(_AND_LONG, "infinite_extra", "infinite") + _each(_AND_LONG, "infinite_extra", "cosine_rewarm")
    ),
    "(d) What does a single decay at a known end buy?": _each(_AND_LONG, "warmup_stable_decay", "infinite"),
    "(e) What does going back to the trunk buy?": _each(_PRIMARY, "infinite", "infinite_no_rewind"),
}
"""The questions of tier 1, over all primary tables; those with ten tasks are the question of many tasks."""
