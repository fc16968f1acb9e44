"""What every installed component made of weights must do, whoever brought it."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from textseg.contracts import Atlas, Batch, Features, SegmenterOutput, Structure, Task, TextFeatures
from textseg.model import Segmenter
from textseg.registry import Component, installed_registry

SMALL: Mapping[tuple[str, str], Mapping[str, Any]] = {  # makes a component quick; others keep their defaults
    ("vision_encoder", "swin_unetr"): {"feature_size": 12},
    ("vision_encoder", "residual_convolutions"): {"channels": [4, 8, 12]},
    ("vision_encoder", "monai_unet"): {"channels": [4, 4, 8, 8, 12]},
    ("vision_encoder", "huggingface_vision"): {
        "model": "convnext",
        "configuration": {"hidden_sizes": [4, 8, 12, 16], "depths": [1, 1, 1, 1]},
    },
    ("vision_encoder", "timm"): {"model": "resnet10t"},
    ("fusion", "hasf"): {"heads": 4, "text_tokens": 4},
    ("network", "spineparsenet"): {"coarse_size": (3, 32, 16), "coarse_width": 4, "hidden": 8, "widths": (4, 8, 12)},
    ("network", "attention_unet"): {"channels": [4, 6, 8]},
    ("network", "modified_bisenet"): {"channels": 4},
    ("network", "nnunet_v2"): {"features": 4, "max_features": 16},
    ("network", "swin_unetr"): {"feature_size": 12},
    ("network", "u_bisenet"): {"channels": 4},
    ("network", "unet"): {"channels": [4, 6, 8]},
    ("network", "unetr"): {"feature_size": 4, "hidden_size": 24, "feed_forward_size": 32, "heads": 3},
}
KINDS = ("vision_encoder", "fusion", "auxiliary_loss", "network")
COMPONENTS = [component for kind in KINDS for component in installed_registry().components(kind)]
ATLAS = Atlas("pair", tuple(Structure(name, "part", index) for index, name in enumerate(("a", "b", "c"), start=1)))
TASK = Task(1, (64, 96), ATLAS.class_count, ATLAS, text_size=7, text_length=5)
PYRAMID = Features((8, 16, 24), (1, 2, 4))  # what fusions and auxiliary losses get

each = pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: f"{component.kind}-{component.name}")


@pytest.fixture(autouse=True)
def _what_it_stands_on(request: pytest.FixtureRequest) -> None:
    component = request.node.callspec.params.get("component") if hasattr(request.node, "callspec") else None
    if component is not None and component.name == "timm":
        request.getfixturevalue("timm")


def built(component: Component) -> nn.Module:
    torch.manual_seed(1)
    wired = (TASK, PYRAMID) if component.kind in ("fusion", "auxiliary_loss") else (TASK,)
    settings = SMALL.get((component.kind, component.name), {})
    module = installed_registry().build(component.kind, component.name, *wired, settings=settings)
    assert isinstance(module, nn.Module)
    return module


@dataclass(frozen=True)
class Example:
    """Random slices, their text, and a pyramid; the same for the same seed."""

    image: Tensor
    mask: Tensor
    text: TextFeatures
    pyramid: tuple[Tensor, ...]

    @classmethod
    def of(cls, batch: int, sides: tuple[int, int], seed: int = 0) -> Example:
        random = torch.Generator().manual_seed(seed)
        shown = torch.arange(5).expand(batch, 5) < 4
        text = TextFeatures(
            torch.randn(batch, 5, 7, generator=random) * shown[..., None],
            shown,
            torch.randn(batch, ATLAS.class_count - 1, 7, generator=random),
            torch.ones(batch, ATLAS.class_count - 1, dtype=torch.bool),
        )
        pyramid = tuple(
            torch.randn(batch, channels, sides[0] // stride, sides[1] // stride, generator=random).requires_grad_()
            for channels, stride in zip(PYRAMID.channels, PYRAMID.strides, strict=True)
        )
        image = torch.randn(batch, TASK.image_channels, *sides, generator=random)
        return cls(image, torch.randint(0, ATLAS.class_count, (batch, *sides), generator=random), text, pyramid)


def sides_for(module: nn.Module) -> tuple[int, int]:
    """The image size of the task, in multiples of what the module needs."""
    multiple = cast(int, getattr(module, "size_multiple", 4))
    height, width = (math.ceil(side / multiple) * multiple for side in TASK.image_size)
    return height, width


def run(component: Component, module: nn.Module, example: Example) -> list[Tensor]:
    """What the component gives, after a look at its shapes."""
    torch.manual_seed(2)
    batch, (height, width) = len(example.image), example.image.shape[-2:]
    if component.kind == "vision_encoder":
        maps = list(module(example.image))
        check_levels(maps, cast(Features, module.features), batch, (height, width))
        return maps
    if component.kind == "fusion":
        maps = list(module(example.pyramid, example.text))
        check_levels(maps, cast(Features, module.features), batch, (height, width))
        return maps
    if component.kind == "auxiliary_loss":
        logits = example.pyramid[0][:, : ATLAS.class_count]
        output = SegmenterOutput(logits, (), example.pyramid, example.pyramid, example.text)
        place = torch.arange(batch)
        names = tuple(f"case{i}" for i in range(batch))
        value = module(
            output, Batch(example.image, example.mask, example.text, names, place, place + 1, torch.ones(batch, 3))
        )
        assert value.shape == ()
        assert value.dtype == torch.float32
        return [value]
    segmenter = Segmenter(cast(Any, module))
    output = segmenter(example.image, example.text if segmenter.uses_text else None)
    assert output.logits.shape == (batch, TASK.class_count, height, width)
    return [output.logits, *output.deep_logits]


def check_levels(maps: list[Tensor], features: Features, batch: int, sides: tuple[int, int]) -> None:
    expected = [
        (batch, channels, sides[0] // stride, sides[1] // stride)
        for channels, stride in zip(features.channels, features.strides, strict=True)
    ]
    assert [tuple(feature.shape) for feature in maps] == expected
    assert list(features.strides) == sorted(features.strides), "finest first"


@each
def test_its_signature_and_settings_are_valid(component: Component) -> None:
    assert component.settings() is not None
    assert component.description
    settings = SMALL.get((component.kind, component.name), {})
    assert installed_registry().check(component.kind, component.name, settings, "here") == []


def test_the_table_of_small_settings_names_what_exists() -> None:
    assert set(SMALL) <= {(component.kind, component.name) for component in COMPONENTS}


@each
@pytest.mark.parametrize("batch", [1, 2])
def test_it_learns_from_images_of_any_multiple_with_finite_gradients(component: Component, batch: int) -> None:
    module = built(component)
    example = Example.of(batch, sides_for(module))
    given = run(component, module, example)
    assert all(tensor.isfinite().all() for tensor in given)
    torch.stack([(tensor.float() ** 2).mean() for tensor in given]).sum().backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    gradients += [tensor.grad for tensor in example.pyramid if tensor.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


@each
def test_the_same_seed_gives_the_same(component: Component) -> None:
    first, second = built(component), built(component)
    example = Example.of(1, sides_for(first))
    for a, b in zip(run(component, first, example), run(component, second, example), strict=True):
        assert torch.equal(a, b)


@each
def test_it_can_be_stored_copied_and_pickled(component: Component) -> None:
    module = built(component).eval()
    example = Example.of(1, sides_for(module))
    with torch.no_grad():
        expected = run(component, module, example)
        stored = built(component).eval()
        for parameter in stored.parameters():
            parameter.zero_()
        stored.load_state_dict(module.state_dict())
        for twin in (stored, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            for a, b in zip(run(component, twin, example), expected, strict=True):
                assert torch.equal(a, b)


@each
def test_slices_of_a_batch_do_not_see_each_other(component: Component) -> None:
    if component.kind == "auxiliary_loss":
        pytest.skip("a loss is one number for a batch")
    module = built(component).eval()
    if getattr(module, "batching", "slice") == "volume":
        pytest.skip("a batch is a volume, whose slices are to see each other")
    example = Example.of(2, sides_for(module))
    text = example.text
    assert text.classwise is not None
    first = Example(
        example.image[:1],
        example.mask[:1],
        TextFeatures(text.tokens[:1], text.mask[:1], text.classwise[:1], text.present[:1]),
        tuple(tensor[:1] for tensor in example.pyramid),
    )
    with torch.no_grad():
        for both, alone in zip(run(component, module, example), run(component, module, first), strict=True):
            torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-4)
