import pytest
import torch
from monai.networks import nets

from textseg.contracts import Atlas, Task
from textseg.errors import RecipeError
from textseg_baselines.segresnet import SegResNet


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(1, (64, 96), small_atlas.class_count, small_atlas)


def test_it_is_monais_network(task: Task) -> None:
    network = SegResNet(task).eval()
    theirs = nets.SegResNet(2, init_filters=8, in_channels=1, out_channels=task.class_count).eval()
    theirs.load_state_dict(network.network.state_dict())
    image = torch.randn(1, 1, 64, 96)
    with torch.inference_mode():
        assert torch.equal(network(image, None).logits, theirs(image))


@pytest.mark.parametrize("channels", [0, 4, 12])
def test_channels_that_groups_dont_divide_are_refused(task: Task, channels: int) -> None:
    with pytest.raises(RecipeError, match=f"channels is {channels}, but must be a multiple of 8"):
        SegResNet(task, channels=channels)
