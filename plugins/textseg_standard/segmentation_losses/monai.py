"""The segmentation losses of MONAI by their names."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from monai import losses
from torch import Tensor, nn

from textseg.contracts import Task
from textseg_standard.by_name import builds_by_name

ACTIVATIONS = ("softmax", "use_softmax")
OURS = {*ACTIVATIONS, "sigmoid", "other_act", "to_onehot_y", "reduction", "weight"}  # what `Monai` sets


def known_losses() -> dict[str, Any]:
    """Return the losses of MONAI for logits of classes that exclude each other."""
    classes = {name: item for name, item in vars(losses).items() if inspect.isclass(item) and item.__name__ == name}
    parameters = {name: inspect.signature(build).parameters.keys() for name, build in classes.items()}
    return {
        name: build
        for name, build in classes.items()
        if "to_onehot_y" in parameters[name] and parameters[name] & set(ACTIVATIONS)
    }


@builds_by_name(known_losses, without=OURS)
class Monai(nn.Module):
    """A loss of MONAI by its name, such as TverskyLoss, with MONAI's settings and defaults.

    Its sums run over the batch of one process.

    Args:
        task: not needed.
        name: the class in `monai.losses`.
        class_weights: MONAI's `weight`, for losses that have it: a number for each class that the loss includes.
        settings: further settings of the class, such as `alpha`.
    """

    def __init__(
        self, task: Task, *, name: str, class_weights: tuple[float, ...] | None = None, **settings: Any
    ) -> None:
        super().__init__()
        build = known_losses()[name]
        activations = {key: True for key in ACTIVATIONS if key in inspect.signature(build).parameters}
        weight = {} if class_weights is None else {"weight": torch.tensor(class_weights)}
        self.loss = build(to_onehot_y=True, **activations, **weight, **settings)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return a scalar for logits [B, K, H, W] and class indices [B, H, W]."""
        loss: Tensor = self.loss(logits, mask[:, None])
        return loss
