"""What goes to the Hub, and when: Trainer's own pushes are replaced by a queue that a thread sends."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import get_model_param_count
from transformers.trainer_utils import HubStrategy

from hf_infinite_lr.files import safe_yaml, write_json
from hf_infinite_lr.hub import (
    CARD,
    CARD_FACTS,
    RECIPE,
    BackgroundSender,
    Publication,
    PublicationQueue,
    Publisher,
    changed_settings,
    check_repo_id,
    fetch_trunk,
    is_hub_revision,
    model_facts,
    release_facts,
    releases_of,
    render_card,
    weights_digest,
    without_paths,
)
from hf_infinite_lr.hub.queue import KINDS
from hf_infinite_lr.methods.head import base_of
from hf_infinite_lr.report.markdown import REPORT_FOLDER, write_report_of
from hf_infinite_lr.report.run import Run, known_matrices
from hf_infinite_lr.stream.plan import StreamPlan

from . import checkpoints
from .host import Host
from .hub_rules import check_streams_on_hub, check_trunk_from_hub, check_trunks_on_hub, publishes_trunks
from .preemption import Preemption
from .record import PRIMARY_METRIC, RunRecord

logger = logging.getLogger(__name__)

TRUNK_BRANCH = "trunk"

_PRIVATE_KEYS = ("hub_", "push_", "resume_")
_ASK_AGAIN_SECONDS = 1.0


class Publishing(Host):
    """Writes the card of every release, and puts releases and trunks into the queue where `push_to_hub` asks for it.

    `hub_strategy`: `end` publishes the last release, `every_save` every release, `checkpoint` and `all_checkpoints`
    the trunks too. Nothing else reaches the Hub.
    """

    record: RunRecord
    plan: StreamPlan
    args: Any
    other_data: Mapping[str, Any] | None = None
    """The entry, as under `tasks` of a recipe, of data for an annealing that the run's own recipe does not name."""
    benchmark_sources: Mapping[str, Mapping[str, str | None]] = MappingProxyType({})
    """Of a benchmark of `finish_release`, for the card: `scored_by`, `dataset` (a name or path) and `subset`."""
    _annealing: bool = False
    _resumed_from: Path | None = None
    _sender: BackgroundSender | None = None
    _newest_release: str | None = None

    @property
    def _output_dir(self) -> Path:
        return Path(str(self.args.output_dir))

    # ---- In place of Trainer's own -----------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Checks what can be checked without a network; the repository is created with the first publication.

        Raises:
            ValueError: for a name that the Hub would refuse, or settings under which nothing would be published.
        """
        self.push_in_progress = None
        check_repo_id(self._repo_id)
        if self.args.release == "none" and not self._publishes_trunks:
            raise ValueError(
                f"push_to_hub=True with release='none' and hub_strategy={self.args.hub_strategy.value!r} publishes "
                "nothing: choose hub_strategy='all_checkpoints' for the trunks."
            )

    def _check_publication(self) -> None:
        """Refuses trunks that cannot be published, and those that hold samples which streaming tasks keep for replay.

        Raises:
            ValueError: naming the settings, and the task or the engine.
        """
        check_trunks_on_hub(self.args, fsdp=self.is_fsdp_enabled)
        check_streams_on_hub(self.args, [task.name for task in self.plan.tasks if task.num_samples is None])

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Checkpoints are not published; trunks are, by the queue."""

    def _finish_current_push(self) -> None:
        """Waits for the queue at the end of the training; after SIGTERM there is no time to, and it keeps.

        The other processes ask again and again: one collective as long as an upload could end the job by its time-out.
        """
        if not self.args.push_to_hub:
            return
        checkpoints.asked_of_main(self.accelerator, self._queue_the_rest)
        while checkpoints.asked_of_main(self.accelerator, self._is_sending):
            pass

    def _queue_the_rest(self) -> None:
        # A run that is requeued has its last release still to come.
        if self.args.hub_strategy == HubStrategy.END and self._newest_release is not None and not self._preempted:
            self._publish("release", self._newest_release)
        self._queue_missed()

    def _is_sending(self) -> bool:
        """Waits a moment for what was queued; whether some of it is still being sent, and there is time for it."""
        if self._sender is None or self._preempted:
            return False
        return self._sender.finish(_ASK_AGAIN_SECONDS) is None

    def push_to_hub(self, *args: Any, **kwargs: Any) -> str | None:  # type: ignore[override]
        """Sends the queue and waits for it; called at the end of scripts and by `save_model`.

        Releases of this run that were never in the queue come into it first. Messages and cards are made of the run's
        data, so the arguments of `Trainer.push_to_hub` have no effect.

        Returns:
            `str`: The repository's name; None on other processes than the first.
        """
        if not self.is_world_process_zero():
            return None
        found = releases_of(self._output_dir, [task.directory for task in self.plan.tasks])
        for name in found[-1:] if self.args.hub_strategy == HubStrategy.END else found:
            self._publish("release", name)
        self._send_waiting()
        if self._sender is not None:
            self._sender.finish()
        return self._repo_id

    @property
    def _preempted(self) -> bool:
        callbacks = self.callback_handler.callbacks
        return any(isinstance(callback, Preemption) and callback.acted for callback in callbacks)

    # ---- The queue ---------------------------------------------------------------------------------------------

    @property
    def _repo_id(self) -> str:
        return str(self.args.hub_model_id or self._output_dir.resolve().name)

    @property
    def _queue(self) -> PublicationQueue:
        return PublicationQueue(self._output_dir)

    @property
    def _publishes_trunks(self) -> bool:
        return publishes_trunks(self.args)

    def _publish_trunk(self, name: str) -> None:
        if self._publishes_trunks and self.is_world_process_zero():
            self._publish("trunk", name)
            self._send()

    def _publish_release(self, name: str) -> None:
        self._newest_release = name
        if self.args.push_to_hub and self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            self._publish("release", name)
            self._send()

    def _queue_missed(self) -> None:
        """Queues what of the passed tasks neither waits nor was sent, as after a kill between a save and its queueing.

        What an earlier process has left in the queue is sent too.
        """
        if not self.args.push_to_hub or not self.is_world_process_zero():
            return
        for kind, name in () if self._annealing else self._passed():
            if checkpoints.fault_of(self._output_dir / KINDS[kind] / name, trust_unchanged=True) is None:
                self._publish(kind, name)
        self._send_waiting()

    def _passed(self) -> Iterator[tuple[str, str]]:
        """Kind and name of what `hub_strategy` publishes of the tasks up to here."""
        step = self.state.global_step
        for trunk_step, task in self.plan.trunk_points.items():
            if self._publishes_trunks and trunk_step <= step:
                yield "trunk", task.directory
            released = self.args.hub_strategy != HubStrategy.END and self.record.is_released(task)
            if released and task.end_step <= step:
                yield "release", task.directory

    def _publish(self, kind: str, name: str) -> None:
        new = self._publication(kind, name)
        if not self._queue.has_sent(new):
            self._queue.add(new)

    def _publication(self, kind: str, name: str) -> Publication:
        branch = TRUNK_BRANCH if kind == "trunk" else self.args.hub_revision or "main"
        return self._queue.publication(kind, name, self._repo_id, branch=branch, private=self.args.hub_private_repo)

    def _send_waiting(self) -> None:
        if self._queue.waiting():
            self._send()

    def _send(self) -> None:
        if self._sender is None:
            # A run hashes what it publishes when it writes the manifest.
            publisher = Publisher(
                self._output_dir, checkpoints.fault_of, token=self.args.hub_token, hashed_before=True
            )
            self._sender = BackgroundSender(self._queue, publisher)
        self._sender.notify()

    # ---- The card ----------------------------------------------------------------------------------------------

    def _describe_release(self, folder: Path) -> None:
        """Leaves card, report and recipe in a release that is still being written."""
        state = self.record.state(self.state.global_step, finished=False)
        matrices = sorted(self.record.matrices.values(), key=lambda each: (each.metric != PRIMARY_METRIC, each.metric))
        run = Run(self._output_dir, state, known_matrices(matrices), self.state.log_history)
        write_report_of(run, folder / REPORT_FOLDER)
        recipe = self._leave_recipe(folder)
        facts = release_facts(
            run,
            folder.name,
            model=self._model_facts(folder, (recipe or {}).get("model_revision")),
            settings={**changed_settings(self.args), **self._adapter_settings()},
            compute={"device": _device_name(self.args.device), "num_processes": self.args.world_size},
            recipe=self._with_other_data(recipe),
            hub={
                "repo_id": self._repo_id if self.args.push_to_hub else self.args.hub_model_id,
                "trunks": self._publishes_trunks,
                "license": self.args.hub_license,
            },
            pictures=sorted(path.name for path in (folder / REPORT_FOLDER).glob("*.png")),
            benchmark_sources=self.benchmark_sources,
            checkpoint=self._resumed_from if self._annealing else None,
        )
        write_json(folder / CARD_FACTS, facts)
        try:
            card = render_card(facts).encode()
        except Exception:  # whatever it is, a card is not worth the training
            logger.warning("releases/%s has no card", folder.name, exc_info=True)
        else:
            (folder / CARD).write_bytes(card)

    def _model_facts(self, folder: Path, base_revision: str | None) -> dict[str, Any]:
        model = self._unwrapped()
        base_model = model.config.name_or_path if isinstance(model, PreTrainedModel) else None
        return model_facts(
            folder,
            type(model).__name__,
            type(base_of(model)).__name__,
            num_parameters=get_model_param_count(model),
            num_trained=get_model_param_count(model, trainable_only=True),
            base_model=base_model,
            base_revision=base_revision,
        )

    def _adapter_settings(self) -> dict[str, Any]:
        """Of adapters, by their kind, as in `lora.r`."""
        configs = getattr(self._unwrapped(), "peft_config", {})
        return {
            f"{config.peft_type.value.lower()}.{name}": value
            for config in configs.values()
            for name, value in changed_settings(config).items()
        }

    def _leave_recipe(self, folder: Path) -> dict[str, Any] | None:
        """Copies the run's recipe without what belongs to this machine and this account; None without one."""
        file = self._output_dir / RECIPE
        if not file.exists():
            return None
        content = without_paths(safe_yaml(file.read_text(encoding="utf-8")))
        recipe = {key: value for key, value in content.items() if not key.startswith(_PRIVATE_KEYS)}
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        (folder / RECIPE).write_text(text, encoding="utf-8")
        return recipe

    def _with_other_data(self, recipe: dict[str, Any] | None) -> dict[str, Any] | None:
        if recipe is None or self.other_data is None:
            return recipe
        return {**recipe, "tasks": [*recipe["tasks"], without_paths(dict(self.other_data))]}

    # ---- From the Hub ------------------------------------------------------------------------------------------

    def _local_checkpoint(self, checkpoint: Any) -> Any:
        """A checkpoint as this run can use it: a trunk of the Hub is downloaded into `trunk/` first.

        Raises:
            ValueError: under an engine that cannot take it from there.
        """
        if not isinstance(checkpoint, str) or not is_hub_revision(checkpoint):
            return checkpoint
        check_trunk_from_hub(checkpoint, fsdp=self.is_fsdp_enabled, deepspeed=self.is_deepspeed_enabled)
        return checkpoints.asked_of_main(self.accelerator, lambda: self._fetched_trunk(checkpoint))

    def _fetched_trunk(self, checkpoint: str) -> str:
        self._output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{checkpoints.INCOMING}-", dir=self._output_dir) as aside:
            folder = Path(aside) / "downloaded"
            name = fetch_trunk(checkpoint, folder, checkpoints.fault_of, token=self.args.hub_token)
            self._take_trunk(folder, self._output_dir / "trunk" / name, checkpoint)
        return str(self._output_dir / "trunk" / name)

    def _take_trunk(self, folder: Path, target: Path, checkpoint: str) -> None:
        """Puts a downloaded trunk where the run looks for it, and never over another one."""
        if not target.exists():
            checkpoints.move_into_place(folder, target)
        elif weights_digest(target) != weights_digest(folder):
            raise ValueError(
                f"resume_from_checkpoint={checkpoint!r} would take the place of {str(target)!r}, which holds other "
                "weights: name another output_dir."
            )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
