"""A learning rate of their own for the embeddings, which a new domain should move less than the rest."""

from __future__ import annotations

from typing import Any

import torch


def separate_embeddings(optimizer: torch.optim.Optimizer, model: Any, learning_rate: float) -> None:
    """Moves the input and output embeddings into parameter groups with their own peak.

    The schedule's shape is common to all groups, so the ratio of the rates stays the same in every phase. All other
    settings of the groups stay as they are.

    Args:
        optimizer (`torch.optim.Optimizer`): Fresh, with groups as Trainer makes them.
        model (`PreTrainedModel` or `PeftModel`): Whose parameters these are.
        learning_rate (`float`): The peak of the embeddings.

    Raises:
        ValueError: if no embedding is trained.
    """
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    embeddings = {id(parameter) for layer in layers for parameter in layer.parameters()}
    found = False
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in embeddings]
        if own:
            found = True
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in embeddings]
            optimizer.add_param_group({**group, "params": own, "lr": learning_rate})
    if not found:
        raise ValueError(
            f"embedding_learning_rate={learning_rate}: the model trains no embedding; name it in lora.modules_to_save "
            "or lora.target_modules, or leave the rate out."
        )
