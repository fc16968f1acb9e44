import pytest
import torch

from textseg.contracts import Atlas, Task
from textseg.errors import RecipeError
from textseg_baselines.modified_bisenet import ModifiedBiSeNet, MultiScaleAttention


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(1, (64, 96), small_atlas.class_count, small_atlas)


def reach(attention: MultiScaleAttention) -> torch.Tensor:
    """Return the positions of a 41 x 41 map that influence its centre."""
    feature = torch.randn(1, 2, 41, 41, requires_grad=True)
    attention(feature)[..., 20, 20].sum().backward()
    assert feature.grad is not None
    return feature.grad.abs().sum((0, 1)) > 0


def test_attention_reaches_through_strips_of_three_lengths() -> None:
    seen = reach(MultiScaleAttention(2))
    assert seen.any(1).sum() == seen.any(0).sum() == 21 + 4  # the longest strip of what 5 x 5 gathered
    assert [bool(seen[20, column]) for column in (7, 8, 32, 33)] == [False, True, True, False]
    assert [bool(seen[row, 20]) for row in (7, 8, 32, 33)] == [False, True, True, False]
    assert reach(MultiScaleAttention(2, lengths=(7,))).any(1).sum() == 7 + 4


def test_attention_weighs_the_feature_itself() -> None:
    attention = MultiScaleAttention(2)
    torch.nn.init.zeros_(attention.mix.weight)
    torch.nn.init.constant_(attention.mix.bias, 3.0)  # type: ignore[arg-type]
    feature = torch.randn(1, 2, 9, 11)
    torch.testing.assert_close(attention(feature), 3 * feature)


def test_every_level_of_the_encoder_is_refined(task: Task) -> None:
    network = ModifiedBiSeNet(task, channels=4).eval()
    image = torch.randn(1, 1, 64, 96)
    with torch.inference_mode():
        before = network(image, None).logits
        for refinement in network.refinements:
            kept = refinement.weigh.bias.clone()
            refinement.weigh.bias.fill_(-20.0)  # closes the level
            assert not torch.allclose(network(image, None).logits, before, atol=1e-6)
            refinement.weigh.bias.copy_(kept)
        assert torch.equal(network(image, None).logits, before)


def test_logits_come_at_half_the_resolution(task: Task) -> None:
    assert ModifiedBiSeNet(task, channels=4)(torch.randn(2, 1, 64, 96), None).logits.shape[-2:] == (32, 48)


@pytest.mark.parametrize("setting", ["channels", "attention_blocks"])
def test_nothing_is_refused(task: Task, setting: str) -> None:
    with pytest.raises(RecipeError, match=f"{setting} is 0, but must be at least 1"):
        ModifiedBiSeNet(task, **{setting: 0})
