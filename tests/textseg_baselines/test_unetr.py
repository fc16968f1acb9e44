from dataclasses import replace

import pytest
import torch
from monai.networks import nets

from textseg.contracts import Atlas, Task
from textseg.errors import RecipeError
from textseg.models.segmenter import Segmenter
from textseg_baselines.unetr import UNETR

SMALL = {"feature_size": 4, "hidden_size": 24, "feed_forward_size": 32, "heads": 3}


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(1, (64, 96), small_atlas.class_count, small_atlas)


def test_it_is_monais_network_without_the_norms_that_are_never_used(task: Task) -> None:
    network = UNETR(task, **SMALL).eval()
    theirs = nets.UNETR(1, task.class_count, (64, 96), 4, 24, 32, 3, spatial_dims=2).eval()
    missing = theirs.load_state_dict(network.network.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    assert len(missing.missing_keys) == 24
    assert all("norm_cross_attn" in key for key in missing.missing_keys)
    image = torch.randn(1, 1, 64, 96)
    with torch.inference_mode():
        assert torch.equal(network(image, None).logits, theirs(image))


def test_position_embeddings_come_from_the_size_of_the_task(task: Task) -> None:
    for size, positions in (((64, 96), 24), ((50, 70), 20), ((384, 384), 576)):
        network = UNETR(replace(task, image_size=size), **SMALL)
        (table,) = [tensor for key, tensor in network.named_parameters() if "position" in key]
        assert table.shape == (1, positions, 24)


def test_another_size_is_an_error_that_names_both(task: Task) -> None:
    with pytest.raises(ValueError, match="64 x 96 pixels, not for 96 x 64"):
        Segmenter(UNETR(task, **SMALL))(torch.zeros(1, 1, 96, 64))


@pytest.mark.parametrize("heads", [0, 5])
def test_heads_must_divide_the_tokens_features(task: Task, heads: int) -> None:
    with pytest.raises(RecipeError, match=rf"heads is {heads}, but must divide hidden_size \(24\)"):
        UNETR(task, **{**SMALL, "heads": heads})
