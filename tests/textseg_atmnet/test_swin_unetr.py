import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor

from textseg.contracts import Atlas, Task
from textseg.errors import PluginError
from textseg.registry.discovery import installed_registry
from textseg_atmnet.swin_unetr import SwinUNETREncoder


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(1, (64, 96), small_atlas.class_count, small_atlas)


def test_levels_at_the_papers_size_are_the_papers(task: Task) -> None:
    wide = SwinUNETREncoder(task)
    assert sum(parameter.numel() for parameter in wide.parameters()) == 17_815_770
    assert wide.features.channels == (48, 48, 96, 192, 384, 768)
    assert wide.features.strides == (1, 2, 4, 8, 16, 32)
    with torch.inference_mode():
        maps = SwinUNETREncoder(task, feature_size=12)(torch.randn(1, 1, 384, 384))
    assert [feature.shape[1] for feature in maps] == [12, 12, 24, 48, 96, 192]
    assert [feature.shape[2] * feature.shape[3] for feature in maps] == [384 * 384, 36864, 9216, 2304, 576, 144]


def test_maps_are_those_inside_monais_own_network(task: Task) -> None:
    torch.manual_seed(0)
    whole = SwinUNETR(1, task.class_count, feature_size=12, spatial_dims=2).eval()
    encoder = SwinUNETREncoder(task, feature_size=12).eval()
    encoder.transformer.load_state_dict(whole.swinViT.state_dict())
    encoder.full.load_state_dict(whole.encoder1.state_dict())
    for index, block in ((0, whole.encoder2), (1, whole.encoder3), (2, whole.encoder4), (4, whole.encoder10)):
        encoder.refine[index].load_state_dict(block.state_dict())

    seen: list[tuple[Tensor, Tensor]] = []  # what each decoder is given: the coarser map and the skip
    for decoder in (whole.decoder5, whole.decoder4, whole.decoder3, whole.decoder2, whole.decoder1):
        decoder.register_forward_pre_hook(lambda module, args: seen.append(args))
    image = torch.randn(1, 1, 64, 96)
    with torch.inference_mode():
        whole(image)
        maps = encoder(image)
    inside = [seen[0][0], *(skip for _, skip in seen)]  # coarsest first
    assert len(inside) == len(maps)
    for feature, expected in zip(maps, reversed(inside), strict=True):
        torch.testing.assert_close(feature, expected)


def test_checkpointing_changes_no_gradient(task: Task) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = SwinUNETREncoder(task, feature_size=12, checkpointing=checkpointing)
        (encoder(torch.randn(1, 1, 64, 64))[-1] ** 2).mean().backward()
        gradients.append([p.grad for p in encoder.transformer.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_a_feature_size_out_of_range_is_named(task: Task) -> None:
    with pytest.raises(PluginError, match=r"'swin_unetr' .* built with feature_size=10: .*divisible by 12"):
        installed_registry().build("vision_encoder", "swin_unetr", task, settings={"feature_size": 10})
