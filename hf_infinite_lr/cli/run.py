"""`hf-infinite-lr run script.py ...`: a script that was not written for this package, with our schedules known."""

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_infinite_lr.announcement import is_main_process
from hf_infinite_lr.registry import install_trunk_callback, register


def parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's own arguments; all behind the script belongs to the script."""
    run_parser = argparse.ArgumentParser(
        prog="hf-infinite-lr run",
        description="Run a Python script with the schedules infinite, cosine_rewarm and rsqrt_rewarm known to "
        "transformers, and"
        " with the callback that saves the branch point.",
    )
    run_parser.add_argument("script", help="path of the script, as for python")
    run_parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the script, unchanged")
    return run_parser


def run(argv: Sequence[str]) -> int:
    """Run a script as `python script.py ...` would.

    With one difference: torch and transformers are imported before the script's first line. Environment variables that
    they read on import (`HF_HOME`, `OMP_NUM_THREADS`) must therefore be set before the command, not inside the script.

    Args:
        argv (`Sequence[str]`):
            Path of the script, and behind it the script's own arguments.

    Returns:
        `int`: the script's exit code; 1 when there is no such script.
    """
    arguments = parser().parse_args(argv)
    script = Path(arguments.script)
    if not script.is_file():
        print(f"hf-infinite-lr run: script={arguments.script!r} must be a Python file that exists.", file=sys.stderr)
        return 1
    register()
    install_trunk_callback()
    sys.argv = [arguments.script, *arguments.arguments]
    sys.path.insert(0, str(script.resolve().parent))
    code = _exit_code(arguments.script)
    leave_process_group(wait=code == 0)
    return code


def _exit_code(script: str) -> int:
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    return 0


def talk_once() -> None:
    """Leave the bars of datasets and transformers to the main process, before data is read and a model loaded."""
    if not is_main_process():
        from datasets import disable_progress_bars
        from transformers.utils import logging

        disable_progress_bars()
        logging.disable_progress_bar()


def leave_process_group(*, wait: bool) -> None:
    """Take leave of the other processes, if the script started a group and left it open.

    Args:
        wait (`bool`):
            Wait for the others first, which a process that failed must not do.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        if wait:
            distributed.barrier()
        distributed.destroy_process_group()
