"""The one line in which a schedule says what it will do, and which checkpoint to continue from."""

import logging
import os
import sys
from weakref import WeakSet

from tqdm import tqdm

from hf_infinite_lr.schedules import REWARM_DECAYS, Phase, Schedule

logger = logging.getLogger(__name__)

_TASKS_IN_WORDS = 3


def format_rate(rate: float) -> str:
    """Write a rate with a short mantissa.

    >>> [format_rate(rate) for rate in (3e-4, 2.25e-4, 1e-10, 0.0, 1.0)]
    ['3.0e-4', '2.25e-4', '1.0e-10', '0', '1.0']
    """
    if rate == 0:
        return "0"
    mantissa, exponent = f"{rate:.3e}".split("e")
    digits = mantissa.rstrip("0")
    digits += "0" if digits.endswith(".") else ""
    return digits if int(exponent) == 0 else f"{digits}e{int(exponent)}"


def _phase_words(phase: Phase, first_step: int, peak: float) -> str:
    rate = format_rate(peak * phase.end)
    end = first_step + (phase.num_steps or 0)
    words = {
        "warmup": f"{'re-warm-up' if phase.task else 'warm-up'} {first_step}–{end} (to {rate})",
        "cooldown_to_constant": f"cool-down to the constant {first_step}–{end} (to {rate})",
        "constant": "constant without an end" if phase.num_steps is None else f"constant to {end}",
        "anneal": f"annealing to {end} (to {rate})",
        "cosine_decay": f"cosine to {end} (to {rate})",
        "rsqrt_decay": f"reciprocal square root to {end} (to {rate})",
        "linear_end": f"linear end to {end} (to {rate})",
    }
    return words[phase.name]


def describe(name: str, schedule: Schedule, learning_rate: float, num_training_steps: int | None = None) -> str:
    """Say in one line what a schedule will do, and which checkpoint to continue from.

    Args:
        name (`str`):
            Name of the schedule.
        schedule ([`~hf_infinite_lr.schedules.Schedule`]):
            The schedule.
        learning_rate (`float`):
            The peak.
        num_training_steps (`int`, *optional*):
            Where the run stops; the schedule's end when it is not given.

    Returns:
        `str`: the phases of the first tasks, then the advice.

    >>> from hf_infinite_lr.schedules import infinite
    >>> schedule = infinite(
    ...     [100], num_warmup_steps=5, num_cooldown_steps=30, anneal_steps=[20], constant_ratio=0.75, min_ratio=0.1
    ... )
    >>> print(describe("infinite", schedule, 3e-4))  # doctest: +NORMALIZE_WHITESPACE
    infinite: warm-up 0–5 (to 3.0e-4), cool-down to the constant 5–35 (to 2.25e-4), constant to 80,
    annealing to 100 (to 3.0e-5). To continue on new data later, use checkpoint-80, not checkpoint-100.
    """
    tasks: dict[int, list[str]] = {}
    for phase, first_step in zip(schedule.phases, schedule.boundaries, strict=False):
        if len(tasks) == _TASKS_IN_WORDS and phase.task not in tasks:
            break
        tasks.setdefault(phase.task, []).append(_phase_words(phase, first_step, learning_rate))
    sentences = [f"task {task + 1}: {', '.join(words)}" if task else ", ".join(words) for task, words in tasks.items()]
    num_left = schedule.phases[-1].task + 1 - len(tasks)
    if num_left > 0:
        sentences.append(f"and {num_left} more tasks to {schedule.boundaries[-1]}")
    return f"{name}: {'; '.join(sentences)}. {_advice(schedule, num_training_steps)}".rstrip()


def _advice(schedule: Schedule, num_training_steps: int | None) -> str:
    if any(phase.name in REWARM_DECAYS for phase in schedule.phases):
        return ""
    end = schedule.num_steps if num_training_steps is None else num_training_steps
    reached = [point for point in schedule.branch_points if end is None or point.first_step < end]
    if not reached or (
        end is not None and end > reached[-1].end_step and schedule(end) != schedule(reached[-1].end_step)
    ):
        return "Nothing is annealed at the end: continue on new data from the last checkpoint."
    stop = reached[-1].end_step if end is None else end
    return f"To continue on new data later, use checkpoint-{reached[-1].first_step}, not checkpoint-{stop}."


def is_main_process() -> bool:
    """Whether this is the process that talks: the one with rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


class ConsoleHandler(logging.Handler):
    """Writes the package's records to standard error, unless a handler of the root logger writes to the console.

    It writes through tqdm, so that a line does not tear the progress bar that is on screen.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record to the present `sys.stderr`, once per job."""
        if is_main_process() and not any(_prints(handler, record) for handler in logging.getLogger().handlers):
            tqdm.write(self.format(record), file=sys.stderr)


def _prints(handler: logging.Handler, record: logging.LogRecord) -> bool:
    on_console = isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stderr, sys.stdout)
    return on_console and record.levelno >= handler.level


def show_on_console() -> None:
    """Make the package's own log lines visible at the default verbosity; a level or handler set before stays."""
    package = logging.getLogger("hf_infinite_lr")
    if package.level == logging.NOTSET:
        package.setLevel(logging.INFO)
    if not package.handlers:
        package.addHandler(ConsoleHandler())


trunk_savers: WeakSet[object] = WeakSet()
"""What saves the branch point: living callbacks of the class [`~hf_infinite_lr.callbacks.TrunkCheckpointCallback`], or
the class itself, when every Trainer makes one."""


def announce(
    name: str, schedule: Schedule, learning_rate: float, num_training_steps: int, num_warmup_steps: int
) -> None:
    """Log the line of [`describe`] on the main process, and what the user should know besides.

    That is how to save the branch point if nothing saves it, that tasks which end before the run leave it a rest at
    the last rate, and that Trainer takes a warm-up share of the whole run and not of the first task: here it arrives
    in steps, so that both cannot be told apart.

    Args:
        name (`str`):
            Name of the schedule.
        schedule ([`~hf_infinite_lr.schedules.Schedule`]):
            The schedule.
        learning_rate (`float`):
            The peak.
        num_training_steps (`int`):
            Where the run stops.
        num_warmup_steps (`int`):
            The warm-up as Trainer resolved it.
    """
    if not is_main_process():
        return
    if num_warmup_steps and schedule.phases[-1].task > 0:
        logger.warning(
            f"{name}: the run has several tasks, and the warm-up is {num_warmup_steps} steps; if warmup_steps was"
            f" given as a share, Trainer took it of the whole run ({num_training_steps} steps) and not of the first"
            " task."
        )
    end, last = schedule.num_steps, schedule.phases[-1]
    if end is not None and end < num_training_steps and last.name != "constant":
        logger.warning(
            f"{name}: the tasks of task_steps end at step {end}, but the run at {num_training_steps}: the rest trains"
            f" at the last rate ({format_rate(learning_rate * last.end)})."
        )
    line = describe(name, schedule, learning_rate, num_training_steps)
    if "use checkpoint-" in line and not trunk_savers:
        line += (
            " To be sure that it is saved, add callbacks=[hf_infinite_lr.TrunkCheckpointCallback()] or start the"
            " script with `hf-infinite-lr run`."
        )
    logger.info(line)


def announce_resumed(
    name: str, schedule: Schedule, learning_rate: float, num_training_steps: int | None, position: int
) -> None:
    """Log the line of [`describe`] for what a resumed run does instead of what was announced, on the main process.

    Args:
        name (`str`):
            As for [`announce`], and so are the next three.
        schedule ([`~hf_infinite_lr.schedules.Schedule`]):
            The schedule in force.
        learning_rate (`float`):
            The peak in force.
        num_training_steps (`int` or `None`):
            Where the run stops, if that is known.
        position (`int`):
            The step of the checkpoint.
    """
    if is_main_process():
        logger.info(f"resumed at step {position}: {describe(name, schedule, learning_rate, num_training_steps)}")
