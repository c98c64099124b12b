"""Which trunks go to the Hub, and which can come from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.trainer_utils import HubStrategy


def publishes_trunks(args: Any) -> bool:
    """Whether trunks go to the Hub.

    Args:
        args (`TrainingArguments`): Of the run.
    """
    return args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)


def check_trunks_on_hub(args: Any, *, fsdp: bool) -> None:
    """Refuses to publish trunks that no other run could be given.

    Args:
        args ([`ContinualTrainingArguments`]): Of the run.
        fsdp (`bool`): Whether the engine is FSDP.

    Raises:
        ValueError: naming the setting and what to choose.
    """
    if fsdp and publishes_trunks(args):
        raise ValueError(
            f"hub_strategy={args.hub_strategy.value!r} cannot be used with FSDP, whose trunks are shards and pickles "
            "that are not published: choose hub_strategy='every_save'."
        )


def check_streams_on_hub(args: Any, streaming: Sequence[str]) -> None:
    """Refuses to publish the samples that streaming tasks keep for replay.

    Args:
        args ([`ContinualTrainingArguments`]): Of the run.
        streaming (`Sequence[str]`): Names of its streaming tasks.

    Raises:
        ValueError: naming the settings, the first of the tasks and what to choose.
    """
    if streaming and args.replay_fraction and publishes_trunks(args):
        raise ValueError(
            f"hub_strategy={args.hub_strategy.value!r} with replay_fraction={args.replay_fraction} would publish the "
            f"samples that the streaming task {streaming[0]!r} keeps for replay, which lie in every trunk: choose "
            "hub_strategy='every_save'."
        )


def check_trunk_from_hub(checkpoint: str, *, fsdp: bool, deepspeed: bool) -> None:
    """Refuses to take a trunk from the Hub under an engine that would unpickle it, or could not load it at all.

    Args:
        checkpoint (`str`): `user/model@revision`.
        fsdp (`bool`): Whether the engine is FSDP.
        deepspeed (`bool`): Whether it is DeepSpeed.

    Raises:
        ValueError: naming the checkpoint and what to do instead.
    """
    what = f"resume_from_checkpoint={checkpoint!r} cannot be used with"
    if fsdp:
        raise ValueError(
            f"{what} FSDP, which goes on from its own trunks alone, and those are not published: continue from a "
            "trunk on this machine."
        )
    if deepspeed:
        raise ValueError(
            f"{what} DeepSpeed, which unpickles what it loads: if you trust it, and it was written by the same engine "
            "on the same number of processes, download it yourself (hf download) and pass its path."
        )
