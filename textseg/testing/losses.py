"""Checks of segmentation losses and auxiliary losses, beyond those of every module."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from textseg.testing import modules
from textseg.testing.calls import (
    built,
    check_finite_gradients,
    check_finite_gradients_back,
    example_for,
    results,
    task_of,
)
from textseg.testing.conformance import Subject, check
from textseg.testing.promises import promise


@check("absent", *modules.LOSSES)
def _absent(subject: Subject) -> None:
    """Check that the loss is finite for absent structures, and zero with gradients if it does not apply."""
    module = built(subject)
    example = example_for(subject, module)
    empty, square, one_slice = (torch.zeros_like(example.mask) for _ in range(3))
    square[:, :4, :4] = 1
    one_slice[1:, :4, :4] = 1
    for name, mask in (("no structure", empty), ("one structure", square), ("one structure in one slice", one_slice)):
        shown = replace(example, mask=mask)
        module.zero_grad()
        (value,) = results(subject, module, shown)
        promise(bool(value.isfinite()), f"a finite loss for {name}", value.item())
        promise(value.requires_grad, f"a loss with gradients for {name}, be they zero", "one without")
        value.backward()  # type: ignore[no-untyped-call]
        check_finite_gradients(module, f" for {name}")
        check_finite_gradients_back(example, f" for {name}")


@check("falls", *modules.LOSSES)
def _falls(subject: Subject) -> None:
    """Check that the loss decreases when its inputs follow its gradient."""
    module = built(subject)
    example = example_for(subject, module)
    followed = [*(p for p in module.parameters() if p.requires_grad), example.logits, *example.pyramid]
    optimizer = torch.optim.Adam(followed, lr=0.02)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        (value,) = results(subject, module, example)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        values.append(value.item())
    course = f"{values[0]:.4g} at first and {values[-1]:.4g} after {len(values)} steps"
    promise(values[-1] < values[0], "a loss that falls as the model follows its gradient", course)


@check("preference", "segmentation_loss")
def _preference(subject: Subject) -> None:
    """Check that logits which say what is annotated cost less than those of a shifted annotation."""
    module = built(subject)
    where = task_of(subject)
    mask = torch.zeros(1, *where.image_size, dtype=torch.long)
    for index in range(1, where.class_count):
        mask[:, 4 : where.image_size[0] // 2, 6 * index : 6 * index + 6] = index
    right = 9 * F.one_hot(mask, where.class_count).movedim(-1, 1).float()
    costs = [module(logits, mask).item() for logits in (right, right.roll(9, 2))]
    promise(costs[0] < costs[1], "a right answer to cost less than one that is 9 pixels off", costs)


CHECKS = (*modules.CHECKS, _absent, _falls, _preference)
