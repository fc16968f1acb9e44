import pytest
import torch

from textseg.contracts import Atlas, Task
from textseg.errors import RecipeError
from textseg_baselines.u_bisenet import StripPooling, UBiSeNet


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(1, (64, 96), small_atlas.class_count, small_atlas)


def test_strip_pooling_sees_whole_rows_and_columns() -> None:
    pooling = StripPooling(3).eval()
    torch.nn.init.ones_(pooling.rows.bias)  # past the ReLU, so that every way is open
    feature = torch.randn(1, 3, 31, 41, requires_grad=True)
    pooling(feature)[..., 15, 20].sum().backward()
    assert feature.grad is not None
    seen = feature.grad.abs().sum((0, 1)) > 0
    assert all(seen[position] for position in ((15, 0), (15, 40), (0, 20), (30, 20)))
    assert not any(seen[position] for position in ((0, 0), (30, 40), (5, 30)))


def test_the_context_path_has_the_stages_of_resnet_34(task: Task) -> None:
    network = UBiSeNet(task)
    assert [len(stage) for stage in network.stages] == [3, 4, 6, 3]
    image = network.stem(torch.randn(1, 1, 64, 96))
    shapes = []
    for stage in network.stages:
        image = stage(image)
        shapes.append(tuple(image.shape[1:]))
    assert shapes == [(64, 16, 24), (128, 8, 12), (256, 4, 6), (256, 2, 3)]


def test_logits_come_at_half_the_resolution(task: Task) -> None:
    assert UBiSeNet(task, channels=4)(torch.randn(2, 1, 64, 96), None).logits.shape[-2:] == (32, 48)


@pytest.mark.parametrize("setting", ["channels", "strip_poolings"])
def test_nothing_is_refused(task: Task, setting: str) -> None:
    with pytest.raises(RecipeError, match=f"{setting} is 0, but must be at least 1"):
        UBiSeNet(task, **{setting: 0})
