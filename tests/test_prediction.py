from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textseg.contracts import Atlas, Case, SegmenterOutput, Structure, Task, TextFeatures
from textseg.data import Slices
from textseg.model import Segmenter
from textseg.placement import Placement
from textseg.prediction import empty_text, measure_cost, predict_case
from textseg.preparation import PreparedCase

CPU = torch.device("cpu")
ATLAS = Atlas("two", (Structure("dark", "part", 1), Structure("bright", "part", 2)))


class Threshold(nn.Module):
    """Class 1 above 1, class 2 above 2; sees the slice as it is, and counts what it is shown."""

    uses_text = False
    size_multiple = 1

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[int] = []

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        assert text is None
        assert not torch.is_grad_enabled()
        self.shown.append(len(image))
        distances = [-(image[:, 0] - value).abs() for value in (0.5, 1.5, 2.5)]
        return SegmenterOutput(10 * torch.stack(distances, dim=1))


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


def blobs(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Smooth labels: a disc of class 1 that moves from slice to slice, in it one of class 2."""
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    labels = np.zeros(shape, np.uint8)
    for index, plane in enumerate(labels):
        distance = np.hypot((rows / shape[1] - 0.5) * 1.1, columns / shape[2] - 0.4 - 0.05 * index)
        plane[distance < 0.3] = 1
        plane[distance < 0.15] = 2
    return labels


def prepared_case(folder: Path, labels: NDArray[np.uint8], placement: Placement, size: tuple[int, int]) -> PreparedCase:
    """A case whose pixels are its class index and a half."""
    mask = placement.prepare(torch.from_numpy(labels), size, labels=True).numpy()
    np.save(folder / "image.npy", (mask + 0.5).astype(np.float16))
    np.save(folder / "mask.npy", mask)
    return PreparedCase(
        case=Case("1", "1", Path("i.mha"), Path("m.mha")),
        folder=folder,
        key="1",
        placement=placement,
        spacing_mm=(4.0, 1.0, 1.0),
        native_spacing_mm=(4.0, 1.0, 1.0),
        intensities=(0.0, 1.0),
        present=tuple(tuple(np.unique(plane[plane > 0]).tolist()) for plane in mask),
        image_hash="",
    )


def task(size: tuple[int, int] = (8, 6), **text: Any) -> Task:
    return Task(image_channels=1, image_size=size, class_count=3, atlas=ATLAS, **text)


@pytest.mark.parametrize(
    ("placement", "size"),
    [
        (Placement(0, 0, 91, 75, (91, 75)), (91, 75)),  # as it is
        (Placement(-5, -12, 101, 99, (91, 75)), (64, 63)),  # reaches beyond, and shrinks
        (Placement(8, 2, 76, 73, (91, 75)), (152, 146)),  # cuts, and grows
    ],
)
def test_a_case_is_predicted_at_both_sizes(tmp_path: Path, placement: Placement, size: tuple[int, int]) -> None:
    labels = blobs((5, 91, 75))
    prepared = prepared_case(tmp_path, labels, placement, size)
    network = Threshold().eval()
    found = predict_case(Segmenter(network), prepared, Slices([prepared], None, {}), device=CPU, batch_size=2)
    assert network.shown == [2, 2, 1]
    assert np.array_equal(found.prepared, prepared.mask)
    assert found.native is not None
    assert found.prepared.dtype == found.native.dtype == np.uint8
    assert found.native.shape == labels.shape
    for index in (1, 2):
        mine, theirs = found.native == index, labels == index
        assert 2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()) > 0.95
    # Wherever nearest neighbours would say something else, it is at a border.
    rows = ((np.arange(91) - placement.top + 0.5) * size[0] / placement.height).astype(int)
    columns = ((np.arange(75) - placement.left + 0.5) * size[1] / placement.width).astype(int)
    inside = np.ix_(range(5), (rows >= 0) & (rows < size[0]), (columns >= 0) & (columns < size[1]))
    nearest = np.zeros_like(labels)
    nearest[inside] = prepared.mask[np.ix_(range(5), rows[inside[1].ravel()], columns[inside[2].ravel()])]
    assert (found.native != nearest).mean() < 0.02
    if placement.native_size == size:
        assert np.array_equal(found.native, labels)
    outside = np.ones_like(labels, dtype=bool)
    outside[inside] = False
    assert not found.native[outside].any()


def test_the_batch_size_does_not_change_the_prediction(tmp_path: Path) -> None:
    prepared = prepared_case(tmp_path, blobs((5, 40, 30)), Placement(-2, -3, 45, 37, (40, 30)), (24, 20))
    slices, segmenter = Slices([prepared], None, {}), Segmenter(Threshold()).eval()
    one, other = (predict_case(segmenter, prepared, slices, device=CPU, batch_size=size) for size in (1, 5))
    assert one.native is not None
    assert other.native is not None
    assert np.array_equal(one.prepared, other.prepared)
    assert np.array_equal(one.native, other.native)


def test_the_native_size_is_computed_only_where_it_is_asked_for(tmp_path: Path) -> None:
    prepared = prepared_case(tmp_path, blobs((2, 40, 30)), Placement(0, 0, 40, 30, (40, 30)), (20, 15))
    slices, segmenter = Slices([prepared], None, {}), Segmenter(Threshold()).eval()
    found = predict_case(segmenter, prepared, slices, device=CPU, batch_size=2, native=False)
    assert found.native is None
    assert np.array_equal(found.prepared, prepared.mask)


def test_the_cost_of_convolutions_and_matrix_products() -> None:
    frozen = nn.Conv2d(4, 3, 1, bias=False).requires_grad_(False)
    network = Layers(nn.Conv2d(1, 4, 3, padding=1), frozen, nn.Linear(6, 6))
    cost = measure_cost(Segmenter(network), task((8, 6)), CPU, repeats=2)
    assert cost["parameters"] == (9 * 4 + 4) + 12 + (36 + 6)
    assert cost["trainable_parameters"] == cost["parameters"] - 12
    assert cost["multiply_accumulates"] == 48 * (9 * 4) + 48 * 12 + 3 * 8 * 36
    assert cost["milliseconds_per_slice"] > 0


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


@pytest.mark.parametrize("first", ["measured", "predicted"])
def test_what_a_network_keeps_of_a_forward_pass_can_be_trained_with(first: str, tmp_path: Path) -> None:
    segmenter = Segmenter(Keeper())
    if first == "measured":
        measure_cost(segmenter, task(), CPU, repeats=1)
    else:
        case = prepared_case(tmp_path, blobs((2, 8, 6)), Placement(0, 0, 8, 6, (8, 6)), (8, 6))
        predict_case(segmenter, case, Slices([case], None, {}), device=CPU, batch_size=2)
    segmenter(torch.zeros(1, 1, 8, 6)).logits.sum().backward()
    assert segmenter.network.layer.weight.grad is not None


class Across(nn.Module):
    """Marks what differs from the middle slice of the volume: any other batch than a whole case would show."""

    uses_text = False
    size_multiple = 1
    batching = "volume"

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 3, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.shown: list[int] = []

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        self.shown.append(len(image))
        volume: Tensor = self.layer(image.transpose(0, 1)[None])[0]
        return SegmenterOutput(volume.transpose(0, 1))


def test_a_network_that_reads_volumes_gets_them_whole(tmp_path: Path) -> None:
    prepared = prepared_case(tmp_path, blobs((5, 40, 30)), Placement(0, 0, 40, 30, (40, 30)), (20, 15))
    segmenter = Segmenter(Across()).eval()
    found = predict_case(segmenter, prepared, Slices([prepared], None, {}), device=CPU, batch_size=2)
    assert segmenter.network.shown == [5]
    assert found.native is not None
    assert (found.prepared.shape, found.native.shape) == ((5, 20, 15), (5, 40, 30))


def test_a_slice_of_a_volume_costs_its_part() -> None:
    segmenter = Segmenter(Across())
    sizes = {"native_sizes": [(3, 9, 9), (6, 9, 9), (20, 9, 9)]}
    cost = measure_cost(segmenter, task((8, 6), fingerprint=sizes), CPU, repeats=1)
    assert set(segmenter.network.shown) == {6}
    assert cost["multiply_accumulates"] == 3 * 3 * 48
    measure_cost(segmenter, task((8, 6)), CPU, repeats=1)
    assert segmenter.network.shown[-1] == 1
