"""What a continual run left behind, for a reader: on screen, as Markdown and as pictures."""

from hf_infinite_lr.report.comparison import render_comparison, write_comparison
from hf_infinite_lr.report.markdown import write_report
from hf_infinite_lr.report.run import Run, read_run
from hf_infinite_lr.report.screen import render_screen

__all__ = ["Run", "read_run", "render_comparison", "render_screen", "write_comparison", "write_report"]
