"""What a schedule does when the arguments differ from those of the checkpoint: continue, override or anneal.

Pure: a saved and a new [`ScheduleState`] go in, the state to go on with comes out; nothing is logged or written.
"""

from .annealing import annealing_phase
from .policies import resume
from .state import ScheduleState

__all__ = ["ScheduleState", "annealing_phase", "resume"]
