from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Features
from textseg.errors import RecipeError
from textseg_atmnet.backbones import Pyramid, freeze, full_size_level, look_at


class Backbone(nn.Module):
    """One convolution for each map; `steps` are their strides."""

    def __init__(self, strides: Sequence[int], *, multiple: int = 1, channels: int = 4) -> None:
        super().__init__()
        self.multiple = multiple
        self.maps = nn.ModuleList(nn.Conv2d(1, channels + index, s, stride=s) for index, s in enumerate(strides))
        self.never_called = nn.Linear(2, 2)

    def forward(self, image: Tensor) -> list[Tensor]:
        if image.shape[-1] % self.multiple:
            raise ValueError(f"width must be a multiple of {self.multiple}.")
        return [layer(image) for layer in self.maps]


def looked_at(backbone: nn.Module, *, every_map: bool = False, image_channels: int = 1) -> Pyramid:
    def run(module: nn.Module, image: Tensor) -> Sequence[Tensor]:
        assert image.device.type == "meta"
        maps: Sequence[Tensor] = module(image)
        return maps

    return look_at(backbone.to("meta"), run, image_channels, every_map=every_map, name="a backbone")


def test_a_level_is_the_last_map_of_each_stride() -> None:
    pyramid = looked_at(Backbone([4, 4, 8, 16, 16]))
    assert pyramid.maps == (1, 2, 4)
    assert pyramid.features == Features((5, 6, 8), (4, 8, 16))
    assert pyramid.size_multiple == 16
    assert pyramid.unused == {
        *(f"maps.{index}.{part}" for index in (0, 3) for part in ("weight", "bias")),
        *(f"never_called.{part}" for part in ("weight", "bias")),
    }


def test_every_map_is_a_level_where_asked_for() -> None:
    pyramid = looked_at(Backbone([14, 14]), every_map=True)
    assert (pyramid.maps, pyramid.features) == ((0, 1), Features((4, 5), (14, 14)))
    assert pyramid.size_multiple == 14


def test_the_image_itself_is_no_level() -> None:
    assert looked_at(Backbone([1, 2], channels=1)).maps == (1,)
    assert looked_at(Backbone([1, 2], channels=2)).maps == (0, 1)


def test_sizes_that_it_can_not_take() -> None:
    with pytest.raises(RecipeError, match="^a backbone can't encode an image of 224 x 224: width must be .* of 9\\."):
        looked_at(Backbone([4], multiple=9))
    with pytest.raises(RecipeError, match="^a backbone can't encode an image of 64 x 96: width must be .* of 224\\."):
        looked_at(Backbone([4, 16], multiple=224))
    with pytest.raises(RecipeError, match="its maps are 4 x 44 x 44"):
        looked_at(Backbone([5]))
    with pytest.raises(RecipeError, match=r"strides \[8, 4\]; name stages from the finest"):
        looked_at(Backbone([8, 4]), every_map=True)


def test_maps_that_are_not_at_their_stride() -> None:
    class Fixed(Backbone):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [F.adaptive_avg_pool2d(feature, 56) for feature in super().forward(image)]

    with pytest.raises(RecipeError, match="can't encode an image of 16 x 24: its maps are 4 x 56 x 56"):
        looked_at(Fixed([4]))


def test_looking_draws_nothing() -> None:
    state = torch.get_rng_state()
    looked_at(Backbone([4]).to("meta"))
    with torch.device("meta"):
        looked_at(Backbone([4]))
    assert Backbone([4]) is not None
    torch.set_rng_state(state)
    with torch.device("meta"):
        looked_at(Backbone([4]))
    assert torch.equal(state, torch.get_rng_state())


def test_what_no_level_needs_is_frozen() -> None:
    backbone = Backbone([4])
    freeze(backbone, looked_at(Backbone([4])).unused)
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained == {"maps.0.weight", "maps.0.bias"}


def test_a_level_at_full_size() -> None:
    level, features = full_size_level(3, 6, Features((8, 16), (4, 8)))
    assert features == Features((6, 8, 16), (1, 4, 8))
    assert level is not None
    assert level(torch.randn(2, 3, 8, 12)).shape == (2, 6, 8, 12)
    assert full_size_level(3, 0, features) == (None, features)
    assert full_size_level(3, 6, Features((8,), (1,))) == (None, Features((8,), (1,)))
    with pytest.raises(RecipeError, match="full_size_channels is -1"):
        full_size_level(3, -1, features)
