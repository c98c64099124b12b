"""Learning rates of single parameters that are not `learning_rate`: of embeddings, and of what a method slows down."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from hf_infinite_lr.lr_scheduler import peak_rate

from .host import Host


class OwnRates(Host):
    """Gives parameters groups with rates of their own."""

    args: Any
    _rate_of: Callable[[str], float]

    def _check_given_optimizer(self) -> None:
        """Refuses rates of the caller's optimizer that are not those of which the arguments speak.

        Raises:
            ValueError: naming field, value and rule.
        """
        if self.optimizer is None:
            rate = (self.optimizer_cls_and_kwargs or (None, {}))[1].get("lr")
        else:
            rate = peak_rate(self.optimizer)
            names = [name for name, _ in self._unwrapped().named_parameters()]
            if self.args.embedding_learning_rate is not None or any(self._rate_of(name) != 1 for name in names):
                raise ValueError(
                    "optimizers: an optimizer that is given has its groups already, so that embedding_learning_rate "
                    "and methods.slca cannot give parameters rates of their own; leave them out, or the optimizer."
                )
        if rate is not None and rate != self.args.learning_rate:
            raise ValueError(
                f"learning_rate={self.args.learning_rate} must be the rate of the optimizer that is given, {rate}: "
                "absolute rates of the schedule and the record refer to it."
            )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As the host's, with a group of their own for parameters that have their own rate."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            owner = self._unwrapped(model)
            separate_slow(optimizer, owner, self.args.learning_rate, self._rate_of)
            if self.args.embedding_learning_rate is not None:
                separate_embeddings(optimizer, owner, self.args.embedding_learning_rate)
        return optimizer


def separate(optimizer: torch.optim.Optimizer, parameters: Collection[nn.Parameter], learning_rate: float) -> bool:
    """Moves parameters into groups with their own peak; whether the optimizer had any of them.

    The schedule's shape is common to all groups, so the ratio of the rates stays the same in every phase. All other
    settings of the groups stay as they are.

    Args:
        optimizer (`torch.optim.Optimizer`): Fresh, with groups as Trainer makes them.
        parameters (`Collection[nn.Parameter]`): What is moved.
        learning_rate (`float`): Their peak.
    """
    moved, found = {id(parameter) for parameter in parameters}, False
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in moved]
        if own:
            found = True
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moved]
            optimizer.add_param_group({**group, "params": own, "lr": learning_rate})
    return found


def separate_slow(
    optimizer: torch.optim.Optimizer, model: nn.Module, learning_rate: float, rate_of: Callable[[str], float]
) -> None:
    """Gives every parameter `learning_rate` times its factor.

    Args:
        optimizer (`torch.optim.Optimizer`): As in [`separate`].
        model (`nn.Module`): Whose parameters these are.
        learning_rate (`float`): The peak of a factor of 1.
        rate_of (`Callable`): Name of a parameter -> its factor.
    """
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        by_factor.setdefault(rate_of(name), []).append(parameter)
    for factor, parameters in by_factor.items():
        if factor != 1:
            separate(optimizer, parameters, learning_rate * factor)


def separate_embeddings(optimizer: torch.optim.Optimizer, model: Any, learning_rate: float) -> None:
    """Moves the input and output embeddings into parameter groups with their own peak.

    Args:
        optimizer (`torch.optim.Optimizer`): As in [`separate`].
        model (`PreTrainedModel` or `PeftModel`): Whose parameters these are.
        learning_rate (`float`): The peak of the embeddings.

    Raises:
        ValueError: if no embedding is trained.
    """
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    if not separate(optimizer, [parameter for layer in layers for parameter in layer.parameters()], learning_rate):
        raise ValueError(
            f"embedding_learning_rate={learning_rate}: the model trains no embedding; name it in lora.modules_to_save "
            "or lora.target_modules, or leave the rate out."
        )
