from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from textseg.contracts import Atlas, BatchGeometry, SegmenterOutput, Structure, Task, TextFeatures
from textseg.models.cost import count_cost, count_parameters, empty_text, measure_cost, usual_task
from textseg.models.segmenter import Segmenter

CPU = torch.device("cpu")
ATLAS = Atlas("two", (Structure("dark", "part", 1), Structure("bright", "part", 2)))


class Layers(nn.Module):
    """A network of layers whose cost is known."""

    uses_text = False
    size_multiple = 1

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        for layer in self.layers:
            image = layer(image)
        return SegmenterOutput(image)


class SelfAttention(nn.Module):
    def __init__(self, width: int, module: nn.Module | None) -> None:
        super().__init__()
        self.width, self.module = width, module

    def forward(self, image: Tensor) -> Tensor:
        tokens = image.flatten(2).transpose(1, 2)  # [B, N, C]
        if self.module is None:
            heads = tokens.unflatten(-1, (2, -1)).transpose(1, 2)
            tokens = nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        elif isinstance(self.module, nn.MultiheadAttention):
            tokens = self.module(tokens, tokens, tokens, need_weights=False)[0]
        else:
            tokens = self.module(tokens)
        return tokens.transpose(1, 2).unflatten(2, (-1, self.width))


class Listener(nn.Module):
    uses_text = True
    size_multiple = 1

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        assert text is not None
        assert text.classwise is not None
        assert (text.tokens.shape, text.mask.shape) == ((1, 7, 5), (1, 7))
        assert (text.classwise.shape, text.present.shape) == ((1, 2, 5), (1, 2))
        return SegmenterOutput(image.repeat(1, 3, 1, 1))


class Keeper(nn.Module):
    """Keeps what it computes once: a grid of ones."""

    uses_text = False
    size_multiple = 1

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 3, 1)
        self.kept: torch.Tensor | None = None

    def forward(self, image: torch.Tensor, text: TextFeatures | None) -> SegmenterOutput:
        if self.kept is None:
            self.kept = torch.ones(1, 1, *image.shape[-2:])
        return SegmenterOutput(self.layer(image) * self.kept)


def task(size: tuple[int, int] = (8, 6), **text: Any) -> Task:
    return Task(image_channels=1, image_size=size, class_count=3, atlas=ATLAS, **text)


def test_the_cost_of_convolutions_and_matrix_products() -> None:
    frozen = nn.Conv2d(4, 3, 1, bias=False).requires_grad_(False)
    network = Layers(nn.Conv2d(1, 4, 3, padding=1), frozen, nn.Linear(6, 6))
    cost = measure_cost(Segmenter(network), task((8, 6)), CPU, repeats=2)
    assert cost["parameters"] == (9 * 4 + 4) + 12 + (36 + 6)
    assert cost["trainable_parameters"] == cost["parameters"] - 12
    assert cost["multiply_accumulates"] == 48 * (9 * 4) + 48 * 12 + 3 * 8 * 36
    assert cost["milliseconds_per_slice"] > 0


def test_neighbours_and_geometry_are_part_of_the_input() -> None:
    class Thick(Layers):
        reads_geometry, context_slices = True, 3

        def forward(self, image: torch.Tensor, text: TextFeatures | None, geometry: BatchGeometry) -> SegmenterOutput:
            assert geometry.spacing_mm.shape == (1, 3)
            return super().forward(image, text)

    segmenter = Segmenter(Thick(nn.Conv2d(3, 4, 3, padding=1)))
    assert measure_cost(segmenter, task((8, 6)), CPU, repeats=1)["multiply_accumulates"] == 48 * (9 * 3 * 4)


def test_attention_is_counted_whichever_way_it_is_written() -> None:
    pixels, channels = 8 * 6, 4
    products = 2 * pixels * pixels * channels  # QK and its product with V, over all heads
    projections = 4 * pixels * channels * channels
    spread = nn.Conv2d(1, channels, 1)

    def count(module: nn.Module | None) -> int:
        network = Layers(spread, SelfAttention(6, module))
        return int(measure_cost(Segmenter(network), task((8, 6)), CPU, repeats=1)["multiply_accumulates"])

    first = pixels * channels
    assert count(None) == first + products
    assert count(nn.MultiheadAttention(channels, 2, batch_first=True)) == first + products + projections
    layer = nn.TransformerEncoderLayer(channels, 2, 16, batch_first=True)
    assert count(layer) == first + products + projections + 2 * pixels * channels * 16
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_segmenter_as_it_was(training: bool) -> None:
    network = Layers(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
    segmenter = Segmenter(network).train(training)
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    measure_cost(segmenter, task(), CPU, repeats=1)
    assert segmenter.training == network.layers[1].training == training
    assert all(torch.equal(value, before[name]) for name, value in segmenter.state_dict().items())


def test_a_network_that_reads_text_is_measured_with_text_that_says_nothing() -> None:
    cost = measure_cost(Segmenter(Listener()), task(text_size=5, text_length=7), CPU, repeats=1)
    assert cost["multiply_accumulates"] == 0
    with pytest.raises(ValueError, match="no text"):
        empty_text(task(), CPU)


def test_what_a_network_keeps_of_a_forward_pass_can_be_trained_with() -> None:
    segmenter = Segmenter(Keeper())
    measure_cost(segmenter, task(), CPU, repeats=1)
    segmenter(torch.zeros(1, 1, 8, 6)).logits.sum().backward()
    assert segmenter.network.layer.weight.grad is not None


def test_a_slice_of_a_volume_costs_its_part(across: type[nn.Module]) -> None:
    segmenter = Segmenter(across())
    sizes = {"native_sizes": [(3, 9, 9), (6, 9, 9), (20, 9, 9)]}
    cost = measure_cost(segmenter, task((8, 6), fingerprint=sizes), CPU, repeats=1)
    assert set(segmenter.network.shown) == {6}
    assert cost["multiply_accumulates"] == 3 * 3 * 48
    measure_cost(segmenter, task((8, 6)), CPU, repeats=1)
    assert segmenter.network.shown[-1] == 1


class Tables(Layers):
    """Positions by several names, and a parameter that is none though it sounds like one."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 3, 1))
        self.pos_embed = nn.Parameter(torch.zeros(5))
        self.rel_pos_h = nn.Parameter(torch.zeros(7))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(11))
        self.composition = nn.Parameter(torch.zeros(13))


def test_parameters_are_counted_with_and_without_tables_of_positions() -> None:
    network = Tables()
    network.composition.requires_grad_(False)
    counts = count_parameters(Segmenter(network))
    assert counts == {
        "parameters": 6 + 5 + 7 + 11 + 13,
        "trainable_parameters": 6 + 5 + 7 + 11,
        "parameters_without_positions": 6 + 13,
    }


class GivenAParameter(nn.Module):
    """A module inside is given a view of a parameter, which torch's counter can't follow without gradients."""

    uses_text = False
    size_multiple = 1

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(6))
        self.layer = nn.Linear(6, 6)

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        weights: Tensor = self.layer(self.token[None].expand(2, -1))
        return SegmenterOutput(image * weights.sum())


def test_a_module_that_is_given_a_parameter_is_counted() -> None:
    segmenter = Segmenter(GivenAParameter())
    assert measure_cost(segmenter, task(), CPU, repeats=1)["multiply_accumulates"] == 2 * 36
    assert segmenter.network.token.requires_grad


class LooksAtValues(Layers):
    """Can't be run where there are no values."""

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        assert image.sum().item() == 0
        return super().forward(image, text)


@pytest.mark.parametrize("network", [Layers, LooksAtValues])
def test_the_count_without_computing_is_the_one_with(network: type[Layers]) -> None:
    """Attention included, which is written otherwise on the device "meta"."""

    def build() -> Segmenter:
        layer = nn.TransformerEncoderLayer(4, 2, 16, batch_first=True)
        return Segmenter(network(nn.Conv2d(1, 4, 3, padding=1), SelfAttention(6, layer), SelfAttention(6, None)))

    measured = measure_cost(build(), task(), CPU, repeats=1)
    counted = count_cost(build, task())
    assert counted == {key: measured[key] for key in counted}


def test_a_model_that_looks_at_values_while_it_is_built_is_counted() -> None:
    def build() -> Segmenter:
        assert torch.linspace(0, 1, 3)[1].item() == 0.5
        return Segmenter(Layers(nn.Conv2d(1, 3, 1)))

    assert count_cost(build, task())["multiply_accumulates"] == 3 * 48


def test_the_usual_task_is_that_of_the_paper() -> None:
    usual = usual_task((384, 384))
    assert (usual.image_channels, usual.image_size, usual.class_count) == (1, (384, 384), 20)
    assert usual.atlas.ordered
    assert empty_text(usual, torch.device("meta")).tokens.shape == (1, 128, 768)
