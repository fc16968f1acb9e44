from __future__ import annotations

import pytest
import torch

from textseg.errors import RunError
from textseg.inference.averaging import View, average, checked_changes, views


def picture() -> torch.Tensor:
    """Smooth, [2, 1, 30, 24]."""
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 30), torch.linspace(0, 2, 24), indexing="ij")
    return torch.stack([torch.sin(rows) + columns, torch.cos(columns) - 0.3 * rows])[:, None]


def test_the_mean_of_two_is_what_a_hand_computes() -> None:
    first = torch.tensor([3.0, 1.0]).log().reshape(1, 2, 1, 1)  # 0.75, 0.25
    two = torch.tensor([1.0, 9.0]).log().reshape(1, 2, 1, 1)  # 0.1, 0.9
    (result,) = average([(View(), [first]), (View(), [two])])
    torch.testing.assert_close(result.exp().flatten(), torch.tensor([0.425, 0.575]))


def test_batches_of_different_sizes_are_brought_together_slice_by_slice() -> None:
    logits = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    streams = [(View(), list(logits.split(size))) for size in (1, 2, 5)]
    result = list(average(streams))
    assert [logits.shape for logits in result] == [(1, 3, 4, 4)] * 5
    torch.testing.assert_close(torch.cat(result).exp(), logits.softmax(1))


def test_a_probability_of_zero_stays_finite() -> None:
    sure = torch.tensor([200.0, 0.0]).reshape(1, 2, 1, 1)
    (result,) = average([(View(), [sure]), (View(), [sure])])
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("view", views(["shift", "scale"], (30, 24)))
def test_what_a_view_changes_is_undone_where_it_showed_the_picture(view: View) -> None:
    image = picture()
    back, shown = view.undo(view.show(image).movedim(0, 1))
    inside = shown.bool().expand_as(back).clone()
    assert inside.float().mean() > 0.85
    inside[..., [0, -1], :] = inside[..., [0, -1]] = False  # where a smaller picture blends with what is outside
    torch.testing.assert_close(back[inside], image.movedim(0, 1)[inside], atol=0.02, rtol=0)
    if view != View():
        assert not torch.equal(view.show(image), image)


def test_a_border_that_a_view_does_not_show_is_left_to_the_others() -> None:
    logits = torch.zeros(1, 2, 8, 8)
    logits[:, 1] = 4.0  # class 1 everywhere
    moved = View(rows=3)
    assert not moved.undo(logits)[1][0, 0, -3:].any()
    nothing = logits.flip(1)  # what a network might say of the moved picture
    (result,) = average([(View(), [logits]), (moved, [nothing])])
    assert (result[0, 1, -3:].exp() > 0.9).all()
    torch.testing.assert_close(result[0, 1, :-3].exp(), torch.full((5, 8), 0.5))


def test_brightness_keeps_darkest_and_brightest_and_moves_nothing() -> None:
    image = picture()
    for view in views(["gamma"], (30, 24))[1:]:
        changed = view.show(image)
        assert (changed.amin(), changed.amax()) == pytest.approx((float(image.amin()), float(image.amax())))
        assert torch.equal(changed.flatten().argsort(stable=True), image.flatten().argsort(stable=True))
        assert torch.equal(view.undo(image)[0], image)


def test_changes_are_named() -> None:
    assert checked_changes("gamma, shift,gamma") == ("shift", "gamma")
    assert len(views(checked_changes("shift,scale,gamma"), (384, 384))) == 9
    assert {abs(view.rows) for view in views(["shift"], (384, 100))} == {0, 9}
    with pytest.raises(RunError, match="there is no 'flip'.*Mirroring is not among them"):
        checked_changes("shift,flip")
