"""Methods: what fights forgetting beyond the schedule and replay; one file each, any number together.

`methods: {mas: {weight: 0.1}, lwf: {}}` in a recipe, or `methods={"mas": {"weight": 0.1}}` in the arguments:

- `mas`, `fisher` (EWC), `l2`: a quadratic penalty towards earlier weights ([`QuadraticPenalty`]);
- `lwf`: distillation from the model of the task before ([`LearningWithoutForgetting`]);
- `gdumb`: training from scratch on a balanced buffer after each task ([`FromScratch`]);
- `joint`: training on all tasks at once, the upper bound ([`joint_stream`]).

Fine-tuning is the absence of all. Replay belongs to the stream: `replay_fraction`.
"""

from .chosen import SETTINGS, make_methods, read_methods
from .gdumb import FromScratch, GDumbSettings
from .joint import joint_stream
from .lwf import LearningWithoutForgetting, LwFSettings
from .method import Learner, Method
from .penalty import FisherSettings, L2Settings, MASSettings, QuadraticPenalty
from .samples import Samples
from .weights import FullyShardedWeights, PartitionedWeights, Weights

__all__ = [
    "SETTINGS",
    "FisherSettings",
    "FromScratch",
    "FullyShardedWeights",
    "GDumbSettings",
    "L2Settings",
    "Learner",
    "LearningWithoutForgetting",
    "LwFSettings",
    "MASSettings",
    "Method",
    "PartitionedWeights",
    "QuadraticPenalty",
    "Samples",
    "Weights",
    "joint_stream",
    "make_methods",
    "read_methods",
]
