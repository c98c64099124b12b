"""Which policy decides how to go on from a checkpoint."""

from dataclasses import replace

from .annealing import anneal_from
from .continuing import continue_from
from .state import ScheduleState


def resume(saved: ScheduleState, new: ScheduleState, *, rewinds: bool = False) -> ScheduleState:
    """Decide how to go on from a checkpoint.

    Equal arguments go on as saved. Else `continue` keeps the travelled phases, the current one and the rates of every
    kind of phase that the checkpoint has, and takes lengths and shapes of later phases from `new`, as well as the end
    of a constant under way; `override` takes all of `new`; `anneal` starts annealing at the saved position. The
    result carries the new arguments, so that the same policy does not act again.

    Args:
        saved ([`ScheduleState`]):
            From the checkpoint.
        new ([`ScheduleState`]):
            From the arguments of this run; its position is ignored.
        rewinds (`bool`, *optional*, defaults to `False`):
            The caller goes back to the trunk by itself, so that an annealed checkpoint need not be refused.

    Returns:
        [`ScheduleState`]: at the saved position; `saved` itself where nothing is to be decided.

    Raises:
        `ValueError`: when the policy cannot act; one sentence that says what can be done.
    """
    if len(saved.base_lrs) != len(new.base_lrs):
        raise ValueError(
            f"The checkpoint's scheduler has {len(saved.base_lrs)} parameter groups, but the optimizer has"
            f" {len(new.base_lrs)}; they must agree."
        )
    same = (saved.name, saved.arguments) == (new.name, new.arguments) and not new.asks_other_peaks_than(saved)
    if same and new.on_resume in ("continue", saved.on_resume):
        return saved
    if new.on_resume == "continue":
        return continue_from(saved, new, rewinds=rewinds)
    if new.on_resume == "anneal":
        return anneal_from(saved, new)
    return replace(new, position=saved.position)
