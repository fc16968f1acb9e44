from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from textseg.contracts import IGNORED
from textseg.errors import RecipeError
from textseg.models.losses import segmentation_loss
from textseg.registry.discovery import installed_registry
from textseg.testing.examples import ONE_STRUCTURE
from textseg.testing.examples import task as task_of
from textseg_standard.segmentation_losses.boundary import Boundary, signed_distances
from textseg_standard.segmentation_losses.cldice import ClDice
from textseg_standard.segmentation_losses.cross_entropy import CrossEntropy
from textseg_standard.segmentation_losses.dice import Dice
from textseg_standard.segmentation_losses.focal import Focal
from textseg_standard.segmentation_losses.monai import Monai
from textseg_standard.segmentation_losses.top_k_cross_entropy import TopKCrossEntropy
from textseg_standard.segmentation_losses.tversky import Tversky

K = 5
TASK = task_of((16, 20))


def example(batch: int = 3, side: int = 16, classes: int = K, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, side, side + 4, generator=random)
    return logits, torch.randint(0, classes - 1, (batch, side, side + 4), generator=random)  # the last class is absent


def perfect(mask: Tensor, classes: int, margin: float = 40.0) -> Tensor:
    return margin * F.one_hot(mask, classes).movedim(-1, 1)


def blocks() -> tuple[Tensor, Tensor]:
    """Return logits, and a mask of two structures that are blocks in one slice and absent from the next."""
    logits, _ = example(2)
    mask = torch.zeros(2, 16, 20, dtype=torch.long)
    mask[0, 3:9, 2:8], mask[0, 4:14, 10:19] = 1, 3
    return logits, mask


def test_dice_equals_monai_with_the_same_settings() -> None:
    from monai.losses import DiceLoss

    theirs = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1.0, smooth_dr=1.0
    )
    for seed in range(3):
        logits, mask = example(seed=seed)
        torch.testing.assert_close(Dice(TASK)(logits, mask), theirs(logits, mask[:, None]))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_equals_monai_which_also_divides_by_the_classes(gamma: float) -> None:
    from monai.losses import FocalLoss

    logits, mask = example()
    theirs = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=gamma)(logits, mask[:, None])
    torch.testing.assert_close(Focal(TASK, gamma=gamma)(logits, mask), K * theirs)


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, mask = example()
    torch.testing.assert_close(Focal(TASK, gamma=0.0)(logits, mask), F.cross_entropy(logits, mask))
    assert CrossEntropy(TASK)(logits, mask).item() == pytest.approx(F.cross_entropy(logits, mask).item())


def test_a_perfect_prediction_costs_nothing_even_when_most_classes_are_absent() -> None:
    mask = torch.zeros(1, 64, 64, dtype=torch.int64)
    mask[:, 10:30, 10:30], mask[:, 35:50, 35:50] = 1, 2  # 17 of 20 classes are absent
    assert Dice(TASK)(perfect(mask, 20), mask) < 1e-6
    assert Tversky(TASK)(perfect(mask, 20), mask) < 1e-6


def test_an_absent_class_that_is_predicted_costs() -> None:
    mask = torch.zeros(1, 16, 16, dtype=torch.int64)
    wrong = perfect(torch.ones_like(mask), 3)
    # Class 1: (0 + 1) / (256 + 1), class 2: absent on both sides.
    assert Dice(TASK)(wrong, mask).item() == pytest.approx(1 - (1 / 257 + 1) / 2)


@pytest.mark.parametrize("loss", [Dice(TASK), Tversky(TASK)])
def test_sums_run_over_the_batch(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits, mask = example()
    joined = loss(torch.cat(list(logits), dim=1)[None], torch.cat(list(mask))[None])
    torch.testing.assert_close(loss(logits, mask), joined)


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (1.0, 0.5)])
def test_tversky_equals_monai(alpha: float, beta: float) -> None:
    from monai.losses import TverskyLoss

    theirs = TverskyLoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        batch=True,
        alpha=alpha,
        beta=beta,
        smooth_nr=1.0,
        smooth_dr=1.0,
    )
    logits, mask = example()
    ours = Tversky(TASK, alpha=alpha, beta=beta)(logits, mask)
    torch.testing.assert_close(ours, theirs(logits, mask[:, None]))


def test_tversky_with_equal_weights_is_dice() -> None:
    logits, mask = example()
    ours = Tversky(TASK, alpha=0.5, beta=0.5, smooth=0.5)(logits, mask)
    torch.testing.assert_close(ours, Dice(TASK, smooth=1.0)(logits, mask))


def test_top_k_is_the_mean_of_the_hardest_pixels() -> None:
    logits, mask = example()
    pixels = np.sort(F.cross_entropy(logits, mask, reduction="none").numpy().ravel())
    ours = TopKCrossEntropy(TASK, share=0.1)(logits, mask).item()
    assert ours == pytest.approx(pixels[-len(pixels) // 10 :].mean(), rel=1e-5)
    torch.testing.assert_close(TopKCrossEntropy(TASK, share=1.0)(logits, mask), F.cross_entropy(logits, mask))


def test_boundary_equals_monai_where_nothing_is_out_of_reach() -> None:
    from monai.losses import BoundaryLoss

    logits, mask = blocks()
    theirs = BoundaryLoss(include_background=False, to_onehot_y=True, softmax=True)(logits, mask[:, None])
    torch.testing.assert_close(Boundary(TASK, reach=100)(logits, mask), theirs)


def test_distances_end_at_the_reach() -> None:
    _, mask = blocks()
    whole, near = (signed_distances(mask[0].numpy(), K, reach) for reach in (100, 4))
    np.testing.assert_array_equal(near[[0, 2]], whole[[0, 2]].clip(-4, 4))
    assert not near[[1, 3]].any()  # absent


def test_cldice_of_one_structure_equals_monai() -> None:
    from monai.losses import SoftclDiceLoss

    logits, mask = blocks()
    logits, mask = logits[:1, :2], mask[:1].clamp(max=1)
    theirs = SoftclDiceLoss(include_background=False, to_onehot_y=True, softmax=True)(logits, mask[:, None])
    torch.testing.assert_close(ClDice(task_of((16, 20), ONE_STRUCTURE))(logits, mask), theirs, rtol=1e-4, atol=1e-4)


def test_cldice_of_one_structure_sees_a_gap() -> None:
    mask = torch.zeros(1, 24, 24, dtype=torch.long)
    mask[:, 2:22, 10:13] = 4
    gap, hole = perfect(mask, K), perfect(mask, K)
    gap[:, :, 11:13] = perfect(torch.zeros(1, 2, 24, dtype=torch.long), K)
    hole[:, :, 2:22, 12] = perfect(torch.zeros(1, 20, dtype=torch.long)[..., None], K)[..., 0]
    canal = ClDice(TASK, structures=("SC",))
    assert canal(perfect(mask, K), mask) < 1e-3
    assert canal(gap, mask) > 0.03
    assert ClDice(TASK, structures=("L1",))(gap, mask) < 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cldice": {"structures": ["L9"]}}, "cldice: there is no structure 'L9'. Possible: L1"),
        ({"boundary": {"reach": 0}}, "boundary: reach is 0"),
        ({"tversky": {"alpha": 0.0, "beta": 0.0}}, "tversky: alpha is 0.0 and beta 0.0"),
        ({"focal": {"gamma": -1.0}}, "focal: gamma is -1.0"),
        ({"top_k_cross_entropy": {"share": 1.5}}, "share is 1.5, but must be above 0 and at most 1"),
        ({"monai": {"name": "TverskLoss"}}, "unknown value 'TverskLoss'. Did you mean 'TverskyLoss'"),
        ({"monai": {"name": "TverskyLoss", "alfa": 0.3}}, "alfa: unknown setting. Did you mean 'alpha'"),
        ({"monai": {"name": "TverskyLoss", "softmax": False}}, "softmax: unknown setting"),
        ({"monai": {"name": "TverskyLoss", "alpha": "high"}}, "alpha: "),
        ({"monai": {}}, "name: required by segmentation_loss 'monai' but missing"),
    ],
)
def test_a_mistake_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        segmentation_loss(settings, TASK)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("TverskyLoss", {"alpha": 0.3}), ("FocalLoss", {}), ("GeneralizedDiceLoss", {}), ("HausdorffDTLoss", {})],
)
def test_losses_of_monai_are_called_as_monai_wants_it(name: str, settings: dict[str, float]) -> None:
    import monai.losses

    logits, mask = blocks()
    activation = {"use_softmax": True} if name == "FocalLoss" else {"softmax": True}
    theirs = getattr(monai.losses, name)(to_onehot_y=True, **activation, **settings)(logits, mask[:, None])
    torch.testing.assert_close(Monai(TASK, name=name, **settings)(logits, mask), theirs)


def test_classes_of_a_loss_of_monai_have_weights() -> None:
    logits, mask = blocks()
    only_first = segmentation_loss({"monai": {"name": "DiceLoss", "class_weights": [0, 1, 0, 0, 0]}}, TASK)
    shuffled = logits[:, [0, 1, 3, 2, 4]]
    plain = segmentation_loss({"monai": {"name": "DiceLoss"}}, TASK)
    assert only_first(logits, mask)["monai"].isfinite()
    assert plain(logits, mask)["monai"] != only_first(shuffled, mask)["monai"]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_gradients_stay_finite_where_pixels_are_already_right(gamma: float) -> None:
    _, mask = example()
    logits = (perfect(mask, K) * 5).requires_grad_()  # the cross-entropy is exactly 0
    terms = {"dice": 1.0, "focal": {"gamma": gamma}, "cross_entropy": 1, "tversky": {"gamma": 0.5}}
    loss = segmentation_loss({**terms, "top_k_cross_entropy": 1}, TASK)
    torch.stack(list(loss(logits, mask).values())).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ["dice", "focal", "cross_entropy", "tversky", "top_k_cross_entropy"])
def test_half_precision_does_not_overflow_at_full_size(name: str) -> None:
    random = torch.Generator().manual_seed(0)
    mask = torch.zeros(2, 384, 384, dtype=torch.int64)
    mask[:, 100:, :300] = 1  # more than float16 can count
    logits = (8 * torch.randn(2, 3, 384, 384, generator=random)).half()
    loss = segmentation_loss({name: 1.0}, TASK)
    with torch.autocast("cpu", torch.bfloat16):
        (mixed,) = loss(logits, mask).values()
    (full,) = loss(logits.float(), mask).values()
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, full)
    assert mixed.isfinite()


def test_descending_the_loss_finds_the_mask() -> None:
    _, mask = example(batch=1, side=8)
    logits = torch.zeros(1, K, 8, 12, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    loss = segmentation_loss({}, TASK)
    for _ in range(40):
        optimizer.zero_grad()
        torch.stack(list(loss(logits, mask).values())).sum().backward()
        optimizer.step()
    assert (logits.argmax(1) == mask).all()


def test_settings_of_monai_are_completed_for_the_record() -> None:
    whole = installed_registry().component("segmentation_loss", "monai").complete({"name": "TverskyLoss", "alpha": 0.3})
    assert (whole["alpha"], whole["beta"], whole["class_weights"]) == (0.3, 0.5, None)


TERMS = {
    "dice": {},
    "focal": {},
    "cross_entropy": {},
    "top_k_cross_entropy": {"share": 0.3},
    "tversky": {"gamma": 0.5},
    "boundary": {},
    "cldice": {},
    "monai": {"name": "DiceCELoss"},
}


def test_cross_entropy_without_ignored_pixels_equals_that_of_torch() -> None:
    logits, mask = example()
    mask[:, 2:9, 5:] = IGNORED
    ours = segmentation_loss({"cross_entropy": 1}, TASK)(logits, mask)["cross_entropy"]
    torch.testing.assert_close(ours, F.cross_entropy(logits, mask, ignore_index=IGNORED))


@pytest.mark.parametrize("name", ["dice", "focal", "cross_entropy", "top_k_cross_entropy", "tversky"])
def test_a_term_is_that_of_the_picture_without_its_ignored_columns(name: str) -> None:
    logits, mask = example()
    mask[:, :, 11:] = IGNORED
    loss = segmentation_loss({name: TERMS[name]}, TASK)
    torch.testing.assert_close(loss(logits, mask)[name], loss(logits[..., :11], mask[..., :11])[name])


@pytest.mark.parametrize("name", TERMS)
def test_logits_of_ignored_pixels_change_no_term(name: str) -> None:
    logits, mask = example()
    changed = logits.clone()
    mask[1:, 3:7], changed[1:, :, 3:7] = IGNORED, 100.0
    loss = segmentation_loss({name: TERMS[name]}, TASK)
    assert torch.equal(loss(logits, mask)[name], loss(changed, mask)[name])


@pytest.mark.parametrize("name", TERMS)
def test_a_batch_of_ignored_pixels_has_no_loss_and_gradients_of_zero(name: str) -> None:
    logits, mask = example()
    logits.requires_grad_()
    value = segmentation_loss({name: TERMS[name]}, TASK)(logits, torch.full_like(mask, IGNORED))[name]
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-3)  # 1e-7 to the power of 0.5
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("name", TERMS)
def test_a_mask_without_ignored_pixels_has_the_loss_that_it_had(name: str) -> None:
    logits, mask = example()
    terms = {name: TERMS[name]}
    first, second = (segmentation_loss(terms, TASK, ignores=ignores)(logits, mask) for ignores in (True, False))
    torch.testing.assert_close(first[name], second[name])
