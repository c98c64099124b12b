"""`hf-infinite-lr report`: one run, or several side by side."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def report(argv: Sequence[str]) -> int:
    """
    Report on runs that `ContinualTrainer` or `hf-infinite-lr train` left behind.

    Args:
        argv (`Sequence[str]`):
            The arguments after `report`.

    Returns:
        `int`: 0, or 1 with one sentence on stderr where a run cannot be read.
    """
    arguments = _parser().parse_args(argv)
    # What a report knows of streams takes a moment to import, and `--help` should not wait for it.
    from hf_infinite_lr.report import render_comparison, render_screen, write_comparison, write_report

    try:
        if len(arguments.runs) == 1:
            if arguments.output is not None:
                raise ValueError(
                    f"--output is {arguments.output}: it is for several runs; one run has its own report/."
                )
            file = write_report(arguments.runs[0])
            text = render_screen(arguments.runs[0])
        else:
            text = render_comparison(arguments.runs)
            file = write_comparison(arguments.runs, arguments.output or "report-comparison")
    except (ValueError, OSError) as error:
        print(f"hf-infinite-lr report: {error}", file=sys.stderr)
        return 1
    print(f"{text}\n\nWritten: {file}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-infinite-lr report",
        description="One run: write RUN/report/ and print its task matrix. Several: put them side by side.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output_dir of a run")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where the comparison of several runs goes (default: report-comparison)",
    )
    return parser
