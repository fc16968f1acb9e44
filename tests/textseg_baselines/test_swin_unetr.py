from dataclasses import replace

import torch

from textseg.contracts import Atlas, Task
from textseg.models.segmenter import Segmenter
from textseg_baselines.swin_unetr import SwinUNETR


def some_task(atlas: Atlas) -> Task:
    return Task(1, (64, 96), atlas.class_count, atlas)


def test_it_has_the_size_of_the_papers_table(small_atlas: Atlas) -> None:
    network = SwinUNETR(replace(some_task(small_atlas), class_count=20))
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_138_862


def test_it_segments_any_size_without_text(small_atlas: Atlas) -> None:
    task = some_task(small_atlas)
    segmenter = Segmenter(SwinUNETR(task, feature_size=12)).eval()
    assert not segmenter.uses_text
    assert segmenter.fused_features is None
    with torch.inference_mode():
        output = segmenter(torch.randn(1, 1, 50, 70))
    assert output.logits.shape == (1, task.class_count, 50, 70)
    assert output.logits.isfinite().all()


def test_it_is_monais_network(small_atlas: Atlas) -> None:
    from monai.networks.nets import swin_unetr

    task = some_task(small_atlas)
    network = SwinUNETR(task, feature_size=12).eval()
    theirs = swin_unetr.SwinUNETR(1, task.class_count, feature_size=12, spatial_dims=2).eval()
    theirs.load_state_dict(network.network.state_dict())
    image = torch.randn(1, 1, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(network(image, None).logits, theirs(image), rtol=1e-5, atol=1e-5)
