from __future__ import annotations

import pytest
import torch
from monai.networks.nets.basic_unet import BasicUNet

from textseg.contracts import Atlas, Task
from textseg.errors import RecipeError
from textseg_atmnet.monai_unet import MonaiUNetEncoder


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(3, (64, 96), small_atlas.class_count, small_atlas)


def test_maps_are_those_inside_monais_own_network(task: Task) -> None:
    channels = (4, 4, 8, 12, 16)
    whole = BasicUNet(spatial_dims=2, in_channels=3, out_channels=2, features=(*channels, 4)).eval()
    encoder = MonaiUNetEncoder(task, channels=channels).eval()
    parts = (whole.conv_0, whole.down_1, whole.down_2, whole.down_3, whole.down_4)
    inside: list[torch.Tensor] = []
    for stage, part in zip(encoder.stages, parts, strict=True):
        stage.load_state_dict(part.state_dict())
        part.register_forward_hook(lambda module, given, output: inside.append(output))
    image = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        whole(image)
        maps = encoder(image)
    for feature, expected in zip(maps, inside, strict=True):
        torch.testing.assert_close(feature, expected)
    assert encoder.features.channels == channels
    assert [64 // feature.shape[2] for feature in maps] == list(encoder.features.strides) == [1, 2, 4, 8, 16]


def test_no_decoder_is_carried_along(task: Task) -> None:
    encoder = MonaiUNetEncoder(task)
    maps = encoder(torch.randn(1, 3, 32, 48))
    torch.stack([feature.mean() for feature in maps]).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_it_has_five_levels(task: Task) -> None:
    with pytest.raises(RecipeError, match="channels has 3 values, but its levels are five"):
        MonaiUNetEncoder(task, channels=(4, 8, 16))
