from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textseg.contracts import Atlas, BatchGeometry, Case, SegmenterOutput, Structure, TextFeatures
from textseg.data.preparation import PreparedCase
from textseg.data.slice_geometry import SliceGeometry
from textseg.data.slices import SliceStack
from textseg.inference.slices import predict_case
from textseg.models.segmenter import Segmenter

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


def blobs(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Smooth labels: a disc of class 1 that moves from slice to slice, in it one of class 2."""
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    labels = np.zeros(shape, np.uint8)
    for index, plane in enumerate(labels):
        distance = np.hypot((rows / shape[1] - 0.5) * 1.1, columns / shape[2] - 0.4 - 0.05 * index)
        plane[distance < 0.3] = 1
        plane[distance < 0.15] = 2
    return labels


def prepared_case(
    folder: Path, labels: NDArray[np.uint8], slice_geometry: SliceGeometry, size: tuple[int, int]
) -> PreparedCase:
    """A case whose pixels are its class index and a half."""
    mask = slice_geometry.prepare(torch.from_numpy(labels), size, labels=True).numpy()
    np.save(folder / "image.npy", (mask[:, None] + 0.5).astype(np.float16))
    np.save(folder / "mask.npy", mask)
    return PreparedCase(
        case=Case("1", "1", Path("i.mha"), Path("m.mha")),
        folder=folder,
        key="1",
        slice_geometry=slice_geometry,
        spacing_mm=(4.0, 1.0, 1.0),
        native_spacing_mm=(4.0, 1.0, 1.0),
        intensities=((0.0, 1.0),),
        present=tuple(tuple(np.unique(plane[plane > 0]).tolist()) for plane in mask),
        image_hash="",
    )


@pytest.mark.parametrize(
    ("slice_geometry", "size"),
    [
        (SliceGeometry(0, 0, 91, 75, (91, 75)), (91, 75)),  # as it is
        (SliceGeometry(-5, -12, 101, 99, (91, 75)), (64, 63)),  # reaches beyond, and shrinks
        (SliceGeometry(8, 2, 76, 73, (91, 75)), (152, 146)),  # cuts, and grows
    ],
)
def test_a_case_is_predicted_at_both_sizes(
    tmp_path: Path, slice_geometry: SliceGeometry, size: tuple[int, int]
) -> None:
    labels = blobs((5, 91, 75))
    prepared = prepared_case(tmp_path, labels, slice_geometry, size)
    network = Threshold().eval()
    result = predict_case(Segmenter(network), prepared, SliceStack(prepared.image), device=CPU, batch_size=2)
    assert network.shown == [2, 2, 1]
    assert np.array_equal(result.prepared, prepared.mask)
    assert result.native is not None
    assert result.prepared.dtype == result.native.dtype == np.uint8
    assert result.native.shape == labels.shape
    for index in (1, 2):
        actual, theirs = result.native == index, labels == index
        assert 2 * (actual & theirs).sum() / (actual.sum() + theirs.sum()) > 0.95
    # Wherever nearest neighbours would say something else, it is at a border.
    rows = ((np.arange(91) - slice_geometry.top + 0.5) * size[0] / slice_geometry.height).astype(int)
    columns = ((np.arange(75) - slice_geometry.left + 0.5) * size[1] / slice_geometry.width).astype(int)
    inside = np.ix_(range(5), (rows >= 0) & (rows < size[0]), (columns >= 0) & (columns < size[1]))
    nearest = np.zeros_like(labels)
    nearest[inside] = prepared.mask[np.ix_(range(5), rows[inside[1].ravel()], columns[inside[2].ravel()])]
    assert (result.native != nearest).mean() < 0.02
    if slice_geometry.native_size == size:
        assert np.array_equal(result.native, labels)
    outside = np.ones_like(labels, dtype=bool)
    outside[inside] = False
    assert not result.native[outside].any()


def test_the_batch_size_does_not_change_the_prediction(tmp_path: Path) -> None:
    prepared = prepared_case(tmp_path, blobs((5, 40, 30)), SliceGeometry(-2, -3, 45, 37, (40, 30)), (24, 20))
    stack, segmenter = SliceStack(prepared.image), Segmenter(Threshold()).eval()
    first, second = (predict_case(segmenter, prepared, stack, device=CPU, batch_size=size) for size in (1, 5))
    assert first.native is not None
    assert second.native is not None
    assert np.array_equal(first.prepared, second.prepared)
    assert np.array_equal(first.native, second.native)


class NextSlice(Threshold):
    """Predicts each slice by the one after it, and keeps the positions that it is given."""

    reads_geometry, context_slices = True, 3

    def __init__(self) -> None:
        super().__init__()
        self.positions: list[Tensor] = []

    def forward(self, image: Tensor, text: TextFeatures | None, geometry: BatchGeometry) -> SegmenterOutput:
        self.positions.append(geometry.position)
        return super().forward(image[:, 2:], text)


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_a_prediction_reads_neighbours_and_positions(batch_size: int, tmp_path: Path) -> None:
    prepared = prepared_case(tmp_path, blobs((5, 40, 30)), SliceGeometry(0, 0, 40, 30, (40, 30)), (40, 30))
    network = NextSlice().eval()
    stack = SliceStack(prepared.image, spacing_mm=prepared.spacing_mm)
    result = predict_case(Segmenter(network), prepared, stack, device=CPU, batch_size=batch_size)
    assert np.array_equal(result.prepared, prepared.mask[[1, 2, 3, 4, 4]])
    assert torch.cat(network.positions).tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_the_native_size_is_computed_only_where_it_is_asked_for(tmp_path: Path) -> None:
    prepared = prepared_case(tmp_path, blobs((2, 40, 30)), SliceGeometry(0, 0, 40, 30, (40, 30)), (20, 15))
    stack, segmenter = SliceStack(prepared.image), Segmenter(Threshold()).eval()
    result = predict_case(segmenter, prepared, stack, device=CPU, batch_size=2, native=False)
    assert result.native is None
    assert np.array_equal(result.prepared, prepared.mask)


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


def test_what_a_network_keeps_of_a_forward_pass_can_be_trained_with(tmp_path: Path) -> None:
    segmenter = Segmenter(Keeper())
    case = prepared_case(tmp_path, blobs((2, 8, 6)), SliceGeometry(0, 0, 8, 6, (8, 6)), (8, 6))
    predict_case(segmenter, case, SliceStack(case.image), device=CPU, batch_size=2)
    segmenter(torch.zeros(1, 1, 8, 6)).logits.sum().backward()
    assert segmenter.network.layer.weight.grad is not None


def test_a_network_that_reads_volumes_gets_them_whole(across: type[nn.Module], tmp_path: Path) -> None:
    prepared = prepared_case(tmp_path, blobs((5, 40, 30)), SliceGeometry(0, 0, 40, 30, (40, 30)), (20, 15))
    segmenter = Segmenter(across()).eval()
    result = predict_case(segmenter, prepared, SliceStack(prepared.image), device=CPU, batch_size=2)
    assert segmenter.network.shown == [5]
    assert result.native is not None
    assert (result.prepared.shape, result.native.shape) == ((5, 20, 15), (5, 40, 30))
