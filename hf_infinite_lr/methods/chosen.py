"""The argument `methods`: which methods a run uses, and with which settings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from hf_infinite_lr.keys import nearest

from .attention import AttentionPreserving, AttentionSettings
from .gdumb import FromScratch, GDumbSettings
from .joint import JOINT, JointSettings
from .lae import AdapterEnsemble, LAESettings
from .lwf import LearningWithoutForgetting, LwFSettings
from .method import Method
from .nearest_mean import NearestClassMean, NearestMeanSettings
from .penalty import FisherSettings, L2Settings, MASSettings, QuadraticPenalty
from .slca import SLCASettings, SlowLearner

SETTINGS: dict[str, type] = {
    "mas": MASSettings,
    "fisher": FisherSettings,
    "l2": L2Settings,
    "lwf": LwFSettings,
    FromScratch.name: GDumbSettings,
    JOINT: JointSettings,
    SlowLearner.name: SLCASettings,
    AdapterEnsemble.name: LAESettings,
    NearestClassMean.name: NearestMeanSettings,
    AttentionPreserving.name: AttentionSettings,
}
"""The names of methods and the dataclass of each one's keys."""

RUN_MODES = (FromScratch.name, JOINT)
"""Methods that say what a run trains on; each stands alone."""

CLASSIFIERS = (SlowLearner.name, AdapterEnsemble.name, NearestClassMean.name)
"""Methods that say how classes are predicted; one at most."""

_ELSEWHERE = {
    "ncm": "methods.nearest_class_mean",
    "ewc": "methods.fisher",
    "replay": "replay_fraction",
    "er": "replay_fraction",
    "finetuning": "no method at all",
    "none": "no method at all",
}
_POSITIVE = ("must be a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf)
_SHARE = ("must be at least 0 and at most 1", lambda value: type(value) in (int, float) and 0 <= value <= 1)
_WHOLE = ("must be a whole number above 0", lambda value: type(value) is int and value > 0)
_RULES = {
    "weight": _POSITIVE,
    "alpha": ("must be at least 0 and below 1", lambda value: type(value) in (int, float) and 0 <= value < 1),
    "num_samples": _WHOLE,
    "buffer_size": _WHOLE,
    "backbone_rate": _POSITIVE,
    "alignment_rate": _POSITIVE,
    "alignment_epochs": _WHOLE,
    "alignment_samples": _WHOLE,
    "decay": _SHARE,
    "frozen_share": _SHARE,
    "label_column": ("must be the name of a column", lambda value: value is None or isinstance(value, str)),
}


def read_methods(given: Any) -> dict[str, Any]:
    """The settings of each chosen method by name.

    Args:
        given (`Mapping`, `str` or None): `{"mas": {"weight": 0.1}}`; on a command line the same as JSON. A method
            without keys may have None.

    Raises:
        ValueError: naming the key, its value and the rule.

    Example:

    ```python
    >>> read_methods({"mas": {"weight": 0.5}})
    {'mas': MASSettings(weight=0.5, alpha=0.1, num_samples=256)}

    ```
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ValueError(f"methods={given!r} must be a mapping of names to settings, as JSON: {error}.") from None
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"methods={given!r} must be a mapping of names to settings.")
    chosen = {name: _settings(name, {} if keys is None else keys) for name, keys in given.items()}
    for mode in RUN_MODES:
        if mode in chosen and len(chosen) > 1:
            others = ", ".join(name for name in chosen if name != mode)
            raise ValueError(f"methods: {mode} says what the whole run trains on and stands alone, not with {others}.")
    if len(several := [name for name in CLASSIFIERS if name in chosen]) > 1:
        raise ValueError(f"methods: {' and '.join(several)} each say how classes are predicted: choose one of them.")
    return chosen


def _settings(name: Any, keys: Any) -> Any:
    if name not in SETTINGS:
        hint = f"; here it is {_ELSEWHERE[name]}" if name in _ELSEWHERE else nearest(str(name), SETTINGS)
        raise ValueError(f"methods.{name} is no method ({', '.join(SETTINGS)}){hint}.")
    if not isinstance(keys, Mapping):
        raise ValueError(f"methods.{name}={keys!r} must be a mapping of keys to values.")
    known = {item.name: item for item in fields(SETTINGS[name])}
    for key, value in keys.items():
        if key not in known:
            hint = "; here it is weight" if key == "lambda" else nearest(str(key), known)
            raise ValueError(f"methods.{name}.{key}={value!r} is an unknown key{hint}.")
        rule, holds = _RULES[key]
        if not holds(value):
            raise ValueError(f"methods.{name}.{key}={value!r} {rule}.")
    for key, item in known.items():
        if item.default is MISSING and key not in keys:
            raise ValueError(f"methods.{name}.{key} is missing: it has no default.")
    return SETTINGS[name](**keys)


def make_methods(chosen: Mapping[str, Any]) -> list[Method]:
    """The methods that act while training, of [`read_methods`]; joint training needs none."""
    penalties = [name for name in chosen if isinstance(chosen[name], (FisherSettings, L2Settings))]
    made: dict[str, Method] = {name: QuadraticPenalty(name, chosen[name]) for name in penalties}
    made |= {name: _KINDS[name](settings) for name, settings in chosen.items() if name in _KINDS}
    return [made[name] for name in chosen if name in made]


_KINDS: dict[str, Callable[[Any], Method]] = {
    kind.name: kind
    for kind in (
        LearningWithoutForgetting,
        FromScratch,
        SlowLearner,
        AdapterEnsemble,
        NearestClassMean,
        AttentionPreserving,
    )
}
