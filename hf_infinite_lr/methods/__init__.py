"""Methods: what fights forgetting beyond the schedule and replay; one file each, any number together.

`methods: {mas: {weight: 0.1}, lwf: {}}` in a recipe, or `methods={"mas": {"weight": 0.1}}` in the arguments:

- `mas`, `fisher` (EWC), `l2`: a quadratic penalty towards earlier weights ([`QuadraticPenalty`]);
- `lwf`: distillation from the model of the task before ([`LearningWithoutForgetting`]);
- `gdumb`: training from scratch on a balanced buffer after each task ([`FromScratch`]);
- `slca`: a slow backbone and a classifier aligned on Gaussians of the classes ([`SlowLearner`]);
- `lae`: an adapter, its moving average, and the maximum of their predictions ([`AdapterEnsemble`]);
- `nearest_class_mean`: nothing is trained, the baseline of the two ([`NearestClassMean`]);
- `attention_preserving`: fine-tuning that leaves attention maps in their places ([`AttentionPreserving`]);
- `joint`: training on all tasks at once, the upper bound ([`joint_stream`]).

Fine-tuning is the absence of all. Replay belongs to the stream: `replay_fraction`.
"""

from .attention import AttentionPreserving, AttentionSettings
from .chosen import SETTINGS, make_methods, read_methods
from .gdumb import FromScratch, GDumbSettings
from .joint import joint_stream
from .lae import AdapterEnsemble, LAESettings
from .lwf import LearningWithoutForgetting, LwFSettings
from .method import Learner, Method
from .nearest_mean import NearestClassMean, NearestMeanSettings
from .penalty import FisherSettings, L2Settings, MASSettings, QuadraticPenalty
from .samples import Samples
from .slca import SLCASettings, SlowLearner
from .weights import FullyShardedWeights, PartitionedWeights, Weights

__all__ = [
    "SETTINGS",
    "AdapterEnsemble",
    "AttentionPreserving",
    "AttentionSettings",
    "FisherSettings",
    "FromScratch",
    "FullyShardedWeights",
    "GDumbSettings",
    "L2Settings",
    "LAESettings",
    "Learner",
    "LearningWithoutForgetting",
    "LwFSettings",
    "MASSettings",
    "Method",
    "NearestClassMean",
    "NearestMeanSettings",
    "PartitionedWeights",
    "QuadraticPenalty",
    "SLCASettings",
    "Samples",
    "SlowLearner",
    "Weights",
    "joint_stream",
    "make_methods",
    "read_methods",
]
