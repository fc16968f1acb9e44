import pytest
import torch
from monai.networks import nets

from textseg.contracts import Atlas, Task
from textseg.errors import RecipeError
from textseg_baselines.unet import UNet


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(1, (64, 96), small_atlas.class_count, small_atlas)


def test_it_is_monais_network_and_weights_may_be_carried_over(task: Task) -> None:
    network = UNet(task, channels=(4, 8, 12)).eval()
    theirs = nets.UNet(2, 1, task.class_count, channels=(4, 8, 12), strides=(2, 2), num_res_units=0).eval()
    theirs.load_state_dict(network.network.state_dict())
    image = torch.randn(1, 1, 64, 96)
    with torch.inference_mode():
        assert torch.equal(network(image, None).logits, theirs(image))


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_each_level_doubles_the_multiple(task: Task, levels: int) -> None:
    assert UNet(task, channels=(4,) * levels).size_multiple == 2 ** (levels - 1)


def test_one_level_is_refused(task: Task) -> None:
    with pytest.raises(RecipeError, match=r"channels is \[4\], but must name at least 1 for two or more levels"):
        UNet(task, channels=(4,))
