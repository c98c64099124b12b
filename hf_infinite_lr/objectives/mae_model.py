"""The masked autoencoder of a recipe (He et al. 2022, arXiv 2111.06377) as transformers has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForPreTraining,
    ViTConfig,
    ViTImageProcessorPil,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from .model_source import ModelSource, counts_only, override_config, stored_config

MODEL_TYPE = "vit_mae"


def build_config(source: ModelSource) -> ViTMAEConfig:
    """
    The configuration of a masked autoencoder.

    Args:
        source ([`ModelSource`]): A pretrained model, or `vit_mae` with fields of its configuration.

    Raises:
        `ValueError`: If the model is of another type, a field is unknown, or the image is no whole number of patches.
    """
    if source.tokenizer_name is not None:
        raise ValueError(f"tokenizer_name={source.tokenizer_name!r} has no meaning with objective='mae'.")
    if source.model_type is not None:
        if source.model_type != MODEL_TYPE:
            raise ValueError(f"model_type={source.model_type!r} must be {MODEL_TYPE} with objective='mae'.")
        config = AutoConfig.for_model(MODEL_TYPE)
    else:
        config = stored_config(source)
        if config.model_type != MODEL_TYPE:
            raise ValueError(f"{source.origin} is a {config.model_type}, but objective='mae' needs a {MODEL_TYPE}.")
    override_config(config, source.config_overrides)
    check_sizes(config)
    assert isinstance(config, ViTMAEConfig)
    return config


def check_sizes(config: Any) -> None:
    """
    Refuses a vision transformer whose images are not square, no whole number of patches, or of other channels.

    Raises:
        `ValueError`: naming the field.
    """
    for key in ("image_size", "patch_size"):
        if type(getattr(config, key)) is not int:
            raise ValueError(f"config_overrides.{key}={getattr(config, key)!r} must be a whole number of pixels.")
    if config.image_size % config.patch_size:
        raise ValueError(
            f"config_overrides.image_size={config.image_size} is not divisible by patch_size={config.patch_size}."
        )
    if config.num_channels not in (1, 3):
        raise ValueError(f"config_overrides.num_channels={config.num_channels} must be 1 (grey) or 3 (RGB).")


def num_patches(config: ViTMAEConfig | ViTConfig) -> int:
    """Patches of an image."""
    side = int(config.image_size) // int(config.patch_size)  # type: ignore[arg-type]  # whole numbers, as checked
    return side * side


def build_mae(source: ModelSource, config: ViTMAEConfig) -> ViTMAEForPreTraining:
    """
    Loads a pretrained masked autoencoder, or makes a new one (its weights drawn from torch's global generator).

    Args:
        source ([`ModelSource`]): Which model.
        config ([`ViTMAEConfig`]): Of [`build_config`].
    """
    if source.model_name_or_path is None or counts_only():
        model = AutoModelForPreTraining.from_config(config, **source.options)
        assert isinstance(model, ViTMAEForPreTraining)
        if source.model_name_or_path is None:
            set_positions(model)
        return model
    return ViTMAEForPreTraining.from_pretrained(
        source.model_name_or_path, config=config, revision=source.revision, **source.options
    )


def set_positions(model: ViTMAEForPreTraining) -> None:
    """
    Gives a new model its fixed sine-cosine position embeddings.

    transformers 5 leaves them at zero in a model that is not loaded: the encoder passes its own initialisation over,
    because the projection inside it counts as initialised, and the decoder's are zeroed after they were set. Without
    positions a masked autoencoder can only learn the mean of what is masked.
    """
    embeddings = model.vit.embeddings
    embeddings.patch_embeddings.projection._is_hf_initialized = False  # type: ignore[assignment]
    with torch.no_grad():
        embeddings.initialize_weights()
        model.decoder.initialize_weights(embeddings.patch_embeddings.num_patches)


def build_processor(
    source: ModelSource, config: ViTMAEConfig | ViTConfig, mean: Sequence[float] | None, std: Sequence[float] | None
) -> ViTImageProcessorPil:
    """
    What turns images into this model's inputs, saved with every release.

    Args:
        source ([`ModelSource`]): Which model.
        config ([`ViTMAEConfig`]): Its configuration.
        mean (`Sequence[float]`, *optional*): Of each channel; by default the pretrained model's, else 0.5.
        std (`Sequence[float]`, *optional*): Of each channel; the same defaults.
    """
    known = None if source.model_name_or_path is None else _pretrained_processor(source)
    half = [0.5] * config.num_channels
    side = int(config.image_size)  # type: ignore[arg-type]  # a whole number, as checked
    return ViTImageProcessorPil(
        size={"height": side, "width": side},
        image_mean=list(mean or (half if known is None else known.image_mean)),
        image_std=list(std or (half if known is None else known.image_std)),
    )


def _pretrained_processor(source: ModelSource) -> Any:
    # The one that works on Pillow's images alone: torchvision is no dependency.
    return AutoImageProcessor.from_pretrained(source.model_name_or_path, revision=source.revision, backend="pil")


@contextmanager
def unmasked(model: ViTMAEForPreTraining) -> Iterator[None]:
    """Lets the encoder see every patch."""
    ratio, model.config.mask_ratio = model.config.mask_ratio, 0.0
    try:
        yield
    finally:
        model.config.mask_ratio = ratio


def encode(model: ViTMAEForPreTraining, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    What the encoder makes of whole images, patches in their order: shape (batch, 1 + patches, width), CLS first.

    Args:
        model (`ViTMAEForPreTraining`): In the mode that it is in; call it under [`unmasked`].
        pixel_values (`torch.Tensor`): Shape (batch, channels, size, size).
    """
    order = torch.arange(num_patches(model.config), device=pixel_values.device, dtype=torch.float32)
    hidden: torch.Tensor = model.vit(pixel_values, noise=order.expand(len(pixel_values), -1)).last_hidden_state
    return hidden
