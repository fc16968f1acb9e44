from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from textseg.contracts import Atlas, SegmenterOutput, Structure, TextFeatures, Visibility
from textseg.data.preparation import PreparedCase
from textseg.data.slices import SliceStack
from textseg.inference.slices import slice_logits
from textseg.inference.structure_finder import find_structures, predicted_visibility, write_visible
from textseg.models.segmenter import Segmenter

MakeCase = Callable[..., PreparedCase]


class Painted(nn.Module):
    """Says of every pixel what the image's own value is, with a probability of choice."""

    uses_text, size_multiple = False, 1

    def __init__(self, classes: int, sure: dict[int, float]) -> None:
        super().__init__()
        self.classes, self.sure = classes, sure

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        label = image[:, 0].long()
        probability = torch.full((len(image), self.classes, *image.shape[2:]), 1e-9)
        for index in range(self.classes):
            share = self.sure.get(index, 1.0)
            probability[:, index][label == index] = share
            probability[:, 0 if index else 1][label == index] += 1 - share
        return SegmenterOutput(probability.log())


def test_confidence_is_the_mean_probability_and_islands_count_little(small_atlas: Atlas) -> None:
    images = torch.zeros(2, 1, 12, 10)
    images[0, :, :4] = 1  # L2: 40 voxels
    images[1, 0, 0, 0] = 2  # L1: one voxel, of a group whose median is 20.5
    images[1, :, 5:8, :4] = 4  # the canal, alone in its group
    segmenter = Segmenter(Painted(5, {1: 0.9, 2: 0.8, 4: 0.7})).eval()
    logits = slice_logits(segmenter, SliceStack(images.numpy()), device=torch.device("cpu"), batch_size=1)
    result = find_structures(logits, small_atlas)
    assert result["L2"] == pytest.approx(0.9, abs=1e-6)
    assert result["L1"] == pytest.approx(0.8 / (0.25 * 20.5), abs=1e-6)
    assert result["SC"] == pytest.approx(0.7, abs=1e-6)
    assert result["L1/L2"] == 0.0


def row_of(count: int) -> Atlas:
    names = tuple(f"V{i}" for i in range(count))
    return Atlas("row", tuple(Structure(name, "vertebra", i) for i, name in enumerate(names, 1)), names)


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [
        ([0.1, 0.9, 0.9, 0.2, 0.0], "V1 V2"),
        ([0.1, 0.9, 0.4, 0.9, 0.0], "V1 V2 V3"),  # a gap between sure ones is bridged
        ([0.9, 0.0, 0.0, 0.9, 0.9], "V3 V4"),  # an island far away is left off
        ([0.6, 0.9, 0.9, 0.9, 0.51], "V0 V1 V2 V3 V4"),
        ([0.1, 0.2, 0.1, 0.0, 0.0], "V0 V1 V2 V3 V4"),  # nothing found: as the template
    ],
)
def test_the_row_is_the_stretch_that_agrees_most(confidence: list[float], expected: str) -> None:
    atlas = row_of(5)
    result = predicted_visibility(dict(zip(atlas.names, confidence, strict=True)), atlas, 0.5, {"sex": "male"})
    assert " ".join(result.visible) == expected
    assert (result.source, result.scope, result.facts) == ("predicted", "volume", {"sex": "male"})


def test_the_stretch_is_the_best_of_all_by_brute_force() -> None:
    atlas, chance = row_of(8), torch.Generator().manual_seed(0)
    for _ in range(200):
        confidence = torch.rand(8, generator=chance).tolist()
        margins = [value - 0.4 for value in confidence]
        best = max(sum(margins[i:j]) for i in range(8) for j in range(i + 1, 9))
        result = predicted_visibility(dict(zip(atlas.names, confidence, strict=True)), atlas, 0.4)
        if best > 0:
            assert sum(margins[atlas.names.index(name)] for name in result.visible) == pytest.approx(best)


def test_without_a_row_each_structure_stands_for_itself() -> None:
    atlas = Atlas("heart", tuple(Structure(n, "part", i) for i, n in enumerate(("LV", "RV", "MYO"), 1)))
    confidence = {"LV": 0.9, "RV": 0.2, "MYO": 0.6}
    assert predicted_visibility(confidence, atlas, 0.5).visible == ("LV", "MYO")
    assert predicted_visibility(confidence, atlas, 0.7).visible == ("LV",)


def test_what_was_said_stands_beside_what_is_annotated(
    prepared_case: MakeCase, small_atlas: Atlas, tmp_path: Path
) -> None:
    right = prepared_case("right", [(2, 4), (3, 4)])
    wrong = prepared_case("wrong", [(1, 2, 3, 4)])
    stated = [(case, Visibility(("L1", "L1/L2", "SC"), "predicted", "volume")) for case in (right, wrong)]
    counts = write_visible(tmp_path / "visible.csv", small_atlas, stated)
    assert counts == {"cases": 2, "first_right": 2, "last_right": 1, "all_right": 1}
    with (tmp_path / "visible.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"case": "right", "visible": "L1:L1/L2", "annotated": "L1:L1/L2"},
        {"case": "wrong", "visible": "L1:L1/L2", "annotated": "L1:L2"},
    ]
