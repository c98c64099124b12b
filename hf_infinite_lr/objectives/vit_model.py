"""A vision transformer with a linear head (`ViTForImageClassification`), over a backbone that may be an MAE's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification
from transformers.utils import logging

from .mae_model import check_sizes
from .model_source import ModelSource, counts_only, override_config, stored_config

BACKBONES = ("vit", "vit_mae")
"""Types of pretrained models whose encoder can be the backbone."""

_HEAD = "classifier."
# What the model was before it got this head, and how it was drawn before it was trained.
_NOT_SHARED = (
    *("model_type", "architectures", "id2label", "label2id"),
    *("dtype", "transformers_version", "initializer_range"),
)


def build_vit_config(source: ModelSource) -> ViTConfig:
    """
    The configuration of the backbone.

    Args:
        source ([`ModelSource`]): A pretrained ViT or masked autoencoder, or `vit` with fields of its configuration.

    Raises:
        `ValueError`: If the model is of another type, a field is unknown, or the image is no whole number of patches.
    """
    if source.tokenizer_name is not None:
        raise ValueError(
            f"tokenizer_name={source.tokenizer_name!r} has no meaning with objective='image_classification'."
        )
    if source.model_type is not None:
        if source.model_type != "vit":
            raise ValueError(f"model_type={source.model_type!r} must be vit with objective='image_classification'.")
        config = ViTConfig()
    else:
        config = _stored_backbone(source)
    override_config(config, source.config_overrides)
    check_sizes(config)
    return config


def _stored_backbone(source: ModelSource) -> ViTConfig:
    found = stored_config(source)
    if found.model_type not in BACKBONES:
        raise ValueError(
            f"{source.origin} is a {found.model_type}, but "
            f"objective='image_classification' needs a {' or '.join(BACKBONES)}."
        )
    known = ViTConfig().to_dict()
    shared = {key: value for key, value in found.to_dict().items() if key in known}
    for key in _NOT_SHARED:
        shared.pop(key, None)
    return ViTConfig(**shared)


def build_vit(source: ModelSource, config: ViTConfig, classes: Sequence[str]) -> ViTForImageClassification:
    """
    The model, with a new head drawn from torch's global generator unless the pretrained one has a head of this size.

    Args:
        source ([`ModelSource`]): Which model.
        config ([`ViTConfig`]): Of [`build_vit_config`]; the head is written into it.
        classes (`Sequence[str]`): Names of the outputs, in their order; without any the head has one output.

    Raises:
        `ValueError`: If the pretrained model lacks weights of the backbone, or has them in other shapes.
    """
    names = list(classes) or ["any"]
    config.id2label, config.label2id = dict(enumerate(names)), {name: place for place, name in enumerate(names)}
    if source.model_name_or_path is None or counts_only():
        model = AutoModelForImageClassification.from_config(config, **source.options)
        assert isinstance(model, ViTForImageClassification)
        return model
    with _quiet():
        result: Any = ViTForImageClassification.from_pretrained(
            source.model_name_or_path,
            config=config,
            revision=source.revision,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **source.options,
        )
    model, told = result
    lost = [*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])]
    if lost := sorted(key for key in lost if not key.startswith(_HEAD)):
        raise ValueError(
            f"model_name_or_path={source.model_name_or_path!r} has no weights of the right shape for {lost[0]} "
            f"({len(lost)} in all); config_overrides must leave the backbone's sizes as they are."
        )
    assert isinstance(model, ViTForImageClassification)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from listing each weight of the decoder that is left out and of the head that is new."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
