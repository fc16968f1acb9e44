import pytest
import torch

from textseg.contracts import Atlas, Task
from textseg.errors import RecipeError
from textseg_atmnet.residual_convolutions import ResidualBlock, ResidualConvolutions


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(2, (24, 40), small_atlas.class_count, small_atlas)


@pytest.mark.parametrize("stem_stride", [1, 2, 4])
@pytest.mark.parametrize("blocks", [1, 2])
def test_maps_are_what_features_promise(task: Task, stem_stride: int, blocks: int) -> None:
    encoder = ResidualConvolutions(task, channels=(4, 6, 8), blocks=blocks, stem_stride=stem_stride)
    assert encoder.features.channels == (4, 6, 8)
    assert encoder.features.strides == (stem_stride, 2 * stem_stride, 4 * stem_stride)
    assert encoder.size_multiple == 4 * stem_stride
    height, width = 3 * encoder.size_multiple, 2 * encoder.size_multiple
    maps = encoder(torch.randn(1, 2, height, width))
    for feature, channels, stride in zip(maps, encoder.features.channels, encoder.features.strides, strict=True):
        assert feature.shape == (1, channels, height // stride, width // stride)


def test_one_level_is_enough(task: Task) -> None:
    encoder = ResidualConvolutions(task, channels=(4,))
    assert (encoder.size_multiple, len(encoder(torch.randn(1, 2, 5, 7)))) == (1, 1)


def test_a_block_without_change_of_shape_has_no_convolution_in_its_short_cut() -> None:
    assert not list(ResidualBlock(4, 4, 1).short_cut.parameters())
    assert list(ResidualBlock(4, 4, 2).short_cut.parameters())
    assert list(ResidualBlock(3, 4, 1).short_cut.parameters())


def test_the_short_cut_carries_the_image(task: Task) -> None:
    block = ResidualBlock(4, 4, 1)
    torch.nn.init.zeros_(block.second_norm.weight)
    image = torch.rand(2, 4, 6, 6)
    assert torch.equal(block(image), image)


def test_every_parameter_learns(task: Task) -> None:
    torch.manual_seed(0)
    encoder = ResidualConvolutions(task, channels=(4, 6, 8), blocks=2)
    (encoder(torch.randn(1, 2, 16, 24))[-1] ** 2).mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": ()}, r"channels is \[\], but must name at least 1"),
        ({"channels": (4, 0)}, r"channels is \[4, 0\]"),
        ({"blocks": 0}, "blocks is 0, but must be at least 1"),
        ({"stem_stride": 0}, "stem_stride is 0"),
    ],
)
def test_a_setting_out_of_range_is_named(task: Task, settings: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=f"residual_convolutions: {message}"):
        ResidualConvolutions(task, **settings)  # type: ignore[arg-type]
