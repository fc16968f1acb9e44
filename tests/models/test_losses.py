from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from textseg.contracts import IGNORED, Task
from textseg.models.losses import SegmentationTerms, segmentation_loss
from textseg.registry.component import Component
from textseg.registry.discovery import Registry
from textseg.testing.examples import task

TASK = task((8, 12))
LOGITS, MASK = torch.ones(1, 5, 8, 12), torch.zeros(1, 8, 12, dtype=torch.long)


class Mean(nn.Module):
    """The mean logit to a power."""

    def __init__(self, task: Task, *, power: float = 1.0) -> None:
        super().__init__()
        self.power, self.seen = power, torch.float16

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        self.seen = logits.dtype
        assert not torch.is_autocast_enabled("cpu")
        return (2 * logits).mean() ** self.power


def test_terms_carry_their_weights() -> None:
    terms = SegmentationTerms({"first": Mean(TASK), "second": Mean(TASK, power=2.0)}, {"first": 3.0, "second": 0.5})
    assert {name: term.item() for name, term in terms(LOGITS, MASK).items()} == {"first": 6.0, "second": 2.0}


def test_a_term_gets_full_precision_and_no_autocast() -> None:
    mean = Mean(TASK)
    terms = SegmentationTerms({"mean": mean}, {"mean": 1.0})
    with torch.autocast("cpu", torch.bfloat16):
        assert terms(LOGITS.bfloat16(), MASK)["mean"].dtype == torch.float32
    assert mean.seen == torch.float32


def test_a_loss_is_built_as_a_recipe_writes_it() -> None:
    registry = Registry((), [Component("segmentation_loss", "mean", Mean, "tests", "tests", "1")])
    written = {"mean": 2.0, "square": {"use": "mean", "power": 2.0}, "nothing": {"use": "mean", "weight": 0}}
    loss = segmentation_loss(written, TASK, registry)
    assert loss.weights == {"mean": 2.0, "square": 1.0}  # a weight of 0 leaves its term out
    assert loss(LOGITS, MASK)["square"].item() == 4.0


def test_the_terms_of_a_recipe_without_terms_are_dice_and_focal() -> None:
    assert segmentation_loss({}, TASK).weights == {"dice": 1.0, "focal": 1.0}


def test_parameters_of_a_term_are_found() -> None:
    term = nn.Linear(1, 1)
    assert [name for name, _ in SegmentationTerms({"line": term}, {"line": 1.0}).named_parameters()] == [
        "terms.line.weight",
        "terms.line.bias",
    ]
    with pytest.raises(KeyError):
        SegmentationTerms({"keys": term}, {"keys": 1.0})


class Recorded(Mean):
    """A term that keeps what it gets."""

    reads_ignored = True

    def forward(self, logits: Tensor, mask: Tensor, ignored: Tensor | None = None) -> Tensor:
        self.given = logits, mask, ignored
        return super().forward(logits, mask)


def test_ignored_pixels_are_certain_background_for_a_term_and_have_no_gradient() -> None:
    logits, mask = torch.randn(2, 5, 8, 12, requires_grad=True), torch.randint(0, 5, (2, 8, 12))
    ignored = torch.zeros_like(mask, dtype=torch.bool)
    ignored[:, 3:6] = True
    term = Recorded(TASK)
    SegmentationTerms({"term": term}, {"term": 1.0})(logits, mask.masked_fill(ignored, IGNORED))["term"].backward()
    seen, classes, given = term.given
    assert given is not None
    assert torch.equal(given, ignored)
    assert torch.equal(classes, mask.masked_fill(ignored, 0))
    assert (seen.softmax(1)[:, 0][ignored] == 1).all()
    assert torch.equal(seen.movedim(1, -1)[~ignored], logits.movedim(1, -1)[~ignored])
    assert logits.grad is not None
    assert torch.equal((logits.grad != 0).any(1), ~ignored)


def test_masks_that_ignore_nothing_are_not_searched_for_it() -> None:
    term = Recorded(TASK)
    SegmentationTerms({"term": term}, {"term": 1.0}, ignores=False)(LOGITS, MASK)
    assert term.given[0] is LOGITS
    assert term.given[1:] == (MASK, None)
