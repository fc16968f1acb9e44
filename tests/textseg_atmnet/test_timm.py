from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from textseg.contracts import Atlas, Features, Task, TextFeatures
from textseg.errors import RecipeError
from textseg_atmnet.hasf import HASF
from textseg_atmnet.timm import TimmEncoder

MODELS = {  # pyramid, size multiple
    "resnet18": (Features((64, 64, 128, 256, 512), (2, 4, 8, 16, 32)), 32),
    "convnext_atto": (Features((40, 80, 160, 320), (4, 8, 16, 32)), 32),
    "swin_tiny_patch4_window7_224": (Features((96, 192, 384, 768), (4, 8, 16, 32)), 32),  # channels last
    "vit_small_patch14_dinov2": (Features((384,), (14,)), 14),  # of 518 x 518
}


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(1, (64, 96), small_atlas.class_count, small_atlas, text_size=7, text_length=5)


def test_a_missing_timm_is_one_message(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        RecipeError, match=r'the package \'timm\' is not installed. Run `pip install "textseg\[timm\]"`'
    ):
        TimmEncoder(task, model="resnet18")


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("model", MODELS)
def test_levels_are_the_backbones(task: Task, model: str, channels: int) -> None:
    features, multiple = MODELS[model]
    encoder = TimmEncoder(replace(task, image_channels=channels), model=model, full_size_channels=0)
    assert (encoder.features, encoder.size_multiple) == (features, multiple)
    maps = encoder(torch.randn(2, channels, 2 * multiple, 3 * multiple))
    assert [(f.shape[1], 2 * multiple // f.shape[2], 3 * multiple // f.shape[3]) for f in maps] == [
        (width, stride, stride) for width, stride in zip(features.channels, features.strides, strict=True)
    ]


@pytest.mark.usefixtures("timm")
def test_maps_are_timms_own(task: Task) -> None:
    import timm

    torch.manual_seed(0)
    encoder = TimmEncoder(task, model="resnet18", full_size_channels=0).eval()
    own = timm.create_model("resnet18", features_only=True, in_chans=1).eval()
    own.load_state_dict(encoder.backbone.state_dict())
    image = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        for feature, expected in zip(encoder(image), own(image), strict=True):
            assert torch.equal(feature, expected)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("model", MODELS)
def test_hasf_takes_it_unchanged(task: Task, model: str) -> None:
    encoder = TimmEncoder(task, model=model)
    fusion = HASF(task, encoder.features, heads=8, text_tokens=3)
    sides = (2 * encoder.size_multiple, 3 * encoder.size_multiple)
    text = TextFeatures(torch.randn(2, 5, 7), torch.ones(2, 5) > 0, None, torch.ones(2, 4) > 0)
    with torch.autocast("cpu", torch.bfloat16):
        fused = fusion(encoder(torch.randn(2, 1, *sides)), text)
    assert fused[0].shape == (2, 32, *sides)
    fused[0].float().square().mean().backward()
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)


@pytest.mark.usefixtures("timm")
def test_stages(task: Task) -> None:
    chosen = TimmEncoder(task, model="resnet18", stages=(1, 3), full_size_channels=0)
    assert (chosen.features, chosen.size_multiple) == (Features((64, 256), (4, 16)), 16)
    plain = TimmEncoder(task, model="vit_tiny_patch16_224", stages=(2, 5, 11), full_size_channels=0)
    assert plain.features == Features((192, 192, 192), (16, 16, 16))


@pytest.mark.usefixtures("timm")
def test_weights_are_those_that_were_fetched(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    import timm
    from safetensors.torch import save_file

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RecipeError, match=r"'timm/resnet18.a1_in1k' is neither .*`textseg fetch RECIPE`.*HF_HOME"):
        TimmEncoder(task, model="resnet18", pretrained=True)
    torch.manual_seed(5)
    published = timm.create_model("resnet18")
    folder = tmp_path / "models--timm--resnet18.a1_in1k"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text("{}")
    save_file(published.state_dict(), snapshot / "model.safetensors")
    encoder = TimmEncoder(task, model="resnet18", pretrained=True)
    own = dict(encoder.backbone.named_parameters())
    assert torch.equal(own["layer4.1.conv2.weight"], published.layer4[1].conv2.weight)
    # timm fits the first convolution to grey images: the sum over colours.
    torch.testing.assert_close(own["conv1.weight"], published.conv1.weight.sum(1, keepdim=True))


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "resnet99"}, r"there is no model 'resnet99' in timm .* Did you mean 'resnet"),
        ({"model": "resnet18", "stages": (1, 9)}, r"can't be built with .*out_indices=\(1, 9\)"),
        ({"model": "maxvit_pico_rw_256"}, "can't encode an image of 224 x 224: .*must be divisible by window"),
        ({"model": "hiera_tiny_224"}, "can't encode an image of 128 x 192"),
    ],
)
def test_a_mistake_is_one_message(task: Task, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TimmEncoder(task, **settings)


@pytest.mark.usefixtures("timm")
def test_random_weights_need_no_fetch() -> None:
    message = TimmEncoder.fetch(progress=lambda name, done, total: None, model="resnet18")
    assert "random weights: nothing to fetch" in message
