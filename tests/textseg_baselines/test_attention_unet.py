import pytest
import torch
from monai.networks import nets

from textseg.contracts import Atlas, Task
from textseg.errors import RecipeError
from textseg_baselines.attention_unet import AttentionUNet


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(1, (64, 96), small_atlas.class_count, small_atlas)


def test_it_is_monais_network(task: Task) -> None:
    network = AttentionUNet(task, channels=(4, 8, 12)).eval()
    theirs = nets.AttentionUnet(2, 1, task.class_count, channels=(4, 8, 12), strides=(2, 2)).eval()
    theirs.load_state_dict(network.network.state_dict())
    image = torch.randn(1, 1, 64, 96)
    with torch.inference_mode():
        assert torch.equal(network(image, None).logits, theirs(image))


@pytest.mark.parametrize("channels", [(4,), (1, 2), ()])
def test_channels_without_a_gate_are_refused(task: Task, channels: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="must name at least 2 for two or more levels"):
        AttentionUNet(task, channels=channels)
