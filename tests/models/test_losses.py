import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from textseg.models.losses import SegmentationLoss, dice_loss, focal_loss

K = 6


def example(batch: int = 3, side: int = 16, classes: int = K, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, side, side + 4, generator=random)
    return logits, torch.randint(0, classes - 1, (batch, side, side + 4), generator=random)  # the last class is absent


def perfect(mask: Tensor, classes: int, margin: float = 40.0) -> Tensor:
    return margin * F.one_hot(mask, classes).movedim(-1, 1)


def test_dice_equals_monai_with_the_same_settings() -> None:
    from monai.losses import DiceLoss

    theirs = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1.0, smooth_dr=1.0
    )
    for seed in range(3):
        logits, mask = example(seed=seed)
        torch.testing.assert_close(dice_loss(logits, mask), theirs(logits, mask[:, None]))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_equals_monai_which_also_divides_by_the_classes(gamma: float) -> None:
    from monai.losses import FocalLoss

    logits, mask = example()
    theirs = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=gamma)(logits, mask[:, None])
    torch.testing.assert_close(focal_loss(logits, mask, gamma), K * theirs)


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, mask = example()
    torch.testing.assert_close(focal_loss(logits, mask, 0.0), F.cross_entropy(logits, mask))


def test_a_perfect_prediction_costs_nothing_even_when_most_classes_are_absent() -> None:
    from monai.losses import DiceLoss

    mask = torch.zeros(1, 64, 64, dtype=torch.int64)
    mask[:, 10:30, 10:30], mask[:, 35:50, 35:50] = 1, 2  # 17 of 20 classes are absent
    logits = perfect(mask, 20, margin=15.0)  # as sure as a network is
    assert dice_loss(logits, mask) < 2e-3
    assert focal_loss(logits, mask) < 1e-5
    assert DiceLoss(include_background=False, to_onehot_y=True, softmax=True)(logits, mask[:, None]) > 0.5
    assert dice_loss(perfect(mask, 20), mask) < 1e-6


def test_an_absent_class_that_is_predicted_costs() -> None:
    mask = torch.zeros(1, 16, 16, dtype=torch.int64)
    wrong = perfect(torch.ones_like(mask), 3)
    # Class 1: (0 + 1) / (256 + 1), class 2: absent on both sides.
    assert dice_loss(wrong, mask).item() == pytest.approx(1 - (1 / 257 + 1) / 2)


def test_sums_run_over_the_batch() -> None:
    logits, mask = example()
    joined = dice_loss(torch.cat(list(logits), dim=1)[None], torch.cat(list(mask))[None])
    torch.testing.assert_close(dice_loss(logits, mask), joined)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow_at_full_size(kind: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    mask = torch.zeros(2, 384, 384, dtype=torch.int64)
    mask[:, 100:, :300] = 1  # more than float16 can count
    logits = (8 * torch.randn(2, 3, 384, 384, generator=random)).to(kind)
    with torch.autocast("cpu", torch.bfloat16):
        terms = SegmentationLoss(dice=1.0, focal=1.0, cross_entropy=0.5)(logits, mask)
    expected = SegmentationLoss(dice=1.0, focal=1.0, cross_entropy=0.5)(logits.double(), mask)
    for name, value in terms.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_gradients_stay_finite_where_pixels_are_already_right(gamma: float) -> None:
    _, mask = example()
    logits = (perfect(mask, K) * 5).requires_grad_()  # the cross-entropy is exactly 0
    sum(
        SegmentationLoss(dice=1.0, focal=1.0, cross_entropy=1.0, focal_gamma=gamma)(logits, mask).values(),
        torch.zeros(()),
    ).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_descending_the_loss_finds_the_mask() -> None:
    _, mask = example(batch=1, side=8)
    logits = torch.zeros(1, K, 8, 12, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(40):
        optimizer.zero_grad()
        torch.stack(list(SegmentationLoss()(logits, mask).values())).sum().backward()
        optimizer.step()
    assert (logits.argmax(1) == mask).all()


def test_terms_carry_their_weights_and_a_weight_of_zero_leaves_its_term_out() -> None:
    logits, mask = example()
    terms = SegmentationLoss(dice=2.0, focal=0.0, cross_entropy=0.5)(logits, mask)
    assert list(terms) == ["dice", "cross_entropy"]
    torch.testing.assert_close(terms["dice"], 2 * dice_loss(logits, mask))
    torch.testing.assert_close(terms["cross_entropy"], 0.5 * F.cross_entropy(logits, mask))
    assert list(SegmentationLoss()(logits, mask)) == ["dice", "focal"]
    assert list(SegmentationLoss(dice=1, cross_entropy=1)(logits, mask)) == ["dice", "cross_entropy"]
