"""`ContinualTrainer`: trunk and branches over a stream of tasks."""

from transformers import Trainer

from .mixin import ContinualMixin


class ContinualTrainer(ContinualMixin, Trainer):
    """A `Trainer` over a list of datasets; see [`ContinualMixin`] for the arguments.

    Example:

    ```python
    trainer = ContinualTrainer(
        model=model,
        args=ContinualTrainingArguments("out", learning_rate=3e-4),
        train_dataset={"web": web, "code": code},
        eval_dataset={"web": web_held_out, "code": code_held_out},
    )
    trainer.train()
    ```
    """


__all__ = ["ContinualMixin", "ContinualTrainer"]
