from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from textseg.contracts import Atlas, Features, Task, TextFeatures
from textseg.errors import RecipeError
from textseg.models import standardise
from textseg_atmnet.hasf import HASF
from textseg_atmnet.huggingface_vision import HuggingFaceVision

SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 4]}
KINDS: dict[str, tuple[dict[str, Any], Features, int]] = {  # configuration, pyramid, size multiple
    "swin": (SWIN, Features((16, 32, 64, 128), (4, 8, 16, 32)), 32),
    "convnext": (
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        Features((8, 16, 24, 32), (4, 8, 16, 32)),
        32,
    ),
    "resnet": (
        {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        Features((8, 16, 24, 32), (4, 8, 16, 32)),
        32,
    ),
    "dinov2": ({"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}, Features((32,), (14,)), 14),
}


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(1, (64, 96), small_atlas.class_count, small_atlas, text_size=7, text_length=5)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def encoder_of(task: Task, kind: str, **settings: Any) -> HuggingFaceVision:
    torch.manual_seed(0)
    return HuggingFaceVision(task, model=kind, configuration=KINDS[kind][0], **settings)


@pytest.mark.parametrize("channels", [1, 3])
def test_levels_are_the_backbones(task: Task, kind: str, channels: int) -> None:
    _, features, multiple = KINDS[kind]
    encoder = encoder_of(replace(task, image_channels=channels), kind, full_size_channels=0).eval()
    assert (encoder.features, encoder.size_multiple) == (features, multiple)
    image = torch.randn(2, channels, 3 * multiple, 5 * multiple)
    with torch.no_grad():
        maps = encoder(image)
        expected = encoder.backbone(image).feature_maps
    for feature, same in zip(maps, expected, strict=True):
        assert torch.equal(feature, same)
    assert [(f.shape[1], 3 * multiple // f.shape[2], 5 * multiple // f.shape[3]) for f in maps] == [
        (width, stride, stride) for width, stride in zip(features.channels, features.strides, strict=True)
    ]


def test_a_level_at_full_size_comes_first(task: Task, kind: str) -> None:
    encoder = encoder_of(task, kind, full_size_channels=6)
    side = encoder.size_multiple
    assert encoder.features.strides[0] == 1
    assert encoder(torch.randn(1, 1, side, 2 * side))[0].shape == (1, 6, side, 2 * side)


@pytest.mark.parametrize("full_size_channels", [0, 8])
def test_hasf_takes_it_unchanged(task: Task, kind: str, full_size_channels: int) -> None:
    encoder = encoder_of(task, kind, full_size_channels=full_size_channels)
    fusion = HASF(task, encoder.features, heads=4, text_tokens=3)
    sides = (2 * encoder.size_multiple, 3 * encoder.size_multiple)
    mask = torch.arange(5)[None] < torch.tensor([[5], [1]])
    text = TextFeatures(torch.randn(2, 5, 7), mask, None, torch.ones(2, 4, dtype=torch.bool))
    with torch.autocast("cpu", torch.bfloat16):
        fused = fusion(encoder(torch.randn(2, 1, *sides)), text)
    assert [feature.shape[1:] for feature in fused] == [
        (width, sides[0] // stride, sides[1] // stride)
        for width, stride in zip(encoder.features.channels, encoder.features.strides, strict=True)
    ]
    fused[0].float().square().mean().backward()
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)


def test_stages_of_a_plain_transformer_are_levels_of_one_size(task: Task) -> None:
    encoder = encoder_of(task, "dinov2", stages=(1, 3), full_size_channels=0)
    assert encoder.features == Features((32, 32), (14, 14))
    first, last = encoder(torch.randn(1, 1, 28, 42))
    assert first.shape == last.shape == (1, 32, 2, 3)
    assert not torch.equal(first, last)
    fused = HASF(task, encoder.features, heads=4)((first, last), _text())
    assert [feature.shape for feature in fused] == [first.shape, last.shape]


def _text() -> TextFeatures:
    mask = torch.ones(1, 5, dtype=torch.bool)
    return TextFeatures(torch.randn(1, 5, 7), mask, None, torch.ones(1, 4, dtype=torch.bool))


def test_pickling_after_use_hooks_of_others_stay(task: Task) -> None:
    encoder = encoder_of(task, "convnext").eval()
    seen: list[int] = []
    handle = encoder.backbone.register_forward_hook(lambda *_: seen.append(1))
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        expected = encoder(image)
        twin = copy.deepcopy(encoder)
        handle.remove()
        for features in (pickle.loads(pickle.dumps(encoder))(image), twin(image), encoder(image)):
            assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))
    assert len(seen) == 2  # the first call, and the copy with its hook


def test_stages_may_be_left_out(task: Task) -> None:
    encoder = encoder_of(task, "swin", stages=(1, 3), full_size_channels=0)
    assert (encoder.features, encoder.size_multiple) == (Features((16, 64), (4, 16)), 16)


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A folder with a Swin for classification of colour images, like a published model."""
    from transformers import SwinConfig, SwinForImageClassification

    torch.manual_seed(3)
    model = SwinForImageClassification(SwinConfig(**SWIN, num_channels=3))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "swin")
    return tmp_path / "swin"


def test_weights_of_colour_images_read_a_grey_one_thrice(task: Task, pretrained: Path) -> None:
    from transformers import SwinForImageClassification

    encoder = HuggingFaceVision(task, model=str(pretrained), pretrained=True, full_size_channels=0).eval()
    model = SwinForImageClassification.from_pretrained(pretrained).eval()
    image = torch.randn(2, 1, 224, 224)  # the classifier takes no other
    with torch.no_grad():
        last = encoder(image)[-1]
        read = standardise(image).expand(-1, 3, -1, -1)
        hidden = model.swin(read, output_hidden_states=True).reshaped_hidden_states[-1]
    # The backbone puts a norm of its own, which begins as the plain one, on the hidden state.
    expected = torch.nn.functional.layer_norm(hidden.permute(0, 2, 3, 1), hidden.shape[1:2])
    torch.testing.assert_close(last, expected.permute(0, 3, 1, 2), rtol=1e-3, atol=1e-3)
    rgb = HuggingFaceVision(replace(task, image_channels=3), model=str(pretrained), pretrained=True)
    assert (rgb.repeats, rgb.first_layer) == (1, None)
    assert encoder.first_layer == "the channel of the image is read as each of the 3 channels of the pretrained weights"


def test_weights_of_colour_images_are_repeated_for_two_channels(task: Task, pretrained: Path) -> None:
    colour, pair = (
        HuggingFaceVision(
            replace(task, image_channels=channels), model=str(pretrained), pretrained=True, full_size_channels=0
        ).eval()
        for channels in (3, 2)
    )
    state, own = pair.backbone.state_dict(), colour.backbone.state_dict()
    (first,) = [name for name in state if state[name].shape != own[name].shape]
    torch.testing.assert_close(state.pop(first), own.pop(first)[:, :2] * 1.5)
    assert all(torch.equal(state[name], own[name]) for name in own)
    assert pair.first_layer == "pretrained weights for 3 channels are repeated over 2 channels, times 3/2"
    assert len(pair(torch.randn(1, 2, 32, 32))) == len(colour(torch.randn(1, 3, 32, 32)))


def test_a_folder_without_pretrained_gives_its_shape_alone(task: Task, pretrained: Path) -> None:
    (pretrained / "model.safetensors").unlink()
    encoder = HuggingFaceVision(task, model=str(pretrained), full_size_channels=0)
    assert encoder.features == KINDS["swin"][1]
    assert encoder.repeats == 1
    with pytest.raises(RecipeError, match="holds no weights"):
        HuggingFaceVision(task, model=str(pretrained), pretrained=True)


def test_weights_that_do_not_fit_are_refused(task: Task, pretrained: Path) -> None:
    deeper = {"depths": [1, 1, 2, 1]}
    with pytest.raises(RecipeError, match="lack .* tensors, .*layers.2.blocks.1.*would be random"):
        HuggingFaceVision(task, model=str(pretrained), pretrained=True, configuration=deeper)
    (pretrained / "model.safetensors").write_bytes(b"short")
    with pytest.raises(RecipeError, match="The weights of vision encoder .* can't be read"):
        HuggingFaceVision(task, model=str(pretrained), pretrained=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "swim"}, "'swim' is no kind of backbone. Did you mean 'swin'"),
        ({"model": "swin", "pretrained": True}, "'swin' is a kind of model, and no weights belong to it"),
        (
            {"model": "swin", "configuration": {"embed_dims": 8}},
            "no configuration 'embed_dims'. Did you mean 'embed_dim'",
        ),
        ({"model": "swin", "configuration": {"depths": "deep"}}, "the configuration of 'swin' can't be used: .*depths"),
        ({"model": "swin", "configuration": {"embed_dim": 13}}, "'swin' can't encode an image of 224 x 224"),
        ({"model": "swin", "stages": (1, 7)}, r"has the stages 0 to 4, not \(1, 7\)"),
        ({"model": "hiera"}, "'hiera' can't encode an image of 128 x 192"),
        ({"model": "somebody/swin"}, "'somebody/swin' is neither a folder nor on this machine. Run `textseg fetch"),
        ({"model": "./swin"}, "'./swin' is no folder that holds a model"),
    ],
)
def test_a_mistake_is_one_message(
    task: Task, settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RecipeError, match=message):
        HuggingFaceVision(task, **settings)


def test_a_text_model_is_no_backbone(task: Task, tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="is of the kind 'bert', which is no backbone"):
        HuggingFaceVision(task, model=str(tmp_path))


def test_fetch_says_what_there_is(pretrained: Path) -> None:
    def progress(name: str, done: int, total: int | None) -> None:
        raise AssertionError

    message = HuggingFaceVision.fetch(progress=progress, model="swin", configuration=SWIN)
    assert "random weights: nothing to fetch" in message
    assert "is a folder" in HuggingFaceVision.fetch(progress=progress, model=str(pretrained), pretrained=True)


def test_importing_it_does_not_import_transformers() -> None:
    code = "import sys, textseg_atmnet.huggingface_vision; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
